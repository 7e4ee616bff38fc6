"""Telling the class of a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.search.data.batches import Batches, check_labelled, random_samples
from nas.search.data.stack import Picture
from nas.search.tasks.task import Example, Metric, Scores, Task, check_shape, evaluate
from nas.search.training.retrain import retrain

ACCURACY = Metric("accuracy", "accuracy", "%")


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
        ValueError: fewer than two classes, a mean or a std that does not fit, or an option out of range.
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
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be true or false, got {self.flip}")
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
        mean, std = (clean.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (clean - mean) / std

    def target(self, picture: Picture) -> Tensor:
        check_labelled([picture])
        if not 0 <= (picture.label or 0) < len(self.classes):
            raise ValueError(
                f"the picture {picture.name} has the label {picture.label}, of {len(self.classes)} classes"
            )
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
        check_shape(output, shape, f"{len(self.classes)} logits, so choose a model with the option outputs")

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
