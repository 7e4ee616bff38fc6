"""What is alive, as a graph."""

import math
from collections.abc import Mapping

import networkx as nx
import torch
from torch import Tensor, nn

from nas.analysis.module_topology import ages, module_topology
from nas.models.alive import dense_weight, find_alive, reads, side
from nas.models.bypass import bypass
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, INPUT, OUTPUT, Edge
from nas.models.traced.graph import Inputs
from nas.models.traced.network import TracedNet

Epochs = Mapping[str, Mapping[int, int]]
LEVELS = ("node", "unit")


def topology(
    net: nn.Module,
    level: str = "node",
    *,
    inputs: Inputs | None = None,
    births: Epochs | None = None,
    deaths: Epochs | None = None,
) -> nx.DiGraph:
    """The alive part of a network; plain Python attributes, so that it can be written as JSON or GraphML.

    Args:
        net: a supernet or a compact network; or any other module, at node level (`nas.analysis.module_topology`).
        level: "node" (a vertex per node of the plan) or "unit" (a vertex per alive unit, named "n1.5").
        inputs: one batch for a module that is no `DagNet`, as for `nas.coupled_units`.
        births: for nodes of the plan the epoch since which each unit has been alive (`nas.search.births`).
        deaths: likewise the epoch at which each unit died that was alive once (`nas.search.deaths`).

    Returns:
        A graph whose attribute "level" is ``level``. All vertices have

        * kind: "input", "hidden" or "output",
        * layer: the position in the plan,
        * alive, total: numbers of units (1 and 1 at unit level),
        * norm: Euclidean norm of the biases and of the weights that read alive units; 0 for the input,
        * scale: how often the resolution of the input is halved there; absent in the graph of a module,
        * born: the epoch since which it has been alive, at node level the earliest of its units; if births are given,

        those at node level born_last, the latest birth, and where units died num_died and died, their number and the
        latest epoch at which one did; those at unit level node and index. Arcs have

        * norm: Euclidean norm of the weights on alive units, 0 for a pure skip,
        * gate: how strong a skip is: its scalar gate, or the norm of its block (which is the norm of the arc, too) or
          of its projection; 0 for none,
        * operation: such as "3x3", "1x1" or "7x7 depthwise", "matrix" for a fully connected edge, joined by " + "
          where there are several; "" for a pure skip,
        * shape: of the weights on alive units, as "rows x columns x height x width" without blanks (at unit level of
          one kernel, or "1"), joined likewise.

    A node that computes nothing but a multiple of another one is read through (`nas.models.bypass`).

    Raises:
        ValueError: an unknown level; a module that is no `DagNet` comes without inputs or at unit level, or cannot be
            copied, run or traced.

    Examples:
        >>> import torch
        >>> from nas.analysis import topology
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
        >>> graph = topology(net, inputs=torch.zeros(1, 1, 8, 8))
        >>> [(source, target, arc["operation"]) for source, target, arc in graph.edges(data=True)][:2]
        [('in', '0', '3x3'), ('0', '2', '1x1')]
    """
    if level not in LEVELS:
        raise ValueError(f"topology(level=...) must be 'node' or 'unit', got {level!r}")
    if isinstance(net, TracedNet):
        if level != "node":
            raise ValueError(f"the units of {type(net.module).__name__}, which is no plan, are drawn by layer only")
        return module_topology(net.module, net.origin.example, births=births or {}, deaths=deaths or {})
    if not isinstance(net, DagNet):
        if inputs is None or level != "node":
            raise ValueError(f"topology: {type(net).__name__} is no DagNet; give inputs=..., one batch, at node level")
        return module_topology(net, inputs)
    (net,) = bypass(net)
    return _node_graph(net, births or {}, deaths or {}) if level == "node" else _unit_graph(net, births or {})


@torch.no_grad()
def _node_graph(net: DagNet, births: Epochs, deaths: Epochs) -> nx.DiGraph:
    alive = find_alive(net)
    norms, scales = _unit_norms(net, alive.units), net.plan.node_levels
    graph = nx.DiGraph(level="node")
    for layer, (name, mask) in enumerate(alive.units.items()):
        if mask.any() or name in (INPUT, OUTPUT):
            born = [births[name][unit] for unit in _indices(mask) if unit in births.get(name, {})]
            lived = ages(born, deaths.get(name, {}).values())
            size = {"alive": int(mask.sum()), "total": len(mask), "norm": float(norms[name][mask].norm())}
            graph.add_node(name, kind=_kind(name), layer=layer, scale=scales[name], **size, **lived)
    for name, node in net.named_nodes().items():
        rows = _rows_of(node, alive.units[name])
        for edge, weight in node.weighted_edges():
            block = dense_weight(edge, weight, node.plan.num_rows, net.plan.units[edge.source])
            block = block[rows][:, alive.units[edge.source]]
            if block.any():
                _add_weights(graph, edge.source, name, edge, block)
    for (source, target), gate in alive.skips.items():
        _add_skip(graph, source, target, gate)
    return graph


@torch.no_grad()
def _unit_graph(net: DagNet, births: Epochs) -> nx.DiGraph:
    alive = find_alive(net)
    norms, scales = _unit_norms(net, alive.units), net.plan.node_levels
    graph = nx.DiGraph(level="unit")
    for layer, (name, mask) in enumerate(alive.units.items()):
        for unit in _indices(mask):
            age = {"born": births[name][unit]} if unit in births.get(name, {}) else {}
            size = {"alive": 1, "total": 1, "norm": float(norms[name][unit]), "scale": scales[name]}
            graph.add_node(f"{name}.{unit}", kind=_kind(name), layer=layer, **size, node=name, index=unit, **age)
    for name, node in net.named_nodes().items():
        rows = range(net.plan.units[name]) if node.plan.rows is None else node.plan.rows
        for edge, weight in node.weighted_edges():
            dense = dense_weight(edge, weight, node.plan.num_rows, net.plan.units[edge.source])
            for row, column in reads(dense).nonzero().tolist():
                start, end = f"{edge.source}.{column}", f"{name}.{rows[row]}"
                if alive.units[name][rows[row]] and alive.units[edge.source][column]:
                    _add_weights(graph, start, end, edge, dense[row, column])
                    if edge.source in node.plan.block_sources:
                        graph[start][end]["gate"] = graph[start][end]["norm"]
        for source, matrix in node.projections.items():
            for row, column in reads(matrix).nonzero().tolist():
                if alive.units[name][row] and alive.units[source][column]:
                    _add_skip(graph, f"{source}.{column}", f"{name}.{row}", float(matrix[row, column].abs()))
        for skip in node.plan.skips:
            if open_gate := alive.skips.get((skip.source, name)):
                take = range(net.plan.units[skip.source]) if skip.take is None else skip.take
                put = range(net.plan.units[name]) if skip.put is None else skip.put
                for taken, placed in zip(take, put, strict=True):
                    if alive.units[skip.source][taken] and alive.units[name][placed]:
                        _add_skip(graph, f"{skip.source}.{taken}", f"{name}.{placed}", open_gate)
    return graph


def _add_weights(graph: nx.DiGraph, source: str, target: str, edge: Edge, weight: Tensor) -> None:
    """An arc for these weights, or more on the arc that is there."""
    before = graph.get_edge_data(source, target, {"norm": 0.0, "gate": 0.0, "operation": "", "shape": ""})
    looks = {"operation": _operation(edge, weight), "shape": _shape(_alive_part(edge, weight))}
    joined = {key: f"{before[key]} + {text}" if before[key] else text for key, text in looks.items()}
    graph.add_edge(source, target, **{**before, "norm": math.hypot(before["norm"], float(weight.norm())), **joined})


def _operation(edge: Edge, weight: Tensor) -> str:
    if edge.kernel is None:
        return "matrix"
    k = side(weight)
    return f"{k}x{k}" + (" depthwise" if edge.operation == DEPTHWISE else "")


def _alive_part(edge: Edge, weight: Tensor) -> Tensor:
    """The middle of the kernels that holds all weights; of a depthwise edge one kernel for each channel."""
    if weight.ndim > 2 and edge.operation == DEPTHWISE:
        weight = weight[reads(weight)][:, None]
    rim = (weight.shape[-1] - side(weight)) // 2 if edge.kernel else 0
    return weight[..., rim : weight.shape[-1] - rim, rim : weight.shape[-1] - rim] if rim else weight


def _add_skip(graph: nx.DiGraph, source: str, target: str, gate: float) -> None:
    weights = graph.get_edge_data(source, target, {"norm": 0.0, "operation": "", "shape": ""})
    graph.add_edge(source, target, **{**weights, "gate": gate})


def _unit_norms(net: DagNet, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every node the norm of what belongs to each unit: its bias and its weights on alive units; shape (units,)."""
    norms = {INPUT: torch.zeros(net.plan.units[INPUT])}
    for name, node in net.named_nodes().items():
        blocks = [
            dense_weight(edge, weight, node.plan.num_rows, net.plan.units[edge.source])[:, alive[edge.source]].flatten(
                1
            )
            for edge, weight in node.weighted_edges()
        ]
        rows = torch.cat([node.bias[:, None], *blocks], dim=1).norm(dim=1).cpu()
        norms[name] = torch.zeros(net.plan.units[name], dtype=rows.dtype)
        norms[name][slice(None) if node.plan.rows is None else list(node.plan.rows)] = rows
        for source, matrix in node.projections.items():
            norms[name] = torch.hypot(norms[name], matrix[:, alive[source]].norm(dim=1).cpu())
    return norms


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape)) or "1"


def _rows_of(node: DagNode, units: Tensor) -> Tensor:
    """Which rows of a node compute these units."""
    return units if node.plan.rows is None else units[list(node.plan.rows)]


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _kind(name: str) -> str:
    return {INPUT: "input", OUTPUT: "output"}.get(name, "hidden")
