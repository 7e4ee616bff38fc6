"""Constants move into the biases of their readers: what a dead unit still emits because its bias is free."""

import copy
import math

import torch
from torch import Tensor

from nas.models.alive import beside, open_gates, pick, reads
from nas.models.dag import DagNet, DagNode
from nas.models.plan import INPUT, Indices

Masks = dict[str, Tensor]


@torch.no_grad()
def fold_constants(net: DagNet) -> tuple[DagNet, Masks]:
    """A copy of ``net`` that computes the same, in which nobody reads a constant that can be folded.

    A unit is constant if it reads no varying unit, so that it puts out v = act(bias) plus the constants that skips
    bring. A reader then gets the bias b + w v and the weight 0. That is exact (but for one rounding of the bias) where
    the reader has a bias and the weight is a number, or a kernel that is zero but for its middle; and for v = 0 always.
    Any other kernel sees zeros beyond the border, where v is not: it stays, and the unit keeps its reader. So do skips,
    which have one gate for all units.

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
        kernels = weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:]))
        fixed, v = (beside(edge, each[edge.source]) for each in (constant, value))
        foldable = fixed & (v.eq(0) | (_is_a_number(kernels) & node.plan.bias))
        if node.plan.bias:
            node.bias[_put(edge.put)] += (kernels.sum(dim=2) * v * foldable).sum(dim=1)
        weight[foldable] = 0
        steady[_put(edge.put)] &= ~reads(weight).any(dim=1)
    return steady


def _is_a_number(kernels: Tensor) -> Tensor:
    """Which of the kernels (rows, columns, k * k) are zero but for their middle."""
    middle = kernels.shape[2] // 2
    return ~torch.cat([kernels[..., :middle], kernels[..., middle + 1 :]], dim=2).any(dim=2)


def _put(indices: Indices) -> slice | list[int]:
    return slice(None) if indices is None else list(indices)


def _spread(values: Tensor, put: Indices, units: int, *, fill: float | bool) -> Tensor:
    """``values`` at the units ``put``, ``fill`` at the others; shape (units,)."""
    whole = torch.full((units,), fill, dtype=values.dtype)
    whole[_put(put)] = values
    return whole
