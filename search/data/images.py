"""Pictures as arrays and as tensors in [0, 1], and the files that a search reads and writes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas.search.data.formats.files import read_sheet, write_sheet
from nas.search.data.formats.sheet import CMYK, GREY, PLANES, RGB, Sheet
from nas.search.data.formats.values import UnusableError, Values

if TYPE_CHECKING:
    import numpy as np


def read_picture(path: Path, given: tuple[float, float] | None = None) -> np.ndarray:
    """The pixels of a picture file, upright, to learn from: (height, width) or (height, width, 2..4).

    uint8 or uint16 as in the file where black is 0 and white the highest number, else float32, black 0 and white 1.
    Of several frames the first is read, with a warning.

    Args:
        path: the file.
        given: values that are black and white, where the file does not say so.

    Raises:
        NotAPictureError: the file is not a picture.
        ValueError: the file is a picture, but truncated or damaged, or neither grey nor colour.
        OSError: the file is missing or cannot be read.
    """
    sheet = read_sheet(path, given=given)
    if sheet.space not in (GREY, RGB, CMYK):
        raise UnusableError(f"the picture {path} holds {sheet.colours} channels; grey and colour can be learnt from")
    if len(sheet.frames) > 1:
        warnings.warn(f"{path} holds {len(sheet.frames)} pictures; the first is used", stacklevel=2)
    pixels = plain(sheet)
    return pixels if pixels.flags.writeable else pixels.copy()


def plain(sheet: Sheet) -> np.ndarray:
    """The first frame as `read_picture` returns it; inks become RGB, and of channels that are no colours the first."""
    import numpy as np

    pixels, values = sheet.frames[0], sheet.values
    if sheet.space == PLANES:
        return values.to_unit(pixels[..., 0])
    full = {"uint8": 255.0, "uint16": 65535.0}.get(pixels.dtype.name)
    if (values.black, values.white) != (0.0, full) or sheet.space == CMYK:
        colours, alpha = values.to_unit(pixels[..., : sheet.colours]), pixels[..., sheet.colours :]
        if sheet.space == CMYK:
            colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
        opaque = np.float32(np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1)
        pixels = np.concatenate([colours, alpha.astype(np.float32) / opaque], axis=2)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, in the order of their names, without hidden ones.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    next(folder.iterdir(), None)  # unlike rglob it says if there is none
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


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
        OSError: the file cannot be written.
    """
    colours, alpha = split_alpha(pixels)
    values = Values.between(0, 255 if pixels.dtype.itemsize == 1 else 65535)
    frame = pixels[..., None] if pixels.ndim == 2 else pixels
    space = GREY if colours.shape[-1] == 1 else RGB
    write_sheet(Sheet(str(path), path.suffix, (frame,), space, alpha.shape[-1] > 0, values), path)


def to_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """Pixels as a float32 tensor (channels, height, width), black 0 and white 1.

    Args:
        pixels: integers of any depth, or floats, whose values beyond black and white (noise has them) are kept;
            (height, width) or (height, width, 1..4), where a second or fourth channel (alpha) is left out.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated).
    """
    import numpy as np
    from skimage import color, util

    colours = split_alpha(pixels if pixels.dtype == np.float32 else util.img_as_float32(pixels))[0]
    if colours.shape[-1] == 3 and channels == 1:
        colours = color.rgb2gray(colours)[..., None]
    return torch.from_numpy(colours).permute(2, 0, 1).expand(channels, -1, -1).contiguous()


def to_bytes(pixels: np.ndarray, channels: int) -> Tensor:
    """The same, rounded to 8 bits: a uint8 tensor (channels, height, width)."""
    import numpy as np

    colours = split_alpha(pixels)[0]
    if colours.dtype == np.uint8 and colours.shape[-1] == channels:
        return torch.from_numpy(colours).permute(2, 0, 1)
    return (to_tensor(pixels, channels).clamp(0, 1) * 255).round().to(torch.uint8)


def to_array(picture: Tensor) -> np.ndarray:
    """A tensor (1 or 3, height, width), clamped to [0, 1], as uint8 pixels (height, width) or (height, width, 3)."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()


def split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(height, width, 1 or 3) colours and (height, width, 0 or 1) alpha."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = 1 if pixels.shape[-1] < 3 else 3
    return pixels[..., :colours], pixels[..., colours:]
