"""How the network came to be: a frame for every epoch of the path and every network of the front."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from nas.analysis.drawing.layout import has_weights
from nas.analysis.share import skip_shares
from nas.analysis.topology import topology
from nas.files import read_lines
from nas.models.alive import find_alive
from nas.models.dag import DagNet
from nas.models.network import num_skips
from nas.models.plan import DEPTHWISE, Edge, Plan
from nas.models.traced.network import TracedNet
from nas.search.runs.path import Point
from nas.search.runs.run import METRICS, Run
from nas.search.training.loop import Snapshot

MOST_FRAMES = 200
MOST_MEASURED = 40  # networks whose shares of the signal are measured
CROP = 96  # side of the pictures that they are measured on
Gates = dict[tuple[str, str], tuple[float, float | None]]  # gate and share of the signal, by (source, target)


@dataclass(frozen=True)
class Frame:
    """What is alive at one point.

    Attributes:
        point: of the path.
        units: number of alive units of every node, "in" and "out" included; what skips alone bring is not counted.
        operations: what the edges between two nodes do, such as "1x1 + 5x5 depthwise", by (source, target).
        skips: their gates and shares; of trunks too, but for points that were not measured before the first that was.
        events: what came and went since the frame before, in words.
    """

    point: Point
    units: dict[str, int]
    operations: dict[tuple[str, str], str]
    skips: Gates
    events: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, arcs as "source>target"."""
        point = self.point
        return {
            "epoch": point.snapshot.epoch,
            "params": point.params,
            "flops": point.flops,
            "scores": point.scores,
            "num_units": point.snapshot.num_units,
            "num_skips": len(point.snapshot.skips),
            "num_operations": len(point.snapshot.kernels),
            "units": self.units,
            "operations": {">".join(arc): text for arc, text in self.operations.items()},
            "skips": {
                ">".join(arc): [round(gate, 4), None if share is None else round(share, 4)]
                for arc, (gate, share) in self.skips.items()
            },
            "events": self.events,
        }


def whole_graph(net: nn.Module) -> nx.DiGraph:
    """The graph of a supernet with everything alive; with room for the label of every skip."""
    net = copy.deepcopy(net)
    for p in net.parameters():
        p.detach().fill_(1.0)
    graph = topology(net)
    for *_, arc in graph.edges(data=True):
        if arc["gate"] != 0 and (arc["norm"] == 0 or has_weights(arc)):  # and no block, whose gate is its norm
            arc |= {"gate": -0.88, "share": 0.88}
    return graph


def shown_points(points: Sequence[Point]) -> list[Point]:
    """All points of a short path, else evenly spaced ones; the end of the growth and the front always."""
    every = max(1, math.ceil(len(points) / MOST_FRAMES))
    last = sum(not point.snapshot.in_front for point in points) - 1
    return [point for k, point in enumerate(points) if k % every == 0 or k >= last]


def frames(run: Run, points: Sequence[Point], inputs: Sequence[Tensor]) -> list[Frame]:
    """A frame for each point.

    Args:
        run: the points are of its path.
        points: some of them, in order.
        inputs: what the shares of skips are measured on, without the batch axis; none are measured without.
    """
    whole, gates = run.blank, Gates()
    graph = whole_graph(whole)
    fixed, every = trunks(whole, graph), max(1, math.ceil(len(points) / MOST_MEASURED))
    has_gates = bool(fixed) or num_skips(whole) > 0
    found: list[Frame] = []
    for k, point in enumerate(points):
        if has_gates and (k % every == 0 or point.snapshot.in_front):
            gates = _measured(run.supernet(point.snapshot.epoch), inputs)
        units, operations = alive_at(whole, graph, point.snapshot)
        shown = {arc: each for arc, each in gates.items() if arc in fixed and units[arc[0]]}
        shown |= {arc: (gate, gates.get(arc, (0.0, None))[1]) for arc, gate in point.snapshot.skips.items()}
        frame = Frame(point, units, operations, shown, ())
        found.append(replace(frame, events=_events(found[-1], frame)) if found else frame)
    return found


def crops(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The middles of pictures (channels, height, width); vectors as they are."""
    return [x if x.ndim < 3 else x[..., _middle(x.shape[-2]), _middle(x.shape[-1])] for x in inputs]


def _middle(side: int) -> slice:
    start = max(0, (side - CROP) // 2)
    return slice(start, start + CROP)


def curves(run: Run, points: Sequence[Point]) -> dict[str, list[float | None]]:
    """What metrics.jsonl says of each epoch of the search, by name, beside "epoch"; lines that are damaged or not
    finished are left out. Without the file, what the path says."""
    rows = _metrics(run) or [
        {"epoch": point.snapshot.epoch, "loss": point.snapshot.loss, **point.scores, "params": point.params}
        for point in points
    ]
    grown = sum(not point.snapshot.in_front for point in points)
    rows = [row for row in rows if row["epoch"] < grown]
    names = dict.fromkeys(
        name for row in reversed(rows) for name, value in row.items() if isinstance(value, int | float)
    )
    return {name: [row.get(name) for row in rows] for name in names}


def _metrics(run: Run) -> list[dict[str, Any]]:
    return [row for row in read_lines(run.folder / METRICS) if isinstance(row.get("epoch"), int)]


def trunks(net: nn.Module, whole: nx.DiGraph) -> set[tuple[str, str]]:
    """The skips that are not searched, by (source, target)."""
    if isinstance(net, DagNet):
        return {(skip.source, node.name) for node in net.plan.nodes for skip in node.skips if skip.trunk}
    return {(source, target) for source, target, data in whole.edges(data=True) if data["gate"] != 0}


def totals(net: nn.Module) -> dict[str, int]:
    """How many units every node of `whole_graph` has."""
    return net.plan.units if isinstance(net, DagNet) else dict(whole_graph(net).nodes(data="total"))


def alive_at(net: nn.Module, whole: nx.DiGraph, found: Snapshot) -> tuple[dict[str, int], dict[tuple[str, str], str]]:
    """How many units of every node are alive at a point, and what the operations between two nodes are."""
    if isinstance(net, DagNet):
        return _units(net.plan, found), _operations(net.plan, found)
    assert isinstance(net, TracedNet)
    units = dict(whole.nodes(data="total")) | net.layers_at(found.units)
    arcs = whole.edges(data=True)
    return units, {
        (source, target): data["operation"]
        for source, target, data in arcs
        if data["norm"] and units[source] and units[target]
    }


@torch.no_grad()
def _measured(net: nn.Module, inputs: Sequence[Tensor]) -> Gates:
    shares = skip_shares(net, inputs) if inputs else {}
    if not isinstance(net, DagNet):
        return dict.fromkeys(trunks(net, topology(net)), (1.0, None))
    return {arc: (gate, shares.get(arc)) for arc, gate in find_alive(net).skips.items()}


def _units(plan: Plan, found: Snapshot) -> dict[str, int]:
    """Numbers of alive units; of nodes that are tied to another one its number, if anything arrives there."""
    reached = {target for _, target in (*found.kernels, *found.skips)}
    alive = dict(list(plan.units.items())[:1])
    for node in plan.nodes:
        arrives = node.name in reached or any(skip.trunk and alive[skip.source] for skip in node.skips)
        units = found.units.get(node.tied or node.name)
        number = node.units if units is None else len(units)
        alive[node.name] = number if arrives or node.name in found.units else 0
    return alive


def _operations(plan: Plan, found: Snapshot) -> dict[tuple[str, str], str]:
    words: dict[tuple[str, str], list[str]] = {}
    for node in plan.nodes:
        for edge in node.edges:
            if side := found.kernels.get((edge.key, node.name)):
                words.setdefault((edge.source, node.name), []).append(operation_words(edge, side))
    return {arc: " + ".join(each) for arc, each in words.items()}


def operation_words(edge: Edge, side: int) -> str:
    """Such as "5x5 depthwise", as in `nas.analysis.topology`."""
    if edge.kernel is None:
        return "matrix"
    return f"{side}x{side}" + (" depthwise" if edge.operation == DEPTHWISE else "")


def _events(before: Frame, after: Frame) -> tuple[str, ...]:
    old, new = before.point.snapshot, after.point.snapshot
    born, died = _difference(old.units, new.units), _difference(new.units, old.units)
    counts = [(born, "born"), (died, "died")]
    events = [f"{number} unit{'s' if number > 1 else ''} {verb}" for number, verb in counts if number]
    skips = [(f"{a} to {b}", "born") for a, b in new.skips if (a, b) not in old.skips]
    skips += [(f"{a} to {b}", "died") for a, b in old.skips if (a, b) not in new.skips]
    events += [f"skip {arc} {verb}" for arc, verb in skips]
    for arc in before.operations | after.operations:
        was, now = before.operations.get(arc), after.operations.get(arc)
        if was != now:
            change = f"born as {now}" if was is None else "died" if now is None else f"{was} became {now}"
            events.append(f"{arc[0]} to {arc[1]}: {change}")
    return tuple(events)


def _difference(old: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]) -> int:
    return sum(len(set(units) - set(old.get(name, ()))) for name, units in new.items())
