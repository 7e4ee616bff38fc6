"""Several runs beside each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import networkx as nx
import yaml

from nas.analysis.report.front import tested
from nas.analysis.structure import similarity
from nas.analysis.topology import topology
from nas.search.runs.path import Point
from nas.search.runs.run import Run


def differing_options(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """The options in which runs differ, with the value of each."""
    configs = [yaml.safe_load(run.config.to_yaml()) for run in runs.values()]
    return [
        {"name": name, "values": [_text(config[name]) for config in configs]}
        for name in configs[0]
        if any(config[name] != configs[0][name] for config in configs)
    ]


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


def agreement(runs: Mapping[str, Run], chosen: Mapping[str, Point]) -> dict[str, Any]:
    """How often each skip and operation was chosen, and how alike the networks are.

    Raises:
        ValueError: the runs have different supernets, or there are not two of them.
    """
    if len(runs) < 2:
        raise ValueError("Fewer than two of the runs can be read.")
    if len({run.blank.plan for run in runs.values()}) > 1:
        raise ValueError("The runs have different supernets, so that their topologies cannot be laid over each other.")
    skips: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    graphs: list[nx.DiGraph] = []
    for name, run in runs.items():
        found = chosen[name].snapshot
        skips.update(f"{source} to {target}" for source, target in found.skips)
        edges = {(edge.key, node.name): edge for node in run.blank.plan.nodes for edge in node.edges}
        for arc, side in found.kernels.items():
            size = "" if edges[arc].kernel is None else f" {side}x{side}"
            operations[f"{edges[arc].source} to {arc[1]}: {edges[arc].operation}{size}"] += 1
        graphs.append(topology(run.supernet(found.epoch)))
    alike = [similarity(a, b) for a, b in combinations(graphs, 2)]
    return {
        "runs": len(runs),
        "skips": [list(each) for each in sorted(skips.items(), key=lambda each: -each[1])],
        "operations": [list(each) for each in sorted(operations.items(), key=lambda each: -each[1])],
        "similarity": sum(alike) / len(alike) if alike else 1.0,
        "least": min(alike, default=1.0),
    }
