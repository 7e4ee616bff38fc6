"""Reading TIFF files through tifffile: stacks, all types of numbers, what microscopes and scanners write besides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from nas.search.data.formats import reading
from nas.search.data.formats.quiet import MAX_PIXELS, QUIET
from nas.search.data.formats.sheet import (
    CMYK,
    GREY,
    PLANES,
    RGB,
    Extras,
    NotAPictureError,
    Sheet,
    damaged,
    turn_upright,
)
from nas.search.data.formats.values import UnusableError, find_values

if TYPE_CHECKING:
    import numpy as np
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
SPACES = {"MINISBLACK": GREY, "MINISWHITE": GREY, "PALETTE": RGB, "RGB": RGB, "SEPARATED": CMYK}
RAW = ("CFA", "LINEAR_RAW")
ALPHAS = (1, 2)  # kinds of an extra sample: premultiplied, or not
COPIED = (  # tags that are written again as they are: who, when, with what, where on earth, and what ImageJ adds
    269, 271, 272, 285, 306, 315, 316, 33432, 33550, 33723, 33922, 34264, 34735, 34736, 34737, 42112, 42113, 50838,
    50839,
)  # fmt: skip
DESCRIPTION, ORIENTATION, MAX_SAMPLE_VALUE, SOFTWARE, XMP, EXIF, ICC = 270, 274, 281, 305, 700, 34665, 34675
WEBP = 50001
NEEDED = "imagecodecs"  # the package that tifffile asks for where it cannot decode by itself


def read(stream: IO[bytes], name: str, given: tuple[float, float] | None = None) -> Sheet:
    """What a TIFF file holds; arguments and errors as of `reading.read`."""
    with _opened(stream, name) as file:
        series = _pictures(file, name)
        frames = _decode(file, series, name)
        if frames is not None:
            return _sheet(file, series, frames, name, given)
        page, notes = series[0].keyframe, _left_out(file, series)
        extras, whole = _extras(page), [_is_whole(each) for each in file.pages]
    stream.seek(0)
    sheet = _read_by_pillow(stream, page, name, given)
    frames = [frame for frame, is_whole in zip(sheet.frames, whole, strict=True) if is_whole or not any(whole)]
    extras = replace(extras, tiff={**extras.tiff, "premultiplied": False})  # Pillow has divided by alpha
    return replace(sheet, frames=tuple(frames), extras=extras, notes=(*notes, *sheet.notes))


def _read_by_pillow(stream: IO[bytes], page: TiffPage, name: str, given: tuple[float, float] | None) -> Sheet:
    """All frames as Pillow reads them, in the type of ``page``."""
    kind, bits = _photometric(page), page.bitspersample
    full = 2.0**bits - 1 if 8 < bits < 16 else None
    try:
        sheet = reading.read(stream, name, given, inverted=kind == "MINISWHITE" and bits >= 16, full=full)
    except NotAPictureError:
        raise _undecodable(page, name) from None
    if page.dtype == "int16":  # Pillow has it in 32 bits
        sheet = replace(sheet, frames=tuple(frame.astype(page.dtype) for frame in sheet.frames))
    if kind != "PALETTE" and 1 < bits < 8:
        sheet = replace(sheet, notes=(f"its {bits} bits a pixel become 8", *sheet.notes))
    return sheet


def read_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Height and width as of `read`, without decoding; errors as of `read`."""
    with _opened(stream, name) as file:
        page = _pictures(file, name)[0].keyframe
        size = page.imagelength, page.imagewidth
        return size[::-1] if page.tags.valueof(ORIENTATION, 1) > 4 else size


@contextmanager
def _opened(stream: IO[bytes], name: str) -> Iterator[TiffFile]:
    """The file; what tifffile raises becomes a sentence about ``name``."""
    import tifffile

    with QUIET:
        try:
            with tifffile.TiffFile(stream) as file:
                yield file
        except (UnusableError, MemoryError):
            raise
        except Exception as problem:  # whatever damaged bytes make a decoder raise
            if isinstance(problem, OSError) and problem.errno is not None:
                raise
            raise damaged(name, problem) from None


def _pictures(file: TiffFile, name: str) -> list[TiffPageSeries]:
    """The series of frames of a file, without reduced copies.

    Raises:
        UnusableError: they cannot be restored.
    """
    pages = [page for series in file.series for page in (series.keyframe, *(series.keyframe.pages or ()))]
    if any(_photometric(page) in RAW for page in pages):
        raise UnusableError(f"{name} is the raw file of a camera; develop it first, into a TIFF file")
    for page in file.pages:
        _check_whole(page, file.filehandle.size)
    series = [each for each in file.series if not each.keyframe.is_reduced] or list(file.series[:1])
    if any(each.keyframe.imagewidth * each.keyframe.imagelength == 0 for each in series):
        raise ValueError("it holds no pixels")
    kinds = {(_photometric(each.keyframe), str(each.dtype), each.keyframe.samplesperpixel) for each in series}
    if len(kinds) > 1:
        raise UnusableError(f"the picture {name} holds frames of different kinds; split it first")
    kind = _photometric(series[0].keyframe)
    if kind not in SPACES and kind != "YCBCR":
        raise UnusableError(f"the picture {name} has the colours {kind}; turn it into RGB first")
    if series[0].dtype is not None and series[0].dtype.kind not in "buif":
        raise UnusableError(f"the picture {name} has values of type {series[0].dtype}; real numbers are accepted")
    return series


def _check_whole(page: Any, size: int) -> None:
    """Raise ValueError if the data of a page do not fit into a file of ``size`` bytes."""
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    frame = page.keyframe
    bits = frame.imagewidth * frame.imagelength * frame.samplesperpixel * int(frame.bitspersample)
    packed = int(frame.compression) != 1 or _photometric(frame) == "YCBCR"
    if max(ends, default=0) > size or (not packed and bits // 8 > size):
        raise ValueError("it ends before its data")
    if frame.imagewidth * frame.imagelength > MAX_PIXELS:
        raise ValueError(f"{frame.imagewidth} x {frame.imagelength} pixels")


def _is_whole(page: TiffPage | TiffFrame) -> bool:
    return page.keyframe is None or not page.keyframe.is_reduced


def _photometric(page: TiffPage) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


def _decode(file: TiffFile, series: list[TiffPageSeries], name: str) -> list[np.ndarray] | None:
    """The frames, (height, width, channels) each, as they are stored; None where Pillow is to read them.

    Raises:
        UnusableError: nobody here can.
    """
    page = series[0].keyframe
    if _photometric(page) == "YCBCR":
        return None
    parts: list[Any] = list(series)
    if len(series) > 1:  # a series holds what is alike: of several the order is that of the pages
        parts = [each for each in file.pages if _is_whole(each)]
    try:
        return [frame for part in parts for frame in _frames(part.asarray(), part.axes)]
    except (ValueError, KeyError, NotImplementedError, ImportError) as problem:
        if NEEDED not in str(problem) and not isinstance(problem, ImportError):
            raise
    if all(_suits_pillow(each.keyframe, file.byteorder) for each in series):
        return None
    raise _undecodable(page, name)


def _suits_pillow(page: TiffPage, byteorder: str) -> bool:
    """Whether Pillow reads a compressed page as it is: of several channels it takes 8 bits and leaves out what is no
    colour, signed numbers and floats it does not turn around, and its libtiff knows no WebP."""
    if int(page.compression) == WEBP or _channels(page)[0] == PLANES:
        return False
    if page.bitspersample in (1, 8) and page.dtype != "int8":
        return True
    deep = page.dtype in ("int16", "int32", "float32") and byteorder == "<"
    return page.samplesperpixel == 1 and (deep or page.dtype in ("uint8", "uint16"))


def _undecodable(page: TiffPage, name: str) -> UnusableError:
    return UnusableError(
        f"the picture {name} is compressed as {getattr(page.compression, 'name', page.compression)} with "
        f"{page.bitspersample} bits, which needs the package {NEEDED}"
    )


def _sheet(
    file: TiffFile, series: list[TiffPageSeries], frames: list[np.ndarray], name: str, given: tuple[float, float] | None
) -> Sheet:
    page = series[0].keyframe
    kind, tags = _photometric(page), page.tags
    space, alpha = _channels(page)
    frames = [turn_upright(frame, tags.valueof(ORIENTATION, 1)) for frame in frames]
    notes = _left_out(file, series)
    packed = page.bitspersample not in (8, 16, 32, 64) and frames[0].dtype.kind == "u"
    full = 2.0**page.bitspersample - 1 if packed else None
    if page.bitspersample == 1:
        frames, full = [(frame != 0).astype("uint8") * 255 for frame in frames], None
        notes.append("its 1 bit a pixel becomes 8")
    if kind == "PALETTE":
        frames, full = [_coloured(frame, page.colormap) for frame in frames], None
        notes.append("its palette becomes true colour")
    highest = tags.valueof(MAX_SAMPLE_VALUE)
    if isinstance(highest, int) and highest in (2**10 - 1, 2**12 - 1, 2**14 - 1) and frames[0].dtype.name == "uint16":
        full = highest
    coloured = [frame[..., : frame.shape[2] - alpha] for frame in frames]
    values, assumed = find_values(coloured, name, full=full, inverted=kind == "MINISWHITE", given=given)
    return Sheet(name, ".tif", tuple(frames), space, alpha, values, _extras(page), (*notes, *assumed))


def _left_out(file: TiffFile, series: list[TiffPageSeries]) -> list[str]:
    """What is said of the parts of a file that are not read."""
    has_copies = len(series) < len(file.series) or series[0].is_pyramidal
    notes = ["reduced copies in it are left out"] if has_copies else []
    return [*notes, *(["its EXIF data are left out"] if EXIF in series[0].keyframe.tags else [])]


def _channels(page: TiffPage) -> tuple[str, bool]:
    """What the channels are, and whether the last one is alpha."""
    kind, extra = SPACES.get(_photometric(page), RGB), tuple(page.extrasamples)
    alpha = len(extra) == 1 and extra[0] in ALPHAS
    usual = {GREY: 1, RGB: 3, CMYK: 4}[kind]
    count = 1 if _photometric(page) == "PALETTE" else page.samplesperpixel
    if _photometric(page) != "PALETTE" and count - alpha != usual:
        return PLANES, alpha
    return kind, alpha


def _frames(array: np.ndarray, axes: str) -> Iterator[np.ndarray]:
    """(height, width, channels) each, in the byte order of this machine."""
    import numpy as np

    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array[..., None]
    yield from array.reshape(-1, *array.shape[-3:])


def _coloured(indices: np.ndarray, palette: Any) -> np.ndarray:
    """RGB of a ``palette`` (3, colours) of 16 bits; of 8 where these are enough."""
    if not (palette % 257).any() or not (palette % 256).any():  # 255 stands there as 65535, or as 65280
        palette = (palette // 256).astype("uint8")
    elif not (palette >= 256).any():  # or as itself
        palette = palette.astype("uint8")
    coloured: np.ndarray = palette.T[indices[..., 0]]
    return coloured


def _extras(page: TiffPage) -> Extras:
    tags, orientation = page.tags, page.tags.valueof(ORIENTATION, 1)
    across, down = page.resolution if orientation <= 4 else page.resolution[::-1]
    has_resolution, unit = 282 in tags and 283 in tags and across > 0 and down > 0, int(page.resolutionunit)
    scale = {2: 1.0, 3: 2.54}.get(unit)
    own: dict[str, Any] = {
        "compressed": int(page.compression) != 1,
        "premultiplied": 1 in page.extrasamples,
        "photometric": _photometric(page).lower(),
        "extrasamples": tuple(map(int, page.extrasamples)),
    }
    if has_resolution:
        own |= {"resolution": (across, down), "resolutionunit": unit}
    if DESCRIPTION in tags:
        own["description"] = str(tags.valueof(DESCRIPTION)).encode("utf-8")
    if SOFTWARE in tags:
        own["software"] = str(tags.valueof(SOFTWARE))
    own["extratags"] = [
        (tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag.code in COPIED and tag.value
    ]
    icc, xmp = tags.valueof(ICC), tags.valueof(XMP)
    return Extras(
        icc=bytes(icc) if icc else None,
        xmp=bytes(xmp) if isinstance(xmp, bytes) and xmp else None,
        dpi=(across * scale, down * scale) if has_resolution and scale else None,
        tiff=own,
    )
