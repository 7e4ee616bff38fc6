"""Tasks that recover a picture from a worse one: what they have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nas.search.data.batches import Batches, check_size, random_crops
from nas.search.data.stack import Picture
from nas.search.tasks.task import Example, Metric, Scores, Task, check_shape, predict, score

Method = Callable[[Tensor, float], Tensor]  # (what the network sees, strength) -> restored picture
PSNR, SSIM = Metric("psnr", "PSNR", "dB"), Metric("ssim", "SSIM", decimals=3)
STRENGTH = "strength"
MAX_PSNR = 100.0  # of a picture restored without any error, which has no finite PSNR
MIN_SSIM_SIDE = 7  # of the windows over which SSIM is taken
WINDOW = 11  # side of those of `published_ssim`


@dataclass(frozen=True)
class Restoration(Task):
    """Recover a picture from what `observe` makes of it; the loss is the mean squared error.

    PSNR in dB and SSIM of the output, clamped to [0, 1], both with a data range of 1. A picture that is restored
    without any error counts as 100 dB.

    Args:
        border: pixels at each side that scores leave out, >= 0, as some articles do.

    Raises:
        ValueError: an option out of range.
    """

    border: int = field(default=0, kw_only=True, repr=False)

    metrics: ClassVar[tuple[Metric, ...]] = (PSNR, SSIM)
    most_held_out = 500
    observed_name: ClassVar[str] = "noisy"  # in print and in the names of files

    def __post_init__(self) -> None:
        if not (type(self.border) is int and self.border >= 0):
            raise ValueError(f"border must be at least 0 pixels, got {self.border}")

    @property
    def methods(self) -> dict[str, tuple[Method, Sequence[float]]]:
        """Classical methods to compare with, each with the strengths to choose from."""
        return {}

    def picture(self, observed: Tensor) -> Tensor:
        """Of what the network sees, the picture."""
        return observed[..., : observed.shape[-3] - self.num_extra, :, :]

    def clean(self, target: Tensor) -> Tensor | None:
        """Of what an output is compared with, the clean picture; None where that is unknown."""
        return target

    def views(self, example: Example, restored: Tensor) -> dict[str, Tensor]:
        """The pictures "observed", "restored" and, where that is known, "clean" (channels, height, width)."""
        clean = self.clean(example.target)
        return {"observed": self.picture(example.observed), "restored": restored} | (
            {} if clean is None else {"clean": clean}
        )

    def target(self, picture: Picture) -> Tensor:
        beside = f" beside the border of {self.border}" if self.border else ""
        reason = f"the {MIN_SSIM_SIDE} x {MIN_SSIM_SIDE} pixels that SSIM needs{beside}"
        check_size(picture, MIN_SSIM_SIDE + 2 * self.border, reason)
        return picture.pixels

    def scored(self, picture: Tensor) -> Tensor:
        """(..., height, width) without the border."""
        height, width = picture.shape[-2:]
        return picture[..., self.border : height - self.border, self.border : width - self.border]

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
        clean, other = self.scored(target).numpy(), self.scored(output).numpy()
        equal = np.array_equal(clean, other)
        psnr = MAX_PSNR if equal else float(peak_signal_noise_ratio(clean, other, data_range=1))
        return {"psnr": psnr, "ssim": float(structural_similarity(clean, other, data_range=1, channel_axis=0))}

    def by_picture(self, examples: Sequence[Example], outputs: Sequence[Tensor]) -> list[dict[str, float | str]]:
        """Name, condition and scores of each picture; with `published_ssim`, where the clean one is known and large
        enough. Outputs are taken as they are."""
        found: list[dict[str, float | str]] = []
        for example, output in zip(examples, outputs, strict=True):
            scores, clean = self.score(output, example.target), self.clean(example.target)
            if clean is not None and min(self.scored(clean).shape[-2:]) >= WINDOW:
                scores["published_ssim"] = published_ssim(self.scored(output), self.scored(clean))
            found.append({"name": example.name, "condition": example.condition, **scores})
        return found

    def trivial(self, examples: Sequence[Example]) -> tuple[str, list[Tensor]]:
        return self.observed_name, [self.picture(example.observed) for example in examples]

    def baselines(
        self, train: Sequence[Picture], validation: Sequence[Example], test: Sequence[Example]
    ) -> dict[str, Scores]:
        """Test scores of each of `methods`, and "strength": the one that has the best headline on the validation
        pictures."""

        def result(method: Method, strength: float, examples: Sequence[Example]) -> Scores:
            return score(examples, [method(example.observed, strength) for example in examples], self)

        best = {}
        for name, (method, strengths) in self.methods.items():
            scores = {strength: result(method, strength, validation)[self.metrics[0].key] for strength in strengths}
            strength = max(scores, key=scores.__getitem__)
            best[name] = {**result(method, strength, test), STRENGTH: strength}
        return best


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
