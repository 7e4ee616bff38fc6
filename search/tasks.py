"""What a network is to learn: how pictures are degraded, how batches are drawn, how results are measured."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.search.data import Picture

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch -> pairs (observed, clean)
MAX_PIXELS = 2**20  # of one batch in an evaluation
MAX_BATCH = 2**26  # pixels of one batch in training
MAX_PSNR = 100.0  # of a picture restored without any error, which has no finite PSNR


@dataclass(frozen=True)
class Denoise:
    """Remove additive white Gaussian noise; the loss is the mean squared error.

    Args:
        sigma: standard deviation of the noise on the 0..255 scale, in (0, 255].

    Raises:
        ValueError: ``sigma`` out of range.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 255:
            raise ValueError(f"sigma must lie in (0, 255], on the 0..255 scale, got {self.sigma}")

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` plus noise, not clipped; pictures in [0, 1] of any shape."""
        return clean + self.sigma / 255 * torch.randn(clean.shape, generator=generator)

    def loss(self, restored: Tensor, clean: Tensor) -> Tensor:
        return F.mse_loss(restored, clean)


TASKS: dict[str, Callable[[float], Denoise]] = {"denoise": Denoise}


def random_crops(
    pictures: Sequence[Picture], task: Denoise, *, crop: int, batch: int, steps: int, seed: int = 0
) -> Batches:
    """Batches of random square crops, flipped and turned at random, with noise that is fresh in every epoch.

    The batches of an epoch depend on ``seed`` and the number of the epoch alone, so that a run can be continued.

    Args:
        pictures: of one number of channels.
        crop: side of the crops in pixels; at most the smaller side of every picture.
        batch: crops per batch.
        steps: batches per epoch.

    Returns:
        A function of the epoch that iterates over pairs (observed, clean), each (batch, channels, crop, crop).

    Raises:
        ValueError: a size below 1, or a picture smaller than the crop.
    """
    for name, size in (("crop", crop), ("batch", batch), ("steps", steps)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if batch * crop**2 > MAX_BATCH:
        raise ValueError(f"a batch of {batch} crops of {crop} x {crop} pixels is larger than {MAX_BATCH} pixels")
    for picture in pictures:
        _check_size(picture, crop, f"the crop of {crop}")

    def draw(generator: torch.Generator) -> Tensor:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        pixels = pictures[below(len(pictures))].pixels
        top, left = (below(size - crop + 1) for size in pixels.shape[-2:])
        square = pixels[:, top : top + crop, left : left + crop].rot90(below(4), (1, 2))
        return square.flip(2) if below(2) else square

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for _ in range(steps):
            clean = torch.stack([draw(generator) for _ in range(batch)])
            yield task.observe(clean, generator), clean

    return batches


def _check_size(picture: Picture, least: int, what: str) -> None:
    height, width = picture.pixels.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"the picture {picture.name} has {width} x {height} pixels, smaller than {what}")


@dataclass(frozen=True)
class Example:
    """A held-out picture and its observation, both (channels, height, width)."""

    name: str
    clean: Tensor
    observed: Tensor


def held_out(pictures: Sequence[Picture], task: Denoise, *, seed: int = 0) -> list[Example]:
    """The pictures with fixed noise: picture k is always observed with the noise of seed ``seed + k``.

    Raises:
        ValueError: there is no picture, or one is smaller than the 7 x 7 pixels over which SSIM is taken.
    """
    if not pictures:
        raise ValueError("there is no picture to validate or test on")
    for picture in pictures:
        _check_size(picture, 7, "the 7 x 7 pixels that SSIM needs")
    return [
        Example(picture.name, picture.pixels, task.observe(picture.pixels, torch.Generator().manual_seed(seed + k)))
        for k, picture in enumerate(pictures)
    ]


@dataclass(frozen=True)
class Score:
    """Means over pictures: PSNR in dB and SSIM, both with a data range of 1."""

    psnr: float
    ssim: float


def score(examples: Sequence[Example], restored: Sequence[Tensor]) -> Score:
    """PSNR and SSIM of each picture against the clean one, then the means. Nothing is clamped here.

    A picture that is restored without any error counts as 100 dB.
    """
    import numpy as np
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    psnr, ssim = [], []
    for example, picture in zip(examples, restored, strict=True):
        clean, other = example.clean.numpy(), picture.numpy()
        equal = np.array_equal(clean, other)
        psnr.append(MAX_PSNR if equal else float(peak_signal_noise_ratio(clean, other, data_range=1)))
        ssim.append(float(structural_similarity(clean, other, data_range=1, channel_axis=0)))
    return Score(math.fsum(psnr) / len(psnr), math.fsum(ssim) / len(ssim))


@torch.no_grad()
def restore(net: nn.Module, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What ``net`` makes of each whole picture (channels, height, width), clamped to [0, 1].

    Neighbours of equal shape go through the network together.
    """
    restored: list[Tensor] = []
    for _, equal in itertools.groupby(pictures, key=lambda picture: picture.shape):
        stack = torch.stack(list(equal))
        for batch in stack.split(max(1, MAX_PIXELS // stack[0].numel())):
            restored.extend(net(batch).clamp(0, 1))
    return restored


def evaluate(net: nn.Module, examples: Sequence[Example]) -> Score:
    """Score of a network on held-out pictures."""
    return score(examples, restore(net, [example.observed for example in examples]))
