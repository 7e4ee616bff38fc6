"""Writing picture files through Pillow: everything but TIFF."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from nas.search.data.formats.deep import write_deep
from nas.search.data.formats.reading import XMP_IN_PNG
from nas.search.data.formats.sheet import CMYK, GREY, RGB, SPOKEN, Extras, Sheet

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

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
WHOLE_FRAMES: dict[str, dict[str, Any]] = {  # else one frame shows through the next, or alpha gets lost
    "GIF": {"disposal": 2}, "WEBP": {"kmin": 1, "kmax": 1},
}  # fmt: skip
KEPT = {  # what else they hold
    "PNG": {"icc", "exif", "xmp", "dpi", "texts", "comment", "own_gamma"},
    "JPEG": {"icc", "exif", "xmp", "dpi", "comment"}, "WEBP": {"icc", "exif", "xmp"},
    "AVIF": {"icc", "exif", "xmp"}, "BMP": {"dpi"}, "GIF": {"comment"}, "JPEG2000": {"comment"},
}  # fmt: skip
PFM = ".pfm"  # the only format of floats, in Pillow one with PPM
LONGEST = 65_000  # bytes of EXIF or XMP data in a JPEG file


def known_suffixes() -> set[str]:
    """Suffixes of formats that Pillow reads or writes."""
    from PIL import Image

    return set(Image.registered_extensions())


def format_of(suffix: str) -> str | None:
    """Pillow's name of the format that a suffix names; None where it cannot be written."""
    from PIL import Image

    format = Image.registered_extensions().get(suffix.lower())
    return format if format in WRITTEN else None


def check(sheet: Sheet, suffix: str) -> str:
    """Pillow's name of the format.

    Raises:
        ValueError: the format cannot be written, or cannot hold these frames or channels.
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
    if suffix.lower() == PFM and (sheet.space != GREY or sheet.alpha):
        raise ValueError(f"a file {suffix} holds grey pictures here: choose .tif")
    if sheet.space not in (GREY, RGB, CMYK):
        raise ValueError(f"a file {suffix} holds no {sheet.frames[0].shape[2]} channels: choose .tif")
    return format


def write(sheet: Sheet, stream: IO[bytes], suffix: str) -> list[str]:
    """Write a picture file; returns what it could not hold, in words.

    Raises:
        ValueError: as `check`, or the picture is too large for the format.
        OSError: the stream cannot be written.
    """
    format, sheet = check(sheet, suffix), _straight(sheet)
    if format == "PNG" and _is_deep(sheet):
        return _write_deep(sheet, stream, suffix)
    images, notes = _floats(sheet) if suffix.lower() == PFM else _images(sheet, format, suffix)
    kept, lost = _options(sheet.extras, format, images[0].mode, sheet.space)
    if lost:
        notes.append(f"a file {suffix} does not keep its {' and '.join(lost)}")
    if len(images) > 1:
        kept |= {"save_all": True, "append_images": images[1:], "loop": sheet.extras.loop or 0}
        kept |= {"duration": list(sheet.extras.durations)} if sheet.extras.durations else {}
        kept |= WHOLE_FRAMES.get(format, {}) if sheet.alpha else {}
    try:
        if format == "PPM" and images[0].mode == "I;16" and _fits(sheet, 16) and 255 < sheet.values.highest < 65535:
            _write_pgm(images[0], math.ceil(sheet.values.highest), stream)
        else:
            images[0].save(stream, format, **OPTIONS.get(format, {}), **kept)
    except MemoryError:
        raise
    except Exception as problem:  # whatever encoders raise, such as for more pixels than their format counts
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise ValueError(f"a file {suffix} cannot hold it ({' '.join(str(problem).split())})") from None
    return notes


def _straight(sheet: Sheet) -> Sheet:
    """The same with colours that are not multiplied by alpha, as TIFF files may have them."""
    import numpy as np

    if not (sheet.alpha and sheet.extras.tiff.get("premultiplied")):
        return sheet

    def divided(frame: np.ndarray) -> np.ndarray:
        colours, alpha = sheet.values.to_unit(frame[..., : sheet.colours]), frame[..., sheet.colours :]
        part = alpha / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1)
        straight = np.divide(colours, part, out=np.zeros(colours.shape), where=part > 0)
        return np.concatenate([sheet.values.from_unit(straight, frame.dtype), alpha], axis=2)

    return replace(sheet, frames=tuple(map(divided, sheet.frames)))


def _write_pgm(image: Image, full: int, stream: IO[bytes]) -> None:
    """With ``full`` as its largest value, where Pillow always says 65535."""
    file = io.BytesIO()
    image.save(file, "PPM")
    stream.write(file.getvalue().replace(b"\n65535\n", b"\n%d\n" % full, 1))


def _is_deep(sheet: Sheet) -> bool:
    """Whether it is one picture with several channels of more than 8 bits."""
    return len(sheet.frames) == 1 and sheet.space in (GREY, RGB) and sheet.frames[0].shape[2] > 1 and _bits(sheet) > 8


def _bits(sheet: Sheet) -> int:
    return 8 * sheet.frames[0].dtype.itemsize


def _write_deep(sheet: Sheet, stream: IO[bytes], suffix: str) -> list[str]:
    """A PNG of 16 bits: everything but the pixels is that of a small one of 8 bits."""
    import numpy as np

    small, like = replace(sheet, frames=(np.zeros((1, 1, sheet.frames[0].shape[2]), np.uint8),)), io.BytesIO()
    notes = write(small, like, suffix)
    notes += _changes(sheet, 16)
    write_deep(_integers(sheet.frames[0], sheet, 16), like.getvalue(), stream)
    return notes


def _images(sheet: Sheet, format: str, suffix: str) -> tuple[list[Image], list[str]]:
    """The frames in a mode that the format holds, and what that changes."""
    from PIL import Image

    modes = WRITTEN[format]
    deep = _bits(sheet) > 8 and sheet.space == GREY and not sheet.alpha and "I;16" in modes
    bits = 16 if deep else 8
    notes = _changes(sheet, bits)
    frames = [_integers(frame, sheet, bits) for frame in sheet.frames]
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
        if sheet.alpha and any(set(image.getchannel("A").tobytes()) - {0, 255} for image in images):
            notes.append("in it a pixel is transparent or not")
    return images, notes


def _floats(sheet: Sheet) -> tuple[list[Image], list[str]]:
    """Its grey frame in floats of 32 bits: floats as they are if they count light, else from black 0 to white 1."""
    from PIL import Image

    (frame,), dtype = sheet.frames, sheet.frames[0].dtype
    is_light = dtype.kind == "f" and sheet.values.black < sheet.values.white
    light = frame.astype("float32") if is_light else sheet.values.to_unit(frame)
    notes = [] if dtype == "float32" else [f"its values of type {dtype.name} become floats of 32 bits"]
    return [Image.fromarray(light[..., 0])], notes


def _changes(sheet: Sheet, bits: int) -> list[str]:
    """What `_integers` changes."""
    dtype, values, notes = sheet.frames[0].dtype, sheet.values, []
    if dtype.name != f"uint{bits}":
        notes.append(f"its values of type {dtype.name} become integers of {bits} bits")
    ends = sorted((values.black, values.white))
    if [values.lowest, values.highest] != ends and not _fits(sheet, bits):
        notes.append(f"its values beyond {ends[0]:.10g} and {ends[1]:.10g} are cut off")
    return notes


def _fits(sheet: Sheet, bits: int) -> bool:
    """Whether the numbers can stay as they are."""
    return sheet.frames[0].dtype.name == f"uint{bits}" and sheet.values.black == 0


def _integers(frame: np.ndarray, sheet: Sheet, bits: int) -> np.ndarray:
    """A frame as integers of 8 or 16 bits: as they are where they fit, else from black 0 to white."""
    import numpy as np

    if _fits(sheet, bits):
        return frame
    dtype = np.dtype(f"uint{bits}")
    colours = sheet.values.to_unit(frame[..., : sheet.colours]).clip(0, 1)
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
    options = {names.get(name, name): getattr(extras, name) for name in sorted(kept - {"texts", "exif", "own_gamma"})}
    if "exif" in kept:
        options["exif"] = b"Exif\x00\x00" + (extras.exif or b"")
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        xmp, comment = options.pop("xmp", None), options.pop("comment", None)
        texts = {**extras.texts, **({XMP_IN_PNG: xmp} if xmp else {}), **({"Comment": comment} if comment else {})}
        for key, text in texts.items():
            chunks.add_itxt(key, text if isinstance(text, str) else text.decode("utf-8", "replace"))
        for name, data in extras.chunks.items():
            chunks.add(name, data)
        options["pnginfo"] = chunks
    words = extras.tiff.get("description", b"")
    has_tags = bool(extras.tiff.get("extratags")) or (words and not words.startswith(b'{"shape"'))  # tifffile's own
    return options, [*(SPOKEN[name] for name in SPOKEN if name in lost), *(["TIFF tags"] if has_tags else [])]
