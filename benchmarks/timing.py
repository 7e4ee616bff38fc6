"""Candidates timed in turn, so that a machine whose speed drifts treats them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 50,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 5,
) -> dict[str, float]:
    """Median seconds per call of each candidate over ``rounds`` rounds, after some that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for k in range(rounds + warm_up):
        for name, call in candidates.items():
            began = clock()
            call()
            if k >= warm_up:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, times: Mapping[str, float], reference: str) -> None:
    print(f"\n{title}\n{'':<36}{'median':>12}{'ratio':>10}")
    for name, median in times.items():
        print(f"{name:<36}{1e3 * median:>9.3f} ms{median / times[reference]:>10.2f}")
