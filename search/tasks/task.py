"""What a network is to learn: what it sees, what is minimised, and how results are scored."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nas.search.data.batches import Batches
from nas.search.data.files import Files
from nas.search.data.stack import Picture
from nas.search.training import ranks
from nas.search.training.compute import device_of, evaluating

Scores = dict[str, float]  # key of a metric -> value
MAX_PIXELS = 2**20  # of one batch in an evaluation


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


@dataclass(frozen=True)
class Example:
    """A held-out picture: what the network sees, (inputs, height, width), and what its output is compared with.

    Attributes:
        condition: what it was observed under, such as "sigma 25", where the same picture is observed under several.
    """

    name: str
    observed: Tensor
    target: Tensor
    condition: str = ""


class Task(ABC):
    """What a network is to learn. A task is a frozen dataclass whose fields are its options.

    Attributes:
        metrics: what results are scored by; the first one is the headline.
        from_data: names of the fields that are attributes of the data set (`nas.search.Pictures`) and no options.
        most_held_out: at most so many pictures, evenly spaced, are measured in validation and in the test; fewer where
            they are `nas.search.data.files.Files` and large.
        num_outputs: what a recipe with the option ``outputs`` is made with, such as the number of classes.
        num_extra: channels that the network sees behind those of the picture, such as the level of its noise.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    from_data: ClassVar[tuple[str, ...]] = ()
    most_held_out: ClassVar[float] = math.inf

    @property
    def num_outputs(self) -> int | None:
        return None

    @property
    def num_extra(self) -> int:
        return 0

    @abstractmethod
    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees of pictures (..., channels, height, width) in [0, 1]: (..., inputs, height, width)."""

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

    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of training pictures what the network sees, and what its output is compared with."""
        return self.observe(crops, generator), crops

    def examples(self, picture: Picture, generator: torch.Generator) -> list[Example]:
        """A held-out picture as it is measured: by default observed once."""
        return [Example(picture.name, self.observe(picture.pixels, generator), self.target(picture))]

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


def held_out(pictures: Sequence[Picture], task: Task, *, seed: int = 0) -> list[Example]:
    """Pictures to measure on, with fixed noise: number k is always observed with the noise of seed ``seed + k``.

    Raises:
        ValueError: there is no picture, or one does not suit the task.
    """
    if not pictures:
        raise ValueError("there is no picture to validate or test on")
    most = min(task.most_held_out, pictures.most_at_once if isinstance(pictures, Files) else math.inf)
    every = max(1, math.ceil(len(pictures) / most))
    return [
        example
        for k, picture in enumerate(pictures[::every])
        for example in task.examples(picture, torch.Generator().manual_seed(seed + k))
    ]


def score(examples: Sequence[Example], outputs: Sequence[Tensor], task: Task) -> Scores:
    """The mean over the examples of each metric of the task. Outputs are taken as they are (`Task.finish`)."""
    return _mean(_scores_of_each(examples, outputs, task), task)


def by_condition(examples: Sequence[Example], outputs: Sequence[Tensor], task: Task) -> dict[str, Scores]:
    """`score` of each condition on its own; empty where there are no several."""
    groups: dict[str, list[int]] = {}
    for k, example in enumerate(examples):
        groups.setdefault(example.condition, []).append(k)
    if len(groups) < 2:
        return {}
    return {name: score([examples[k] for k in ks], [outputs[k] for k in ks], task) for name, ks in groups.items()}


def score_trivial(examples: Sequence[Example], task: Task) -> tuple[str, Scores]:
    """What the results without any network are called (`Task.trivial`), and their scores."""
    name, outputs = task.trivial(examples)
    return name, score(examples, outputs, task)


@torch.no_grad()
def predict(net: nn.Module, pictures: Sequence[Tensor]) -> list[Tensor]:
    """What ``net`` returns for each picture (channels, height, width), without the batch axis.

    Neighbours of equal shape go through the network together, where the network is; the outputs are on the CPU.
    """
    outputs: list[Tensor] = []
    device = device_of(net)
    for _, equal in itertools.groupby(pictures, key=lambda picture: picture.shape):
        stack = torch.stack(list(equal))
        for batch in stack.split(max(1, MAX_PIXELS // stack[0].numel())):
            with evaluating(net):
                outputs.extend(net(batch.to(device)).cpu())
    return outputs


def evaluate(net: nn.Module, examples: Sequence[Example], task: Task) -> Scores:
    """Scores of a network on held-out pictures. Several ranks (`nas.search.training.ranks`) measure some each."""

    def measure(part: Sequence[Example]) -> list[Scores]:
        outputs = predict(net, [example.observed for example in part])
        return _scores_of_each(part, [task.finish(output) for output in outputs], task)

    return _mean(ranks.spread(measure, examples), task)


def _scores_of_each(examples: Sequence[Example], outputs: Sequence[Tensor], task: Task) -> list[Scores]:
    return [task.score(output, example.target) for example, output in zip(examples, outputs, strict=True)]


def _mean(each: Sequence[Scores], task: Task) -> Scores:
    return {metric.key: math.fsum(scores[metric.key] for scores in each) / len(each) for metric in task.metrics}


def check_shape(output: Tensor, shape: Sequence[int], needed: str) -> None:
    """Raise ValueError, saying what the task ``needed``, if ``output`` has another shape."""
    if tuple(output.shape) != tuple(shape):
        got, expected = (" x ".join(map(str, each)) for each in (output.shape, shape))
        raise ValueError(f"the network returns {got} numbers, not {expected}: the task needs {needed}")
