"""Options that are drawn: what a YAML file says instead of a value."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RANGE_KEYS = ("low", "high", "step", "log")
CHOICES = "choices"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones if both are whole.

    Args:
        low: the least.
        high: the largest, > low.
        step: between two of them, if only some are meant; divides ``high - low``.
        log: whether each factor is as likely as any other, instead of each difference; then low is > 0.

    Raises:
        ValueError: a range that is none, or the wrong way round.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        numbers = [number for number in (self.low, self.high, self.step) if number is not None]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"low, high and step must be finite numbers, got {', '.join(map(repr, numbers))}")
        if not isinstance(self.log, bool):
            raise ValueError(f"log must be true or false, got {self.log!r}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a range with log needs low > 0 and no step")
        if self.step is not None and not (self.step > 0 and _whole((self.high - self.low) / self.step)):
            raise ValueError(f"step must divide high - low, got {self.step}")
        if self.whole and not _whole(self.step or 1):
            raise ValueError(f"step must be whole where low and high are, got {self.step}")

    @property
    def whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def examples(self) -> list[int | float]:
        """Values with which options can be checked: the ends."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choices:
    """One of several values, which need no order.

    Args:
        values: by a name; lists and mappings can't be names themselves.
    """

    values: Mapping[bool | int | float | str | None, Any]

    @classmethod
    def of(cls, values: Any) -> "Choices":
        """The choices of a YAML list.

        Raises:
            ValueError: it is none, is empty, or has a value twice.
        """
        if not isinstance(values, list) or not values:
            raise ValueError(f"choices must be a list of values, got {values!r}")
        names = [each if isinstance(each, bool | int | float | str | None) else json.dumps(each) for each in values]
        if len(set(names)) < len(names):
            raise ValueError(f"choices must differ, got {values}")
        return cls(dict(zip(names, values, strict=True)))

    @property
    def examples(self) -> list[Any]:
        """Values with which options can be checked: all."""
        return list(self.values.values())


def ranges_in(options: Mapping[str, Any], prefix: str = "") -> dict[str, Range | Choices]:
    """What is to be drawn, by name; options within an option are named ``model_options.width``.

    A mapping with low and high (and step, or log: true), or with choices, is a range.

    Raises:
        ValueError: one that makes no sense; it says of which option.
    """
    found: dict[str, Range | Choices] = {}
    for name, value in options.items():
        if not isinstance(value, dict):
            continue
        if not _is_range(value):
            found |= ranges_in(value, f"{prefix}{name}.")
            continue
        try:
            found[f"{prefix}{name}"] = _range(value)
        except ValueError as problem:
            raise ValueError(f"{prefix}{name}: {problem}") from None
    return found


def filled(options: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options with values instead of ranges.

    Args:
        options: as for `ranges_in`.
        values: by the names that `ranges_in` gives them.
    """
    return dict(_filled(options, values, prefix))


def _filled(options: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if prefix + name in values:
            yield name, values[prefix + name]
        else:
            yield name, filled(value, values, f"{prefix}{name}.") if isinstance(value, dict) else value


def _is_range(value: Mapping[str, Any]) -> bool:
    return bool({"low", "high", CHOICES} & set(value))


def _range(value: Mapping[str, Any]) -> Range | Choices:
    if set(value) == {CHOICES}:
        return Choices.of(value[CHOICES])
    if not {"low", "high"} <= set(value) <= set(RANGE_KEYS):
        raise ValueError(f"a range has low and high (and step, or log), or choices alone, got {', '.join(value)}")
    return Range(**value)


def _whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=1e-9)
