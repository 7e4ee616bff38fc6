"""Nodes that compute nothing are read through: whoever reads them reads what their only skip brings them."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.models.alive import active_rows, dense_weight, find_alive, open_gates
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, OUTPUT, Edge, Node

Tensors = dict[str, Tensor]


@torch.no_grad()
def bypass(net: DagNet, *others: DagNet) -> tuple[DagNet, ...]:
    """The same function without readers of nodes whose rows are all zero; the networks given are left as they are.

    Such a node is x_n = g x_s, with the gate g of its only open skip. Its readers get g times their weights for it on
    top of those for x_s. A node stays where a reader would then read x_s twice in ways that do not add up.

    Args:
        net: any network; it decides which nodes are read through.
        others: of the same plan, such as earlier points of the search, to be changed alike.

    Returns:
        The networks, in the order given; the same objects where there is no such node.
    """
    nets, emits = (net, *others), find_alive(net).emits
    for name in [node.name for node in net.plan.nodes if node.name != OUTPUT]:
        source = _only_source(nets[0].named_nodes()[name], emits)
        readers = [node for node in nets[0].plan.nodes if name in _sources(node)]
        if source is not None and readers and all(_adds_up(node, name, source) for node in readers):
            nets = tuple(_read_through(each, name, source) for each in nets)
    return nets


def _only_source(node: DagNode, emits: Mapping[str, Tensor]) -> str | None:
    """The source of the skip that is all a node puts out; None if it computes something, or sums."""
    skips = [skip for skip, _ in open_gates(node) if emits[skip.source].any()]
    if len(skips) != 1 or skips[0].take is not None or skips[0].put is not None:
        return None
    computes = active_rows(node, emits).any() or any(bool(matrix.any()) for matrix in node.projections.values())
    return None if computes else skips[0].source


def _sources(node: Node) -> set[str]:
    return {*(link.source for link in (*node.edges, *node.skips)), *node.projections}


def _adds_up(node: Node, name: str, source: str) -> bool:
    """Whether what a reader reads of the node ``name`` can be added to what it reads of ``source``."""
    skips = {skip.source: (skip.take, skip.put) for skip in node.skips}
    depthwise = {edge.source for edge in node.edges if edge.operation == DEPTHWISE}
    kinds = [{*skips}, {*node.projections}]
    mixed = any(name in one and source in other for one in kinds for other in kinds if one is not other)
    return not mixed and not {name, source} <= depthwise and skips.get(name) == skips.get(source, skips.get(name))


def _read_through(net: DagNet, name: str, source: str) -> DagNet:
    """The network in which all read the gate times ``source`` instead of the node ``name``."""
    nodes = net.named_nodes()
    gate = float(nodes[name].gates[[skip.source for skip in nodes[name].plan.skips].index(source)])
    pieces = {reader: _redirected(node, name, source, gate, net.plan.units) for reader, node in nodes.items()}
    changed = DagNet(replace(net.plan, nodes=tuple(plan for plan, _ in pieces.values())))
    parameter = next(net.parameters())
    changed.to(device=parameter.device, dtype=parameter.dtype)
    changed.load_state_dict({f"nodes.{n}.{key}": tensor for n, (_, ts) in pieces.items() for key, tensor in ts.items()})
    return changed


def _redirected(node: DagNode, name: str, source: str, gate: float, units: Mapping[str, int]) -> tuple[Node, Tensors]:
    """The plan of a reader, and its tensors."""
    edges: dict[str, tuple[Edge, Tensor]] = {}
    for edge, weight in node.weighted_edges():
        if edge.source == name:
            edge, weight = replace(edge, source=source), gate * weight
        if edge.key in edges:
            edge, weight = _sum(edges[edge.key], (edge, weight), node.plan.num_rows, units[source])
        edges[edge.key] = edge, weight

    skips = {skip.source: (skip, value) for skip, value in zip(node.plan.skips, node.gates, strict=True)}
    if name in skips:
        skip, value = skips.pop(name)
        before = skips[source][1] if source in skips else 0
        skips[source] = replace(skip, source=source), gate * value + before
    projections = dict(node.projections.items())
    if name in projections:
        projections[source] = gate * projections.pop(name) + projections.get(source, 0)

    plan = replace(
        node.plan,
        edges=tuple(edge for edge, _ in edges.values()),
        skips=tuple(skip for skip, _ in skips.values()),
        projections=tuple(projections),
    )
    gates = [value for _, value in skips.values()]
    tensors = {
        **{f"edges.{key}": weight for key, (_, weight) in edges.items()},
        **{f"projections.{key}": matrix for key, matrix in projections.items()},
        "gates": torch.stack(gates) if gates else node.gates,
        **({"bias": node.bias} if plan.bias else {}),
    }
    return plan, tensors


def _sum(one: tuple[Edge, Tensor], other: tuple[Edge, Tensor], rows: int, units: int) -> tuple[Edge, Tensor]:
    """The full or pointwise edge that does what both do."""
    (edge, weight), (second, added) = sorted((one, other), key=lambda each: each[0].kernel or 0, reverse=True)
    weight, added = dense_weight(edge, weight, rows, units), dense_weight(second, added, rows, units)
    rim = ((edge.kernel or 0) - (second.kernel or 0)) // 2
    return replace(edge, take=None, put=None), weight + (F.pad(added, (rim,) * 4) if rim else added)
