"""The search path: one small file per epoch, from which the searched network of any epoch can be restored."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.files import replacing
from nas.search.loop import Snapshot

ROWS_SUFFIX = ".rows"


@dataclass(frozen=True)
class Point:
    """A snapshot, measured.

    Attributes:
        snapshot: what was alive.
        scores: validation scores by the key of their metric; the first one is the headline (`nas.search.Metric`).
        params: parameters of the compact network.
        seconds: since the search began.
    """

    snapshot: Snapshot
    scores: dict[str, float]
    params: int
    seconds: float

    @property
    def headline(self) -> float:
        """The first of the scores."""
        return next(iter(self.scores.values()))

    def to_dict(self) -> dict[str, Any]:
        snapshot = self.snapshot
        arcs = {
            name: [[source, target, value] for (source, target), value in getattr(snapshot, name).items()]
            for name in ("skips", "kernels")
        }
        return {**asdict(self), "snapshot": {**asdict(snapshot), **arcs}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Point":
        stored, scores = data["snapshot"], data["scores"]
        if not isinstance(scores, dict) or not scores:
            raise ValueError(f"the scores of a point must be numbers by name, got {scores!r}")
        numbers = [stored["epoch"], *scores.values(), data["params"], data["seconds"]]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{numbers} are not finite numbers")
        arcs = {
            name: {(source, target): value for source, target, value in stored[name]} for name in ("skips", "kernels")
        }
        units = {name: tuple(map(int, indices)) for name, indices in stored["units"].items()}
        return cls(**{**data, "snapshot": Snapshot(**{**stored, "units": units, **arcs})})


def pick(points: Iterable[Point], tolerance: float, max_params: float = math.inf) -> Point:
    """The smallest network of a path that is about as good as the best one that fits the budget.

    Args:
        points: a search path.
        tolerance: how much worse its headline score may be than the best, in the unit of that score.
        max_params: budget of parameters; where no network fits, the smallest of all is picked.
    """
    points = sorted(points, key=lambda point: (point.params, -point.headline))
    fitting = [point for point in points if point.params <= max_params] or points[:1]
    best = max(point.headline for point in fitting)
    return next(point for point in fitting if point.headline >= best - tolerance)


def births(points: Iterable[Point]) -> dict[str, dict[int, int]]:
    """For every unit that is alive at the last point the epoch since which it has been alive, by node and index."""
    born: dict[str, dict[int, int]] = {}
    for point in points:
        for name, units in point.snapshot.units.items():
            before = born.get(name, {})
            born[name] = {unit: before.get(unit, point.snapshot.epoch) for unit in units}
    return born


def deaths(points: Iterable[Point]) -> dict[str, dict[int, int]]:
    """For every unit that was alive once and is dead at the last point the epoch at which it died (the last time)."""
    died: dict[str, dict[int, int]] = {}
    before: dict[str, set[int]] = {}
    for point in points:
        for name, units in point.snapshot.units.items():
            alive = set(units)
            gone = dict.fromkeys(sorted(before.get(name, set()) - alive), point.snapshot.epoch)
            died[name] = {unit: epoch for unit, epoch in died.get(name, {}).items() if unit not in alive} | gone
            before[name] = alive
    return died


def save_sparse(net: nn.Module, file: Path) -> None:
    """Write the non-zero rows (slices along the first axis) of every tensor of ``net``; lossless."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        rows = tensor.ne(0).reshape(len(tensor), max(1, tensor[:1].numel())).any(dim=1).nonzero()[:, 0]
        tensors[name], tensors[name + ROWS_SUFFIX] = tensor[rows].contiguous(), rows
    replacing(file, lambda temporary: save_file(tensors, temporary))


@torch.no_grad()
def load_sparse(net: nn.Module, file: Path) -> None:
    """Fill ``net``, in place, with what `save_sparse` wrote.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    try:
        stored = load_file(file)
        state = {
            name: _filled(tensor, stored[name], stored[name + ROWS_SUFFIX]) for name, tensor in net.state_dict().items()
        }
        net.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as problem:
        raise ValueError(f"the snapshot {file} is damaged: {' '.join(str(problem).split())}") from None


def _filled(like: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    return torch.zeros_like(like).index_copy(0, rows, values)


def read_points(file: Path) -> list[Point]:
    """The points of ``path.json``.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        points = [Point.from_dict(data) for data in json.loads(file.read_text(encoding="utf-8"))]
        if [point.snapshot.epoch for point in points] != list(range(len(points))):
            raise ValueError("its epochs do not count from 0 upwards")
        if len({tuple(point.scores) for point in points}) > 1:
            raise ValueError("its points do not have the same scores")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"the search path {file} is missing or damaged: {problem}") from None
    return points
