"""Writing TIFF files through tifffile."""

from __future__ import annotations

import re
from typing import IO, Any

from nas.search.data.formats.reading_tiff import MAX_SAMPLE_VALUE, XMP
from nas.search.data.formats.sheet import CMYK, GREY, PLANES, RGB, SPOKEN, Sheet

SUFFIXES = (".tif", ".tiff")
LOST = ("exif", "texts", "comment", "durations", "own_gamma")  # of `Extras`
SHAPE = b'{"shape": '  # what tifffile writes of its own accord


def write(sheet: Sheet, stream: IO[bytes]) -> list[str]:
    """Write a TIFF file; returns what it could not hold, in words.

    Raises:
        OSError: the stream cannot be written.
    """
    import tifffile

    size = sum(frame.nbytes for frame in sheet.frames)
    options = _options(sheet)
    first = _only_first(sheet, options)
    with tifffile.TiffWriter(stream, bigtiff=size > 2**32 - 2**25) as writer:
        for k, frame in enumerate(sheet.frames):
            pixels = frame[..., 0] if frame.shape[2] == 1 else frame
            writer.write(pixels, **(options | first if k == 0 else options), metadata=None)
    spoken = SPOKEN | {"durations": "times of the frames"}
    lost = [spoken[name] for name in LOST if getattr(sheet.extras, name)]
    is_own = sheet.extras.tiff.get("description", b"").startswith(SHAPE)
    lost += [] if _is_true(sheet) or is_own else ["description of another size"]
    return [f"a TIFF file does not keep its {' and '.join(lost)}"] if lost else []


def _is_true(sheet: Sheet) -> bool:
    """Whether the sizes in its description, where tifffile or OME put some there, are still those of its frames."""
    words, (height, width, channels) = sheet.extras.tiff.get("description", b""), sheet.frames[0].shape
    if words.startswith(SHAPE):
        shape = [int(size) for size in re.findall(rb"\d+", words.partition(b"]")[0])]
        return shape[-2:] == [height, width] or shape[-3:] == [height, width, channels]
    said = re.search(rb'<Pixels[^>]* SizeX="(\d+)"[^>]* SizeY="(\d+)"', words)
    return said is None or (int(said[1]), int(said[2])) == (width, height)


def _options(sheet: Sheet) -> dict[str, Any]:
    """What tifffile is told of every frame."""
    own, dpi = sheet.extras.tiff, sheet.extras.dpi
    options: dict[str, Any] = {
        "photometric": {RGB: "rgb", CMYK: "separated"}.get(sheet.space, "minisblack"),
        "compression": "zlib" if own.get("compressed", True) else None,
    }
    if sheet.space in (GREY, PLANES) and sheet.values.black > sheet.values.white:
        options["photometric"] = "miniswhite"
    channels, usual = sheet.frames[0].shape[2], {GREY: 1, RGB: 3, CMYK: 4, PLANES: 1}[sheet.space]
    beside = channels - {"rgb": 3, "separated": 4}.get(own.get("photometric", ""), 1)
    if sheet.space == PLANES and beside == len(own.get("extrasamples", ())) > 0:  # such as colours and two more
        options |= {name: own[name] for name in ("photometric", "extrasamples")} | {"planarconfig": "contig"}
    elif channels > usual:
        options["planarconfig"] = "contig"
        alpha = [("assocalpha" if own.get("premultiplied") else "unassalpha")] if sheet.alpha else []
        options["extrasamples"] = ["unspecified"] * (channels - usual - len(alpha)) + alpha
    if "resolution" in own:
        options |= {"resolution": own["resolution"], "resolutionunit": own["resolutionunit"]}
    elif dpi is not None:
        options |= {"resolution": dpi, "resolutionunit": 2}
    white = max(sheet.values.black, sheet.values.white)
    if sheet.frames[0].dtype.name == "uint16" and min(sheet.values.black, sheet.values.white) == 0 and white < 65535:
        options["extratags"] = [(MAX_SAMPLE_VALUE, 3, 1, int(white), True)]
    return options


def _only_first(sheet: Sheet, options: dict[str, Any]) -> dict[str, Any]:
    """What it is told of the first frame only."""
    own, xmp = sheet.extras.tiff, sheet.extras.xmp
    tags = [*options.get("extratags", ()), *own.get("extratags", ()), *([(XMP, 1, len(xmp), xmp, True)] if xmp else ())]
    return {
        "description": own.get("description") if _is_true(sheet) else None,
        "software": own.get("software", False), "iccprofile": sheet.extras.icc,
        "extratags": tags,
    }  # fmt: skip
