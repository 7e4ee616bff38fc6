"""``nas sweep``."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.cli.search import iterate
from nas.cli.shared import Result, add_checkpoints, make_parser, seconds
from nas.cli.tables import aligned
from nas.search.sweep.sweep import Sweep
from nas.search.sweep.trials import Found, Sweeping, Trial

AGAIN = "the same command"


def parser() -> ArgumentParser:
    parser = make_parser(
        "Search with options drawn from ranges, by Optuna; call it again to go on, or several times to share the work."
    )
    parser.add_argument("sweep", type=Path, metavar="CONFIG", help="YAML file: search, objectives, trials ...")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="folder for the run folders of the trials")
    parser.add_argument("--storage", type=str, help="URL of a database, instead of the one in the file")
    parser.add_argument("--trials", type=int, help="searches in all, instead of the number in the file")
    add_checkpoints(parser)
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing")
    return parser


def perform(options: Namespace) -> Result:
    every, sweep = seconds(options.checkpoint_every), _read(options)
    sweeping = Sweeping(sweep, options.out, download=options.download, checkpoint_every=every)
    for trial in sweeping:
        _work_on(trial, sweep)
    front, counts = sweeping.front(), sweeping.counts()
    print(f"{options.out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if not front:
        raise ValueError(f"no trial of the study {sweep.study!r} has come to its end yet")
    _print_front(front, sweep)
    return {
        "study": sweep.study,
        "storage": sweeping.storage,
        "trials": counts,
        "front": [
            {"trial": each.number, "run": str(each.folder), **each.values, "options": each.options} for each in front
        ],
    }


def _read(options: Namespace) -> Sweep:
    text = options.sweep.read_text(encoding="utf-8")
    try:
        sweep = Sweep.from_yaml(text)
    except ValueError as problem:
        raise ValueError(f"{options.sweep}: {problem}") from None
    given = {name: options[name] for name in ("storage", "trials") if options[name] is not None}
    return replace(sweep, **given)


def _work_on(trial: Trial, sweep: Sweep) -> None:
    drawn = ", ".join(f"{name} {_text(value)}" for name, value in trial.options.items())
    print(f"trial {trial.number}{', gone on with' if trial.resumed else ''}: {drawn}")
    if trial.engine is not None:
        iterate(trial.engine, AGAIN, trial)
    if trial.problem is not None:
        warnings.warn(f"trial {trial.number} failed: {trial.problem}", stacklevel=1)
    elif trial.pruned:
        print("  given up: at least half of the others were better at this point")
    elif trial.values is not None:
        print("  " + ", ".join(f"{name} {text}" for name, text in _texts(trial.values, sweep).items()))


def _print_front(front: Sequence[Found], sweep: Sweep) -> None:
    names = list(front[0].options)
    rows = [["front", *sweep.objectives, *names]]
    for each in front:
        drawn = [_text(each.options[name]) for name in names]
        rows.append([f"  {_near(each.folder)}", *_texts(each.values, sweep).values(), *drawn])
    print("\n" + aligned(rows))


def _texts(values: Mapping[str, float], sweep: Sweep) -> dict[str, str]:
    """The objectives in print."""
    score = sweep.example.headline.number
    return {name: score(value) if name == "score" else f"{value:,.0f}" for name, value in values.items()}


def _near(folder: Path) -> Path:
    """A shorter name of a folder below the present one."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
