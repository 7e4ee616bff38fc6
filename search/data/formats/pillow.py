"""Picture files through Pillow: everything but scientific TIFF."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from nas.search.data.formats.exif import split_orientation
from nas.search.data.formats.sheet import CMYK, GREY, RGB, Extras, NotAPictureError, Sheet, damaged, turn_upright
from nas.search.data.formats.values import UnusableError, find_values

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 2**31  # of one frame; beyond it a file is taken for a trap
SPACES = {
    "L": (GREY, False), "LA": (GREY, True), "RGB": (RGB, False), "RGBA": (RGB, True), "CMYK": (CMYK, False),
    "I": (GREY, False), "F": (GREY, False), "I;16": (GREY, False), "I;16B": (GREY, False), "I;16L": (GREY, False),
    "I;16N": (GREY, False),
}  # fmt: skip
CHANGED = {  # mode of Pillow: mode that it is read as, and what is said
    "1": ("L", "its 1 bit a pixel becomes 8"), "La": ("LA", ""), "RGBa": ("RGBA", ""), "RGBX": ("RGB", ""),
    "YCbCr": ("RGB", "its colours become RGB"), "HSV": ("RGB", "its colours become RGB"),
    "P": ("RGB", "its palette becomes true colour"), "PA": ("RGBA", "its palette becomes true colour"),
}  # fmt: skip
ONE_OF = {"MPO": "the other pictures", "PSD": "the layers", "ICO": "the other sizes", "ICNS": "the other sizes"}
ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}
WRITTEN = {  # format of Pillow: the modes that it holds
    "PNG": {"L", "LA", "RGB", "RGBA", "I;16"}, "JPEG": {"L", "RGB", "CMYK"}, "WEBP": {"RGB", "RGBA"},
    "AVIF": {"RGB", "RGBA"}, "GIF": {"L", "RGB", "RGBA"}, "JPEG2000": {"L", "LA", "RGB", "RGBA", "I;16"},
    "BMP": {"L", "RGB"}, "TGA": {"L", "LA", "RGB", "RGBA"}, "PPM": {"L", "RGB", "I;16"},
    "SGI": {"L", "RGB", "RGBA"}, "PCX": {"L", "RGB"}, "QOI": {"RGB", "RGBA"},
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}  # fmt: skip
KEPT = {  # what else they hold
    "PNG": {"icc", "exif", "xmp", "dpi", "texts", "comment"},
    "JPEG": {"icc", "exif", "xmp", "dpi", "comment"}, "WEBP": {"icc", "exif", "xmp"},
    "AVIF": {"icc", "exif", "xmp"}, "BMP": {"dpi"}, "GIF": {"comment"}, "JPEG2000": {"comment"},
}  # fmt: skip
SPOKEN = {
    "icc": "colour profile", "exif": "EXIF data", "xmp": "XMP data", "dpi": "resolution", "texts": "texts",
    "comment": "comment",
}  # fmt: skip
XMP_IN_PNG = "XML:com.adobe.xmp"
LONGEST = 65_000  # bytes of EXIF or XMP data in a JPEG file


def read(stream: IO[bytes], name: str, given: tuple[float, float] | None = None, inverted: bool = False) -> Sheet:
    """What a picture file holds.

    Args:
        stream: at its beginning.
        name: of the file, for sentences.
        given: which values are black and white.
        inverted: white is 0, which Pillow does not know.

    Raises:
        NotAPictureError: the file is not a picture.
        UnusableError: it is one, but with values or colours that cannot be used.
        ValueError: it is truncated, damaged or too large.
        OSError: it cannot be read.
    """
    from PIL import UnidentifiedImageError

    with _without_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF data that Pillow does not understand: they stay as they are
        try:
            return _read(stream, name, given, inverted)
        except UnidentifiedImageError:
            raise NotAPictureError(f"{name} is not a picture") from None
        except (UnusableError, MemoryError):
            raise
        except Exception as problem:  # whatever damaged bytes make a decoder raise
            if isinstance(problem, OSError) and problem.errno is not None:
                raise
            raise damaged(name, problem) from None


def _read(stream: IO[bytes], name: str, given: tuple[float, float] | None, inverted: bool) -> Sheet:
    import numpy as np
    from PIL import Image

    picture = Image.open(stream)
    format, count = picture.format or "", getattr(picture, "n_frames", 1)
    depth = _depth_not_read(picture, stream)
    images, durations = _frames(picture, 1 if format in ONE_OF else count)
    mode, note = _common_mode(images, name)
    notes = [note, f"{ONE_OF[format]} in it are left out" if count > 1 and format in ONE_OF else "", depth]
    space, alpha = SPACES[mode]
    extras, orientation = _extras(picture, durations)
    arrays = [np.asarray(image if image.mode == mode else image.convert(mode)) for image in images]
    frames = tuple(_native(turn_upright(array, orientation)) for array in arrays)
    coloured = [frame[..., : frame.shape[2] - alpha] for frame in frames]
    values, assumed = find_values(coloured, name, inverted=inverted, given=given)
    suffix = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "PPM": ".ppm"}.get(format)
    suffix = suffix or f".{format.lower()}"
    return Sheet(name, suffix, frames, space, alpha, values, extras, (*filter(None, notes), *assumed))


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow takes files of more than 0.18 gigapixels for traps."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _frames(picture: Image, count: int) -> tuple[list[Image], tuple[int, ...]]:
    """The frames, and for how many milliseconds each is shown."""
    if count == 1:
        picture.load()
        return [picture], ()
    images, durations = [], []
    for k in range(count):
        picture.seek(k)
        images.append(picture.copy())
        durations.append(round(picture.info.get("duration", 0)))
    return images, tuple(durations)


def _common_mode(images: list[Image], name: str) -> tuple[str, str]:
    """The mode that holds all frames, and what that changes."""
    if any(image.has_transparency_data for image in images):
        wide = "LA" if all(image.mode in ("1", "L", "LA", "La") for image in images) else "RGBA"
    else:
        wide = ""
    modes = {image.mode for image in images}
    note = next((CHANGED[mode][1] for mode in sorted(modes) if mode in CHANGED), "")
    read_as = {CHANGED[mode][0] if mode in CHANGED else mode for mode in modes}
    mode = wide or (read_as.pop() if len(read_as) == 1 else "RGB")
    if modes & {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}:
        mode, extra = sorted(modes)[0], "its transparent colour is left out" if wide else ""
        note = note or extra
    if mode not in SPACES:
        raise UnusableError(f"the picture {name} has the colours {mode}; turn it into RGB first")
    return mode, note


def _native(pixels: np.ndarray) -> np.ndarray:
    """(height, width, channels) in the byte order of this machine, in one piece."""
    import numpy as np

    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _depth_not_read(picture: ImageFile, stream: IO[bytes]) -> str:
    """What is said where Pillow reads fewer bits than there are."""
    deep = picture.mode not in ("I", "F") and not picture.mode.startswith("I;16")
    bits = 8
    if deep and picture.format == "JPEG2000":
        bits = _bits_of_jpeg2000(stream)
    elif deep and picture.format == "AVIF":
        bits = _bits_of_avif(stream)
    elif deep and picture.format == "PPM":
        maximum = picture.tile[0][3][-1] if picture.tile and isinstance(picture.tile[0][3], tuple) else 255
        bits = int(maximum).bit_length() if isinstance(maximum, int) else 8
    elif deep and picture.format in ("PNG", "SGI", "TIFF"):
        bits = 16 if any(";16" in str(tile[3]) for tile in picture.tile) else 8
    return f"its colours of {bits} bits are read with 8" if bits > 8 else ""


def _head(stream: IO[bytes], size: int = 4096) -> bytes:
    place = stream.tell()
    stream.seek(0)
    head = stream.read(size)
    stream.seek(place)
    return head


def _bits_of_jpeg2000(stream: IO[bytes]) -> int:
    head = _head(stream)
    start = head.find(b"\xff\x4f\xff\x51")  # start of the code stream and its sizes; bits are 40 bytes further
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 8


def _bits_of_avif(stream: IO[bytes]) -> int:
    head = _head(stream)
    start = head.find(b"av1C")
    flags = head[start + 6] if 0 <= start < len(head) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _extras(picture: Image, durations: tuple[int, ...]) -> tuple[Extras, int]:
    """What else the file holds, as it is after turning it upright, and its orientation."""
    info = picture.info
    exif, orientation = info.get("exif"), 1
    if isinstance(exif, bytes) and exif:
        orientation, exif = split_orientation(exif.removeprefix(b"Exif\x00\x00"))
    if picture.format == "TIFF":
        orientation = 1  # Pillow has turned it
    xmp, icc = info.get("xmp"), info.get("icc_profile")
    if isinstance(xmp, bytes):
        xmp = _upright_xmp(xmp)
    texts = {key: str(text) for key, text in getattr(picture, "text", {}).items() if key != XMP_IN_PNG}
    comment = info.get("comment")
    dpi = _dpi(info.get("dpi"))
    if dpi is not None and orientation > 4:
        dpi = dpi[::-1]
    return Extras(
        icc=icc if isinstance(icc, bytes) and icc else None,
        exif=exif if isinstance(exif, bytes) and exif else None,
        xmp=xmp if isinstance(xmp, bytes) and xmp else None,
        dpi=dpi,
        texts=texts,
        comment=comment if isinstance(comment, bytes) and comment else None,
        durations=durations if any(durations) else (),
        loop=info.get("loop") if isinstance(info.get("loop"), int) else None,
    ), orientation


def _upright_xmp(xmp: bytes) -> bytes:
    import re

    return re.sub(rb'tiff:Orientation(="|>)[2-8]', rb"tiff:Orientation\g<1>1", xmp)


def _dpi(dpi: Any) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < math.inf and 0 < vertical < math.inf else None


def known_suffixes() -> set[str]:
    """Suffixes of formats that Pillow reads or writes."""
    from PIL import Image

    return set(Image.registered_extensions())


def format_of(suffix: str) -> str | None:
    """Pillow's name of the format that a suffix names; None where it cannot be written."""
    from PIL import Image

    format = Image.registered_extensions().get(suffix.lower())
    return format if format in WRITTEN else None


def write(sheet: Sheet, stream: IO[bytes], suffix: str) -> list[str]:
    """Write a picture file; returns what it could not hold, in words.

    Raises:
        ValueError: the format cannot be written, or cannot hold these frames or channels.
        OSError: the stream cannot be written.
    """
    format = format_of(suffix)
    if format is None:
        raise ValueError(
            f"pictures {suffix or 'without suffix'} cannot be written: choose a suffix such as .png or .tif"
        )
    if len(sheet.frames) > 1 and format not in ANIMATED:
        raise ValueError(
            f"{sheet.name} holds {len(sheet.frames)} pictures and a file {suffix} holds one: choose .tif, .png, .gif"
            " or .webp"
        )
    images, notes = _images(sheet, format, suffix)
    kept, lost = _options(sheet.extras, format, images[0].mode, sheet.space)
    if lost:
        notes.append(f"a file {suffix} does not keep its {' and '.join(lost)}")
    if len(images) > 1:
        kept |= {"save_all": True, "append_images": images[1:], "loop": sheet.extras.loop or 0}
        kept |= {"duration": list(sheet.extras.durations)} if sheet.extras.durations else {}
    try:
        images[0].save(stream, format, **OPTIONS.get(format, {}), **kept)
    except MemoryError:
        raise
    except Exception as problem:  # whatever encoders raise, such as for more pixels than their format counts
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise ValueError(f"a file {suffix} cannot hold it ({' '.join(str(problem).split())})") from None
    return notes


def _images(sheet: Sheet, format: str, suffix: str) -> tuple[list[Image], list[str]]:
    """The frames in a mode that the format holds, and what that changes."""
    from PIL import Image

    if sheet.space not in (GREY, RGB, CMYK):
        raise ValueError(f"a file {suffix} holds no {sheet.frames[0].shape[2]} channels: choose .tif")
    modes, notes, dtype = WRITTEN[format], [], sheet.frames[0].dtype
    deep = dtype.name != "uint8" and sheet.space == GREY and not sheet.alpha and "I;16" in modes
    if dtype.name not in (("uint8", "uint16") if deep else ("uint8",)):
        notes.append(f"its values of type {dtype.name} become integers of {16 if deep else 8} bits")
    frames = [_integers(frame, sheet, 16 if deep else 8) for frame in sheet.frames]
    if sheet.space == GREY:
        frames = [frame[..., 0] if not sheet.alpha else frame for frame in frames]
    images = [
        Image.fromarray(frame, mode="CMYK") if sheet.space == CMYK else Image.fromarray(frame) for frame in frames
    ]
    if images[0].mode == "CMYK" and "CMYK" not in modes:
        notes.append("its inks become RGB")
        images = [image.convert("RGB") for image in images]
    if images[0].mode not in modes and images[0].mode in ("LA", "RGBA") and not {"LA", "RGBA"} & modes:
        notes.append(f"a file {suffix} holds no transparency")
        images = [image.convert("L" if sheet.space == GREY else "RGB") for image in images]
    if images[0].mode not in modes:
        images = [image.convert("RGBA" if image.mode == "LA" else "RGB") for image in images]
    if format == "GIF" and images[0].mode != "L":
        notes.append("a file .gif holds 256 colours")
    return images, notes


def _integers(frame: np.ndarray, sheet: Sheet, bits: int) -> np.ndarray:
    """A frame as integers of 8 or 16 bits: as they are where they fit, else from black 0 to white."""
    import numpy as np

    dtype, values = np.dtype(f"uint{bits}"), sheet.values
    if frame.dtype == dtype and values.black == 0:
        return frame
    colours = values.to_unit(frame[..., : sheet.colours]).clip(0, 1)
    full = np.rint(colours * np.float32(2**bits - 1)).astype(dtype)
    if not sheet.alpha:
        return full
    alpha = frame[..., sheet.colours :] / (np.iinfo(frame.dtype).max if frame.dtype.kind in "ui" else 1)
    return np.concatenate([full, np.rint(alpha * (2**bits - 1)).astype(dtype)], axis=2)


def _options(extras: Extras, format: str, mode: str, space: str) -> tuple[dict[str, Any], list[str]]:
    """What is handed to Pillow, and what is lost of it."""
    from PIL import PngImagePlugin

    present = {name for name in SPOKEN if getattr(extras, name)}
    lost = present - KEPT.get(format, set())
    if format == "JPEG":
        lost |= {name for name in ("exif", "xmp") if len(getattr(extras, name) or b"") > LONGEST}
    if (space == CMYK) != (mode == "CMYK"):
        lost |= {"icc"} & present
    kept = present - lost
    names = {"icc": "icc_profile"}
    options = {names.get(name, name): getattr(extras, name) for name in sorted(kept - {"texts", "exif"})}
    if "exif" in kept:
        options["exif"] = b"Exif\x00\x00" + (extras.exif or b"")
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        xmp, comment = options.pop("xmp", None), options.pop("comment", None)
        texts = {**extras.texts, **({XMP_IN_PNG: xmp} if xmp else {}), **({"Comment": comment} if comment else {})}
        for key, text in texts.items():
            chunks.add_itxt(key, text if isinstance(text, str) else text.decode("utf-8", "replace"))
        options["pnginfo"] = chunks
    return options, [SPOKEN[name] for name in SPOKEN if name in lost]
