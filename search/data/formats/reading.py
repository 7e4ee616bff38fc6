"""Reading picture files through Pillow: everything but TIFF, and what of TIFF tifffile does not decode by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from nas.search.data.formats.deep import is_deep, read_deep
from nas.search.data.formats.exif import split_orientation
from nas.search.data.formats.quiet import QUIET
from nas.search.data.formats.sheet import CMYK, GREY, RGB, Extras, NotAPictureError, Sheet, damaged, turn_upright
from nas.search.data.formats.values import UnusableError, find_values

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SPACES = {
    "L": (GREY, False), "LA": (GREY, True), "RGB": (RGB, False), "RGBA": (RGB, True), "CMYK": (CMYK, False),
    "I": (GREY, False), "F": (GREY, False), "I;16": (GREY, False), "I;16B": (GREY, False), "I;16L": (GREY, False),
    "I;16N": (GREY, False),
}  # fmt: skip
DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
CHANGED = {  # mode of Pillow: mode that it is read as, and what is said
    "1": ("L", "its 1 bit a pixel becomes 8"), "La": ("LA", ""), "RGBa": ("RGBA", ""), "RGBX": ("RGB", ""),
    "YCbCr": ("RGB", "its colours become RGB"), "HSV": ("RGB", "its colours become RGB"),
    "P": ("RGB", "its palette becomes true colour"), "PA": ("RGBA", "its palette becomes true colour"),
}  # fmt: skip
ONE_OF = {
    "MPO": "the other pictures",
    "PPM": "the other pictures",
    "PSD": "the layers",
    "ICO": "the other sizes",
    "ICNS": "the other sizes",
}
XMP_IN_PNG = "XML:com.adobe.xmp"
CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")  # of PNG files, that are written again as they are
FEW_BITS = {"L;2": 2, "L;4": 4}  # kinds of grey of which Pillow makes 8 bits


def read(
    stream: IO[bytes],
    name: str,
    given: tuple[float, float] | None = None,
    inverted: bool = False,
    full: float | None = None,
) -> Sheet:
    """What a picture file holds.

    Args:
        stream: at its beginning.
        name: of the file, for sentences.
        given: which values are black and white.
        inverted: white is 0, which Pillow does not know.
        full: the largest integer that it can hold, if Pillow does not know that either.

    Raises:
        NotAPictureError: the file is not a picture.
        UnusableError: it is one, but with values or colours that cannot be used.
        ValueError: it is truncated, damaged or too large.
        OSError: it cannot be read.
    """
    with _in_sentences(name):
        return _read(stream, name, given, inverted, full)


def read_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Height and width as of `read`, from what stands before the pixels, which are not decoded; errors as of `read`."""
    from PIL import Image

    with _in_sentences(name):
        picture = Image.open(stream)
        orientation, _ = _exif(picture)
        return picture.size if orientation > 4 else picture.size[::-1]


@contextmanager
def _in_sentences(name: str) -> Iterator[None]:
    """What Pillow raises becomes a sentence about the file ``name``."""
    from PIL import UnidentifiedImageError

    with QUIET:
        try:
            yield
        except UnidentifiedImageError:
            raise NotAPictureError(f"{name} is not a picture") from None
        except (UnusableError, MemoryError):
            raise
        except Exception as problem:  # whatever damaged bytes make a decoder raise
            if isinstance(problem, OSError) and problem.errno is not None:
                raise
            raise damaged(name, problem) from None


def _read(stream: IO[bytes], name: str, given: tuple[float, float] | None, inverted: bool, full: float | None) -> Sheet:
    import numpy as np
    from PIL import Image

    picture = Image.open(stream)
    format, count = picture.format or "", getattr(picture, "n_frames", 1)
    of_netpbm = _full_of_netpbm(picture) if picture.mode in DEEP else None
    several = count > 1 or _goes_on(picture, stream)
    left_out = f"{ONE_OF[format]} in it are left out" if several and format in ONE_OF else ""
    arrays, mode, durations, notes = _pixels(picture, stream, 1 if left_out else count, name)
    space, alpha = SPACES[mode]
    extras, orientation = _extras(picture, durations)
    extras = replace(extras, chunks=_chunks(stream)) if format == "PNG" else extras
    frames = tuple(_native(turn_upright(array, orientation)) for array in arrays)
    if of_netpbm is not None:  # Pillow scales up to 65535, in 32 bits
        frames = tuple(((frame.astype(np.uint32) * of_netpbm + 32767) // 65535).astype(np.uint16) for frame in frames)
    coloured = [frame[..., : frame.shape[2] - alpha] for frame in frames]
    values, assumed = find_values(coloured, name, full=full or of_netpbm, inverted=inverted, given=given)
    netpbm = ".pfm" if mode == "F" else ".ppm"
    suffix = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "PPM": netpbm}.get(format)
    suffix = suffix or f".{format.lower()}"
    return Sheet(name, suffix, frames, space, alpha, values, extras, (*filter(None, [*notes, left_out]), *assumed))


def _pixels(
    picture: ImageFile, stream: IO[bytes], count: int, name: str
) -> tuple[list[np.ndarray], str, tuple[int, ...], list[str]]:
    """The frames as arrays, their mode, for how many milliseconds each is shown, and what is said."""
    import numpy as np

    if is_deep(picture):
        pixels = read_deep(picture, stream)
        note = "its transparent colour is left out" if "transparency" in picture.info else ""
        return [pixels], {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]], (), [note]
    depth = _depth_not_read(picture, stream) or _few_bits(picture)
    images, durations = _frames(picture, count)
    mode, note = _common_mode(images, name)
    arrays = [np.asarray(image if image.mode == mode else image.convert(mode)) for image in images]
    return arrays, mode, durations, [note, depth]


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
    if modes & DEEP:
        mode, note = min(modes), "its transparent colour is left out" if wide else note
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
    deep, bits = picture.mode not in DEEP, 8
    if deep and picture.format == "JPEG2000":
        bits = _bits_of_jpeg2000(stream)
    elif deep and picture.format == "AVIF":
        bits = _bits_of_avif(stream)
    elif deep and picture.format == "PPM":
        full = _full_of_netpbm(picture) or 255
        if full < 255:
            return f"its values up to {full} are read as 0 to 255"
        bits = full.bit_length()
    elif deep and picture.format in ("PNG", "SGI", "TIFF"):
        bits = 16 if any(";16" in str(tile[3]) for tile in picture.tile) else 8
    return f"its colours of {bits} bits are read with 8" if bits > 8 else ""


def _few_bits(picture: ImageFile) -> str:
    """What is said where Pillow makes 8 bits of fewer, of its transparent grey, too, which it forgets."""
    bits = FEW_BITS.get(str(picture.tile[0][3])) if picture.format == "PNG" and picture.tile else None
    if bits is None:
        return ""
    if isinstance(picture.info.get("transparency"), int):
        picture.info["transparency"] *= 255 // (2**bits - 1)
    return f"its {bits} bits a pixel become 8"


def _chunks(stream: IO[bytes]) -> dict[bytes, bytes]:
    """`CHUNKS` of a PNG file, which stand in front of its pixels."""
    found: dict[bytes, bytes] = {}
    place = stream.seek(8)
    while len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
        size = int.from_bytes(head[:4], "big")
        found |= {head[4:]: stream.read(size)} if head[4:] in CHUNKS else {}
        place = stream.seek(place + 12 + size)
    return found


def _full_of_netpbm(picture: ImageFile) -> int | None:
    """The largest value of a PGM or PPM file that was just opened, where it is not 255."""
    options = picture.tile[0][3] if picture.format == "PPM" and picture.tile else None
    if options == "I;16B":
        return 65535
    return options[1] if isinstance(options, tuple) and len(options) == 2 and isinstance(options[1], int) else None


def _goes_on(picture: ImageFile, stream: IO[bytes]) -> bool:
    """Whether another picture stands behind that of a binary PGM or PPM file, which Pillow does not look for."""
    if picture.format != "PPM" or picture.mode in ("1", "F") or picture.tile[0].codec_name == "ppm_plain":
        return False
    size = picture.width * picture.height * len(picture.getbands()) * (1 + ((_full_of_netpbm(picture) or 255) > 255))
    place = stream.tell()
    stream.seek(picture.tile[0].offset + size)
    more = stream.read(2)
    stream.seek(place)
    return more[:1] == b"P" and more[1:].isdigit()


def _head(stream: IO[bytes], size: int = 4096) -> bytes:
    place = stream.tell()
    stream.seek(0)
    head = stream.read(size)
    stream.seek(place)
    return head


def _bits_of_jpeg2000(stream: IO[bytes]) -> int:
    head = _head(stream)
    start = head.find(b"\xff\x4f\xff\x51")  # code stream and sizes begin; bits stand 42 bytes further
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 8


def _bits_of_avif(stream: IO[bytes]) -> int:
    head = _head(stream)
    start = head.find(b"av1C")
    flags = head[start + 6] if 0 <= start < len(head) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _exif(picture: Image) -> tuple[int, bytes | None]:
    """The orientation of what Pillow reads, and the EXIF data of what is turned upright."""
    exif, orientation = picture.info.get("exif"), 1
    if isinstance(exif, bytes) and exif:
        orientation, exif = split_orientation(exif.removeprefix(b"Exif\x00\x00"))
    if picture.format == "TIFF":
        orientation = 1  # Pillow has turned it
    return orientation, exif if isinstance(exif, bytes) and exif else None


def _extras(picture: Image, durations: tuple[int, ...]) -> tuple[Extras, int]:
    """What else the file holds, as it is after turning it upright, and its orientation."""
    info = picture.info
    orientation, exif = _exif(picture)
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
        exif=exif,
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
