"""Nodes that compute nothing are read through: whoever reads them reads what their only skip brings them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.models.alive import Alive, active_rows, dense_weight, find_alive, open_gates, pick, reads, spread
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, OUTPUT, Edge, Indices, Node, Skip

Tensors = dict[str, Tensor]
WeightedEdge = tuple[Edge, Tensor]


@torch.no_grad()
def bypass(net: DagNet, *others: DagNet) -> tuple[DagNet, ...]:
    """The same function without readers of nodes of which no alive unit is computed; the networks given stay as they
    are.

    The alive units of such a node are x_n[put] = g x_s[take], with the gate g of its only skip that brings them
    something. Its readers get g times their weights for it on top of those for x_s. A node stays where a reader would
    then read x_s twice in ways that do not add up.

    Args:
        net: any network; it decides which nodes are read through.
        others: of the same plan, such as earlier points of the search, to be changed alike.

    Returns:
        The networks, in the order given; the same objects where there is no such node.
    """
    nets, alive = (net, *others), find_alive(net)
    for name in [node.name for node in net.plan.nodes if node.name != OUTPUT]:
        skip = _only_skip(nets[0].named_nodes()[name], alive)
        if skip is not None:
            changed = [each for each in (_read_through(each, name, skip, alive) for each in nets) if each is not None]
            if changed:
                nets, alive = tuple(changed), find_alive(changed[0])
    return nets


def _only_skip(node: DagNode, alive: Alive) -> Skip | None:
    """The skip that is all that the alive units of a node put out; None if they compute something, or sum."""
    name, units, emits = node.plan.name, alive.units[node.plan.name], alive.emits
    computed = spread(active_rows(node, emits, alive.reads[name]), node.plan.rows, len(units))
    for source, matrix in node.projections.items():
        computed |= reads(matrix)[:, emits[source]].any(dim=1)
    skips = [s for s, _ in open_gates(node) if (pick(emits[s.source], s.take) & pick(units, s.put)).any()]
    return skips[0] if len(skips) == 1 and not (computed & alive.units[name]).any() else None


@dataclass(frozen=True)
class _Detour:
    """Instead of unit u of the node ``name`` unit ``instead[u]`` of ``source``, which has ``units``; -1 for none.

    What carries nothing in the network that decides is left out, according to ``alive``.
    """

    name: str
    source: str
    units: int
    instead: Tensor
    alive: Alive

    def taken(self, take: Indices) -> tuple[Tensor, Indices]:
        """Which of the units ``take`` of the node have another unit instead, and these units."""
        units = self.instead if take is None else self.instead[list(take)]
        return units >= 0, _chosen(units >= 0, tuple(units.tolist()), self.units)


def _chosen(mask: Tensor, indices: Indices, units: int) -> Indices:
    """The entries of ``indices`` at the mask; None if these are all of the units."""
    every = range(units) if indices is None else indices
    chosen = tuple(index for index, kept in zip(every, mask.tolist(), strict=True) if kept)
    return None if len(chosen) == units else chosen


def _read_through(net: DagNet, name: str, skip: Skip, alive: Alive) -> DagNet | None:
    """The network in which all read what the skip brings instead of the node ``name``; None if that does not add up."""
    nodes, units = net.named_nodes(), net.plan.units
    gate = float(nodes[name].gates[nodes[name].plan.skips.index(skip)])
    instead = torch.full((units[name],), -1)
    instead[slice(None) if skip.put is None else list(skip.put)] = pick(torch.arange(units[skip.source]), skip.take)
    detour = _Detour(name, skip.source, units[skip.source], instead, alive)
    pieces = {}
    for reader, node in nodes.items():
        edges, skips = _edges(node, detour, gate), _skips(node, detour, gate)
        projections = _projections(node, detour, gate)
        if edges is None or skips is None:
            return None
        pieces[reader] = _node(node, edges, skips, projections)
        sources = pieces[reader][0].skip_sources
        if len(set(sources)) < len(sources):
            return None
    changed = DagNet(replace(net.plan, nodes=tuple(plan for plan, _ in pieces.values())))
    parameter = next(net.parameters())
    changed.to(device=parameter.device, dtype=parameter.dtype)
    changed.load_state_dict({f"nodes.{n}.{key}": tensor for n, (_, ts) in pieces.items() for key, tensor in ts.items()})
    return changed


def _edges(node: DagNode, detour: _Detour, gate: float) -> dict[str, WeightedEdge] | None:
    """The edges of a reader by key; None if two depthwise ones would have to be added."""
    edges: dict[str, WeightedEdge] = {}
    weighted: Iterator[WeightedEdge] = node.weighted_edges()
    for edge, weight in weighted:
        if (edge.key, node.plan.name) not in detour.alive.kernels:
            continue
        edge = replace(edge, block=edge.source in node.plan.block_sources, core=None)  # others would become skips
        if edge.source == detour.name:
            kept, take = detour.taken(edge.take)
            if not kept.any():
                continue
            weight = gate * (weight[kept] if edge.operation == DEPTHWISE else weight[:, kept])
            put = _chosen(kept, edge.put, node.plan.num_rows) if edge.operation == DEPTHWISE else edge.put
            edge = replace(edge, source=detour.source, take=take, put=put)
        if edge.key in edges and edge.operation == DEPTHWISE:
            return None
        if edge.key in edges:
            edge, weight = _sum(edges[edge.key], (edge, weight), node.plan.num_rows, detour.units)
        edges[edge.key] = edge, weight
    return edges


def _sum(one: WeightedEdge, other: WeightedEdge, rows: int, units: int) -> WeightedEdge:
    """The full or pointwise edge that does what both do."""
    (edge, weight), (second, added) = sorted((one, other), key=lambda each: each[0].kernel or 0, reverse=True)
    weight, added = dense_weight(edge, weight, rows, units), dense_weight(second, added, rows, units)
    rim = ((edge.kernel or 0) - (second.kernel or 0)) // 2
    return replace(edge, take=None, put=None), weight + (F.pad(added, (rim,) * 4) if rim else added)


def _skips(node: DagNode, detour: _Detour, gate: float) -> dict[str, tuple[Skip, Tensor]] | None:
    """The skips of a reader, with their gates, by source; None if two would join the same nodes in different ways."""
    skips: dict[str, tuple[Skip, Tensor]] = {}
    for skip, value in zip(node.plan.skips, node.gates, strict=True):
        if (skip.source, node.plan.name) not in detour.alive.skips:
            continue
        if skip.source == detour.name:
            kept, take = detour.taken(skip.take)
            if not kept.any():
                continue
            skip = replace(skip, source=detour.source, take=take, put=_chosen(kept, skip.put, node.plan.units))
            value = gate * value
        if skip.source in skips:
            before, more = skips[skip.source]
            if before != skip:
                return None
            value = value + more
        skips[skip.source] = skip, value
    return skips


def _projections(node: DagNode, detour: _Detour, gate: float) -> Tensors:
    """The projections of a reader by source."""
    projections = {s: p for s, p in node.projections.items() if (s, node.plan.name) in detour.alive.skips}
    if detour.name in projections:
        matrix, (kept, _) = projections.pop(detour.name), detour.taken(None)
        moved = matrix.new_zeros(len(matrix), detour.units)
        moved[:, detour.instead[kept]] = gate * matrix[:, kept]
        projections[detour.source] = moved + projections.get(detour.source, 0)
    return projections


def _node(
    node: DagNode,
    edges: Mapping[str, WeightedEdge],
    skips: Mapping[str, tuple[Skip, Tensor]],
    projections: Mapping[str, Tensor],
) -> tuple[Node, Tensors]:
    """The plan of a reader, and its tensors."""
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
        "gates": torch.stack(gates) if gates else node.gates[:0],
        **({"bias": node.bias} if plan.bias else {}),
    }
    return plan, tensors
