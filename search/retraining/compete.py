"""Comparisons that are fair: the same pictures, steps and schedule for every network, and the best of three rates."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nas.models.dag import DagNet
from nas.models.plan import OUTPUT
from nas.search.data.batches import Batches
from nas.search.retraining.competitors import Competitor
from nas.search.tasks.task import Example, Scores, Task, evaluate, score
from nas.search.training.compute import Compute, device_of, evaluating
from nas.search.training.loop import OnStep
from nas.search.training.retrain import retrain

RATES = (2e-3, 5e-3, 1e-2)
LOOKED_AT = 8  # pictures on which an output that is constant is noticed

OnEpoch = Callable[[str, float], None]  # (what is trained, its mean loss), after every epoch
Memory = dict[str, tuple[dict[str, Any], Scores] | None]  # what was trained -> its weights and scores, if it trains


@dataclass(frozen=True)
class Training:
    """How every competitor is trained and judged.

    Attributes:
        task: what is learned.
        batches: the training data of a seed.
        validation: what weights and rates are chosen on.
        test: what is reported.
        epochs: at least 1.
        steps: batches per epoch.
        rates: highest learning rates of the one-cycle schedule to choose from, by the first seed.
        seeds: of weights and training data, at least one.
        every: epochs between two looks at the validation pictures; a training ends with its best weights.
        patience: stop after so many looks without a new best; never by default.
        compute: where and how every competitor is trained.
        on_step: called between two steps of every training.

    Raises:
        ValueError: no seed, or a rate that is not > 0.
    """

    task: Task
    batches: Callable[[int], Batches]
    validation: Sequence[Example]
    test: Sequence[Example]
    epochs: int
    steps: int
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    every: int = 5
    patience: int | None = None
    compute: Compute = Compute()
    on_step: OnStep = lambda: None

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("a comparison needs at least one seed")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"rates must be > 0, got {', '.join(map(str, self.rates)) or 'none'}")

    @property
    def num_epochs(self) -> int:
        """That one competitor is trained for, all in all."""
        return self.epochs * (len(self.rates) + len(self.seeds) - 1)

    @cached_property
    def trivial(self) -> float:
        """The validation score without any network, which one that trains has to exceed."""
        outputs = self.task.trivial(self.validation)[1]
        plain, finished = (
            score(self.validation, each, self.task)[self.headline]
            for each in (outputs, [self.task.finish(output) for output in outputs])
        )
        return max(plain, finished)

    @property
    def headline(self) -> str:
        return self.task.metrics[0].key


@dataclass(frozen=True)
class Trained:
    """What became of a competitor.

    Attributes:
        title: of the competitor.
        params: number of parameters.
        rate: the learning rate that was chosen; None if at every rate the network does not train with one of the
            seeds: its loss diverged, its output is constant, or it is no better than no network. Then it has no scores.
        validation: scores for each seed.
        test: scores for each seed.
        seconds: that all its trainings took.
        network: as trained with the first seed; None after `from_dict`.
    """

    title: str
    params: int
    rate: float | None
    validation: tuple[Scores, ...]
    test: tuple[Scores, ...]
    seconds: float
    network: nn.Module | None = field(default=None, repr=False, compare=False)

    def mean(self, key: str) -> float:
        """Of a test score over the seeds; -inf if the network does not train."""
        return statistics.fmean(scores[key] for scores in self.test) if self.test else -math.inf

    def spread(self, key: str) -> float:
        """The best test score minus the worst."""
        values = [scores[key] for scores in self.test] or [0.0]
        return max(values) - min(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file, with mean and spread of the first score (these are None without one), and the
        plan of a network that has one."""
        key = next(iter(self.test[0])) if self.test else None
        plan = {"plan": self.network.plan.to_dict()} if isinstance(self.network, DagNet) else {}
        return {
            "title": self.title,
            "params": self.params,
            "rate": self.rate,
            "mean": None if key is None else self.mean(key),
            "spread": None if key is None else self.spread(key),
            "validation": list(self.validation),
            "test": list(self.test),
            "seconds": round(self.seconds, 1),
            **plan,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Trained":
        """The inverse of `to_dict`, without the network."""
        validation, test = tuple(data["validation"]), tuple(data["test"])
        return cls(data["title"], data["params"], data["rate"], validation, test, data["seconds"])


def compete(
    competitor: Competitor,
    training: Training,
    on_epoch: OnEpoch = lambda what, loss: None,
    memory: Memory | None = None,
) -> Trained:
    """Train a network at every rate with the first seed, then with the other seeds at the rate that was best; where it
    does not train with one of them, at the next best.

    Args:
        competitor: what is trained.
        training: how; the same for everybody.
        on_epoch: called after every epoch.
        memory: what earlier trainings led to; those are not repeated, and new ones are added.

    Raises:
        ValueError: an option of the training is out of range, or the network does not suit the task.
    """
    began, (first, *others) = time.perf_counter(), training.seeds
    start = competitor.network(first)
    params = sum(p.numel() for p in start.parameters())
    memory = {} if memory is None else memory

    def trained(net: nn.Module, rate: float, seed: int) -> tuple[nn.Module, Scores] | None:
        what, net = f"{competitor.title}, rate {rate:g}, seed {seed}", copy.deepcopy(net)
        if what not in memory:
            result = _trained(net, rate, seed, training, lambda loss: on_epoch(what, loss))
            memory[what] = None if result is None else (net.state_dict(), result[1])
        if (known := memory[what]) is None:
            return None
        net.load_state_dict(known[0])
        return net, known[1]

    tried = {rate: trained(start, rate, first) for rate in training.rates}
    alive = {rate: result for rate, result in tried.items() if result is not None}
    for rate in sorted(alive, key=lambda rate: alive[rate][1][training.headline], reverse=True):
        results = [alive[rate], *(trained(competitor.network(seed), rate, seed) for seed in others)]
        nets = [result for result in results if result is not None]
        if len(nets) == len(results):
            validation = tuple(scores for _, scores in nets)
            test = tuple(evaluate(net, training.test, training.task) for net, _ in nets)
            return Trained(competitor.title, params, rate, validation, test, time.perf_counter() - began, nets[0][0])
    return Trained(competitor.title, params, None, (), (), time.perf_counter() - began)


def _trained(
    net: nn.Module, rate: float, seed: int, training: Training, on_epoch: Callable[[float], None]
) -> tuple[nn.Module, Scores] | None:
    """The network, trained in place, and its validation scores; None if it does not train."""

    def validate() -> float:
        return evaluate(net, training.validation, training.task)[training.headline]

    try:
        retrain(
            net,
            training.batches(seed),
            training.task.loss,
            epochs=training.epochs,
            steps=training.steps,
            lr=rate,
            on_epoch=lambda epoch, loss: on_epoch(loss),
            on_step=training.on_step,
            on_setback=lambda problem: None,
            validate=validate,
            every=training.every,
            patience=training.patience,
            compute=training.compute,
        )
    except FloatingPointError:
        return None
    scores = evaluate(net, training.validation, training.task)
    return (net, scores) if scores[training.headline] > training.trivial and not _is_constant(net, training) else None


@torch.no_grad()
def _is_constant(net: nn.Module, training: Training) -> bool:
    """Whether what the network computes is the same everywhere: all its rectifiers are dead."""
    inputs = [example.observed.to(device_of(net)) for example in training.validation[:LOOKED_AT]]
    with evaluating(net):
        values = torch.cat([_computed(net, x[None]) for x in inputs])
    return bool((values == values[:1]).all())


def _computed(net: nn.Module, x: Tensor) -> Tensor:
    """What a network puts out, of a `DagNet` before it is added to the input; of shape (positions, channels)."""
    if isinstance(net, DagNet):
        return net.states(x)[OUTPUT].movedim(net.unit_axis, -1).flatten(0, -2)
    output: Tensor = net(x)
    return output.movedim(1, -1).flatten(0, -2)
