"""The compact network inside a sparse one: the same function with nothing that is dead."""

import dataclasses

import torch
from torch import Tensor

from nas.models.alive import active_rows, find_alive, pick, reads
from nas.models.dag import DagNet, DagNode
from nas.models.fold import fold_constants
from nas.models.plan import INPUT, OUTPUT, Node, Skip

Tensors = dict[str, Tensor]


@torch.no_grad()
def compact(net: DagNet) -> DagNet:
    """A new network of the same class with the alive units, edges and skips of ``net``, which is left as it is.

    Exact: what is left out contributes exactly 0 (`DagNode`), or a constant that the biases of its readers take up
    where that is the same (`fold_constants`). Only the order of floating point sums may change.
    A node whose units are all dead is left out; the input and the output keep their width. Where skips bring units
    that no row computes, the node keeps them as pure skips (`Node.rows`).
    """
    net, _ = fold_constants(net)
    alive = find_alive(net).units
    kept = {**alive, INPUT: torch.ones_like(alive[INPUT]), OUTPUT: torch.ones_like(alive[OUTPUT])}
    pieces = {name: _restrict(node, alive[name], kept) for name, node in net.named_nodes().items() if kept[name].any()}
    small = DagNet(dataclasses.replace(net.plan, nodes=tuple(node for node, _ in pieces.values())))
    parameter = next(net.parameters())
    small.to(device=parameter.device, dtype=parameter.dtype)
    small.load_state_dict({f"nodes.{name}.{key}": t for name, (_, ts) in pieces.items() for key, t in ts.items()})
    return small


def _restrict(node: DagNode, alive: Tensor, kept: dict[str, Tensor]) -> tuple[Node, Tensors]:
    """The plan and the tensors of ``node`` on the units that are kept."""
    plan, target = node.plan, kept[node.plan.name]
    rows = pick(alive, plan.rows) & active_rows(node, kept)
    tensors = {"bias": node.bias[rows]}
    for source, weight in node.edges.items():
        block = weight[rows][:, kept[source]]
        if reads(block).any():
            tensors[f"edges.{source}"] = block

    skips, gates = [], []
    for skip, gate in zip(plan.skips, node.gates, strict=True):
        carried = pick(alive, skip.put) & pick(kept[skip.source], skip.take)
        if gate != 0 and carried.any():
            skips.append(
                Skip(
                    skip.source, _renumber(carried, skip.take, kept[skip.source]), _renumber(carried, skip.put, target)
                )
            )
            gates.append(gate)
    tensors["gates"] = torch.stack(gates) if gates else node.gates[:0]

    small = dataclasses.replace(
        plan,
        units=int(target.sum()),
        edges={source: kernel for source, kernel in plan.edges.items() if f"edges.{source}" in tensors},
        skips=tuple(skips),
        rows=_renumber(rows, plan.rows, target),
        activation="relu" if plan.activation == "right_relu" else plan.activation,
    )
    return small, tensors


def _renumber(chosen: Tensor, indices: tuple[int, ...] | None, kept: Tensor) -> tuple[int, ...] | None:
    """The chosen entries of ``indices`` counted among the kept units; None if these are all of them."""
    old = torch.arange(len(chosen)) if indices is None else torch.tensor(indices, dtype=torch.long)
    new = (kept.cumsum(0) - 1)[old[chosen]].tolist()
    return None if new == list(range(int(kept.sum()))) else tuple(new)
