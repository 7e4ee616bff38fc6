"""The front: which networks it is to have, and of what each is made."""

import math
from collections.abc import Sequence

from nas.models.network import cost
from nas.search.engine.growing import HEADROOM
from nas.search.engine.thinning import SHARE, without_groups
from nas.search.runs.config import SearchConfig
from nas.search.runs.path import Point, front_of
from nas.search.runs.run import Run

AUTO_SIZES = 1.0, 0.5, 0.25  # of the size that has grown


def check_sizes(run: Run) -> None:
    """Raise ValueError if a network of the front is to be larger than the supernet, or the least smaller than what a
    search cannot remove."""
    sizes, currency = run.config.front_sizes, run.config.sizes_in
    if not sizes:
        return
    if sizes[0] > (full := cost(run.blank, currency)):
        raise ValueError(f"a network of {sizes[0]:,} {currency} was asked for, and the whole supernet has {full:,.0f}")
    if sizes[-1] < (smallest := cost(without_groups(run.blank), currency)):
        raise ValueError(
            f"a network of {sizes[-1]:,} {currency} was asked for, and what a search cannot remove has {smallest:,.0f}"
        )


def sizes_of_front(run: Run, points: Sequence[Point], *, limited: bool) -> list[int]:
    """What the networks of the front may cost, the largest first.

    Args:
        run: the run; only its options matter.
        points: of its growth, the start included, and of its front so far.
        limited: of those that are larger than all that has grown, make one of what has grown.

    Raises:
        ValueError: one is larger than all that has grown.
    """
    config = run.config
    chosen, largest = config.front_sizes, _largest(points, config)
    if chosen is None:
        smallest = cost(without_groups(run.blank), config.sizes_in)
        return [int(part * largest) for part in AUTO_SIZES if part * largest > smallest]
    if config.target is not None:
        return [min(chosen[0], int(largest))]
    if limited or front_of(points):
        return sorted({min(size, int(largest)) for size in chosen}, reverse=True)
    if chosen and chosen[0] > largest:
        raise ValueError(
            f"a network of {chosen[0]:,} {config.sizes_in} was asked for, and the largest that has grown has "
            f"{largest:,.0f}; search longer or with a shorter entry_time, or go on with nas search --resume and "
            "smaller sizes"
        )
    return chosen


def larger(points: Sequence[Point], size: int, config: SearchConfig) -> Point:
    """The smallest network with room for one of this size: of the front, else of what has grown."""
    if made := front_of(points):
        return made[-1]
    grown = _grown(points)
    roomy = [point for point in grown if point.cost(config.sizes_in) >= HEADROOM * size]
    if not roomy:
        return max(grown, key=lambda point: point.cost(config.sizes_in))
    return min(roomy, key=lambda point: (point.cost(config.sizes_in), -point.headline))


def steps_of_front(points: Sequence[Point], sizes: Sequence[int], config: SearchConfig) -> int:
    """Steps of training that it takes to make the front, about."""
    steps, before = 0, _largest(points, config)
    for size in sizes:
        removals = max(0, math.ceil(math.log(size / before) / math.log(1 - SHARE)))
        steps += (1 + removals) * config.fit + config.refit * config.steps
        before = size
    return steps


def _grown(points: Sequence[Point]) -> list[Point]:
    """The points of the growth, but for its start."""
    return [point for point in points[1:] if not point.snapshot.in_front]


def _largest(points: Sequence[Point], config: SearchConfig) -> float:
    return max(point.cost(config.sizes_in) for point in _grown(points))
