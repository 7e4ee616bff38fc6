"""``nas search``; and how a search runs to its end, which `nas.cli.resume` shares."""

import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.agreement import check_fraction
from nas.cli.progress import progress_line
from nas.cli.repeat import add_repetitions, search_repeatedly
from nas.cli.shared import (
    Result,
    add_checkpoints,
    add_compute,
    add_hours,
    compute,
    make_parser,
    resume_command,
    say_compute,
    seconds,
    sizes,
    stopping,
)
from nas.cli.watch import add_watching, watchers
from nas.models.network import left_dense
from nas.models.traced.network import TracedNet
from nas.search.callbacks.callback import Callback, Line
from nas.search.engine.repeat import repetitions
from nas.search.engine.search import Search
from nas.search.runs.config import SearchConfig
from nas.search.runs.path import Point
from nas.search.runs.run import Run
from nas.search.tasks.restoration import PSNR
from nas.search.tasks.task import Metric, score_trivial
from nas.search.training import ranks

NEAR = 0.95  # of a target: reached


def parser() -> ArgumentParser:
    parser = make_parser("Start almost empty and let units and skips enter when the loss asks for them.")
    parser.add_class_arguments(SearchConfig)
    parser.add_argument("--out", type=Path, help="run folder to make (default: runs/TASK-DATA)")
    parser.add_argument("--force", action="store_true", help="replace the run that is in the folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run that is in the folder, if there is one"
    )
    add_repetitions(parser)
    add_checkpoints(parser)
    add_compute(parser)
    add_hours(parser)
    add_watching(parser)
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing")
    return parser


def perform(options: Namespace) -> Result:
    config = SearchConfig(**{field.name: options[field.name] for field in fields(SearchConfig)})
    config = config.at_absolute_roots()  # later verbs may be called from another folder
    if options.resume and options.force:
        raise ValueError("a run is resumed or, with --force, replaced, not both")
    if options.stable is not None:
        check_fraction(options.stable)
        if options.seeds == 1:
            raise ValueError("--stable goes with --seeds of 2 or more")
    run = Run(options.out or Path("runs") / f"{config.task}-{config.data}", config)
    watchers(options)  # what is missing is said now
    if options.seeds == 1:
        return run_to_the_end(_begin(run, options), resume_command(run, options))
    runs = ranks.on_first(lambda: repetitions(run, options.seeds, resume=options.resume, force=options.force))
    compute(options)  # what ranks cannot use is said now; then each is by itself
    if options.download and ranks.size() > 1:
        ranks.on_first(lambda: run.data(download=True) and None)
    again = "the same command and --resume"
    return search_repeatedly(
        runs, lambda each: _begin(each, options), lambda engine: run_to_the_end(engine, again), options.stable
    )


def _begin(run: Run, options: Namespace) -> Search:
    resume, every = options.resume and ranks.on_first(lambda: Run.is_in(run.folder)), seconds(options.checkpoint_every)
    return Search(
        run, resume=resume, force=options.force, download=options.download, checkpoint_every=every,
        compute=compute(options), callbacks=watchers(options), hours=options.hours,
    )  # fmt: skip


def run_to_the_end(engine: Search, how_to_go_on: str) -> Result:
    """Search with a progress bar, and say what was picked; after a signal, how to go on."""
    run, metric = engine.run, engine.task.metrics[0]
    name, before = score_trivial(engine.validation, engine.task)
    _announce(engine)
    start, trivial = engine.points[0], before[metric.key]
    print(f"at the start {_alive(start, run)}: {metric.text(start.headline)}", end="; ")
    print(f"{name} in validation: {metric.text(trivial)}")
    if isinstance(engine.net, TracedNet) and metric.key == PSNR.key and start.headline < trivial - 3:
        print("that is worse than no network: a last layer that starts near zero lets it learn, and grow, faster")
    iterate(engine, how_to_go_on)
    chosen = ranks.on_first(run.choose)
    picked = f"{metric.text(chosen.headline)} with {_alive(chosen, run)}"
    print(f"picked {_when(chosen, engine)}: {picked}")
    if (target := run.config.target) is not None and (reached := chosen.cost(run.config.sizes_in)) < NEAR * target:
        print(
            f"the target of {target:,} {run.config.sizes_in} was not reached: what has grown has {reached:,.0f}; "
            "search longer, or with a larger supernet"
        )
    return {
        "run": str(run.folder),
        "epoch": chosen.snapshot.epoch,
        f"{metric.key}_{name}": trivial,
        **chosen.scores,
        **sizes(chosen, run),
        "seconds": engine.points[-1].seconds,
    }


def _announce(engine: Search) -> None:
    folder, config = engine.run.folder, engine.run.config
    print(
        f"{folder}: {config.task} with {config.model} by {config.optimizer} on {config.data}, {engine.task}, "
        f"seed {config.seed}"
    )
    for problem in left_dense(engine.net):
        print(f"not searched: {problem}")
    say_compute(str(engine.compute), engine.computed)
    steps, growing = config.epochs * config.steps, engine.growing
    entry_time = growing.entry_time
    if entry_time is not None:
        print(f"the first units can wake after about {entry_time:.0f} of {steps} steps (lam = {growing.lam:.3g})")
    if entry_time is not None and entry_time >= steps:
        warnings.warn(
            "nothing can wake in so few steps: more epochs, or a shorter entry_time, would help", stacklevel=1
        )


def iterate(engine: Search, how_to_go_on: str, points: Iterable[Point] | None = None) -> None:
    """Search with a progress bar; ``points`` iterates over the engine itself, by default, or around it."""
    config = engine.run.config
    done = len(engine.points) - 1 - len(engine.front)
    bar = progress_line(config.epochs, initial=done, desc="search")
    engine.callbacks.append(_Bar(bar, engine.task.metrics[0]))
    with stopping(engine.stop, how_to_go_on), bar:
        for _ in engine if points is None else points:
            pass


class _Bar(Callback):
    """Keeps a progress bar current."""

    def __init__(self, bar: Any, metric: Metric) -> None:
        self.bar, self.metric = bar, metric

    def on_epoch(self, point: Point, line: Line) -> None:
        found = point.snapshot
        self.bar.set_postfix_str(
            f"loss {found.loss:.5f}, {self.metric.text(point.headline)}, units {found.num_units}, "
            f"skips {len(found.skips)}",
            refresh=False,
        )
        self.bar.update()

    def on_trial(self, params: int) -> None:
        self.bar.set_description_str("front", refresh=False)
        self.bar.set_postfix_str(f"{params:,} parameters")


def _alive(point: Point, run: Run) -> str:
    """Such as "12 of 96 units, 0 of 10 skips, 1,234 of 56,789 params"."""
    return ", ".join(f"{size['alive']:,} of {size['total']:,} {name}" for name, size in sizes(point, run).items())


def _when(point: Point, engine: Search) -> str:
    """Such as "epoch 31 of 50", or of a later point "epoch 53, network 3 of the front"."""
    epoch = f"epoch {point.snapshot.epoch}"
    if not point.snapshot.in_front:
        return f"{epoch} of {engine.run.config.epochs}"
    return f"{epoch}, network {1 + engine.front.index(point)} of the front"
