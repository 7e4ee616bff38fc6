"""What is alive, as a graph."""

import math
from collections.abc import Mapping

import networkx as nx
import torch
from torch import Tensor

from nas.models.alive import find_alive, reads
from nas.models.dag import DagNet
from nas.models.plan import INPUT, OUTPUT

Epochs = Mapping[str, Mapping[int, int]]
LEVELS = ("node", "unit")


def topology(
    net: DagNet, level: str = "node", *, births: Epochs | None = None, deaths: Epochs | None = None
) -> nx.DiGraph:
    """The alive part of a network; plain Python attributes, so that it can be written as JSON or GraphML.

    Args:
        net: a supernet or a compact network.
        level: "node" (a vertex per node of the plan) or "unit" (a vertex per alive unit, named "n1.5").
        births: for nodes of the plan the epoch since which each unit has been alive (`nas.search.births`).
        deaths: likewise the epoch at which each unit died that was alive once (`nas.search.deaths`).

    Returns:
        A graph whose attribute "level" is ``level``. All vertices have

        * kind: "input", "hidden" or "output",
        * layer: the position in the plan,
        * alive, total: numbers of units (1 and 1 at unit level),
        * norm: Euclidean norm of the biases and of the weights that read alive units; 0 for the input,
        * born: the epoch since which it has been alive, at node level the earliest of its units; if births are given,

        those at node level born_last, the latest birth, and where units died num_died and died, their number and the
        latest epoch at which one did; those at unit level node and index. Arcs have

        * norm: Euclidean norm of the weights on alive units, 0 for a pure skip,
        * gate: how strong a skip is: its scalar gate, or the norm of its block (which is the norm of the arc, too) or
          of its projection; 0 for none,
        * shape: of the weights on alive units, as "rows x columns x height x width" without blanks (at unit level of
          one kernel, or "1"), "" for a pure skip.

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"topology(level=...) must be 'node' or 'unit', got {level!r}")
    return _node_graph(net, births or {}, deaths or {}) if level == "node" else _unit_graph(net, births or {})


@torch.no_grad()
def _node_graph(net: DagNet, births: Epochs, deaths: Epochs) -> nx.DiGraph:
    alive = find_alive(net)
    norms = _unit_norms(net, alive.units)
    graph = nx.DiGraph(level="node")
    for layer, (name, mask) in enumerate(alive.units.items()):
        if mask.any() or name in (INPUT, OUTPUT):
            born = [births[name][unit] for unit in _indices(mask) if unit in births.get(name, {})]
            died = deaths.get(name, {}).values()
            ages = {"born": min(born), "born_last": max(born)} if born else {}
            losses = {"num_died": len(died), "died": max(died)} if died else {}
            size = {"alive": int(mask.sum()), "total": len(mask), "norm": float(norms[name][mask].norm())}
            graph.add_node(name, kind=_kind(name), layer=layer, **size, **ages, **losses)
    for name, node in net.named_nodes().items():
        for source, weight in node.edges.items():
            block = _alive_rows(net, name, weight, alive.units)[:, alive.units[source]]
            if block.any():
                graph.add_edge(source, name, norm=float(block.norm()), gate=0.0, shape=_shape(block))
    for (source, target), gate in alive.skips.items():
        _add_skip(graph, source, target, gate)
    return graph


@torch.no_grad()
def _unit_graph(net: DagNet, births: Epochs) -> nx.DiGraph:
    alive = find_alive(net)
    norms = _unit_norms(net, alive.units)
    graph = nx.DiGraph(level="unit")
    for layer, (name, mask) in enumerate(alive.units.items()):
        for unit in _indices(mask):
            age = {"born": births[name][unit]} if unit in births.get(name, {}) else {}
            size = {"alive": 1, "total": 1, "norm": float(norms[name][unit])}
            graph.add_node(f"{name}.{unit}", kind=_kind(name), layer=layer, **size, node=name, index=unit, **age)
    for name, node in net.named_nodes().items():
        rows = range(net.plan.units[name]) if node.plan.rows is None else node.plan.rows
        for source, weight in node.edges.items():
            kernels = weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:])).norm(dim=2)
            for row, column in reads(weight).nonzero().tolist():
                if alive.units[name][rows[row]] and alive.units[source][column]:
                    norm, gate = float(kernels[row, column]), float(kernels[row, column]) * (source in node.plan.blocks)
                    look = {"norm": norm, "gate": gate, "shape": _shape(weight[row, column])}
                    graph.add_edge(f"{source}.{column}", f"{name}.{rows[row]}", **look)
        for source, matrix in node.projections.items():
            for row, column in reads(matrix).nonzero().tolist():
                if alive.units[name][row] and alive.units[source][column]:
                    _add_skip(graph, f"{source}.{column}", f"{name}.{row}", float(matrix[row, column].abs()))
        for skip in node.plan.skips:
            if open_gate := alive.skips.get((skip.source, name)):
                take = range(net.plan.units[skip.source]) if skip.take is None else skip.take
                put = range(net.plan.units[name]) if skip.put is None else skip.put
                for start, end in zip(take, put, strict=True):
                    if alive.units[skip.source][start] and alive.units[name][end]:
                        _add_skip(graph, f"{skip.source}.{start}", f"{name}.{end}", open_gate)
    return graph


def _add_skip(graph: nx.DiGraph, source: str, target: str, gate: float) -> None:
    weights = graph.get_edge_data(source, target, {"norm": 0.0, "shape": ""})
    graph.add_edge(source, target, **{**weights, "gate": gate})


def _unit_norms(net: DagNet, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every node the norm of what belongs to each unit: its bias and its weights on alive units; shape (units,)."""
    norms = {INPUT: torch.zeros(net.plan.units[INPUT])}
    for name, node in net.named_nodes().items():
        blocks = [weight[:, alive[source]].flatten(1) for source, weight in node.edges.items()]
        rows = torch.cat([node.bias[:, None], *blocks], dim=1).norm(dim=1).cpu()
        norms[name] = torch.zeros(net.plan.units[name], dtype=rows.dtype)
        norms[name][slice(None) if node.plan.rows is None else list(node.plan.rows)] = rows
        for source, matrix in node.projections.items():
            norms[name] = torch.hypot(norms[name], matrix[:, alive[source]].norm(dim=1).cpu())
    return norms


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape)) or "1"


def _alive_rows(net: DagNet, name: str, weight: Tensor, units: Mapping[str, Tensor]) -> Tensor:
    rows = net.named_nodes()[name].plan.rows
    return weight[units[name] if rows is None else units[name][list(rows)]]


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _kind(name: str) -> str:
    return {INPUT: "input", OUTPUT: "output"}.get(name, "hidden")
