"""Repetitions: the same search with several seeds, each a run folder of its own."""

from collections.abc import Sequence
from dataclasses import replace

from nas.search.runs.options import check_seed
from nas.search.runs.path import Point, pick
from nas.search.runs.run import Run


def repetitions(run: Run, num: int, *, resume: bool = False, force: bool = False) -> list[Run]:
    """Runs with the options of ``run`` and the seeds from its own on: ``run.folder / "seed-0"`` and so on.

    Args:
        run: its folder is to hold the folders of the repetitions; it need not be there.
        num: how many, >= 1.
        resume: runs that are in those folders are to be continued.
        force: they are to be replaced.

    Raises:
        ValueError: fewer than one, a seed out of range, a folder that holds a run itself, or one of the repetitions
            while neither ``resume`` nor ``force`` says what is to become of it.
    """
    if num < 1:
        raise ValueError(f"seeds must be at least 1, got {num}")
    config = run.config
    check_seed(config.seed + num - 1)
    if Run.is_in(run.folder):
        raise ValueError(f"{run.folder} holds a single run; choose another --out for several seeds")
    seeds = range(config.seed, config.seed + num)
    runs = [Run(run.folder / f"seed-{seed}", replace(config, seed=seed)) for seed in seeds]
    if there := [each.folder for each in runs if Run.is_in(each.folder) and not (resume or force)]:
        raise ValueError(
            f"{there[0]} already holds a run; choose another --out, --resume to go on, or --force to replace it"
        )
    return runs


def recommended(runs: Sequence[Run]) -> tuple[Run, Point]:
    """Which of several runs has the network to take, by the rule by which a run recommends one of its own.

    That is the smallest of the recommended networks (`Run.choose`) whose validation score, refitted where the runs have
    a front, is within the tolerance of the best of them.

    Args:
        runs: with the same options but for their seeds, at least one.
    """
    chosen = [run.choose() for run in runs]
    best = pick(chosen, runs[0].config.tolerance)
    return next((run, point) for run, point in zip(runs, chosen, strict=True) if point is best)
