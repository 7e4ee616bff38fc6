"""What a sweep varies, and what for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml

from nas.search.runs.config import SearchConfig
from nas.search.runs.options import PROBLEM, ROOTS, check_options, check_seed
from nas.search.runs.path import Point
from nas.search.sweep.ranges import Choices, Range, filled, ranges_in

Objective = Literal["score", "params", "flops", "seconds"]
OBJECTIVES: tuple[Objective, ...] = ("score", "params", "flops", "seconds")
FEWEST = 5  # others that have got as far, before a trial is given up


@dataclass(frozen=True)
class Sweep:
    """What is varied, and what for.

    Args:
        search: options of ``nas search``, any of them (and of the options of the supernet) as a range (`ranges_in`):
            ``{low: 0.001, high: 0.1, log: true}`` or ``{choices: [a, b]}``. What says what is to be learnt (task,
            task_options, data, channels, sigma) cannot vary, since scores could not be compared.
        objectives: of the network that a search recommends: score (the larger the better), params, flops
            (multiply-adds per pixel), seconds of the search (the smaller the better).
        trials: searches in all, over all processes, those included that fail or are given up.
        storage: URL of a database, such as sqlite:///sweep.db or postgresql+psycopg://user@host/name; None: study.db
            in the folder of the sweep.
        study: its name there.
        prune: give hopeless trials up (`hopeless`).
        seed: of what is drawn.

    Raises:
        ValueError: nothing varies, an option or a value that a search does not take, an objective that there is not,
            or numbers out of range.
    """

    search: dict[str, Any]
    objectives: list[Objective] = field(default_factory=lambda: ["score", "params"])
    trials: int = 20
    storage: str | None = None
    study: str = "nas"
    prune: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives must be one or more of {', '.join(OBJECTIVES)}, each once")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")
        check_seed(self.seed)
        check_options("nas search", self.search, [option.name for option in fields(SearchConfig)])
        if not self.ranges:
            raise ValueError("no option of the search is a range; write one such as lr: {low: 0.001, high: 0.1}")
        for name in self.ranges:
            if name.partition(".")[0] in (*PROBLEM, *ROOTS):
                raise ValueError(f"{name} says what is to be learnt and cannot vary: scores could not be compared")
        self._check_values()

    def _check_values(self) -> None:
        """Every end and every choice must suit the options that do not vary, and the first value of the others."""
        first = {name: drawn.examples[0] for name, drawn in self.ranges.items()}
        self.example.build()
        for name, drawn in self.ranges.items():
            for value in drawn.examples[1:]:
                try:
                    self.config({**first, name: value}).build()
                except ValueError as problem:
                    raise ValueError(f"{name} {value}: {problem}") from None

    @classmethod
    def from_yaml(cls, text: str) -> "Sweep":
        """The sweep that a file describes, with the names of the arguments as keys.

        Raises:
            ValueError: it is none.
        """
        from jsonargparse import ArgumentError, ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            return cls(**parser.parse_string(text).as_dict())
        except (ArgumentError, TypeError, RecursionError, yaml.YAMLError) as problem:
            raise ValueError(f"no sweep: {' '.join(str(problem).split())}") from None

    @property
    def ranges(self) -> dict[str, Range | Choices]:
        """What is drawn, by name."""
        return ranges_in(self.search)

    def config(self, values: Mapping[str, Any]) -> SearchConfig:
        """The options of a search for which these values were drawn; numbers become text where an option is one."""
        texts = {option.name for option in fields(SearchConfig) if option.type is str}
        given = {
            name: str(value) if name in texts and isinstance(value, int | float) else value
            for name, value in filled(self.search, values).items()
        }
        config = SearchConfig.from_yaml(yaml.safe_dump({**yaml.safe_load(SearchConfig().to_yaml()), **given}))
        return config.at_absolute_roots()

    @property
    def example(self) -> SearchConfig:
        """The options of a search, with the first value of each range."""
        return self.config({name: drawn.examples[0] for name, drawn in self.ranges.items()})

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same wherever one works on a study."""
        search = {name: value for name, value in self.search.items() if name not in ROOTS}
        plain: dict[str, Any] = json.loads(json.dumps({"objectives": self.objectives, "search": search}))
        return plain

    def values(self, point: Point) -> dict[str, float]:
        """What a network is worth, by objective."""
        numbers = {
            "score": point.headline, "params": point.params, "flops": point.flops, "seconds": point.seconds,
        }  # fmt: skip
        return {name: float(numbers[name]) for name in self.objectives}

    def losses(self, point: Point) -> list[float]:
        """The same, all of them the smaller the better."""
        return [-value if name == "score" else value for name, value in self.values(point).items()]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether a is nowhere larger than b, and somewhere smaller."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def hopeless(losses: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether at least half of the others, five or more, dominate: with one objective, worse than the median.

    Args:
        losses: the objectives at a part of the way, all of them the smaller the better.
        others: of other trials at the same part of their way.
    """
    return len(others) >= FEWEST and 2 * sum(dominates(each, losses) for each in others) >= len(others)
