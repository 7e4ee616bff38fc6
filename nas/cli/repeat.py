"""``nas search --seeds``."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser

from nas.analysis.agreement import agreement
from nas.cli.shared import Result
from nas.cli.tables import agreement_result, print_agreement
from nas.search.engine.repeat import recommended
from nas.search.engine.search import Search
from nas.search.runs.run import Run
from nas.search.training import ranks
from nas.steering import DeadTraining


def add_repetitions(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, default=1, help="repeat the search with so many seeds from --seed on, in OUT/seed-SEED"
    )
    parser.add_argument(
        "--stable", type=float, help="with --seeds: also say what at least this fraction of the searches chose"
    )


def search_repeatedly(
    runs: Sequence[Run],
    begin: Callable[[Run], Search],
    finish: Callable[[Search], Result],
    stable: float | None,
) -> Result:
    """Search with each seed, then say how often each part was chosen, and which network is recommended.

    A search that fails on its way is left out, with a warning. Several ranks search by themselves, each with some of
    the seeds, and the first one says what all came to.

    Args:
        runs: one for each seed.
        begin: makes a search; finish: lets it run to its end.
        stable: fraction for `nas.analysis.agreement.Agreement.stable`, if that is wanted.

    Raises:
        ValueError: all fail.
    """
    if ranks.size() > 1:
        print(f"{len(runs)} searches on {ranks.size()} ranks, each by itself; what follows is of those of the first\n")
    outcomes = ranks.spread_apart(partial(_search, begin=begin, finish=finish), runs)
    return ranks.on_first(lambda: _summary(outcomes, stable))


def _search(run: Run, begin: Callable[[Run], Search], finish: Callable[[Search], Result]) -> Result | str:
    """What one search came to, or what it failed by."""
    engine = begin(run)
    came_to: Result | str
    try:
        came_to = finish(engine)
    except (ValueError, FloatingPointError, DeadTraining) as problem:
        came_to = f"seed {run.config.seed}: {problem}"
        warnings.warn(f"{came_to}; it is left out", stacklevel=1)
    print()
    return came_to


def _summary(outcomes: Sequence[Result | str], stable: float | None) -> Result:
    results = [each for each in outcomes if not isinstance(each, str)]
    problems = [each for each in outcomes if isinstance(each, str)]
    if not results:
        raise ValueError(f"no search came to its end; {problems[0]}")
    done = [Run.open(Path(each["run"])) for each in results]
    run, point = recommended(done)
    found = agreement(run.blank, [each.choose() for each in done])
    stably = None if stable is None else found.stable(stable)
    print_agreement(found, stably)
    for problem in problems:
        print(f"left out: {problem}")
    metric = run.config.headline
    print(
        f"\nrecommended: {run.folder}, {metric.text(point.headline)} with {point.params:,} parameters; the smallest of "
        f"these {len(done)} networks within {metric.number(run.config.tolerance)} of the best"
    )
    best = next(each for each in results if each["run"] == str(run.folder))
    return {**best, "seeds": results, "left_out": problems, "chosen": agreement_result(found, stably)}
