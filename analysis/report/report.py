"""``nas report``: one file that opens anywhere, without a network."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.analysis.drawing.layout import layout
from nas.analysis.drawing.svg import STYLE, to_svg
from nas.analysis.report import comparison, facts
from nas.analysis.report.ablation import ablate, by_node
from nas.analysis.report.filters import filter_pictures
from nas.analysis.report.front import front_rows, tested, with_drawings
from nas.analysis.report.growth import CROP, crops, curves, frames, shown_points, totals, trunks, whole_graph
from nas.analysis.report.pictures import held_out_pictures
from nas.analysis.topology import topology
from nas.files import write_text
from nas.models.network import compacted, num_params, num_skips, widths
from nas.search.callbacks.surroundings import surroundings
from nas.search.data.dataset import Pictures
from nas.search.engine.stopping import growth_is_over
from nas.search.runs.path import Point, births
from nas.search.runs.run import Run
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.task import Example

TEMPLATE = "page.html"
PROBED = 64  # held-out examples, at most, on which parts are measured
MOST_DRAWN = 8  # networks of a comparison
MOST_NAMED = 4  # runs in its title
Section = dict[str, Any]


def write_report(runs: Sequence[Run], path: Path, *, refresh: int | None = None) -> None:
    """Write one self-contained HTML file: what a search did and found, or several searches beside each other.

    What a run doesn't have yet, or what is damaged, is said on the page in its place.

    Args:
        runs: one or more.
        path: file to write.
        refresh: of a run that goes on: the page loads itself anew every so many seconds, and has no sections that take
            long to make.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, report(runs, refresh))


def report(runs: Sequence[Run], refresh: int | None = None) -> str:
    """The page of `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nas.analysis.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    with torch.random.fork_rng(devices=[]):  # a search that goes on draws as if nobody had looked
        page = one_run(runs[0], live=refresh is not None) if len(runs) == 1 else several_runs(runs)
    page["data"] = _finite(page["data"])
    return environment.get_template(TEMPLATE).render(page=page, style=STYLE, refresh=refresh)


def one_run(run: Run, *, live: bool = False) -> Section:
    """What the page of a run shows, as plain data; sections that cannot be made hold a sentence, "missing".

    Args:
        run: any run.
        live: leave out what takes long.
    """
    page: Section = {
        "title": run.folder.resolve().name,
        "kind": "run",
        "metric": vars(run.config.headline),
        "made": {
            "command": facts.command(run.config),
            "config": run.config.to_yaml(),
            "searched": facts.searched_with(run),
            "report": facts.in_words(surroundings()),
        },
    }
    try:
        points = run.points()
        chosen = run.choose()
    except ValueError as problem:
        return {**page, "missing": str(problem), "data": {}}
    data = _data(run)
    validation = [] if isinstance(data, str) else run.validation(data)
    growth = _section(lambda: _growth(run, points, validation))
    front = _section(lambda: {"rows": front_rows(run)})
    test = _section(lambda: with_drawings(tested(run)))
    certificate = _section(lambda: facts.certificate(run))
    searched = [point for point in points if not point.snapshot.in_front]
    shown = {
        "metric": vars(run.config.headline),
        "totals": totals(run.blank),
        "picked": points[-1].snapshot.epoch if live else chosen.snapshot.epoch,
        "frames": growth.pop("frames", []),
        "curves": _section(lambda: curves(run, searched)),
        "front": front.get("rows", []),
        "path": [[point.snapshot.epoch, point.params, point.headline] for point in searched],
        "test": {**test, "drawings": list(test.get("drawings", ()))},
        "extracted": certificate.get("epoch"),
    }
    return {
        **page,
        "overview": _overview(run, points, chosen, test, data),
        "growth": growth,
        "front": front,
        "test": test,
        "pictures": _section(lambda: held_out_pictures(run, _needed(data)), later=live),
        "filters": _section(lambda: {"pictures": filter_pictures(_compact(run, chosen))}),
        "ablation": _section(lambda: _ablation(run, chosen, _needed(data)), later=live),
        "certificate": certificate,
        "costs": _section(lambda: {"rows": facts.costs(run.blank, _compact(run, chosen))}),
        "data": shown,
    }


def several_runs(runs: Sequence[Run]) -> Section:
    """The same for a comparison."""
    named = _named(runs)
    points, chosen, missing = {}, {}, {}
    for name, run in named.items():
        try:
            points[name], chosen[name] = run.points(), run.choose()
        except ValueError as problem:
            missing[name] = str(problem)
    readable = {name: run for name, run in named.items() if name in chosen}
    metrics = {run.config.headline for run in readable.values()}
    return {
        "title": ", ".join(named) if len(named) <= MOST_NAMED else f"{len(named)} runs",
        "kind": "comparison",
        "names": list(named),
        "unreadable": missing,
        "options": comparison.options(runs),
        "rows": [comparison.summary(name, run, points[name], chosen[name]) for name, run in readable.items()],
        "one_metric": len(metrics) <= 1,
        "agreement": _section(lambda: comparison.agreed([*readable.values()], [*chosen.values()])),
        "drawings": [
            {"name": name, **_section(partial(_drawing, run, points[name], chosen[name]))}
            for name, run in list(readable.items())[:MOST_DRAWN]
        ],
        "made": {
            "commands": {name: facts.command(run.config) for name, run in named.items()},
            "report": facts.in_words(surroundings()),
        },
        "data": {"fronts": _section(lambda: comparison.fronts(readable))},
    }


def _section(make: Callable[[], Section], *, later: bool = False) -> Section:
    """A section, or why there is none."""
    if later:
        return {"missing": "Shown when the search has ended."}
    try:
        return make()
    except (ValueError, OSError) as problem:
        return {"missing": str(problem)}


def _finite(data: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the names of their folders; by their whole paths where two are named alike."""
    names = [run.folder.resolve().name for run in runs]
    unique = len(set(names)) == len(names)
    return {name if unique else str(run.folder): run for name, run in zip(names, runs, strict=True)}


def _overview(run: Run, points: Sequence[Point], chosen: Point, test: Section, data: Pictures | str) -> Section:
    config, last = run.config, points[-1].snapshot.epoch
    whole = run.blank
    state = []
    if not growth_is_over(points, config):
        state.append(f"The search goes on, or was interrupted: epoch {last} of {config.epochs} is the last so far.")
    elif not points[-1].snapshot.in_front and config.front_sizes != []:
        state.append("The networks of the front are not made yet.")
    metric = config.headline
    return {
        "state": state,
        "task": config.task + ("" if isinstance(data, str) else f": {run.task(data)}"),
        "model": config.model,
        "epoch": chosen.snapshot.epoch,
        "params": chosen.params,
        "total": num_params(whole),
        "units": chosen.snapshot.num_units,
        "all_units": sum(widths(whole).values()),
        "skips": len(chosen.snapshot.skips),
        "all_skips": num_skips(whole),
        "score": metric.text(chosen.headline),
        "tested": metric.text(test["score"]) if "score" in test else None,
        "minutes": points[-1].seconds / 60,
    }


def _growth(run: Run, points: Sequence[Point], validation: Sequence[Example]) -> Section:
    graph = whole_graph(run.blank)
    shown = shown_points(points)
    inputs = crops([example.observed for example in validation[:1]])
    found = frames(run, shown, inputs)
    return {
        "svg": to_svg(layout(graph), standalone=False),
        "all_shown": len(shown) == len(points),
        "negative": any(gate < 0 for frame in found for gate, _ in frame.skips.values()),
        "skips": num_skips(run.blank) > 0,
        "trunks": bool(trunks(run.blank, graph)),
        "frames": [frame.to_dict() for frame in found],
    }


def _drawing(run: Run, points: Sequence[Point], chosen: Point) -> Section:
    """The chosen network of a run."""
    born = births(points[: chosen.snapshot.epoch + 1])
    graph = topology(run.supernet(chosen.snapshot.epoch), births=born)
    return {"svg": to_svg(layout(graph), standalone=False)}


def _compact(run: Run, chosen: Point) -> Any:
    return compacted(run.supernet(chosen.snapshot.epoch))


def _data(run: Run) -> Pictures | str:
    """The data of a run, or why they cannot be read."""
    try:
        data = run.data()
        run.validation(data)  # that they suit the task
        return data
    except (ValueError, OSError) as problem:
        return f"The data of this run cannot be read here: {problem}"


def _needed(data: Pictures | str) -> Pictures:
    if isinstance(data, str):
        raise ValueError(data)
    return data


def _ablation(run: Run, chosen: Point, data: Pictures) -> Section:
    task, validation = run.task(data), run.validation(data)
    pairs = [(example.observed, example.target) for example in validation[:PROBED]]
    if isinstance(task, Restoration):
        pairs = [(crops([x])[0], crops([y])[0]) for x, y in pairs]
    probe = _stacked(pairs)
    losses, parts = ablate(run.supernet(chosen.snapshot.epoch), task.loss, probe)
    others = sorted((loss for loss in losses if loss.kind != "unit"), key=lambda loss: -loss.growth)
    side = f" of {CROP} x {CROP} pixels" if isinstance(task, Restoration) else ""
    return {
        "nodes": by_node(losses),
        "arcs": [
            {"name": each.name, "kind": each.kind, "growth": 100 * each.growth, "saved": each.saved} for each in others
        ],
        "measured": len(losses),
        "parts": parts,
        "probe": f"{len(probe[0])} validation pictures{side}",
    }


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pairs as large as the first one, as a batch."""
    alike = [(x, y) for x, y in pairs if x.shape == pairs[0][0].shape and y.shape == pairs[0][1].shape]
    xs, ys = zip(*alike, strict=True)
    return torch.stack(xs), torch.stack(ys)
