"""Colour PNG of 16 bits, of which Pillow reads the upper 8 and writes none."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.ImageFile import ImageFile

LOWER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # what takes the upper bytes, and what the lower ones instead
GREY_ALPHA = "LA;16B"
ROWS = 64  # that are compressed at a time
COLOUR_TYPES = {2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def is_deep(picture: ImageFile) -> bool:
    """Whether a file that was just opened is such a PNG, and no animation."""
    single = picture.format == "PNG" and len(picture.tile) == 1 and getattr(picture, "n_frames", 1) == 1
    return single and picture.tile[0][3] in (*LOWER, GREY_ALPHA)


def read_deep(picture: ImageFile, stream: IO[bytes]) -> np.ndarray:
    """The pixels (height, width, 2..4), uint16, of a file that was just opened.

    Pillow undoes the filters of all bytes, whichever of them it takes: it is asked for the upper, then for the lower.
    """
    import numpy as np
    from PIL import Image

    kind = str(picture.tile[0][3])
    if kind == GREY_ALPHA:  # four bytes a pixel, like RGBA of 8 bits
        picture.tile = [picture.tile[0]._replace(args="RGBA")]
        both = np.asarray(picture).astype(np.uint16)
        return both[..., ::2] * np.uint16(256) + both[..., 1::2]
    upper = np.asarray(picture).astype(np.uint16)
    stream.seek(0)
    again = Image.open(stream)
    again.tile = [again.tile[0]._replace(args=LOWER[kind])]
    upper *= np.uint16(256)
    upper += np.asarray(again)
    return upper


def write_deep(pixels: np.ndarray, like: bytes, stream: IO[bytes]) -> None:
    """Write a PNG of 16 bits.

    Args:
        pixels: uint16, of shape (height, width, 2..4).
        like: a PNG file of these channels but 8 bits, with everything that it is to hold besides pixels.
    """
    height, width, channels = pixels.shape
    stream.write(like[:8])
    for kind, data in _chunks(like):
        if kind == b"IHDR":
            data = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
        if kind != b"IDAT":
            stream.write(_chunk(kind, data))
            continue
        for part in _compressed(pixels):
            stream.write(_chunk(b"IDAT", part))


def _compressed(pixels: np.ndarray) -> Iterator[bytes]:
    """Rows as differences to the row above (the filter 2), by bytes."""
    import numpy as np

    packer, above = zlib.compressobj(), np.zeros((1, 2 * pixels[0].size), np.uint8)
    for start in range(0, len(pixels), ROWS):
        block = np.ascontiguousarray(pixels[start : start + ROWS], ">u2")
        rows = block.view(np.uint8).reshape(len(block), -1)
        filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        filtered[:, 0] = 2
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
        above = rows[-1:]
        yield packer.compress(filtered.tobytes())
    yield packer.flush()


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        place += 12 + size


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
