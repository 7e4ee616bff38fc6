"""What a search spends beside its training steps, as a part of these: data, validation, snapshots, checkpoints, logs.

The growth of `make demo`, and that of a supernet with 8 times its parameters, runs as always in a folder of its own,
and the calls of each kind are timed. A training step is forward, loss, backward and the optimiser's step, with the
bookkeeping in between, about 15 microseconds. CPU time, so that other programs count little; --clock measures by the
clock. --dense computes all of the supernet in every step, not what is alive alone.
"""

import argparse
import functools
import pkgutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from nas.models.network import num_params
from nas.process import tune_process
from nas.search import Run, Search, SearchConfig
from nas.search.training.loop import Loop

EPOCHS = 4
NETWORKS: dict[str, dict[str, Any]] = {
    "make demo": {},
    "8 times its parameters": {"width": 112, "hidden": 160},
}
PARTS = {
    "compact networks": "nas.search.engine.search.compacted",
    "validation": "nas.search.engine.search.evaluate",
    "snapshots": "nas.search.engine.search.save_sparse",
    "what is alive": "nas.search.training.loop.snapshot",
    "watchdog": "nas.search.training.loop.Watchdog.step",
    "metrics": "nas.search.engine.search.Search._metrics",
    "path": "nas.search.engine.search.Search._write_path",
    "logging": "nas.search.engine.search.Search._tell",
    "checkpoints": "nas.search.training.checkpoints.Checkpoints.save",
}


class Stopwatch:
    """Adds up the time of calls."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.spent = clock, 0.0

    def timing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = self.clock()
            try:
                return call(*arguments, **options)
            finally:
                self.spent += self.clock() - began

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", action="store_true", help="measure by the clock instead of CPU time")
    parser.add_argument("--dense", action="store_true", help="compute all of the supernet in every step")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    clock = time.perf_counter if options.clock else time.process_time
    tune_process()
    torch.set_num_threads(1)
    computing = patch("nas.search.training.loop.alive_only", nullcontext) if options.dense else nullcontext()
    with computing:
        for name, model_options in NETWORKS.items():
            _measure(name, SearchConfig(model_options=model_options), options.epochs, clock)


def _measure(name: str, config: SearchConfig, epochs: int, clock: Callable[[], float]) -> None:
    training, parts, whole = Stopwatch(clock), {part: Stopwatch(clock) for part in PARTS}, Stopwatch(clock)
    with tempfile.TemporaryDirectory() as place, ExitStack() as patched:
        search = Search(Run(Path(place) / "run", config))
        points, loop, drawing = iter(search), search.growing.epochs.loop, Stopwatch(clock)
        next(points)  # what is done once, such as imports, is no part of it
        patched.enter_context(patch.object(Loop, "_step", training.timing(Loop._step)))
        batches = loop.batches
        patched.enter_context(patch.object(loop, "batches", lambda epoch: _timed(drawing, batches(epoch))))
        for part, stopwatch in parts.items():
            patched.enter_context(patch(PARTS[part], stopwatch.timing(pkgutil.resolve_name(PARTS[part]))))
        whole.timing(lambda: list(islice(points, epochs)))()
    pure = training.spent
    print(f"{name}: {num_params(config.build()):,} parameters, {epochs} epochs of {config.steps} steps")
    print(f"  {'training steps':<28}{pure:>8.2f} s")
    for part, spent in {"data": drawing.spent, **{part: each.spent for part, each in parts.items()}}.items():
        print(f"  {part:<28}{spent:>8.2f} s{spent / pure:>8.1%}")
    print(f"  {'all beside them':<28}{whole.spent - pure:>8.2f} s{(whole.spent - pure) / pure:>8.1%}")


def _timed(stopwatch: Stopwatch, pairs: Iterator[Any]) -> Iterator[Any]:
    """The same pairs, the drawing of each timed."""
    step = stopwatch.timing(lambda: next(pairs, None))
    while (pair := step()) is not None:
        yield pair


if __name__ == "__main__":
    main()
