"""Candidates timed in turn, so that a machine whose speed drifts treats them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 50,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 5,
    in_a_row: int = 1,
) -> dict[str, float]:
    """Median seconds per call of each candidate over ``rounds`` rounds, after some that are not counted.

    Args:
        candidates: by name.
        rounds: how often the turn comes to each.
        clock: seconds.
        warm_up: rounds that are not counted.
        in_a_row: calls in a turn, as steps of a training follow each other; from 2 on the first is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for k in range(rounds + warm_up):
        for name, call in candidates.items():
            if in_a_row > 1:
                call()
            counted = max(1, in_a_row - 1)
            began = clock()
            for _ in range(counted):
                call()
            if k >= warm_up:
                seconds[name].append((clock() - began) / counted)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, times: Mapping[str, float], reference: str) -> None:
    print(f"\n{title}\n{'':<36}{'median':>12}{'ratio':>10}")
    for name, median in times.items():
        print(f"{name:<36}{1e3 * median:>9.3f} ms{median / times[reference]:>10.2f}")
