"""Noise on top of pictures, of one level or of a range of levels, and what it takes to remove it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nas.search.data.stack import Picture
from nas.search.tasks.anscombe import Anscombe
from nas.search.tasks.baselines import nl_means, tv, wavelet
from nas.search.tasks.restoration import Method, Restoration
from nas.search.tasks.task import Example

MEASURED = 15.0, 25.0, 50.0  # levels at which a network for a range of them is validated and tested


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove additive noise: white Gaussian, on top of photon noise where there is a ``peak``.

    With a range of levels one network is trained for all of them and told the level by a channel behind those of the
    picture that is sigma / 255 everywhere (Zhang et al., FFDNet, arXiv 1710.04026). In training the square roots
    of the levels are uniform in the range: with uniform levels strong noise, of which more is left, would count for
    more, with uniform logarithms weak noise. Validation and test take those of 15, 25 and 50 that lie in it, or its
    ends.

    Args:
        sigma: standard deviation of the Gaussian noise on the 0..255 scale, in (0, 255], or the ends of a range of
            them.
        peak: photons that white stands for: of their number, peak times the pixel, Poisson noise is drawn. None: no
            such noise.
        border: as of `Restoration`.

    Raises:
        ValueError: an option out of range.
    """

    sigma: float | tuple[float, float]
    peak: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for sigma in self.ends:
            if not 0 < sigma <= 255:
                raise ValueError(f"sigma must lie in (0, 255], on the 0..255 scale, got {sigma}")
        if isinstance(self.sigma, tuple) and not self.ends[0] < self.ends[1]:
            raise ValueError(f"a range of sigma must rise, such as 5:55, got {self.ends[0]:g}:{self.ends[1]:g}")
        if self.peak is not None and not 0 < self.peak < math.inf:
            raise ValueError(f"peak must be > 0 photons, got {self.peak}")

    def __str__(self) -> str:
        photons = "" if self.peak is None else f"photon noise of {self.peak:g} photons in white, "
        if not isinstance(self.sigma, tuple):
            return f"{photons}noise of sigma {self.sigma:g} of 255"
        measured = ", ".join(f"{sigma:g}" for sigma in self.levels)
        return f"{photons}noise of sigma {self.ends[0]:g} to {self.ends[1]:g} of 255, measured at {measured}"

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest level."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)

    @property
    def num_extra(self) -> int:
        return int(isinstance(self.sigma, tuple))

    @property
    def levels(self) -> tuple[float, ...]:
        """At which it is validated and tested."""
        if not isinstance(self.sigma, tuple):
            return (self.sigma,)
        return tuple(sigma for sigma in MEASURED if self.ends[0] <= sigma <= self.ends[1]) or self.sigma

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` plus noise, not clipped; pictures in [0, 1]. Of a range of levels each picture has its own."""
        if not isinstance(self.sigma, tuple):
            return self.degraded(clean, self.sigma / 255, generator)
        low, high = self.sigma
        drawn = torch.rand(*clean.shape[:-3], 1, 1, 1, generator=generator)
        level = (low**0.5 + (high**0.5 - low**0.5) * drawn) ** 2 / 255
        return with_level(self.degraded(clean, level, generator), level)

    def degraded(self, clean: Tensor, level: Tensor | float, generator: torch.Generator) -> Tensor:
        """``clean`` plus noise of one level, black 0 and white 1, or of one for each picture (..., 1, 1, 1)."""
        if self.peak is not None:
            clean = torch.poisson(self.peak * clean.clamp(min=0), generator) / self.peak
        return clean + level * torch.randn(clean.shape, generator=generator)

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        """Observed at each of `levels`."""
        if not isinstance(self.sigma, tuple):
            return super().examples(picture, generator)
        target = self.target(picture)
        return [
            Example(
                picture.name,
                with_level(self.degraded(picture.pixels, sigma / 255, generator), torch.tensor(sigma / 255)),
                target,
                f"sigma {sigma:g}",
            )
            for sigma in self.levels
        ]

    def level(self, observed: Tensor) -> float:
        """Standard deviation of the Gaussian noise in a picture that the network sees, black 0 and white 1."""
        return float(observed[-1, 0, 0]) if isinstance(self.sigma, tuple) else self.sigma / 255

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Total variation, non-local means and wavelets of scikit-image; of photon noise after `Anscombe`."""
        strengths = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
        methods = {"tv": tv, "nl_means": nl_means, "wavelet": wavelet}
        return {name: (partial(self._by, method), strengths) for name, method in methods.items()}

    def _by(self, method: Callable[[Tensor, float, float], Tensor], observed: Tensor, strength: float) -> Tensor:
        picture, level = self.picture(observed), self.level(observed)
        if self.peak is None:
            return method(picture, level, strength)
        stabilise = Anscombe(self.peak, level)
        return stabilise.inverse(method(stabilise(picture), stabilise.level, strength)).clamp(0, 1)


def with_level(picture: Tensor, level: Tensor) -> Tensor:
    """Pictures (..., channels, height, width) with a channel behind them that is ``level`` everywhere."""
    return torch.cat([picture, level.expand(*picture.shape[:-3], 1, *picture.shape[-2:])], dim=-3)


def parse_sigma(text: str) -> float | tuple[float, float]:
    """A level of noise such as "25", or a range of them such as "5:55".

    Raises:
        ValueError: it is neither.
    """
    try:
        numbers = [float(part) for part in text.split(":")]
        if len(numbers) == 1:
            return numbers[0]
        low, high = numbers
        return low, high
    except ValueError:
        raise ValueError(f"sigma must be a number such as 25, or a range such as 5:55, got {text!r}") from None
