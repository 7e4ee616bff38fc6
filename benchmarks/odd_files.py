"""A hundred odd picture files, and what a network has to make of each: the right picture, or one clear sentence.

    python -m benchmarks.odd_files FOLDER      writes them; then try: nas denoise RUN FOLDER -o OTHER

tests/test_odd_files.py cleans each with a network that darkens every picture by `STEP` and compares what is written.
"""

import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
STEP = 0.125  # of [0, 1]: what the network of the test takes away
HEIGHT, WIDTH = 10, 14


@dataclass(frozen=True)
class Odd:
    """A file, and what is expected.

    Attributes:
        name: of the file.
        write: writes it.
        light: (frames, height, width, channels), black 0 and white 1: what the file shows, without alpha.
        alpha: (frames, height, width), opaque 1.
        white: the highest number of the file that is written; None where it is the highest of its type.
        black: the lowest.
        tolerance: of the comparison, in [0, 1].
        sentence: what is said instead, as a regular expression.
        note: what is said besides.
        given: the values that are black and white.
        keeps: what the file holds besides, by the names of `extras_of`.
        deep: what is written has to be as deep as 16 bits.
    """

    name: str
    write: Callable[[Path], None]
    light: Pixels | list[Pixels] | None = None
    alpha: Pixels | None = None
    white: float | None = None
    black: float = 0.0
    tolerance: float = 1e-6
    sentence: str = ""
    note: str = ""
    given: tuple[float, float] | None = None
    keeps: tuple[str, ...] = ()
    deep: bool = False


def ramp(channels: int = 1, frames: int = 1, levels: int = 256, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> Pixels:
    """Smooth pictures (frames, height, width, channels) of integers from 0 to ``levels`` - 1, all different."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    planes = [
        (x + k + 2 * n) % width / width * 0.6 + (y + k) % height / height * 0.4
        for n in range(frames)
        for k in range(channels)
    ]
    pixels = np.stack(planes).reshape(frames, channels, height, width).transpose(0, 2, 3, 1)
    integers: Pixels = np.floor(pixels / pixels.max() * (levels - 1) + 1e-9)
    return integers


def by_pillow(path: Path, pixels: Pixels, mode: str | None = None, then: str | None = None, **options: Any) -> None:
    """The frames ``pixels``, (frames, height, width, channels), through Pillow; ``then`` converts them."""
    from PIL import Image

    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame, mode=mode) for frame in pixels]
    images = [image.convert(then, palette=Image.Palette.ADAPTIVE) for image in images] if then else images
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    images[0].save(path, **more, **options)


def by_tifffile(path: Path, pixels: Pixels, **options: Any) -> None:
    import tifffile

    byteorder, bigtiff = options.pop("byteorder", None), options.pop("bigtiff", False)
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for frame in pixels:
            writer.write(frame[..., 0] if frame.shape[-1] == 1 else frame, metadata=None, **options)


def of_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def in_bytes(write: Callable[[Path], None], suffix: str) -> bytes:
    """The bytes of the file that ``write`` writes."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return path.read_bytes()


def deep_png(pixels: Pixels) -> bytes:
    """A PNG of 16 bits with several channels, which no package here writes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_pixels(png: bytes) -> Pixels:
    """The pixels (height, width, channels) of a PNG of 16 bits whose rows are unfiltered or differences to the last."""
    chunks, place = b"", 8
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        chunks += png[place + 8 : place + 8 + size] if png[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + size
    width, height, _, kind = struct.unpack_from(">IIBB", png, 16)
    rows = np.frombuffer(zlib.decompress(chunks), np.uint8).reshape(height, -1)
    result = rows[:, 1:].copy()
    for k in range(1, height):
        result[k] += result[k - 1] * (rows[k, 0] // 2)
    return result.view(">u2").reshape(height, width, {2: 3, 4: 2, 6: 4}[kind]).astype(np.uint16)


def exif_with(orientation: int, *, bad: bool = False) -> bytes:
    """EXIF data with an orientation and a resolution; a ``bad`` one is divided by zero and of a wrong type."""
    entries = [(0x0112, 3, 1, orientation << 16), (0x011A, 5, 1, 50), (0x011B, 2 if bad else 5, 1, 50)]
    body = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + body + struct.pack(">III", 0, 0 if bad else 72, 0 if bad else 1)


def _pillow_files() -> list[Odd]:
    """Every mode of every format that Pillow writes."""
    grey, colour, deep = ramp().astype(np.uint8), ramp(3).astype(np.uint8), ramp(levels=65536).astype(np.uint16)
    alpha = np.where(ramp() > 100, 255, 60).astype(np.uint8)
    black = np.where(ramp() > 100, 255, 0).astype(np.uint8)
    few = (ramp(3, levels=4) * 85).astype(np.uint8)
    opaque = alpha[..., 0] / 255
    with_alpha = {"LA": np.concatenate([grey, alpha], -1), "RGBA": np.concatenate([colour, alpha], -1)}
    files = []

    def add(name: str, pixels: Pixels, light: Any = None, **expected: Any) -> None:
        options = expected.pop("options", {})
        shown = pixels / np.iinfo(pixels.dtype).max if light is None else light
        files.append(Odd(name, partial(by_pillow, pixels=pixels, **options), shown, **expected))

    for suffix in ("png", "bmp", "tga", "pgm", "gif", "jp2", "pcx", "sgi", "tif"):
        add(f"grey.{suffix}", grey)
    for suffix in ("png", "bmp", "tga", "ppm", "webp", "jp2", "pcx", "sgi", "tif", "qoi"):
        add(f"colour.{suffix}", colour, options={"lossless": True} if suffix == "webp" else {})
    for suffix in ("png", "tga", "webp", "jp2", "tif", "qoi"):
        expected: dict[str, Any] = {
            "alpha": opaque,
            "light": colour / 255,
            "options": {"lossless": True} if suffix == "webp" else {},
        }
        add(f"alpha.{suffix}", with_alpha["RGBA"], **expected)
    for suffix in ("png", "tga", "tif"):
        add(f"grey-alpha.{suffix}", with_alpha["LA"], light=grey / 255, alpha=opaque)
    for suffix in ("png", "pgm", "jp2", "tif"):
        add(f"deep.{suffix}", deep)
    for suffix in ("png", "bmp", "pbm", "tif"):
        kinds: dict[str, Any] = {"note": "1 bit a pixel becomes 8", "options": {"then": "1"}}
        add(f"bit.{suffix}", black, **kinds)
    for suffix in ("png", "bmp", "gif", "tif"):
        note, options = "palette becomes true colour", {"then": "P"}
        tolerance = 0.05 if suffix == "gif" else 1e-6  # what is darkened has more than 256 colours
        add(f"palette.{suffix}", few, note=note, options=options, tolerance=tolerance)
    for suffix in ("jpg", "tif"):
        inks = ramp(4).astype(np.uint8)
        add(f"inks.{suffix}", inks, options={"mode": "CMYK"}, tolerance=0.05 if suffix == "jpg" else 1e-6)
    for name, pixels in (("grey", grey), ("colour", colour)):
        add(f"{name}.jpg", pixels, options={"quality": 95, "subsampling": 0}, tolerance=0.05)
    for name, pixels in (("colour", colour), ("alpha", with_alpha["RGBA"])):
        expected = {"light": colour / 255, "alpha": opaque} if name == "alpha" else {}
        add(f"{name}.avif", pixels, options={"quality": 95, "subsampling": "4:4:4"}, tolerance=0.1, **expected)
    add("lzw.tif", grey, options={"compression": "tiff_lzw"})
    add("lzw-colour.tif", colour, options={"compression": "tiff_lzw"})
    words = {"compression": "tiff_lzw", "description": "words", "dpi": (200, 100), "icc_profile": b"a profile" * 20}
    add("lzw-described.tif", grey, options=words, keeps=("description", "resolution", "icc"))
    add("jpeg.tif", colour, options={"compression": "jpeg", "quality": 95}, tolerance=0.2)
    add("transparent-grey.png", grey, alpha=(grey[..., 0] != 0) * 1.0, options={"transparency": 0})
    add("transparent.png", colour, alpha=np.any(colour != colour[0, 0, 0], -1) * 1.0,
        options={"transparency": tuple(map(int, colour[0, 0, 0]))})  # fmt: skip
    add("transparent.gif", grey, light=grey.repeat(3, -1) / 255, alpha=(grey[..., 0] != 255) * 1.0,
        options={"transparency": 255}, note="256 colours", tolerance=1.0)  # fmt: skip
    for name, shape in (("pixel", (1, 1)), ("row", (1, 9)), ("column", (7, 1))):
        add(f"{name}.png", ramp(shape=shape).astype(np.uint8) if name != "pixel" else grey[:, 5:6, 5:6])
    return files


def _tiff_files() -> list[Odd]:
    """Every type of numbers and every arrangement of scientific TIFF files."""
    files = []

    def add(name: str, pixels: Pixels, light: Pixels | None = None, **expected: Any) -> None:
        options = expected.pop("options", {})
        if light is None and "sentence" not in expected:
            light = pixels / (np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1)
        files.append(Odd(f"{name}.tif", partial(by_tifffile, pixels=pixels, **options), light, **expected))

    def in_range(levels: int, type_: str, low: float = 0, channels: int = 1) -> Pixels:
        pixels: Pixels = (ramp(channels, levels=levels) + low).astype(type_)
        return pixels

    for bits in (10, 12, 14):
        pixels, white = in_range(2**bits, "uint16"), 2**bits - 1
        add(f"{bits}-bits", pixels, pixels / white, white=white, note=f"taken for {bits} bits of 16")
        tag = {"extratags": [(281, 3, 1, white, True)]}
        add(f"{bits}-bits-said", pixels // 5, pixels // 5 / white, white=white, options=tag)
    for type_ in ("int16", "int32", "uint32", "uint64"):
        pixels = in_range(4096, type_)
        add(f"small-{type_}", pixels, pixels / 4095, white=4095, note="taken for 12 bits of")
    add("8-in-16", in_range(256, "uint16"), ramp() / 255, white=255, note="taken for 8 bits of 16")
    add("20-bits", in_range(2**20, "uint32"), sentence="values from 0 to 1048575, outside.*--range=0:1048575")
    add("20-bits-given", in_range(2**20, "uint32"), ramp(levels=2**20) / (2**20 - 1), white=2**20 - 1,
        given=(0, 2**20 - 1))  # fmt: skip
    add("64-bits", in_range(2**10, "uint64") * 2**54, sentence=r"integers beyond 2\*\*53")
    add("negative", in_range(4096, "int16", -1024), sentence=r"values from -1024 to 3071.*--range=-1024:3071")
    add("negative-given", in_range(4096, "int16", -1024), ramp(levels=4096) / 4095, black=-1024, white=3071,
        given=(-1024, 3071))  # fmt: skip
    add("hot", np.where(ramp() == 255, 60000, ramp(levels=4096)).astype(np.uint16),
        np.where(ramp() == 255, 60000, ramp(levels=4096)) / 4095, white=4095, given=(0, 4095))  # fmt: skip
    for type_ in ("float16", "float32", "float64"):
        pixels = (ramp(levels=1025) / 1024).astype(type_)
        add(type_, pixels, tolerance=1e-3 if type_ == "float16" else 1e-6)
    floats = ramp(levels=256).astype("float32")
    add("float-255", floats, sentence=r"values from 0 to 255, outside of \[0, 1\].*--range=0:255")
    add("float-255-given", floats, floats / 255, white=255, given=(0, 255))
    add("float-negative", floats / 255 - 0.5, sentence=r"values from -0.5 to 0.5, outside")
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        spoilt = floats / 255
        spoilt[0, 3, 3] = value
        add(name, spoilt, sentence="values that are not finite")
    add("complex", (floats + 1j).astype("complex64"), sentence="values of type complex64; real numbers are accepted")
    add("bool", ramp() > 100, (ramp() > 100) * 1.0, note="1 bit a pixel", options={"photometric": "minisblack"})
    grey, deep = in_range(256, "uint8"), in_range(2**16, "uint16")
    add("white-is-zero", 255 - grey, grey / 255, options={"photometric": "miniswhite"})
    add("white-is-zero-16", 65535 - deep, deep / 65535, options={"photometric": "miniswhite"})
    twelve = in_range(4096, "uint16")
    add("white-is-zero-12", 4095 - twelve, twelve / 4095, white=4095, note="taken for 12 bits",
        options={"photometric": "miniswhite"})  # fmt: skip
    add("big-endian", deep, options={"byteorder": ">"})
    add("big", deep, options={"bigtiff": True})
    add("deflate", deep, options={"compression": "zlib"})
    add("tiled", in_range(2**16, "uint16"), options={"tile": (16, 16)})
    colour = in_range(2**16, "uint16", channels=3)
    add("colour-16", colour, options={"photometric": "rgb"})
    add("colour-float", (colour / 65535).astype("float32"), options={"photometric": "rgb"})
    alpha = np.where(deep > 30000, 65535, 9).astype("uint16")
    add("colour-16-alpha", np.concatenate([colour, alpha], -1), colour / 65535, alpha=alpha[..., 0] / 65535,
        options={"photometric": "rgb", "extrasamples": ["unassalpha"]})  # fmt: skip
    add("inks-16", in_range(2**16, "uint16", channels=4), options={"photometric": "separated"})
    five = in_range(2**16, "uint16", channels=5)
    add("five-channels", five, options={"photometric": "minisblack", "planarconfig": "contig"})
    add("lab", in_range(256, "uint8", channels=3), options={"photometric": "cielab"}, sentence="colours CIELAB")
    add("raw", deep, options={"photometric": "cfa", "extratags": [(33421, 3, 2, (2, 2), True),
        (33422, 1, 4, b"\0\1\1\2", True)]}, sentence="raw file of a camera")  # fmt: skip
    add("described", deep, keeps=("description", "resolution", "icc"), options={
        "description": b"\xc2\xb5m", "resolution": (300, 200), "resolutionunit": 2, "iccprofile": b"a profile" * 20,
    })  # fmt: skip
    stack = (ramp(frames=7, levels=2**16)).astype(np.uint16)
    add("stack", stack)
    add("stack-colour", ramp(3, 4).astype(np.uint8), options={"photometric": "rgb"})
    for orientation in (3, 6):
        turned = np.rot90(deep[0], {3: 2, 6: 3}[orientation])[None] / 65535
        add(f"orientation-{orientation}", deep, turned, options={"extratags": [(274, 3, 1, orientation, True)]})
    return [*files, *_arranged(stack, deep, colour)]


def _arranged(stack: Pixels, deep: Pixels, colour: Pixels) -> list[Odd]:
    """What tifffile writes in one piece: stacks of ImageJ and OME, planes apart, copies of half the size, palettes."""
    import tifffile

    def write(path: Path, pixels: Pixels, **options: Any) -> None:
        tifffile.imwrite(path, pixels, **options)

    def write_pyramid(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            writer.write(deep[0, ..., 0], subifds=1, metadata=None)
            writer.write(deep[0, ::2, ::2, 0], subfiletype=1, metadata=None)

    def write_sizes(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            for part in (deep[0, ..., 0], deep[0, :5, :, 0], deep[0, ..., 0] // 2):
                writer.write(part, metadata=None)

    light = stack / 65535
    planes = np.moveaxis(colour[0], -1, 0)
    palette = np.stack([np.arange(256)[::-1] * 257, np.arange(256) * 257, np.full(256, 257 * 9)]).astype(np.uint16)
    indices = ramp()[0, ..., 0].astype(np.uint8)
    ome = partial(write, pixels=stack[..., 0], ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    return [
        Odd("imagej.tif", partial(write, pixels=stack[..., 0], imagej=True), light, keeps=("description",)),
        Odd("ome.ome.tif", ome, light, keeps=("description",)),
        Odd("planes-apart.tif", partial(write, pixels=planes, photometric="rgb", planarconfig="separate"),
            colour / 65535),
        Odd("pyramid.tif", write_pyramid, deep / 65535, note="reduced copies"),
        Odd("sizes.tif", write_sizes, [deep[0] / 65535, deep[0, :5] / 65535, deep[0] // 2 / 65535]),
        Odd("palette-own.tif", partial(write, pixels=indices, photometric="palette", colormap=palette),
            (palette.T[indices] / 65535)[None], note="palette becomes true colour"),
    ]  # fmt: skip


def _described_files() -> list[Odd]:
    """Orientations, profiles and damaged descriptions; animations; several pictures in one file."""
    grey, colour = ramp().astype(np.uint8), ramp(3).astype(np.uint8)
    files = []
    turns: list[Callable[[Pixels], Pixels]] = [
        lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a, 3), lambda a: np.rot90(a, 2).swapaxes(0, 1), np.rot90,
    ]  # fmt: skip
    for orientation, turn in enumerate(turns, 1):
        write = partial(by_pillow, pixels=grey, exif=exif_with(orientation))
        files.append(Odd(f"turned-{orientation}.png", write, turn(grey[0])[None] / 255, keeps=("exif",)))
    best: dict[str, Any] = {"quality": 95, "subsampling": 0}
    for name, exif in (("bad-exif", exif_with(6, bad=True)), ("no-exif", b"Exif\0\0MM\0*\0\0\xff\xff")):
        light = np.rot90(grey[0], 3)[None] if name == "bad-exif" else grey
        write = partial(by_pillow, pixels=grey, exif=exif, **best)
        files.append(Odd(f"{name}.jpg", write, light / 255, tolerance=0.05))
    everything = {"icc_profile": b"a profile" * 30, "dpi": (300, 150), "exif": exif_with(1)}
    for suffix, kinds in (("png", ("icc", "dpi", "exif")), ("jpg", ("icc", "dpi", "exif")), ("webp", ("icc", "exif"))):
        options = everything | (best if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {})
        tolerance = 0.05 if suffix == "jpg" else 1e-6
        write = partial(by_pillow, pixels=colour, **options)
        files.append(Odd(f"described.{suffix}", write, colour / 255, tolerance=tolerance, keeps=kinds))
    film = ramp(3, 3).astype(np.uint8)
    for suffix in ("gif", "png", "webp"):
        lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        write = partial(by_pillow, pixels=film, duration=[100, 50, 70], loop=2, **lossless)
        tolerance = 0.2 if suffix == "gif" else 1e-6
        files.append(Odd(f"film.{suffix}", write, film / 255, tolerance=tolerance, keeps=("durations",)))
    pair = partial(by_pillow, pixels=film[:2], format="MPO", **best)
    files.append(Odd("pair.jpg", pair, film[:1] / 255, tolerance=0.1, note="the other pictures in it are left out"))
    files.append(
        Odd("film-as.jpg", partial(by_pillow, pixels=film, format="GIF"), sentence="holds 3 pictures and a file")
    )
    deep = ramp(3, levels=65536).astype(np.uint16)
    as_8 = (deep // 256) / 255
    note = "colours of 16 bits are read with 8"
    opaque = np.where(deep[..., :1] > 30000, 65535, 9).astype(np.uint16)
    for name, pixels in (("colour", deep), ("colour-alpha", np.concatenate([deep, opaque], -1)),
                         ("grey-alpha", np.concatenate([deep[..., :1], opaque], -1))):  # fmt: skip
        light = pixels[..., : 1 if name == "grey-alpha" else 3] / 65535
        alpha = None if name == "colour" else opaque[..., 0] / 65535
        files.append(Odd(f"deep-{name}.png", partial(of_bytes, data=deep_png(pixels[0])), light, alpha, deep=True))
    header = f"P6 {WIDTH} {HEIGHT} 65535\n".encode()
    data = header + deep.astype(">u2").tobytes()
    files.append(Odd("deep-colour.ppm", partial(of_bytes, data=data), as_8, note=note, tolerance=0.005))
    for full, of in ((15, np.uint8), (4095, ">u2")):
        pixels = ramp(levels=full + 1)
        data = f"P5 {WIDTH} {HEIGHT} {full}\n".encode() + pixels.astype(of).tobytes()
        note = "its values up to 15 are read as 0 to 255" if full == 15 else ""
        files.append(Odd(f"up-to-{full}.pgm", partial(of_bytes, data=data), pixels / full, note=note))
    files.append(Odd("wrong-name.png", partial(by_pillow, pixels=grey, format="BMP"), grey / 255))
    files.append(Odd("icon.ico", partial(by_pillow, pixels=grey), sentence="pictures .ico cannot be written"))
    return files


def _damaged_files() -> list[Odd]:
    """What is no picture, or one that was cut off or hit."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 90, 90, 3), dtype=np.uint8)
    cut = "is truncated, damaged or too large|is not a picture"
    files = [
        Odd("empty.png", partial(of_bytes, data=b""), sentence="is not a picture"),
        Odd("text.tif", partial(of_bytes, data=b"text, and no picture"), sentence="is not a picture"),
        Odd("zeros.jpg", partial(of_bytes, data=bytes(1000)), sentence="is not a picture"),
        Odd("header.tif", partial(of_bytes, data=b"II*\0\x08\0\0\0"), sentence=cut),
        Odd("loop.tif", partial(of_bytes, data=b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), sentence=cut),
    ]
    for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp", "jp2", "avif", "tga", "ppm"):
        whole = in_bytes(partial(by_pillow, pixels=pixels), f".{suffix}")
        for part in (3, 40):
            short = whole[: len(whole) * (part if part == 3 else 1) // (4 if part == 3 else 40)]
            files.append(Odd(f"cut-{part}.{suffix}", partial(of_bytes, data=short), sentence=cut))
    whole = in_bytes(partial(by_pillow, pixels=pixels), ".png")
    files.append(Odd("hit.png", partial(of_bytes, data=whole[:900] + b"hit" + whole[903:]), sentence=cut))
    return files


def odd_files() -> list[Odd]:
    """All of them; their names differ."""
    return [*_pillow_files(), *_tiff_files(), *_described_files(), *_damaged_files()]


def as_page(page: Any) -> Any:
    """tifffile reads pages lazily, or as frames like another page."""
    return page.aspage()


def shown_by(path: Path, white: float | None = None, black: float = 0.0) -> tuple[list[Pixels], list[Pixels]]:
    """What other programs show: light (height, width, channels) and alpha (height, width) of every frame.

    Args:
        white, black: the highest and the lowest number; by default those of the type.
    """
    import tifffile
    from PIL import Image, ImageSequence

    lights, alphas = [], []
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            for page in map(as_page, file.pages):
                pixels = page.asarray()
                pixels = pixels[..., None] if pixels.ndim == 2 else pixels
                full = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
                opaque = pixels[..., -1:] / full if any(kind in (1, 2) for kind in page.extrasamples) else None
                pixels = pixels if opaque is None else pixels[..., :-1]
                light = (pixels.astype(float) - black) / ((full if white is None else white) - black)
                lights.append(1 - light if page.photometric == 0 else light)
                alphas += [] if opaque is None else [opaque[..., 0]]
        return lights, alphas
    data = path.read_bytes()
    if path.suffix == ".png" and data[24] == 16 and data[25] != 0:
        deep = deep_pixels(data) / 65535
        colours = 3 if deep.shape[-1] > 2 else 1
        return [deep[..., :colours]], [deep[..., -1]] if deep.shape[-1] in (2, 4) else []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            if frame.mode == "P":
                frame = frame.convert("RGBA" if frame.has_transparency_data else "RGB")
            pixels = np.asarray(frame)
            full = 65535 if frame.mode.startswith("I") else 255
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if frame.mode in ("LA", "RGBA"):
                alphas.append(pixels[..., -1] / full)
                pixels = pixels[..., :-1]
            lights.append(pixels / full)
    return lights, alphas


def extras_of(path: Path) -> dict[str, Any]:
    """What other programs read besides pixels, by name; the orientation of EXIF data is left out."""
    import tifffile
    from PIL import Image, ImageSequence

    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            tags = as_page(file.pages[0]).tags
            names = {"description": 270, "resolution": 282, "icc": 34675}
            return {name: tags.valueof(code) for name, code in names.items()}
    with Image.open(path) as image:
        exif = {tag: value for tag, value in image.getexif().items() if tag != 0x0112}
        dpi = tuple(round(value) for value in image.info.get("dpi", ()))
        durations = [frame.info.get("duration") for frame in ImageSequence.Iterator(image)]
        return {"icc": image.info.get("icc_profile"), "exif": exif, "dpi": dpi, "durations": durations}


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("python -m benchmarks.odd_files FOLDER: name the folder for the files")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    files = odd_files()
    for odd in files:
        odd.write(folder / odd.name)
    print(f"{len(files)} files in {folder}")


if __name__ == "__main__":
    main()
