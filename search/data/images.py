"""Reading and writing picture files, and conversion between arrays and tensors in [0, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas.files import replacing

if TYPE_CHECKING:
    import numpy as np


class NotAPictureError(ValueError):
    """The file is not in a picture format that can be read."""


def read_picture(path: Path) -> np.ndarray:
    """The pixels of a picture file, upright: (height, width) or (height, width, 2..4), uint8 or uint16.

    Floats in [0, 1] become 16 bits; of several frames the first is read.

    Raises:
        NotAPictureError: the file is not a picture.
        ValueError: the file is a picture, but truncated or damaged.
        OSError: the file is missing or cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    with path.open("rb") as data:
        try:
            picture = ImageOps.exif_transpose(Image.open(data))
        except UnidentifiedImageError:
            raise NotAPictureError(f"{path} is not a picture") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
            raise ValueError(f"the picture {path} is truncated, damaged or too large ({_line(problem)})") from None
    if picture.mode.startswith("I"):  # 16 bit grey, in one of Pillow's spellings
        return np.asarray(picture).clip(0, 65535).astype(np.uint16)
    if picture.mode == "F":
        pixels = np.asarray(picture)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"the picture {path} has values outside of [0, 1]")
        deep: np.ndarray = np.rint(pixels * 65535).astype(np.uint16)
        return deep
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode not in ("L", "LA", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return np.array(picture)


def read_folder(folder: Path, skipped: list[str]) -> Iterator[tuple[Path, np.ndarray]]:
    """The picture files of a folder (not of its subfolders) with their pixels, in the order of their names.

    The names of other files are added to ``skipped``. Errors as of `read_picture`.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            yield path, read_picture(path)
        except NotAPictureError:
            skipped.append(path.name)


def warn_of_skipped(names: Sequence[str], root: Path) -> None:
    """Warn, with their number, of files that are no pictures, if there are any."""
    if names:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        warnings.warn(f"skipped {len(names)} files in {root} that are not pictures: {some}", stacklevel=3)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (height, width) or (height, width, 1..4) pixels of type uint8 or uint16; the suffix names the format.

    16 bits become 8 where the format cannot hold them.

    Raises:
        ValueError: the suffix names no format that can hold these pixels.
    """
    import numpy as np
    from PIL import Image

    suffix = path.suffix.lower()
    if pixels.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        pixels = np.rint(pixels / 257).astype(np.uint8)

    def save(temporary: Path) -> None:
        try:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, Image.registered_extensions()[suffix])
        except (KeyError, OSError) as problem:
            raise ValueError(f"cannot write {path}: choose a suffix such as .png ({_line(problem)})") from None

    replacing(path, save)


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def to_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """Pixels as a float32 tensor (channels, height, width) in [0, 1].

    Args:
        pixels: integers of any depth or floats in [0, 1]; (height, width) or (height, width, 1..4), where a second
            or fourth channel (alpha) is left out.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated).
    """
    from skimage import color, util

    colours = split_alpha(util.img_as_float32(pixels))[0]
    if colours.shape[-1] == 3 and channels == 1:
        colours = color.rgb2gray(colours)[..., None]
    return torch.from_numpy(colours).permute(2, 0, 1).clamp(0, 1).expand(channels, -1, -1).contiguous()


def to_bytes(pixels: np.ndarray, channels: int) -> Tensor:
    """The same, rounded to 8 bits: a uint8 tensor (channels, height, width)."""
    import numpy as np

    colours = split_alpha(pixels)[0]
    if colours.dtype == np.uint8 and colours.shape[-1] == channels:
        return torch.from_numpy(colours).permute(2, 0, 1)
    return (to_tensor(pixels, channels) * 255).round().to(torch.uint8)


def to_array(picture: Tensor) -> np.ndarray:
    """A tensor (1 or 3, height, width), clamped to [0, 1], as uint8 pixels (height, width) or (height, width, 3)."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()


def split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(height, width, 1 or 3) colours and (height, width, 0 or 1) alpha."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = 1 if pixels.shape[-1] < 3 else 3
    return pixels[..., :colours], pixels[..., colours:]
