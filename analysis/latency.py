"""Measured time of a searched network and of the compact one, in turn, so that a drifting machine treats both alike."""

import math
import operator
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.network import input_shape
from nas.models.traced.graph import Example, Inputs, call
from nas.models.traced.network import TracedNet

BATCHES = (1, 8, 64)
SIDE = 64  # pixels of a picture
LARGE_SIDE, MEGAPIXEL = 512, 1e6  # pixels of a large one
MULTIPLES = 1, 4, 8, 16  # that widths may be rounded up to
WORTH = 0.97  # of the time of what is not rounded, so that it is worth more parameters


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Latency:
    """Two networks on one batch.

    Attributes:
        shape: of the input, the batch size first.
        threads: of torch.
        rounds: calls of each network.
        supernet: time of the searched network.
        compact: time of the compact network.
        speed_up: ratio of their medians.
    """

    shape: tuple[int, ...]
    threads: int
    rounds: int
    supernet: Timing
    compact: Timing
    speed_up: float


@torch.no_grad()
def latency(
    net: nn.Module,
    small: nn.Module,
    *,
    batches: Sequence[int] = BATCHES,
    side: int = SIDE,
    seconds: float = 2.0,
    inputs: Inputs | None = None,
) -> tuple[Latency, ...]:
    """Time two networks, on the CPU, on batches of random pictures of ``side`` x ``side`` pixels (or vectors).

    Args:
        net: the searched network.
        small: the compact network.
        batches: batch sizes.
        side: height and width of the pictures.
        seconds: about how long each batch size may take; three rounds are made at least.
        inputs: of modules that are no `DagNet` one batch, on which alone they are timed, in the mode they are in.

    Raises:
        ValueError: modules that are no `DagNet` come without inputs, or cannot be run.
    """
    if isinstance(net, DagNet | TracedNet):
        return tuple(
            _time(net, small, Example.of(torch.rand(input_shape(net, batch, side))), seconds) for batch in batches
        )
    if inputs is None:
        raise ValueError(f"latency: {type(net).__name__} is no DagNet; give inputs=..., one batch")
    example = Example.of(inputs)
    with torch.no_grad():
        for each in (net, small):
            call(each, example)  # says what is wrong with the inputs
    return (_time(net, small, example, seconds),)


@torch.no_grad()
def seconds_per_call(net: nn.Module, x: Tensor, *, calls: int = 7, warm_up: int = 2) -> float:
    """The median time of a call after some that warm up."""
    times = []
    for _ in range(warm_up + calls):
        began = time.perf_counter()
        net(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm_up:])


def milliseconds(net: nn.Module, *, side: int = LARGE_SIDE, calls: int = 7) -> float:
    """The time of a call on the CPU: per megapixel of a picture of ``side`` x ``side`` pixels, or per vector."""
    shape = input_shape(net, 1, side)
    seconds = seconds_per_call(net, torch.rand(shape), calls=calls)
    return 1e3 * seconds * (MEGAPIXEL / math.prod(shape[2:]) if len(shape) == 4 else 1.0)


@torch.no_grad()
def fastest_multiple(net: nn.Module, *, side: int = LARGE_SIDE, rounds: int = 7) -> int:
    """The multiple that widths are best rounded up to (`compact(net, round_to=...)`): of `MULTIPLES` the one with which
    a picture of ``side`` x ``side`` pixels, or 64 vectors, takes least time on the CPU, by the median of calls in turn;
    1 unless that is 3 % less, and less in every round.

    Raises:
        ValueError: the network is no `DagNet`.
    """
    if not isinstance(net, DagNet):
        raise ValueError(f"widths are rounded in a DagNet, {type(net).__name__} is none")
    shape = input_shape(net, 1, side)
    x = torch.rand(shape if len(shape) == 4 else input_shape(net, max(BATCHES), side))
    candidates: dict[int, DagNet] = {}
    for multiple in MULTIPLES:
        small = compact(net, round_to=multiple)
        if all(small.plan != other.plan for other in candidates.values()):
            candidates[multiple] = small
    times: dict[int, list[float]] = {multiple: [] for multiple in candidates}
    for k in range(1 + rounds):
        for multiple, small in candidates.items():
            seconds = seconds_per_call(small, x, calls=1, warm_up=0)
            times[multiple] += [seconds] if k else []  # the first round warms up
    medians = {multiple: statistics.median(each) for multiple, each in times.items()}
    faster = [
        multiple
        for multiple, each in times.items()
        if medians[multiple] < WORTH * medians[1] and all(map(operator.lt, each, times[1]))
    ]
    return min(faster, key=lambda multiple: medians[multiple], default=1)


def _time(net: nn.Module, small: nn.Module, example: Example, seconds: float) -> Latency:
    rounds = list(_rounds(net, small, example, seconds))
    supernet, compact = (_summarise(column) for column in zip(*rounds, strict=True))
    ratio = supernet.median / compact.median
    first = next((tuple(x.shape) for x in example.tensors()), ())
    return Latency(first, torch.get_num_threads(), len(rounds), supernet, compact, ratio)


def _rounds(
    net: nn.Module, small: nn.Module, example: Example, seconds: float, most: int = 200
) -> Iterator[tuple[float, float]]:
    """Seconds of one call of each, again and again; the first round warms up and is not counted."""
    began = time.perf_counter()
    for k in count():
        start = time.perf_counter()
        net(*example.args, **example.kwargs)
        middle = time.perf_counter()
        small(*example.args, **example.kwargs)
        end = time.perf_counter()
        if k > 0:
            yield middle - start, end - middle
        if k >= 3 and (end - began > seconds or k >= most):
            return


def _summarise(times: Sequence[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper)
