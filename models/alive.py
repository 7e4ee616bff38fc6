"""What is alive in a network: the units and skips that the output depends on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.dag import DagNet, DagNode
from nas.models.plan import INPUT, OUTPUT, Skip

Indices = tuple[int, ...] | None  # None: all, in order


@dataclass(frozen=True)
class Alive:
    """The alive part of a network.

    Attributes:
        units: for every node, "in" and "out" included, a boolean mask of shape (units,).
        skips: what carries something to the output, by (source, target): the gate of every skip, and the Frobenius
            norm of every block and projection.
        emits: masks like ``units``: what puts out something, whether or not the output reads it.
    """

    units: dict[str, Tensor]
    skips: dict[tuple[str, str], float]
    emits: dict[str, Tensor]


@torch.no_grad()
def find_alive(net: DagNet) -> Alive:
    """The units that put out something and that the output reads; exact, without a tolerance.

    A unit puts out something if its bias is non-zero, or a weight from such a unit, or an open gate brings it
    something. It is read if "out" depends on it through non-zero weights and open gates. The graph has no cycle, so
    that one sweep forward and one backward reach the fixpoint.
    """
    units = net.plan.units
    emits = {INPUT: torch.ones(units[INPUT], dtype=torch.bool)}
    for name, node in net.named_nodes().items():
        emits[name] = spread(active_rows(node, emits), node.plan.rows, units[name])
        for skip, _ in open_gates(node):
            emits[name] |= spread(pick(emits[skip.source], skip.take), skip.put, units[name])
        for source, matrix in node.projections.items():
            emits[name] |= reads(matrix)[:, emits[source]].any(dim=1)

    read = {name: torch.full((n,), name == OUTPUT) for name, n in units.items()}
    skips: dict[tuple[str, str], float] = {}
    for name, node in reversed(net.named_nodes().items()):
        wanted = emits[name] & read[name]
        rows = pick(wanted, node.plan.rows)
        edges = [(source, weight, rows, source in node.plan.blocks) for source, weight in node.edges.items()]
        projections = [(source, matrix, wanted, True) for source, matrix in node.projections.items()]
        for source, weight, chosen, is_skip in (*edges, *projections):
            used = reads(weight)[chosen].any(dim=0)
            read[source] |= used
            if is_skip and (used & emits[source]).any():
                skips[source, name] = float(weight[chosen][:, emits[source]].norm())
        for skip, gate in open_gates(node):
            carried = pick(wanted, skip.put) & pick(emits[skip.source], skip.take)
            read[skip.source] |= spread(carried, skip.take, units[skip.source])
            if carried.any():
                skips[skip.source, name] = gate
    return Alive({name: emits[name] & read[name] for name in units}, dict(reversed(skips.items())), emits)


def active_rows(node: DagNode, sources: Mapping[str, Tensor]) -> Tensor:
    """Which rows of a node are not zero on the given units of its sources; shape (rows,)."""
    active = node.bias.ne(0).cpu()
    for source, weight in node.edges.items():
        active = active | reads(weight)[:, sources[source]].any(dim=1)
    return active


def reads(weight: Tensor) -> Tensor:
    """True at (row, column) where the row has a non-zero weight (kernel) on the column."""
    return weight.ne(0).reshape(*weight.shape[:2], math.prod(weight.shape[2:])).any(dim=2).cpu()


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
