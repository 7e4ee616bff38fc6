"""Other degradations than noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.search.data.batches import Batches
from nas.search.data.images import read_picture, to_tensor
from nas.search.data.stack import Picture
from nas.search.tasks.baselines import biharmonic, unsharp, wiener
from nas.search.tasks.noise import Denoise
from nas.search.tasks.restoration import Method, Restoration
from nas.search.tasks.task import Example


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


GREY = 0.5  # what is shown where a pixel is missing


@dataclass(frozen=True)
class Inpaint(Restoration):
    """Fill in missing pixels. The network sees grey there, and behind the picture a channel that is 1 where pixels are
    known and 0 where they are missing.

    Args:
        missing: share of the pixels that are missing, at random, in (0, 1).
        mask: file of a picture that is black where pixels are missing, instead. It is repeated over larger pictures; a
            training crop has a random part of it.

    Raises:
        ValueError: ``missing`` out of range, or a mask that cannot be read or is all black or nowhere.
    """

    missing: float = 0.5
    mask: str | None = None
    observed_name = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.missing < 1:
            raise ValueError(f"missing must lie in (0, 1), got {self.missing}")
        if self.mask is not None:
            _mask(self.mask)

    def __str__(self) -> str:
        what = "random pixels" if self.mask is None else f"pixels of the mask {self.mask}"
        share = self.missing if self.mask is None else 1 - float(_mask(self.mask).mean())
        return f"{100 * share:.0f} % {what} missing"

    @property
    def num_extra(self) -> int:
        return 1

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` with grey for what is missing, and the mask behind it."""
        return masked(clean, self._known(clean, generator))

    def _known(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """1 where pixels are known, else 0: (..., 1, height, width)."""
        shape = *clean.shape[:-3], 1, *clean.shape[-2:]
        if self.mask is None:
            return (torch.rand(shape, generator=generator) >= self.missing).to(clean.dtype)
        mask = _mask(self.mask)
        drawn = [_part(mask, clean.shape[-2:], generator) for _ in range(math.prod(clean.shape[:-3]))]
        return torch.stack(drawn).reshape(shape).to(clean.dtype)

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Biharmonic interpolation of scikit-image, which has no strength."""
        return {"biharmonic": (lambda observed, _: biharmonic(self.picture(observed), observed[-1] > 0), (1.0,))}


def masked(picture: Tensor, known: Tensor) -> Tensor:
    """Pictures (..., channels, height, width) with grey where ``known`` (..., 1, height, width) is 0, and it behind."""
    return torch.cat([torch.where(known > 0, picture, GREY), known], dim=-3)


def _part(mask: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """``size`` pixels of a repeated mask from a random place on."""
    top, left = (int(torch.randint(side, (), generator=generator)) for side in mask.shape)
    rows, columns = (
        (start + torch.arange(n)) % side for start, n, side in zip((top, left), size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


def read_mask(file: str) -> Tensor:
    """1 where the picture is not black, else 0: (height, width)."""
    try:
        known = to_tensor(read_picture(Path(file)), 1)[0].gt(0).float()
    except OSError as problem:
        raise ValueError(f"the mask {file} cannot be read: {problem.strerror}") from None
    if not 0 < known.mean() < 1:
        raise ValueError(f"the mask {file} must be black where pixels are missing, and not black elsewhere")
    return known


_mask = cache(read_mask)


@dataclass(frozen=True)
class SuperResolve(Restoration):
    """Restore what is lost in a picture of a smaller size: it is made smaller by bicubic interpolation (with a kernel
    that is as much wider), and shown to the network after bicubic magnification, so that both have one size (Dong et
    al., SRCNN, arXiv 1501.00092). Pictures are cut to multiples of the scale.

    Args:
        scale: 2, 3 or 4.

    Raises:
        ValueError: another scale.
    """

    scale: int = 2
    observed_name = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {self.scale}")

    def __str__(self) -> str:
        return f"pictures {self.scale} times smaller (bicubic)"

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean``, made smaller and larger again; its sides are multiples of the scale."""
        size = [side // self.scale for side in clean.shape[-2:]]
        planes = clean.reshape(-1, 1, *clean.shape[-2:])
        smaller = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
        return magnified(smaller, self.scale).reshape(clean.shape)

    def target(self, picture: Picture) -> Tensor:
        return super().target(self._cut(picture))

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        return super().examples(self._cut(picture), generator)

    def _cut(self, picture: Picture) -> Picture:
        height, width = (side // self.scale * self.scale for side in picture.pixels.shape[-2:])
        return replace(picture, pixels=picture.pixels[:, :height, :width])

    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        if crop % self.scale:
            raise ValueError(f"crop must be a multiple of the scale {self.scale}, got {crop}")
        return super().batches(pictures, crop=crop, batch=batch, steps=steps, seed=seed)

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """The unsharp mask of scikit-image."""
        return {"unsharp": (unsharp, (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0))}


def magnified(pictures: Tensor, scale: int) -> Tensor:
    """(n, channels, height, width), ``scale`` times as large by bicubic interpolation."""
    return F.interpolate(pictures, scale_factor=scale, mode="bicubic")
