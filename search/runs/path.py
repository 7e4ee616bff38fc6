"""The search path: one small file per epoch, from which the searched network of any epoch can be restored."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from nas.files import write_bytes, write_text
from nas.models.price import Currency
from nas.search.training.compute import CPU, on_cpu
from nas.search.training.loop import Snapshot

ROWS_SUFFIX = ".rows"


@dataclass(frozen=True)
class Point:
    """A snapshot, measured.

    Attributes:
        snapshot: what was alive.
        scores: validation scores by the key of their metric; the first one is the headline (`nas.search.Metric`).
        params: parameters of the compact network.
        flops: its multiply-adds per pixel (per vector where there are no pixels).
        seconds: since the search began.
        sha256: of the file with the weights (`save_sparse`).
    """

    snapshot: Snapshot
    scores: dict[str, float]
    params: int
    flops: float
    seconds: float
    sha256: str = ""

    @property
    def headline(self) -> float:
        """The first of the scores."""
        return next(iter(self.scores.values()))

    def cost(self, currency: Currency) -> float:
        """Of the compact network."""
        return self.params if currency == "params" else self.flops

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is in it is not copied."""
        snapshot = self.snapshot
        arcs = {
            name: [[source, target, value] for (source, target), value in getattr(snapshot, name).items()]
            for name in ("skips", "kernels")
        }
        return {**vars(self), "snapshot": {**vars(snapshot), **arcs}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Point":
        stored, scores = data["snapshot"], data["scores"]
        if not isinstance(scores, dict) or not scores:
            raise ValueError(f"the scores of a point must be numbers by name, got {scores!r}")
        numbers = [stored["epoch"], *scores.values(), data["params"], data["flops"], data["seconds"]]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{numbers} are not finite numbers")
        if not isinstance(data["sha256"], str):
            raise ValueError(f"{data['sha256']} is no hash")
        arcs = {
            name: {(source, target): value for source, target, value in stored[name]} for name in ("skips", "kernels")
        }
        units = {name: tuple(map(int, indices)) for name, indices in stored["units"].items()}
        return cls(**{**data, "snapshot": Snapshot(**{**stored, "units": units, **arcs})})


@dataclass(frozen=True)
class Choice:
    """Which network of a path is meant; what is None does not matter.

    Attributes:
        epoch: the one of this epoch.
        max_params: the best one with at most so many parameters.
        max_flops: the best one with at most so many multiply-adds per pixel.
        min_score: the smallest one whose headline score is at least this.
        knee: the one after which a larger one gains least for its size: the farthest above the straight line from the
            smallest to the largest one, with the logarithm of the parameters across and the headline score upwards.
    """

    epoch: int | None = None
    max_params: float | None = None
    max_flops: float | None = None
    min_score: float | None = None
    knee: bool = False

    def __post_init__(self) -> None:
        ways = [self.epoch is not None, self.min_score is not None, self.knee]
        if sum([*ways, self.max_params is not None or self.max_flops is not None]) > 1:
            raise ValueError("choose by epoch, by min_score, by the knee, or by max_params and max_flops")

    def of(self, points: Sequence[Point], tolerance: float) -> Point:
        """The point of those given; by default the smallest whose score is within ``tolerance`` of the best.

        Raises:
            ValueError: none is meant; it says what there is.
        """
        if self.epoch is not None:
            found = [each for each in points if each.snapshot.epoch == self.epoch]
            if not found:
                raise ValueError(f"the search has epochs 0 to {points[-1].snapshot.epoch}, not {self.epoch}")
            return found[0]
        if self.knee:
            return _knee(points)
        if self.min_score is not None:
            good = [each for each in points if each.headline >= self.min_score]
            return min(_some_of(good, f"with a score of {self.min_score:g} or more", points), key=_size)
        if self.max_params is not None or self.max_flops is not None:
            most = (self.max_params or math.inf, self.max_flops or math.inf)
            small = [each for each in points if each.params <= most[0] and each.flops <= most[1]]
            return max(_some_of(small, "so small", points), key=lambda each: (each.headline, -each.params))
        return pick(points, tolerance)


def _some_of(found: Sequence[Point], what: str, points: Sequence[Point]) -> Sequence[Point]:
    if not found:
        least, best = min(points, key=_size), max(points, key=lambda each: each.headline)
        raise ValueError(
            f"there is no network {what}; the smallest has {least.params:,} parameters and {least.flops:,.0f} "
            f"multiply-adds per pixel, the best score is {best.headline:.2f} with {best.params:,} parameters"
        )
    return found


def _size(point: Point) -> tuple[int, float]:
    return point.params, -point.headline


def _knee(points: Sequence[Point]) -> Point:
    front = sorted(points, key=_size)
    x = [math.log(max(1, each.params)) for each in front]
    y = [each.headline for each in front]
    slope = (y[-1] - y[0]) / (x[-1] - x[0]) if x[-1] > x[0] else 0.0
    above = [value - y[0] - slope * (place - x[0]) for place, value in zip(x, y, strict=True)]
    return front[above.index(max(above))]


def pick(points: Iterable[Point], tolerance: float) -> Point:
    """The smallest network that is about as good as the best one.

    Args:
        points: networks of one search.
        tolerance: how much worse its headline score may be than the best, in the unit of that score.
    """
    points = sorted(points, key=_size)
    best = max(point.headline for point in points)
    return next(point for point in points if point.headline >= best - tolerance)


def front_of(points: Iterable[Point]) -> list[Point]:
    """The networks of the front on a path."""
    return [point for point in points if point.snapshot.in_front]


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


def kernel_history(points: Iterable[Point]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """For every operation that is alive at the last point the sides of its kernel with the epochs since which it has
    had them, by (`nas.models.Edge.key`, target)."""
    histories: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for point in points:
        before = histories
        histories = {}
        for arc, side in point.snapshot.kernels.items():
            known = before.get(arc, [])
            histories[arc] = known if known and known[-1][1] == side else [*known, (point.snapshot.epoch, side)]
    return histories


def save_sparse(net: nn.Module, file: Path) -> str:
    """Write the non-zero rows (slices along the first axis) of every tensor of ``net``; lossless.

    Returns:
        The SHA-256 of the file.
    """
    tensors = {}
    for name, tensor in on_cpu(net.state_dict()).items():
        tensor = tensor if tensor.ndim else tensor[None]
        rows = tensor.ne(0).reshape(len(tensor), max(1, tensor[:1].numel())).any(dim=1).nonzero()[:, 0]
        tensors[name], tensors[name + ROWS_SUFFIX] = tensor[rows].contiguous(), rows
    data = save(tensors)
    write_bytes(file, data)
    return hashlib.sha256(data).hexdigest()


@torch.no_grad()
def load_sparse(net: nn.Module, file: Path, sha256: str) -> None:
    """Fill ``net``, in place, with what `save_sparse` wrote.

    Raises:
        ValueError: the file is missing, damaged, or not the one with this hash.
    """
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise RuntimeError("it is not what the search wrote")
        stored = load(data)
        state = {
            name: _filled(tensor, stored[name], stored[name + ROWS_SUFFIX]) for name, tensor in net.state_dict().items()
        }
        net.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as problem:
        raise ValueError(f"the snapshot {file} is damaged: {' '.join(str(problem).split())}") from None


def _filled(like: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    zeros = torch.zeros_like(like, device=CPU)
    return (zeros if like.ndim else zeros[None]).index_copy(0, rows, values).reshape(like.shape)


def write_points(file: Path, points: Iterable[Point], config: str) -> None:
    """Write a path.json, with the hash of what is in it together with the configuration of the search."""
    data = json.dumps([point.to_dict() for point in points])
    write_text(file, f'{{"sha256": "{_hash(data, config)}", "points": {data}}}\n')


def read_points(file: Path, config: str) -> list[Point]:
    """The points of a path.json.

    Raises:
        ValueError: the file is missing, damaged, or of a search with another configuration.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["sha256"] != _hash(json.dumps(data["points"]), config):
            raise ValueError("it is not what a search with this configuration wrote")
        points = points_of(data["points"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ValueError(f"the search path {file} is missing or damaged: {problem}") from None
    return points


def points_of(data: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The points of a path from their dictionaries.

    Raises:
        ValueError: they are no path.
        KeyError, TypeError, AttributeError: they are no points.
    """
    points = [Point.from_dict(each) for each in data]
    if [point.snapshot.epoch for point in points] != list(range(len(points))):
        raise ValueError("its epochs do not count from 0 upwards")
    if len({tuple(point.scores) for point in points}) > 1:
        raise ValueError("its points do not have the same scores")
    return points


def _hash(data: str, config: str) -> str:
    return hashlib.sha256((config + data).encode()).hexdigest()
