"""The orientation in EXIF data. Everything else stays as it is, whether it could be understood or not."""

import struct

ORIENTATION, SHORT = 0x0112, 3


def split_orientation(exif: bytes) -> tuple[int, bytes]:
    """The orientation, 1 to 8 (1 where there is none, or the data are damaged), and the data with orientation 1.

    Args:
        exif: as in a TIFF file.
    """
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1, exif
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return 1, exif
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
        if (tag, kind) == (ORIENTATION, SHORT):
            upright = exif[: place + 8] + struct.pack(f"{order}H", 1) + exif[place + 10 :]
            return (value if 1 <= value <= 8 else 1), upright
    return 1, exif
