"""Watching a search while it runs: a report that is kept current, and TensorBoard."""

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.report.report import write_report
from nas.search import ranks
from nas.search.run import METRICS, REPORT, TENSORBOARD, Run

REFRESH = 5  # seconds after which the page loads itself anew
PATIENCE = 10  # times as long as it takes to write the report it is left alone
Watch = Callable[[], None]  # called after every point of the path


def add_watching(parser: ArgumentParser) -> None:
    """Options of verbs that search."""
    parser.add_argument(
        "--live", action="store_true", help=f"keep {REPORT} in the run folder current; open it in a browser and watch"
    )
    parser.add_argument("--logger", choices=["none", TENSORBOARD], default="none", help="also log for TensorBoard")


def check_watching(options: Namespace) -> None:
    """Raise ValueError, before anything is written, if a logger is not installed."""
    if options.logger == TENSORBOARD and importlib.util.find_spec(TENSORBOARD) is None:
        raise ValueError("tensorboard is not installed: pip install tensorboard, or leave out --logger")


@contextmanager
def watching(run: Run, options: Namespace, *, fresh: bool) -> Iterator[Watch]:
    """What is to be called after every point; a complete report follows at the end.

    Args:
        run: its folder is there.
        options: of `add_watching`.
        fresh: the search begins, so that what an earlier one logged goes.
    """
    if not ranks.is_first():
        yield lambda: None
        return
    watches: list[Watch] = [_Live(run)] if options.live else []
    if options.logger == TENSORBOARD:
        with _board(run, fresh) as log:
            yield lambda: _call([*watches, log])
    else:
        yield lambda: _call(watches)
    if options.live:
        write_report([run], run.folder / REPORT)


def _call(watches: Iterable[Watch]) -> None:
    for watch in watches:
        watch()


class _Live:
    """A report of a run that goes on. It is written anew when that will not take a tenth of the time since it was."""

    def __init__(self, run: Run) -> None:
        self.run, self.cost, self.written = run, 0.0, 0.0

    def __call__(self) -> None:
        began = time.perf_counter()
        if began - self.written >= PATIENCE * self.cost:
            write_report([self.run], self.run.folder / REPORT, refresh=REFRESH)
            self.written = time.perf_counter()
            self.cost = self.written - began


@contextmanager
def _board(run: Run, fresh: bool) -> Iterator[Watch]:
    """Writes the last line of metrics.jsonl as scalars."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / TENSORBOARD
    if fresh and folder.is_dir():
        shutil.rmtree(folder)

    def log() -> None:
        row = json.loads((run.folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
        for name, value in row.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    with SummaryWriter(str(folder)) as writer:
        yield log
