"""The generalised Anscombe transform: photon noise becomes white Gaussian noise, and back without bias.

Makitalo and Foi, Optimal inversion of the generalized Anscombe transformation for Poisson-Gaussian noise (IEEE
Transactions on Image Processing 22, 2013): v = photons + N(0, s^2), photons ~ Poisson, and

    f(v) = 2 sqrt(max(v + 3/8 + s^2, 0))        has about unit variance,
    D^2 / 4 + sqrt(3/2) / (4 D) - 11 / (8 D^2) + 5 sqrt(3/2) / (8 D^3) - 1/8 - s^2

is their closed form of the exact unbiased inverse at D = E f(v).
"""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Anscombe:
    """Pictures with photon noise to pictures with white Gaussian noise, where black is 0 and white 1 in both.

    Attributes:
        peak: photons that white stands for, > 0.
        sigma: standard deviation of Gaussian noise on top, black 0 and white 1.
    """

    peak: float
    sigma: float = 0.0

    @property
    def level(self) -> float:
        """Standard deviation of the noise in the transformed picture."""
        return 1 / (self._ends[1] - self._ends[0])

    def __call__(self, picture: Tensor) -> Tensor:
        """f of a noisy picture, shifted and scaled so that the black and the white of the scene are 0 and 1."""
        roots = 2 * (self.peak * picture + self._shift).clamp(min=0).sqrt()
        return (roots - self._ends[0]) * self.level

    def inverse(self, picture: Tensor) -> Tensor:
        """The unbiased inverse, of a transformed picture without noise."""
        root = (picture / self.level + self._ends[0]).clamp(min=self._ends[0])
        a = math.sqrt(1.5)
        photons = root**2 / 4 + a / (4 * root) - 11 / (8 * root**2) + 5 * a / (8 * root**3) - 1 / 8
        return (photons - self._variance) / self.peak

    @property
    def _variance(self) -> float:
        """Of the Gaussian noise, in photons."""
        return (self.peak * self.sigma) ** 2

    @property
    def _shift(self) -> float:
        return 3 / 8 + self._variance

    @property
    def _ends(self) -> tuple[float, float]:
        """What black and white become before shift and scale."""
        return 2 * math.sqrt(self._shift), 2 * math.sqrt(self.peak + self._shift)
