"""Runs side by side: in which options they differ, what each came to, and which are repetitions of one another."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import yaml
from torch import nn

from nas.analysis.structure import similarity
from nas.analysis.topology import topology
from nas.search.engine.stopping import growth_is_over
from nas.search.runs.config import SearchConfig
from nas.search.runs.networks import RESULT, load_retrained
from nas.search.runs.options import PROBLEM
from nas.search.runs.path import Point
from nas.search.runs.run import RETRAINED, Run
from nas.search.tasks.task import Metric


@dataclass(frozen=True)
class Retrained:
    """What ``nas retrain`` came to.

    Attributes:
        score: the headline score on the test pictures.
        params: parameters of the network that was retrained.
    """

    score: float
    params: int


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        run: the run.
        recommended: its network (`Run.choose`).
        front: its networks of several sizes, the smallest first; may be empty.
        retrained: None if no network was retrained.
        epochs: of growth that are done.
        seconds: that the search has taken.
    """

    run: Run
    recommended: Point
    front: tuple[Point, ...]
    retrained: Retrained | None
    epochs: int
    seconds: float

    @property
    def network(self) -> nn.Module:
        """The recommended one, as it was searched."""
        return self.run.supernet(self.recommended.snapshot.epoch)

    @property
    def finished(self) -> bool:
        """Whether it has grown to its end, and the front is there if its sizes were given."""
        config = self.run.config
        sizes = 0 if config.front_sizes is None else len(config.front_sizes)
        return growth_is_over(self.run.points(), config) and len(self.front) >= sizes

    @property
    def numbers(self) -> dict[str, float]:
        """What can be averaged, by name: params, flops, the validation scores, retrained, seconds."""
        point = self.recommended
        retrained = {} if self.retrained is None else {"retrained": self.retrained.score}
        return {
            "params": point.params, "flops": point.flops, **point.scores, **retrained, "seconds": self.seconds,
        }  # fmt: skip


def outcome(run: Run) -> Outcome:
    """What a run came to, so far as it has got.

    Raises:
        ValueError: it has no search path, or a damaged one; or its retrained network is damaged.
    """
    points, front = run.points(), run.front()
    return Outcome(
        run,
        run.choose(),
        tuple(sorted(front, key=lambda point: point.params)),
        _retrained(run),
        points[-1].snapshot.epoch - len(front),
        points[-1].seconds,
    )


def _retrained(run: Run) -> Retrained | None:
    """What the run has retrained, if it has.

    Raises:
        ValueError: it is damaged.
    """
    if not (run.folder / RETRAINED).is_dir():
        return None
    _, result = load_retrained(run)
    try:
        return Retrained(float(result[run.config.headline.key]), int(result["params"]))
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{run.folder / RETRAINED / RESULT} is damaged: {problem}") from None


def differing_options(configs: Sequence[SearchConfig]) -> dict[str, list[Any]]:
    """The options in which runs differ, with the value of each run; None where it has no such option.

    Options within an option, such as those of the supernet, are named ``model_options.width``.
    """
    flat = [_flat(yaml.safe_load(config.to_yaml())) for config in configs]
    names = dict.fromkeys(name for each in flat for name in each)
    values = {name: [each.get(name) for each in flat] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def differing_problems(configs: Sequence[SearchConfig]) -> list[str]:
    """The options in which runs differ that say what is to be learnt: where there is one, scores can't be compared."""
    return [name for name in PROBLEM if any(getattr(each, name) != getattr(configs[0], name) for each in configs)]


def repetitions_among(configs: Sequence[SearchConfig]) -> list[list[int]]:
    """The indices of the runs, those together that differ in their seed only."""
    groups: dict[str, list[int]] = {}
    for k, config in enumerate(configs):
        groups.setdefault(replace(config, seed=0).to_yaml(), []).append(k)
    return list(groups.values())


def of_each_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Of runs that differ in their seed only the first one with each seed: others with it are the same search again."""
    seeds = [each.run.config.seed for each in outcomes]
    return [each for k, each in enumerate(outcomes) if seeds[k] not in seeds[:k]]


def mean(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of the numbers that all of them have."""
    return {name: statistics.fmean(values) for name, values in _shared(outcomes).items()}


def spread(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The largest minus the smallest of each of these numbers."""
    return {name: max(values) - min(values) for name, values in _shared(outcomes).items()}


def mean_front(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """Mean parameters, mean headline score (and its spread) of the first, second ... network of the fronts.

    Returns:
        Dictionaries with params, score and spread; none unless all fronts have equally many networks.
    """
    fronts = [each.front for each in outcomes]
    if len(set(map(len, fronts))) != 1:
        return []
    return [
        {
            "params": statistics.fmean(point.params for point in points),
            "score": statistics.fmean(point.headline for point in points),
            "spread": max(point.headline for point in points) - min(point.headline for point in points),
        }
        for points in zip(*fronts, strict=True)
    ]


def similarities(nets: Sequence[nn.Module]) -> list[list[float]]:
    """How alike networks are, each to each (`nas.analysis.similarity` of nodes); the diagonal is 1."""
    graphs = [topology(net) for net in nets]
    matrix = [[1.0] * len(graphs) for _ in graphs]
    for a, b in combinations(range(len(graphs)), 2):
        matrix[a][b] = matrix[b][a] = similarity(graphs[a], graphs[b])
    return matrix


def metrics_of(outcomes: Sequence[Outcome]) -> list[Metric]:
    """The metrics by which any of the runs was measured, the headlines first."""
    lists = [each.run.config.task_class.metrics for each in outcomes]
    return list(dict.fromkeys([*(each[0] for each in lists), *(metric for each in lists for metric in each)]))


def _shared(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    numbers = [each.numbers for each in outcomes]
    return {name: [each[name] for each in numbers] for name in numbers[0] if all(name in each for each in numbers)}


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
