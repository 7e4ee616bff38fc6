"""Denoising learnt from pairs, or without clean pictures: then what an output is compared with is noisy, too.

All of them train on pairs with a mean squared error, as with clean pictures, so that a search, its front and a
retraining work alike. What changes is what the pairs are, and what is known of the PSNR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.search.data.batches import Batches, check_size, random_crops
from nas.search.data.stack import Picture
from nas.search.tasks.noise import Denoise
from nas.search.tasks.restoration import MIN_SSIM_SIDE, Method, Restoration
from nas.search.tasks.task import Example, Metric, Scores, check_shape

ESTIMATE = Metric("psnr_estimate", "estimated PSNR", "dB")
FIT = Metric("fit", "fit to noisy pixels", "dB")
MEASURED_ALPHA = 0.5  # of `Recorrupted` outside of training, where each picture is seen once
LEAST = 0.01  # of the variance of the noise: estimates of the error do not go below, so that luck is not picked
NEIGHBOURS = torch.tensor([(0, 1), (0, 2), (1, 0), (1, 3), (2, 0), (2, 3), (3, 1), (3, 2)])  # in a 2 x 2 cell


def to_db(error: Tensor) -> float:
    """-10 log10 of a mean squared error."""
    return -10 * math.log10(max(float(error), 1e-10))


@dataclass(frozen=True)
class Paired(Restoration):
    """Restore the picture of which a noisy one is given (`Picture.noisy`), whatever happened to it."""

    def __str__(self) -> str:
        return "pairs of noisy and clean pictures"

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The first half of the channels, where noisy and clean ones were joined."""
        return clean.chunk(2, dim=-3)[0]

    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noisy, clean = crops.chunk(2, dim=-3)
        return noisy, clean

    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        return random_crops(pictures, self, crop=crop, batch=batch, steps=steps, seed=seed, views=_views)

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        self.target(picture)  # that it is large enough
        return [Example(picture.name, *self.pair(torch.cat(_views(picture)), generator))]


def _views(picture: Picture) -> list[Tensor]:
    return [cast(Tensor, picture.noisy), picture.pixels]


class Unclean(Restoration):
    """What an output is compared with is no clean picture; the PSNR is unknown."""

    def clean(self, target: Tensor) -> None:
        return None


@dataclass(frozen=True)
class NoiseToNoise(Paired, Unclean):
    """Denoise by pairs of noisy pictures of the same scene with independent noise of mean 0 and equal variance: the
    mean of one, given the other, is the clean picture (Lehtinen et al., Noise2Noise, arXiv 1803.04189).

    Scored by an unbiased estimate of the PSNR: |f(y1) - y2|^2 is the squared error plus the variance of the noise,
    which is half of |y1 - y2|^2 in the mean.
    """

    metrics = (ESTIMATE,)

    def __str__(self) -> str:
        return "pairs of noisy pictures; the PSNR is unknown, an estimate counts"

    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The first noisy picture; and the second and the first."""
        first, second = crops.chunk(2, dim=-3)
        return first, torch.cat([second, first], dim=-3)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target.chunk(2, dim=-3)[0])

    def score(self, output: Tensor, target: Tensor) -> Scores:
        output, target = self.scored(output), self.scored(target)
        second, first = target.chunk(2, dim=-3)
        variance = (first - second).square().mean() / 2
        error = self.loss(output, target) - variance
        return {"psnr_estimate": to_db(error.clamp(min=LEAST * variance))}


@dataclass(frozen=True)
class Recorrupted(Unclean):
    """Denoise pictures y with white Gaussian noise of a known level, without any others (Pang et al.,
    Recorrupted-to-Recorrupted, CVPR 2021).

    With z of the same level as the noise, the network sees y + alpha z and is compared with y - z / alpha: their noises
    are independent, so that the expected loss is the squared error plus a constant. What is known of that constant is
    left out: |f - y|^2 + 2 <f - y, z / alpha>, all means over pixels, is the squared error plus sigma^2 in the mean.

    In training each crop is there twice, with z and with -z. Most of the chance in z cancels, so that alpha can be
    small, and the network is trained for hardly more noise, sqrt(1 + alpha^2) times as much, than it is used on; as
    alpha goes to 0 the loss is the Monte Carlo SURE of Ramani et al. (IEEE Transactions on Image Processing 17, 2008).

    Outputs are scored by the estimate of the PSNR that the same sum minus sigma^2 gives, for `MEASURED_ALPHA`.

    Args:
        sigma: standard deviation of the noise on the 0..255 scale, in (0, 255].
        alpha: how much noise is added in training, > 0.

    Raises:
        ValueError: an option out of range.
    """

    sigma: float
    alpha: float = 0.2

    metrics = (ESTIMATE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        Denoise(self.sigma)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be > 0, got {self.alpha}")

    def __str__(self) -> str:
        return f"noisy pictures of sigma {self.sigma:.3g} of 255; the PSNR is unknown, an estimate counts"

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return clean + MEASURED_ALPHA * self._noise(clean, generator)

    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """y + alpha z, then y - alpha z; and y with z / alpha, then -z / alpha."""
        z = self._noise(crops, generator)
        observed, targets = zip(*(_recorrupted(crops, each, self.alpha) for each in (z, -z)), strict=True)
        return torch.cat(observed), torch.cat(targets)

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        y = self.target(picture)
        return [Example(picture.name, *_recorrupted(y, self._noise(y, generator), MEASURED_ALPHA))]

    def _noise(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return self.sigma / 255 * torch.randn(y.shape, generator=generator)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        y, slope = target.chunk(2, dim=-3)
        check_shape(output, y.shape, "pictures as large as those it sees")
        return F.mse_loss(output, y) + 2 * ((output - y) * slope).mean()

    def score(self, output: Tensor, target: Tensor) -> Scores:
        variance = torch.tensor((self.sigma / 255) ** 2)
        error = self.loss(self.scored(output), self.scored(target)) - variance
        return {"psnr_estimate": to_db(error.clamp(min=LEAST * variance))}

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Those of `Denoise`."""
        return Denoise(min(255, self.sigma * math.hypot(1, MEASURED_ALPHA))).methods


def _recorrupted(y: Tensor, z: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """y + alpha z; and y and z / alpha, joined."""
    return y + alpha * z, torch.cat([y, z / alpha], dim=-3)


@dataclass(frozen=True)
class Neighbours(Unclean):
    """Denoise pictures of whose noise only is known that it has mean 0 and is independent between pixels (Huang et
    al., Neighbor2Neighbor, arXiv 2101.02824, without its regulariser).

    In every cell of 2 x 2 pixels two neighbours are drawn: the network sees the picture of the first ones and is
    compared with that of the second. Scored by that squared error, in dB: the variance of the noise is a part of it, so
    that differences are much smaller than those of the PSNR.
    """

    metrics = (FIT,)

    def __str__(self) -> str:
        return "noisy pictures of unknown noise; the PSNR is unknown, the fit to neighbouring pixels counts"

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return self.pair(clean, generator)[0]

    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two pictures of half the size, of neighbouring pixels."""
        *batch, channels, height, width = crops.shape
        cells = F.pixel_unshuffle(crops[..., : height // 2 * 2, : width // 2 * 2], 2)
        cells = cells.reshape(*batch, channels, 4, height // 2, width // 2)
        drawn = NEIGHBOURS[torch.randint(8, (*batch, 1, height // 2, width // 2), generator=generator)]
        first, second = (
            cells.gather(-3, drawn[..., k].unsqueeze(-3).expand(*batch, channels, 1, -1, -1)).squeeze(-3)
            for k in range(2)
        )
        return first, second

    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        if crop < 2:
            raise ValueError(f"crop must be at least 2 pixels for neighbours, got {crop}")
        return super().batches(pictures, crop=crop, batch=batch, steps=steps, seed=seed)

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        least = 2 * (MIN_SSIM_SIDE + 2 * self.border)
        check_size(picture, least, f"the {least} pixels that half of its size needs")
        return [Example(picture.name, *self.pair(picture.pixels, generator))]

    def score(self, output: Tensor, target: Tensor) -> Scores:
        return {"fit": to_db(self.loss(self.scored(output), self.scored(target)))}
