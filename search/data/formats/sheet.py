"""What a picture file holds, whatever its format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nas.search.data.formats.values import Values

if TYPE_CHECKING:
    import numpy as np

GREY, RGB, CMYK, PLANES = "grey", "RGB", "CMYK", "planes"  # planes: channels that are no colours of one picture

SPOKEN = {  # how what a file holds beside its pixels (`Extras`) is called where it is lost
    "icc": "colour profile", "exif": "EXIF data", "xmp": "XMP data", "dpi": "resolution", "texts": "texts",
    "comment": "comment", "own_gamma": "gamma and primaries",
}  # fmt: skip
SRGB = {  # gamma and primaries, in a PNG file
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}


class NotAPictureError(ValueError):
    """The file is not in a picture format that can be read."""


@dataclass(frozen=True)
class Extras:
    """What a file holds besides pixels.

    Attributes:
        icc: colour profile.
        exif: as in a TIFF file, without the "Exif" in front.
        xmp: metadata as XML.
        dpi: pixels per inch, horizontally and vertically.
        texts: by keyword.
        comment: a text without one.
        durations: of the frames in milliseconds; empty where they are no animation.
        loop: how often an animation runs, 0 for ever; None where it does not say.
        chunks: what of a PNG file says what its numbers mean (gamma, primaries, and the like), by their names.
        tiff: what only a TIFF file holds, by the names of ``tifffile.TiffWriter.write``.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    comment: bytes | None = None
    durations: tuple[int, ...] = ()
    loop: int | None = None
    chunks: Mapping[bytes, bytes] = field(default_factory=dict)
    tiff: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_gamma(self) -> bool:
        """Whether ``chunks`` say anything but sRGB, which is what programs take a file for that says nothing."""
        return b"sRGB" not in self.chunks and any(SRGB.get(name) != data for name, data in self.chunks.items())


@dataclass(frozen=True)
class Sheet:
    """What a picture file holds.

    Attributes:
        name: of the file, for sentences.
        suffix: of its format, such as ".tif".
        frames: upright arrays (height, width, channels) of one type: one, or those of a stack or an animation.
        space: what the channels are: GREY, RGB, CMYK or PLANES; then there may be one more, alpha.
        alpha: whether the last channel is alpha.
        values: which of them are black and white.
        extras: what it holds besides pixels.
        notes: what was assumed, and what is not kept, in words.
    """

    name: str
    suffix: str
    frames: tuple[np.ndarray, ...]
    space: str
    alpha: bool
    values: Values
    extras: Extras = Extras()
    notes: tuple[str, ...] = ()

    @property
    def colours(self) -> int:
        """Number of channels without alpha."""
        return int(self.frames[0].shape[2]) - self.alpha


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (height, width, ...), turned as the orientation 1 to 8 of TIFF and EXIF says."""
    import numpy as np

    mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)  # counter-clockwise
    return np.rot90(mirrored, quarters)


def damaged(name: str, problem: Exception) -> ValueError:
    """The sentence about a file that a decoder gave up on."""
    broken = isinstance(problem, LookupError | TypeError | AttributeError | AssertionError | struct.error)
    text = "" if broken else " ".join(str(problem).split())
    text = text or "what stands in it makes no sense"
    return ValueError(f"the picture {name} is truncated, damaged or too large ({text})")
