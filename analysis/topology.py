"""What is alive, as a graph."""

import math
from collections.abc import Mapping

import networkx as nx
import torch
from torch import Tensor

from nas.models.alive import find_alive, reads
from nas.models.dag import DagNet
from nas.models.plan import INPUT, OUTPUT

Births = Mapping[str, Mapping[int, int]]
LEVELS = ("node", "unit")


def topology(net: DagNet, level: str = "node", *, births: Births | None = None) -> nx.DiGraph:
    """The alive part of a network; plain Python attributes, so that it can be written as JSON or GraphML.

    Args:
        net: a supernet or a compact network.
        level: "node" (a vertex per node of the plan) or "unit" (a vertex per alive unit, named "n1.5").
        births: for nodes of the plan the epoch since which each unit has been alive (`nas.search.births`).

    Returns:
        A graph whose attribute "level" is ``level``. Vertices have: kind ("input", "hidden", "output"), layer
        (position in the plan), and

        * at node level alive, total (units), and where births are given born_first, born_last;
        * at unit level node, index, and where births are given born.

        Arcs have norm (Euclidean norm of the weights on alive units, 0 for a pure skip), gate (of a skip, 0 for none).

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"topology(level=...) must be 'node' or 'unit', got {level!r}")
    return _node_graph(net, births or {}) if level == "node" else _unit_graph(net, births or {})


@torch.no_grad()
def _node_graph(net: DagNet, births: Births) -> nx.DiGraph:
    alive = find_alive(net)
    graph = nx.DiGraph(level="node")
    for layer, (name, mask) in enumerate(alive.units.items()):
        if mask.any() or name in (INPUT, OUTPUT):
            born = [births[name][unit] for unit in _indices(mask) if unit in births.get(name, {})]
            ages = {"born_first": min(born), "born_last": max(born)} if born else {}
            graph.add_node(name, kind=_kind(name), layer=layer, alive=int(mask.sum()), total=len(mask), **ages)
    for name, node in net.named_nodes().items():
        for source, weight in node.edges.items():
            norm = float(_alive_rows(net, name, weight, alive.units)[:, alive.units[source]].norm())
            if norm > 0:
                graph.add_edge(source, name, norm=norm, gate=0.0)
    for (source, target), gate in alive.skips.items():
        norm = graph.edges[source, target]["norm"] if graph.has_edge(source, target) else 0.0
        graph.add_edge(source, target, norm=norm, gate=gate)
    return graph


@torch.no_grad()
def _unit_graph(net: DagNet, births: Births) -> nx.DiGraph:
    alive = find_alive(net)
    graph = nx.DiGraph(level="unit")
    for layer, (name, mask) in enumerate(alive.units.items()):
        for unit in _indices(mask):
            age = {"born": births[name][unit]} if unit in births.get(name, {}) else {}
            graph.add_node(f"{name}.{unit}", kind=_kind(name), layer=layer, node=name, index=unit, **age)
    for name, node in net.named_nodes().items():
        rows = range(net.plan.units[name]) if node.plan.rows is None else node.plan.rows
        for source, weight in node.edges.items():
            norms = weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:])).norm(dim=2)
            for row, column in reads(weight).nonzero().tolist():
                if alive.units[name][rows[row]] and alive.units[source][column]:
                    graph.add_edge(
                        f"{source}.{column}", f"{name}.{rows[row]}", norm=float(norms[row, column]), gate=0.0
                    )
        for skip in node.plan.skips:
            if gate := alive.skips.get((skip.source, name)):
                take = range(net.plan.units[skip.source]) if skip.take is None else skip.take
                put = range(net.plan.units[name]) if skip.put is None else skip.put
                for start, end in zip(take, put, strict=True):
                    if alive.units[skip.source][start] and alive.units[name][end]:
                        arc = (f"{skip.source}.{start}", f"{name}.{end}")
                        norm = graph.edges[arc]["norm"] if graph.has_edge(*arc) else 0.0
                        graph.add_edge(*arc, norm=norm, gate=gate)
    return graph


def _alive_rows(net: DagNet, name: str, weight: Tensor, units: Mapping[str, Tensor]) -> Tensor:
    rows = net.named_nodes()[name].plan.rows
    return weight[units[name] if rows is None else units[name][list(rows)]]


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _kind(name: str) -> str:
    return {INPUT: "input", OUTPUT: "output"}.get(name, "hidden")
