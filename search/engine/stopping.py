"""When a search stops growing: after its last epoch, when it gets no better, or when its time is up."""

from collections.abc import Callable, Sequence

from nas.search.runs.config import SearchConfig
from nas.search.runs.path import Point


def growth_is_over(points: Sequence[Point], config: SearchConfig) -> bool:
    """Whether a search has grown to its end: all epochs are done, it gets no better, or the front is begun.

    Args:
        points: its path so far, the start included.
        config: its options.
    """
    if points[-1].snapshot.in_front or len(points) > config.epochs:
        return True
    return config.patience is not None and _without_a_new_best(points) >= config.patience


def _without_a_new_best(points: Sequence[Point]) -> int:
    """Epochs since the best validation score."""
    scores = [point.headline for point in points]
    return len(scores) - 1 - scores.index(max(scores))


class Budget:
    """Time that may be spent.

    Args:
        end: when it is up, in seconds of ``clock``.
        clock: seconds so far.
    """

    def __init__(self, end: float, clock: Callable[[], float]) -> None:
        self.end, self.clock = end, clock

    @property
    def left(self) -> float:
        """Seconds, >= 0."""
        return max(0.0, self.end - self.clock())

    def part(self, of: int) -> "Budget":
        """An equal part of what is left."""
        return Budget(self.clock() + self.left / of, self.clock)
