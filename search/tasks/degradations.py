"""Other degradations than noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.search.tasks.baselines import wiener
from nas.search.tasks.noise import Denoise
from nas.search.tasks.restoration import Method


@dataclass(frozen=True)
class Deblur(Denoise):
    """Undo a Gaussian blur, with a black border around the picture, that white Gaussian noise was added to.

    The reference (Bungert et al., arXiv 2106.02479) has the defaults and noise of 0.05 on the scale [0, 1], a ``sigma``
    of 12.75.

    Args:
        sigma, peak: of the noise that comes after the blur, as of `Denoise`.
        blur: standard deviation of the blur in pixels, > 0.
        kernel: side of the blurring kernel in pixels, odd.

    Raises:
        ValueError: an option out of range.
    """

    blur: float = 5.0
    kernel: int = 9
    observed_name = "blurred"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.blur < math.inf:
            raise ValueError(f"blur must be > 0 pixels, got {self.blur}")
        if not (isinstance(self.kernel, int) and 1 <= self.kernel < 100 and self.kernel % 2 == 1):
            raise ValueError(f"kernel must be an odd number of pixels below 100, got {self.kernel}")

    def __str__(self) -> str:
        return f"blur of sigma {self.blur:g} over {self.kernel} x {self.kernel} pixels, {super().__str__()}"

    def weights(self) -> Tensor:
        """The kernel (kernel, kernel): exp(-(x^2 + y^2) / (2 blur^2)) around its middle, divided by its sum."""
        x = torch.arange(self.kernel) - self.kernel // 2
        side = torch.exp(-x.square() / (2 * self.blur**2))
        return torch.outer(side, side) / side.sum() ** 2

    def degraded(self, clean: Tensor, level: Tensor | float, generator: torch.Generator) -> Tensor:
        """``clean``, convolved with `weights` and zeros around it, plus noise, not clipped."""
        planes = clean.reshape(-1, 1, *clean.shape[-2:])
        blurred = F.conv2d(planes, self.weights()[None, None], padding=self.kernel // 2)
        return super().degraded(blurred.reshape(clean.shape), level, generator)

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Wiener deconvolution of scikit-image."""
        balances = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
        return {"wiener": (lambda observed, balance: wiener(self.picture(observed), self.weights(), balance), balances)}
