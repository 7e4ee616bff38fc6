"""What is alive in a network: the units and skips that the output depends on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, INPUT, OUTPUT, Edge, Indices, Skip
from nas.nonzero import any_over, masked_rows, nonzero


@dataclass(frozen=True)
class AliveUnits:
    """The alive units of a network.

    Attributes:
        units: for every node, "in" and "out" included, a boolean mask of shape (units,).
        emits: masks like ``units``: what puts out something, whether or not the output reads it.
        reads: for every node by name, for its edges by `Edge.key`, the masks `reads` of their weights.
    """

    units: dict[str, Tensor]
    emits: dict[str, Tensor]
    reads: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Alive(AliveUnits):
    """The alive part of a network.

    Attributes:
        skips: what carries something to the output around the units of a node, by (source, target): the gate of every
            skip, and the Frobenius norm of every projection and of the blocks of nodes that units don't read.
        kernels: the operations that carry something to the output, by (`Edge.key`, target), with the side of the
            smallest kernel that holds their weights; 1 for matrices.
    """

    skips: dict[tuple[str, str], float]
    kernels: dict[tuple[str, str], int]


@torch.no_grad()
def find_units(net: DagNet) -> AliveUnits:
    """The units that put out something and that the output reads; exact, without a tolerance.

    A unit puts out something if its bias is non-zero, or a weight from such a unit, or an open gate brings it
    something. It is read if "out" depends on it through non-zero weights and open gates. The graph has no cycle, so
    that one sweep forward and one backward reach the fixpoint.
    """
    units, nodes = net.plan.units, net.named_nodes()
    found = {name: node_reads(node) for name, node in nodes.items()}
    emits = {INPUT: torch.ones(units[INPUT], dtype=torch.bool)}
    for name, node in nodes.items():
        emits[name] = spread(active_rows(node, emits, found[name]), node.plan.rows, units[name])
        for skip, _ in open_gates(node):
            emits[name] |= spread(pick(emits[skip.source], skip.take), skip.put, units[name])
        for source, matrix in node.projections.items():
            emits[name] |= any_over(reads(matrix)[:, emits[source]], 1)

    read = {name: torch.full((n,), name == OUTPUT) for name, n in units.items()}
    for name, node in reversed(nodes.items()):
        wanted = emits[name] & read[name]
        rows = pick(wanted, node.plan.rows)
        for edge in node.plan.edges:
            used = masked_rows(found[name][edge.key], pick(rows, edge.put))
            read[edge.source] |= spread(columns(edge, used), edge.take, units[edge.source])
        for source, matrix in node.projections.items():
            read[source] |= any_over(reads(matrix)[wanted], 0)
        for skip, _ in open_gates(node):
            carried = pick(wanted, skip.put) & pick(emits[skip.source], skip.take)
            read[skip.source] |= spread(carried, skip.take, units[skip.source])
    return AliveUnits({name: emits[name] & read[name] for name in units}, emits, found)


@torch.no_grad()
def find_alive(net: DagNet) -> Alive:
    """What the output depends on, see `find_units`."""
    found = find_units(net)
    emits = found.emits
    skips: dict[tuple[str, str], float] = {}
    kernels: dict[tuple[str, str], int] = {}
    for name, node in reversed(net.named_nodes().items()):
        alive = found.units[name]
        rows = pick(alive, node.plan.rows)
        for edge, weight in node.weighted_edges():
            source = edge.source
            used = masked_rows(found.reads[name][edge.key], pick(rows, edge.put)) & beside(edge, emits[source])
            if columns(edge, used).any():
                kernels[edge.key, name] = side(weight[used]) if edge.kernel else 1
                if source in node.plan.block_sources:
                    skips[source, name] = math.hypot(skips.get((source, name), 0.0), float(weight[used].norm()))
        for source, matrix in node.projections.items():
            if (any_over(reads(matrix)[alive], 0) & emits[source]).any():
                skips[source, name] = float(matrix[alive][:, emits[source]].norm())
        for skip, gate in open_gates(node):
            if (pick(alive, skip.put) & pick(emits[skip.source], skip.take)).any():
                skips[skip.source, name] = gate
    return Alive(found.units, emits, found.reads, dict(reversed(skips.items())), dict(reversed(kernels.items())))


def node_reads(node: DagNode) -> dict[str, Tensor]:
    """The masks `reads` of the weights of its edges, by `Edge.key`."""
    return {edge.key: reads(weight) for edge, weight in node.weighted_edges()}


def active_rows(node: DagNode, sources: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
    """Which rows of a node, with these `node_reads`, are not zero on the given units of its sources; shape (rows,)."""
    active = nonzero(node.bias).cpu()
    for edge in node.plan.edges:
        read = any_over(found[edge.key] & beside(edge, sources[edge.source]), 1)
        active = active | spread(read, edge.put, node.plan.num_rows)
    return active


def beside(edge: Edge, values: Tensor) -> Tensor:
    """What is known of the units of the source, as it stands beside the weights (rows, columns) of an edge."""
    taken = pick(values, edge.take)
    return taken[:, None] if edge.operation == DEPTHWISE else taken


def columns(edge: Edge, used: Tensor) -> Tensor:
    """Which units, of those that an edge takes, its ``used`` weights (rows, columns) read."""
    return used[:, 0] if edge.operation == DEPTHWISE else any_over(used, 0)


def edge_reads(edge: Edge, weight: Tensor, rows: int, units: int) -> Tensor:
    """True at (row, unit) where an edge has a non-zero weight (kernel), into ``rows`` rows from ``units`` units."""
    return dense_weight(edge, reads(weight), rows, units)


def dense_weight(edge: Edge, weight: Tensor, rows: int, units: int) -> Tensor:
    """The weight of the full edge, of shape (rows, units, ...), that does the same."""
    if edge.operation != DEPTHWISE and edge.take is None and edge.put is None:
        return weight
    put = torch.arange(rows) if edge.put is None else torch.tensor(edge.put, dtype=torch.long)
    take = torch.arange(units) if edge.take is None else torch.tensor(edge.take, dtype=torch.long)
    dense = weight.new_zeros(rows, units, *weight.shape[2:])
    if edge.operation == DEPTHWISE:
        dense[put, take] = weight[:, 0]
    else:
        dense[put[:, None], take] = weight
    return dense


def reads(weight: Tensor) -> Tensor:
    """True at (row, column) where the row has a non-zero weight (kernel) on the column."""
    found = nonzero(weight)
    return (any_over(found, tuple(range(2, found.ndim))) if found.ndim > 2 else found).cpu()


def side(weight: Tensor) -> int:
    """The side of the smallest kernel around the middle that holds all non-zero weights (..., k, k)."""
    live = any_over(nonzero(weight).reshape(-1, *weight.shape[-2:]), 0).cpu()
    return 1 + 2 * int((live.nonzero() - len(live) // 2).abs().max()) if live.any() else 1


def pick(mask: Tensor, take: Indices) -> Tensor:
    return mask if take is None else mask[list(take)]


def spread(mask: Tensor, put: Indices, units: int) -> Tensor:
    if put is None:
        return mask.clone()
    whole = torch.zeros(units, dtype=torch.bool)
    whole[list(put)] = mask
    return whole


def open_gates(node: DagNode) -> Iterator[tuple[Skip, float]]:
    """The skips that arrive at a node and are not shut, with their gates."""
    return ((skip, gate) for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True) if gate != 0)
