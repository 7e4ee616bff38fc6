"""What a network is to learn: what it sees, what is minimised, and how results are scored."""

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.registry import Registry
from nas.search.baselines import nl_means, tv, wiener
from nas.search.batches import Batches, check_labelled, check_size, random_crops, random_samples
from nas.search.retrain import retrain
from nas.search.stack import Picture, Pictures

Scores = dict[str, float]  # key of a metric -> value
Method = Callable[[Tensor, float], Tensor]  # (observed picture, strength) -> restored picture
MAX_PIXELS = 2**20  # of one batch in an evaluation
MAX_PSNR = 100.0  # of a picture restored without any error, which has no finite PSNR
MIN_SSIM_SIDE = 7  # of the windows over which SSIM is taken


@dataclass(frozen=True)
class Metric:
    """A number that says how good a result is; the higher, the better.

    Attributes:
        key: its name in files and in JSON, such as "psnr".
        title: its name in print.
        unit: such as "dB"; may be empty.
        decimals: that are printed.
    """

    key: str
    title: str
    unit: str = ""
    decimals: int = 2

    def number(self, value: float) -> str:
        """Such as "28.61 dB"."""
        return f"{value:.{self.decimals}f} {self.unit}".rstrip()

    def text(self, value: float) -> str:
        """Such as "PSNR 28.61 dB"."""
        return f"{self.title} {self.number(value)}"


PSNR, SSIM, ACCURACY = Metric("psnr", "PSNR", "dB"), Metric("ssim", "SSIM", "", 3), Metric("accuracy", "accuracy", "%")


@dataclass(frozen=True)
class Example:
    """A held-out picture: what the network sees, (channels, height, width), and what it is to return."""

    name: str
    observed: Tensor
    target: Tensor


class Task(ABC):
    """What a network is to learn. A task is a frozen dataclass whose fields are its options.

    Attributes:
        metrics: what results are scored by; the first one is the headline.
        from_data: names of the fields that are attributes of the data set (`nas.search.Pictures`) and no options.
        most_held_out: at most so many pictures, evenly spaced, are measured in validation and in the test.
        num_outputs: what a recipe with the option ``outputs`` is made with, such as the number of classes.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    from_data: ClassVar[tuple[str, ...]] = ()
    most_held_out: ClassVar[float] = math.inf

    @property
    def num_outputs(self) -> int | None:
        return None

    @abstractmethod
    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees of pictures (..., channels, height, width) in [0, 1]."""

    @abstractmethod
    def target(self, picture: Picture) -> Tensor:
        """What the network is to return for a held-out picture, without the batch axis.

        Raises:
            ValueError: the picture does not suit the task.
        """

    @abstractmethod
    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        """Training data: a function of the epoch that iterates over ``steps`` pairs (observed, target)."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abstractmethod
    def score(self, output: Tensor, target: Tensor) -> Scores:
        """The `metrics` of one finished output."""

    @abstractmethod
    def trivial(self, examples: Sequence[Example]) -> tuple[str, list[Tensor]]:
        """The outputs without any network, such as the observations themselves, and what that is called."""

    def finish(self, output: Tensor) -> Tensor:
        """What is made of the output of the network before it is scored; nothing by default."""
        return output

    def baselines(
        self, train: Sequence[Picture], validation: Sequence[Example], test: Sequence[Example]
    ) -> dict[str, Scores]:
        """Test scores of classical methods, by name; none by default.

        Args:
            train: for those that are trained.
            validation: to choose their options on.
            test: to score them on.
        """
        return {}


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
        _check_shape(output, target.shape, "pictures as large as those it sees")
        return F.mse_loss(output, target)

    def finish(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)

    def score(self, output: Tensor, target: Tensor) -> Scores:
        import numpy as np
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        _check_shape(output, target.shape, "pictures as large as those it sees")
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


@dataclass(frozen=True)
class Classify(Task):
    """Tell the class of a picture; the loss is the cross entropy, the score the accuracy in per cent.

    The network sees (pixels - mean) / std and returns one logit per class, (B, classes).

    Args:
        classes: their names.
        mean: of each channel.
        std: standard deviation of each channel, > 0.
        flip: mirror every second training picture, left to right, at random.
        shift: move each training picture by up to so many pixels, in each direction, at random; black comes in.

    Raises:
        ValueError: fewer than two classes, a mean or a std that does not fit.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    shift: int = 0

    metrics = (ACCURACY,)
    from_data = ("classes", "mean", "std")

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                "the task classify needs pictures of two classes or more: data such as mnist, cifar10 or class_folder"
            )
        if len(self.mean) != len(self.std) or not all(0 < std < math.inf for std in self.std):
            raise ValueError(f"each channel needs a mean and a std > 0, got {self.mean} and {self.std}")

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4f}" for value in each) for each in (self.mean, self.std))
        return f"{len(self.classes)} classes, pixels normalised by mean {mean} and std {std}"

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """(clean - mean) / std, by channel."""
        mean, std = (torch.tensor(each, dtype=clean.dtype)[:, None, None] for each in (self.mean, self.std))
        return (clean - mean) / std

    def target(self, picture: Picture) -> Tensor:
        check_labelled([picture])
        return torch.tensor(picture.label)

    def batches(self, pictures: Sequence[Picture], *, crop: int, batch: int, steps: int, seed: int = 0) -> Batches:
        """Whole pictures with their labels, ``crop`` is not used (`nas.search.random_samples`)."""
        return random_samples(pictures, self, batch=batch, steps=steps, flip=self.flip, shift=self.shift, seed=seed)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self._check_logits(output, (len(target), len(self.classes)))
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, target: Tensor) -> Scores:
        self._check_logits(output, (len(self.classes),))
        right = output.argmax() == target
        return {"accuracy": 100.0 * bool(right) if output.isfinite().all() else math.nan}

    def _check_logits(self, output: Tensor, shape: Sequence[int]) -> None:
        _check_shape(output, shape, f"{len(self.classes)} logits, so choose a model with the option outputs")

    def trivial(self, examples: Sequence[Example]) -> tuple[str, list[Tensor]]:
        """Always the most frequent class."""
        counts = torch.stack([example.target for example in examples]).bincount(minlength=len(self.classes))
        logits = F.one_hot(counts.argmax(), len(self.classes)).float()
        return "majority", [logits] * len(examples)

    def baselines(
        self, train: Sequence[Picture], validation: Sequence[Example], test: Sequence[Example]
    ) -> dict[str, Scores]:
        """Logistic regression on the pixels: 5 passes of Adam over the training pictures, 500 steps at least."""
        epochs, batch = 5, min(256, len(train))
        steps = max(100, math.ceil(len(train) / batch))
        net = nn.Sequential(nn.Flatten(), nn.Linear(train[0].pixels.numel(), len(self.classes)))
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        retrain(
            net,
            random_samples(train, self, batch=batch, steps=steps),
            self.loss,
            epochs=epochs,
            steps=steps,
            validate=lambda: evaluate(net, validation, self)["accuracy"],
            every=1,
        )
        return {"linear": evaluate(net, test, self)}


TASKS: Registry[type[Task]] = Registry("task", {"denoise": Denoise, "deblur": Deblur, "classify": Classify})


def register_task(name: str, task: type[Task]) -> None:
    """Let ``task`` be chosen by ``task: name``.

    Args:
        name: an identifier.
        task: a subclass of `Task` such as `Restoration` or `Classify`, a frozen dataclass whose fields are its options.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    TASKS.register(name, task)


def make_task(name: str, data: Pictures, *, sigma: float, options: Mapping[str, Any]) -> Task:
    """The task of this name for a data set.

    Args:
        name: a key of `TASKS`.
        data: gives the fields that the task lists in ``from_data``.
        sigma: for tasks that have such a field.
        options: its other fields.

    Raises:
        ValueError: unknown or missing options, options out of range, or data that do not suit the task.
    """
    kind = TASKS.find(name)
    fields = inspect.signature(kind).parameters
    known = [field for field in fields if field not in ("sigma", *kind.from_data)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known) or 'none'}")
    given = {"sigma": sigma} if "sigma" in fields else {}
    return kind(**given, **{field: getattr(data, field) for field in kind.from_data}, **options)


def held_out(pictures: Sequence[Picture], task: Task, *, seed: int = 0) -> list[Example]:
    """Pictures to measure on, with fixed noise: number k is always observed with the noise of seed ``seed + k``.

    Raises:
        ValueError: there is no picture, or one does not suit the task.
    """
    if not pictures:
        raise ValueError("there is no picture to validate or test on")
    every = max(1, math.ceil(len(pictures) / task.most_held_out))
    return [
        Example(
            picture.name,
            task.observe(picture.pixels, torch.Generator().manual_seed(seed + k)),
            task.target(picture),
        )
        for k, picture in enumerate(pictures[::every])
    ]


def score(examples: Sequence[Example], outputs: Sequence[Tensor], task: Task) -> Scores:
    """The mean over the examples of each metric of the task. Outputs are taken as they are (`Task.finish`)."""
    each = [task.score(output, example.target) for example, output in zip(examples, outputs, strict=True)]
    return {metric.key: math.fsum(scores[metric.key] for scores in each) / len(each) for metric in task.metrics}


@torch.no_grad()
def predict(net: nn.Module, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What ``net`` returns for each picture (channels, height, width), without the batch axis.

    Neighbours of equal shape go through the network together.
    """
    outputs: list[Tensor] = []
    for _, equal in itertools.groupby(pictures, key=lambda picture: picture.shape):
        stack = torch.stack(list(equal))
        for batch in stack.split(max(1, MAX_PIXELS // stack[0].numel())):
            outputs.extend(net(batch))
    return outputs


def restore(net: nn.Module, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What ``net`` makes of each whole picture, clamped to [0, 1]."""
    return [output.clamp(0, 1) for output in predict(net, pictures)]


def evaluate(net: nn.Module, examples: Sequence[Example], task: Task) -> Scores:
    """Scores of a network on held-out pictures."""
    outputs = predict(net, [example.observed for example in examples])
    return score(examples, [task.finish(output) for output in outputs], task)


def _check_shape(output: Tensor, shape: Sequence[int], needed: str) -> None:
    if tuple(output.shape) != tuple(shape):
        got, expected = (" x ".join(map(str, each)) for each in (output.shape, shape))
        raise ValueError(f"the network returns {got} numbers, not {expected}: the task needs {needed}")
