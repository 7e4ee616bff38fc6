"""Constants move into the biases of their readers: what a dead unit still emits because its bias is free."""

import copy

import torch
from torch import Tensor

from nas.models.alive import dense_weight, edge_reads, open_gates, pick, reads
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, INPUT, Edge, Indices

Masks = dict[str, Tensor]


@torch.no_grad()
def fold_constants(net: DagNet) -> tuple[DagNet, Masks]:
    """A copy of ``net`` that computes the same, in which nobody reads a constant that can be folded.

    A unit is constant if it reads no varying unit, so that it puts out v = act(bias) plus the constants that skips
    bring. A reader then gets the bias b + w v and the weight 0. That is exact for fully connected edges and kernels
    of size 1 (but for one rounding of the bias) where the reader has a bias, and for v = 0 always. A larger kernel sees zeros beyond the border,
    where v is not: it keeps its weight, and the unit its readers. So do skips, which have one gate for all units.

    Returns:
        The copy, and for every node a boolean mask of shape (units,): which units are constant.
    """
    parameter = next(net.parameters())
    folded = copy.deepcopy(net).cpu().double()
    units = net.plan.units
    constant = {INPUT: torch.zeros(units[INPUT], dtype=torch.bool)}
    value = {INPUT: torch.zeros(units[INPUT], dtype=torch.double)}
    for name, node in folded.named_nodes().items():
        steady = _fold_into(node, constant, value)
        emitted = torch.where(steady, node.activation(node.bias), 0)
        node.bias[steady & emitted.eq(0)] = 0  # behind a negative bias: it puts out nothing
        constant[name] = _spread(steady, node.plan.rows, units[name], fill=True)
        value[name] = _spread(emitted, node.plan.rows, units[name], fill=0.0)
        for skip, gate in open_gates(node):
            constant[name] &= _spread(pick(constant[skip.source], skip.take), skip.put, units[name], fill=True)
            value[name] += gate * _spread(pick(value[skip.source], skip.take), skip.put, units[name], fill=0.0)
        for source, matrix in node.projections.items():
            matrix[:, constant[source] & value[source].eq(0)] = 0
            constant[name] &= ~reads(matrix)[:, ~constant[source]].any(dim=1)
            value[name] += matrix @ value[source]
        value[name][~constant[name]] = 0
    return folded.to(device=parameter.device, dtype=parameter.dtype), constant


def _fold_into(node: DagNode, constant: Masks, value: dict[str, Tensor]) -> Tensor:
    """Move constants that ``node`` reads into its bias; return which of its rows read nothing any more."""
    steady = torch.ones(node.plan.num_rows, dtype=torch.bool)
    for edge, weight in node.weighted_edges():
        units = constant[edge.source]
        foldable = units & value[edge.source].eq(0)
        if edge.kernel in (None, 1) and node.plan.bias:
            dense = dense_weight(edge, weight, node.plan.num_rows, len(units))
            node.bias.add_(dense.reshape(dense.shape[:2]) @ value[edge.source])
            foldable = units
        _stop_reading(edge, weight, foldable)
        steady &= ~edge_reads(edge, weight, node.plan.num_rows, len(units)).any(dim=1)
    return steady


def _stop_reading(edge: Edge, weight: Tensor, units: Tensor) -> None:
    """Zero the weights of an edge on these units of its source, a mask of shape (units,)."""
    taken = pick(units, edge.take)
    if edge.operation == DEPTHWISE:
        weight[taken] = 0
    else:
        weight[:, taken] = 0


def _spread(values: Tensor, put: Indices, units: int, *, fill: float | bool) -> Tensor:
    """``values`` at the units ``put``, ``fill`` at the others; shape (units,)."""
    whole = torch.full((units,), fill, dtype=values.dtype)
    whole[slice(None) if put is None else list(put)] = values
    return whole
