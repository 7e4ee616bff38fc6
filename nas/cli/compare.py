"""``nas compare``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.agreement import agreement, check_fraction
from nas.analysis.runs import (
    Outcome,
    differing_options,
    differing_problems,
    mean,
    mean_front,
    metrics_of,
    of_each_seed,
    outcome,
    repetitions_among,
    similarities,
    spread,
)
from nas.cli.shared import Result, make_parser
from nas.cli.tables import agreement_result, aligned, print_agreement
from nas.search.runs.run import Run
from nas.search.tasks.task import Metric

NONE = "-"


def parser() -> ArgumentParser:
    parser = make_parser("Runs side by side: in which options they differ, and what each came to.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of nas search, at least two")
    parser.add_argument(
        "--chosen", action="store_true", help="how often each part was chosen by runs that differ in their seed only"
    )
    parser.add_argument("--stable", type=float, help="with --chosen: what at least this fraction of them chose")
    return parser


def perform(options: Namespace) -> Result:
    outcomes = [outcome(run) for run in _open(options)]
    configs, names = [each.run.config for each in outcomes], [str(each.run.folder) for each in outcomes]
    differing = differing_options(configs)
    groups = [[outcomes[k] for k in group] for group in repetitions_among(configs)]
    notes = _notes(outcomes) + [note for group in groups for note in _same_again(group)]
    _print_options(names, differing)
    _print_results(outcomes, groups)
    _print_fronts(outcomes, groups)
    alike = similarities([each.network for each in outcomes])
    _print_similarities(names, alike)
    if notes:
        print("\n" + "\n".join(notes))
    repeated = [seeds for seeds in map(of_each_seed, groups) if len(seeds) > 1]
    return {
        "options": differing,
        "runs": [_row(each) for each in outcomes],
        "repetitions": [_repetition(group, options) for group in repeated],
        "similarities": alike,
        "notes": notes,
    }


def _open(options: Namespace) -> list[Run]:
    folders = [folder.resolve() for folder in options.runs]
    if len(folders) < 2:
        raise ValueError("compare needs at least two runs")
    if twice := [folder for k, folder in enumerate(options.runs) if folders[k] in folders[:k]]:
        raise ValueError(f"{twice[0]} is given twice")
    if options.stable is not None:
        check_fraction(options.stable)
        if not options.chosen:
            raise ValueError("--stable goes with --chosen")
    return [Run.open(folder) for folder in options.runs]


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What must be known to read the tables right."""
    notes = []
    problems = differing_problems([each.run.config for each in outcomes])
    if problems:
        notes.append(
            f"the runs differ in {', '.join(problems)}: they learnt different things, so that their sizes and times "
            f"can be compared, and their scores cannot"
        )
    for each in outcomes:
        if not each.finished:
            epochs = each.run.config.epochs
            notes.append(
                f"{each.run.folder} is not finished: {min(each.epochs, epochs)} of {epochs} epochs, "
                f"{len(each.front)} networks of the front"
            )
        if each.retrained is not None and each.retrained.params != each.recommended.params:
            notes.append(f"{each.run.folder} has retrained a network of {each.retrained.params:,} parameters")
    return notes


def _same_again(group: Sequence[Outcome]) -> list[str]:
    """Of runs that differ in their seed only, which ones have a seed that came before."""
    counted = {each.run.config.seed: each for each in of_each_seed(group)}
    return [
        f"{each.run.folder} is {counted[each.run.config.seed].run.folder} again, with the same seed: it counts in no "
        f"mean and no spread"
        for each in group
        if each is not counted[each.run.config.seed]
    ]


def _print_options(names: Sequence[str], differing: dict[str, list[Any]]) -> None:
    if not differing:
        print("the options are the same\n")
        return
    rows = [["options that differ", *differing]]
    for k, name in enumerate(names):
        rows.append([f"  {name}", *(NONE if each[k] is None else str(each[k]) for each in differing.values())])
    print(aligned(rows) + "\n")


def _print_results(outcomes: Sequence[Outcome], groups: Sequence[Sequence[Outcome]]) -> None:
    """A line for each run; those that differ in their seed only together, with their mean and spread."""
    metrics = metrics_of(outcomes)
    titles = ["epoch", "parameters", "MACs/pixel", *(metric.title for metric in metrics), "retrained", "seconds"]
    rows = [["recommended network", *titles]]
    for group in groups:
        rows += [
            [f"  {each.run.folder}", str(each.recommended.snapshot.epoch), *_cells(each.numbers, each, metrics)]
            for each in group
        ]
        seeds = of_each_seed(group)
        if len(seeds) > 1:
            rows.append([f"    mean of {len(seeds)}", "", *_cells(mean(seeds), seeds[0], metrics)])
            rows.append(["    spread", "", *_cells(spread(seeds), seeds[0], metrics)])
    print(aligned(rows))


def _cells(numbers: dict[str, float], each: Outcome, metrics: Sequence[Metric]) -> list[str]:
    formats = {
        "params": "{:,.0f}".format,
        "flops": "{:,.0f}".format,
        **{metric.key: metric.number for metric in metrics},
        "retrained": each.run.config.headline.number,
        "seconds": "{:,.0f}".format,
    }
    return [show(numbers[name]) if name in numbers else NONE for name, show in formats.items()]


def _print_fronts(outcomes: Sequence[Outcome], groups: Sequence[Sequence[Outcome]]) -> None:
    """The networks of each front, the smallest first: parameters and headline score."""
    longest = max(len(each.front) for each in outcomes)
    if not longest:
        return
    rows = [["front, smallest first", *map(str, range(1, longest + 1))]]
    for group in groups:
        for each in group:
            number = each.run.config.headline.number
            networks = [f"{point.params:,}: {number(point.headline)}" for point in each.front]
            rows.append([f"  {each.run.folder}", *networks])
        seeds = of_each_seed(group)
        if len(seeds) > 1 and (means := mean_front(seeds)):
            number = seeds[0].run.config.headline.number
            rows.append([f"    mean of {len(seeds)}", *(f"{m['params']:,.0f}: {number(m['score'])}" for m in means)])
            rows.append(["    spread", *(number(m["spread"]) for m in means)])
    print("\n" + aligned([[*row, *[NONE] * (longest + 1 - len(row))] for row in rows]))


def _print_similarities(names: Sequence[str], alike: Sequence[Sequence[float]]) -> None:
    pairs = [(alike[a][b], names[a], names[b]) for a in range(len(names)) for b in range(a)]
    together = sum(value for value, _, _ in pairs) / len(pairs)
    print(f"\nsimilarity of the recommended networks (1: the same units and arcs): {together:.2f}")
    if len(pairs) > 1:
        for word, (value, a, b) in (("most", max(pairs)), ("least", min(pairs))):
            print(f"  {word:<6}{value:.2f}  {b}, {a}")


def _row(each: Outcome) -> Result:
    """What ``--json`` says about a run."""
    return {
        "run": str(each.run.folder),
        "epoch": each.recommended.snapshot.epoch,
        **each.numbers,
        "retrained_params": None if each.retrained is None else each.retrained.params,
        "finished": each.finished,
        "front": [{"params": point.params, "flops": point.flops, **point.scores} for point in each.front],
    }


def _repetition(group: Sequence[Outcome], options: Namespace) -> Result:
    """What ``--json`` says about runs that differ in their seed only; prints what they chose, if that was asked for."""
    folders = [str(each.run.folder) for each in group]
    result: Result = {
        "runs": folders,
        "mean": mean(group),
        "spread": spread(group),
        "front": mean_front(group),
    }
    if options.chosen:
        found = agreement(group[0].run.blank, [each.recommended for each in group])
        stable = None if options.stable is None else found.stable(options.stable)
        print(f"\n{', '.join(folders)}")
        print_agreement(found, stable)
        result["chosen"] = agreement_result(found, stable)
    return result
