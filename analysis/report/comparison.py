"""Several runs beside each other."""

from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

import yaml

from nas.analysis.agreement import agreement
from nas.analysis.report.front import tested
from nas.analysis.runs import differing_options, similarities
from nas.models.dag import DagNet
from nas.models.network import alike, widths
from nas.search.runs.path import Point
from nas.search.runs.run import Run


def options(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The options in which runs differ, with the value of each."""
    found = differing_options([run.config for run in runs])
    return [{"name": name, "values": [_text(value) for value in values]} for name, values in found.items()]


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def summary(name: str, run: Run, points: Sequence[Point], chosen: Point) -> dict[str, Any]:
    """A row of the table of runs."""
    metric = run.config.headline
    try:
        score: str | None = metric.number(tested(run)["score"])
    except ValueError:
        score = None
    return {
        "name": name,
        "epoch": chosen.snapshot.epoch,
        "params": chosen.params,
        "flops": chosen.flops,
        "units": chosen.snapshot.num_units,
        "skips": len(chosen.snapshot.skips),
        "validation": metric.text(chosen.headline),
        "tested": score,
        "minutes": points[-1].seconds / 60,
    }


def fronts(runs: Mapping[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """For every headline metric, as "PSNR in dB", the fronts of the runs that are measured by it; of a run without a
    front its path."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        points = run.front() or run.points()[1:] or run.points()
        metric = run.config.headline
        title = f"{metric.title} in {metric.unit}" if metric.unit else metric.title
        ordered = sorted(points, key=lambda point: point.params)
        pairs = [[point.params, point.headline] for point in ordered]
        found.setdefault(title, []).append({"name": name, "points": pairs, "has_front": bool(run.front())})
    return found


def agreed(runs: Sequence[Run], chosen: Sequence[Point]) -> dict[str, Any]:
    """How often each skip and operation was chosen, how many units, and how alike the networks are.

    Raises:
        ValueError: the runs have different supernets, or there are not two of them.
    """
    if len(runs) < 2:
        raise ValueError("Fewer than two of the runs can be read.")
    first, *others = (run.blank for run in runs)
    if not all(alike(first, other) for other in others):
        raise ValueError("The runs have different supernets, so that their topologies cannot be laid over each other.")
    found, sizes = agreement(first, chosen), widths(first)
    nodes = first.plan.nodes if isinstance(first, DagNet) else ()
    edges = {(edge.key, node.name): edge for node in nodes for edge in node.edges}
    operations = {
        f"{edges[arc].source} to {arc[1]}: {edges[arc].operation}"
        + ("" if edges[arc].kernel is None else f" {side}x{side}"): sides.count(side)
        for arc, sides in found.kernels.items()
        for side in sorted(set(sides) - {0})
    }
    similar = similarities([run.supernet(each.snapshot.epoch) for run, each in zip(runs, chosen, strict=True)])
    pairs = [similar[a][b] for a in range(len(runs)) for b in range(a)]
    return {
        "runs": len(runs),
        "skips": _most_chosen({" to ".join(arc): sum(each) for arc, each in found.skips.items()}),
        "operations": _most_chosen(operations),
        "units": [
            {"node": name, "least": min(each), "median": median_low(each), "most": max(each), "all": sizes[name]}
            for name, each in found.units.items()
        ],
        "similarity": sum(pairs) / len(pairs),
        "least": min(pairs),
    }


def _most_chosen(counts: Mapping[str, int]) -> list[list[Any]]:
    return [[name, count] for name, count in sorted(counts.items(), key=lambda each: -each[1]) if count]
