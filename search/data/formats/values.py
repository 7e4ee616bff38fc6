"""Which pixel values are black and white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DEPTHS = (8, 10, 12, 14, 16)  # bits that integers of more than 8 bits may hold
EXACT = 2**53  # integers up to here are numbers of double precision


class UnusableError(ValueError):
    """A file is in order, but what it holds cannot be restored; the message is a sentence that names it."""


@dataclass(frozen=True)
class Values:
    """Which pixel values are black and white, and which ones occur.

    Attributes:
        black: becomes 0.
        white: becomes 1; below ``black`` where a file counts ink instead of light.
        lowest, highest: between which restored values lie: black, white, and what lies beyond them in the file.
    """

    black: float
    white: float
    lowest: float
    highest: float

    @classmethod
    def between(cls, black: float, white: float, low: float = math.inf, high: float = -math.inf) -> Values:
        """Those of a file whose lowest and highest values are ``low`` and ``high``."""
        return cls(black, white, min(low, black, white), max(high, black, white))

    def to_unit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any type as float32, black 0 and white 1; values beyond them are not clipped."""
        import numpy as np

        exact = pixels.dtype.itemsize <= 2 or self.black == 0 == self.white - 1  # in single precision, too
        unit: np.ndarray = pixels.astype(np.float32 if exact else np.float64)
        unit -= self.black
        unit /= self.white - self.black
        return unit.astype(np.float32, copy=False)

    def from_unit(self, unit: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The inverse: rounded where ``dtype`` holds integers, clamped to the values that the file holds."""
        import numpy as np

        values = unit.astype(np.float64) * (self.white - self.black) + self.black
        values = values.clip(self.lowest, self.highest)
        return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


def find_values(
    frames: Sequence[np.ndarray],
    name: str,
    *,
    full: float | None = None,
    inverted: bool = False,
    given: tuple[float, float] | None = None,
) -> tuple[Values, list[str]]:
    """The values of the frames of a file, and what had to be assumed, in words.

    Bytes reach from 0 to 255, floats that lie in [0, 1] from 0 to 1. Integers of more bits reach as far as the fewest
    of 8, 10, 12, 14 and 16 bits that hold them, unless the file says how far. Everything else has to be ``given``.

    Args:
        frames: arrays of one type.
        name: of the file, for sentences.
        full: the largest integer, as the file says.
        inverted: white is 0.
        given: black and white, instead.

    Raises:
        UnusableError: values that are not finite, or whose black and white are unknown.
    """
    import numpy as np

    dtype = frames[0].dtype
    if dtype == np.uint8 and given is None and full is None:
        return Values.between(*((255.0, 0.0) if inverted else (0.0, 255.0))), []
    low, high = (float(function([function(frame) for frame in frames])) for function in (np.min, np.max))
    if not (np.isfinite(low) and np.isfinite(high)):  # the minimum of what holds a NaN is NaN
        raise UnusableError(f"the picture {name} holds values that are not finite (NaN or infinite)")
    black, white, notes = *(given or _known(low, high, dtype, full, name)), []
    if given is None and full is None and np.issubdtype(dtype, np.integer) and white != 65535:
        notes = [f"its values up to {high:.0f} are taken for {int(white).bit_length()} bits of {8 * dtype.itemsize}"]
    if inverted and given is None:
        black, white = white, black
    return Values.between(black, white, low, high), notes


def _known(low: float, high: float, dtype: np.dtype, full: float | None, name: str) -> tuple[float, float]:
    import numpy as np

    if full is not None:
        return 0.0, float(full)
    if np.issubdtype(dtype, np.integer) and low >= 0 and high < 2**16:
        return 0.0, 2.0 ** next(depth for depth in DEPTHS if high < 2**depth) - 1
    if not np.issubdtype(dtype, np.integer) and low >= 0 and high <= 1:
        return 0.0, 1.0
    if np.issubdtype(dtype, np.integer) and max(abs(low), abs(high)) > EXACT:
        raise UnusableError(f"the picture {name} holds integers beyond 2**53, which floats do not tell apart")
    accepted = "those of 16 bits" if np.issubdtype(dtype, np.integer) else "[0, 1]"
    raise UnusableError(
        f"the picture {name} has values from {low:.10g} to {high:.10g}, outside of {accepted}; "
        f"say which are black and white, such as --range={low:.10g}:{high if high > low else low + 1:.10g}"
    )


def parse_range(text: str) -> tuple[float, float]:
    """Black and white from ``BLACK:WHITE``, such as "0:4095".

    Raises:
        ValueError: these are not two different finite numbers.
    """
    parts = text.split(":")
    try:
        black, white = (float(part) for part in parts)
    except ValueError:
        black = white = 0.0
    if not abs(black - white) > 0 or abs(black - white) == float("inf"):
        raise ValueError(f"a range must be two different numbers BLACK:WHITE, such as 0:4095, got {text!r}")
    return black, white
