"""Tasks that recover a picture from a worse one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.search.data.batches import Batches, check_size, random_crops
from nas.search.data.stack import Picture
from nas.search.tasks.baselines import nl_means, tv, wiener
from nas.search.tasks.task import Example, Metric, Scores, Task, check_shape, predict, score

Method = Callable[[Tensor, float], Tensor]  # (observed picture, strength) -> restored picture
PSNR, SSIM = Metric("psnr", "PSNR", "dB"), Metric("ssim", "SSIM", decimals=3)
MAX_PSNR = 100.0  # of a picture restored without any error, which has no finite PSNR
MIN_SSIM_SIDE = 7  # of the windows over which SSIM is taken


@dataclass(frozen=True)
class Restoration(Task):
    """Recover a picture from what `observe` makes of it; the loss is the mean squared error.

    PSNR in dB and SSIM of the output, clamped to [0, 1], both with a data range of 1. A picture that is restored
    without any error counts as 100 dB.
    """

    metrics = (PSNR, SSIM)
    most_held_out = 500
    observed_name: ClassVar[str] = "noisy"  # in print and in the names of files

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Classical methods to compare with, each with the strengths to choose from."""
        return {}

    def target(self, picture: Picture) -> Tensor:
        check_size(picture, MIN_SSIM_SIDE, f"the {MIN_SSIM_SIDE} x {MIN_SSIM_SIDE} pixels that SSIM needs")
        return picture.pixels

    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        return random_crops(pictures, self, crop=crop, batch=batch, steps=steps, seed=seed)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        check_shape(output, target.shape, "pictures as large as those it sees")
        return F.mse_loss(output, target)

    def finish(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)

    def score(self, output: Tensor, target: Tensor) -> Scores:
        import numpy as np
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        check_shape(output, target.shape, "pictures as large as those it sees")
        clean, other = target.numpy(), output.numpy()
        equal = np.array_equal(clean, other)
        psnr = MAX_PSNR if equal else float(peak_signal_noise_ratio(clean, other, data_range=1))
        return {"psnr": psnr, "ssim": float(structural_similarity(clean, other, data_range=1, channel_axis=0))}

    def trivial(self, examples: Sequence[Example]) -> tuple[str, list[Tensor]]:
        return self.observed_name, [example.observed for example in examples]

    def baselines(
        self, train: Sequence[Picture], validation: Sequence[Example], test: Sequence[Example]
    ) -> dict[str, Scores]:
        """Test scores of each of `methods`, with the strength that has the best PSNR on the validation pictures."""

        def result(method: Method, strength: float, examples: Sequence[Example]) -> Scores:
            return score(examples, [method(example.observed, strength) for example in examples], self)

        best = {}
        for name, (method, strengths) in self.methods.items():
            psnr = {strength: result(method, strength, validation)["psnr"] for strength in strengths}
            best[name] = result(method, max(psnr, key=psnr.__getitem__), test)
        return best


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove additive white Gaussian noise.

    Args:
        sigma: standard deviation of the noise on the 0..255 scale, in (0, 255].

    Raises:
        ValueError: ``sigma`` out of range.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 255:
            raise ValueError(f"sigma must lie in (0, 255], on the 0..255 scale, got {self.sigma}")

    def __str__(self) -> str:
        return f"noise of sigma {self.sigma:g} of 255"

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` plus noise, not clipped; pictures in [0, 1] of any shape."""
        return clean + self.sigma / 255 * torch.randn(clean.shape, generator=generator)

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Total variation and non-local means of scikit-image."""
        strengths = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
        sigma = self.sigma / 255
        return {
            "tv": (lambda picture, strength: tv(picture, sigma, strength), strengths),
            "nl_means": (lambda picture, strength: nl_means(picture, sigma, strength), strengths),
        }


@dataclass(frozen=True)
class Deblur(Denoise):
    """Undo a Gaussian blur, with a black border around the picture, that white Gaussian noise was added to.

    The reference (Bungert et al., arXiv 2106.02479) has the defaults and noise of 0.05 on the scale [0, 1], a ``sigma``
    of 12.75.

    Args:
        sigma: standard deviation of the noise on the 0..255 scale, in (0, 255].
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

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean``, convolved with `weights` and zeros around it, plus noise, not clipped."""
        planes = clean.reshape(-1, 1, *clean.shape[-2:])
        blurred = F.conv2d(planes, self.weights()[None, None], padding=self.kernel // 2)
        return super().observe(blurred.reshape(clean.shape), generator)

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Wiener deconvolution of scikit-image."""
        balances = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
        return {"wiener": (lambda picture, balance: wiener(picture, self.weights(), balance), balances)}


def published_ssim(output: Tensor, target: Tensor) -> float:
    """SSIM as most articles give it (Wang et al., 2004): a Gaussian window of 11 x 11 pixels and sigma 1.5.

    The metric of the tasks is scikit-image's default, a uniform window of 7 x 7 pixels, which reads lower or higher.

    Args:
        output, target: pictures (channels, height, width) in [0, 1] of at least 11 x 11 pixels.
    """
    from skimage.metrics import structural_similarity

    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(target.numpy(), output.numpy(), data_range=1, channel_axis=0, **gaussian))


def restore(net: nn.Module, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What ``net`` makes of each whole picture, clamped to [0, 1]."""
    return [output.clamp(0, 1) for output in predict(net, pictures)]
