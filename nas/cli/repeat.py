"""``nas search --seeds``."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from nas.analysis.agreement import agreement
from nas.cli.shared import Result
from nas.cli.tables import agreement_result, print_agreement
from nas.search.engine.repeat import recommended
from nas.search.engine.search import Search
from nas.search.runs.run import Run
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

    A search that fails on its way is left out, with a warning.

    Args:
        runs: one for each seed.
        begin: makes a search; finish: lets it run to its end.
        stable: fraction for `nas.analysis.agreement.Agreement.stable`, if that is wanted.

    Raises:
        ValueError: all fail.
    """
    results: list[Result] = []
    problems: list[str] = []
    for run in runs:
        engine = begin(run)
        try:
            results.append(finish(engine))
        except (ValueError, FloatingPointError, DeadTraining) as problem:
            problems.append(f"seed {run.config.seed}: {problem}")
            warnings.warn(f"{problems[-1]}; it is left out", stacklevel=1)
        print()
    if not results:
        raise ValueError(f"no search came to its end; {problems[0]}")
    done = [Run.open(Path(each["run"])) for each in results]
    run, point = recommended(done)
    found = agreement(run.blank, [each.choose() for each in done])
    stably = None if stable is None else found.stable(stable)
    print_agreement(found, stably)
    metric = run.config.headline
    print(
        f"\nrecommended: {run.folder}, {metric.text(point.headline)} with {point.params:,} parameters; the smallest of "
        f"these {len(done)} networks within {metric.number(run.config.tolerance)} of the best"
    )
    best = next(each for each in results if each["run"] == str(run.folder))
    return {**best, "seeds": results, "left_out": problems, "chosen": agreement_result(found, stably)}
