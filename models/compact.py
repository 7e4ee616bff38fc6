"""The compact network inside a sparse one: the same function with nothing that is dead."""

import copy
import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.models.alive import active_rows, find_alive, pick, reads
from nas.models.dag import DagNet, DagNode
from nas.models.fold import fold_constants
from nas.models.plan import INPUT, MAX_SIZE, OUTPUT, Node, Skip

Tensors = dict[str, Tensor]


@torch.no_grad()
def compact(net: DagNet, *, round_to: int = 1, weights_of: DagNet | None = None) -> DagNet:
    """A new network of the same class with the alive units, edges and skips of ``net``, which is left as it is.

    Exact: what is left out contributes exactly 0 (`DagNode`), or a constant that the biases of its readers take up
    where that is the same (`fold_constants`). Only the order of floating point sums may change.
    A node whose units are all dead is left out; the input and the output keep their width. Where skips bring units
    that no row computes, the node keeps them as pure skips (`Node.rows`).

    Args:
        net: any network with exact zeros.
        round_to: the numbers of units, and of rows, of hidden nodes are rounded up to a multiple of this by units that
            are zero, for hardware that works in blocks.
        weights_of: take the weights from this network of the same plan instead, an earlier point of the search; the
            function is then another one.

    Raises:
        ValueError: ``round_to`` is no size, or ``weights_of`` has another plan.
    """
    if weights_of is not None and weights_of.plan != net.plan:
        raise ValueError("compact(weights_of=...) needs a network of the same plan")
    if not 1 <= round_to <= MAX_SIZE:
        raise ValueError(f"round_to must be an integer from 1 to {MAX_SIZE}, got {round_to}")
    net, _ = fold_constants(net)
    alive = find_alive(net).units
    kept = _kept(alive)
    given = (weights_of or net).named_nodes()
    pieces = {
        name: _restrict(node, given[name], alive[name], kept)
        for name, node in net.named_nodes().items()
        if kept[name].any()
    }
    if round_to > 1:
        pieces = _rounded(pieces, {name: int(mask.sum()) for name, mask in kept.items()}, round_to)
    small = DagNet(dataclasses.replace(net.plan, nodes=tuple(node for node, _ in pieces.values())))
    parameter = next(net.parameters())
    small.to(device=parameter.device, dtype=parameter.dtype)
    small.load_state_dict({f"nodes.{name}.{key}": t for name, (_, ts) in pieces.items() for key, t in ts.items()})
    return small


def kept_units(net: DagNet) -> dict[str, Tensor]:
    """For every node, "in" and "out" included, which of its units `compact` keeps: boolean masks of shape (units,)."""
    return _kept(find_alive(fold_constants(net)[0]).units)


def _kept(alive: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**alive, INPUT: torch.ones_like(alive[INPUT]), OUTPUT: torch.ones_like(alive[OUTPUT])}


@torch.no_grad()
def expand(small: DagNet, units: Mapping[str, Tensor], like: DagNet) -> DagNet:
    """The inverse of `compact`: a network of the plan of ``like`` that computes what ``small`` does.

    Args:
        small: a compact network, perhaps trained since.
        units: for every node of ``small``, "in" and "out" included, the indices that its units have in ``like``.
        like: a network that has the nodes, edges and skips of ``small``, and computes all its units.
    """
    net = copy.deepcopy(like)
    for tensor in net.parameters():
        tensor.zero_()
    nodes = net.named_nodes()
    for name, node in small.named_nodes().items():
        whole, own = nodes[name], units[name]
        rows = own if node.plan.rows is None else own[list(node.plan.rows)]
        whole.bias[rows] = node.bias
        for source, weight in node.edges.items():
            whole.edges[source][rows[:, None], units[source]] = weight
        for source, matrix in node.projections.items():
            whole.projections[source][own[:, None], units[source]] = matrix
        sources = [skip.source for skip in whole.plan.skips]
        for skip, gate in zip(node.plan.skips, node.gates, strict=True):
            whole.gates[sources.index(skip.source)] = gate
    return net


def _restrict(node: DagNode, given: DagNode, alive: Tensor, kept: dict[str, Tensor]) -> tuple[Node, Tensors]:
    """The plan of ``node`` and the tensors of ``given`` on the units that are kept."""
    plan, target = node.plan, kept[node.plan.name]
    rows = pick(alive, plan.rows) & active_rows(node, kept)
    tensors = {"bias": given.bias[rows]}
    for source, weight in node.edges.items():
        if reads(weight[rows][:, kept[source]]).any():
            tensors[f"edges.{source}"] = given.edges[source][rows][:, kept[source]]

    skips, gates = [], []
    for skip, gate, given_gate in zip(plan.skips, node.gates, given.gates, strict=True):
        carried = pick(alive, skip.put) & pick(kept[skip.source], skip.take)
        if gate != 0 and carried.any():
            skips.append(
                Skip(
                    skip.source, _renumber(carried, skip.take, kept[skip.source]), _renumber(carried, skip.put, target)
                )
            )
            gates.append(given_gate)
    tensors["gates"] = torch.stack(gates) if gates else given.gates[:0]
    for source, matrix in node.projections.items():
        if matrix[target][:, kept[source]].any():
            tensors[f"projections.{source}"] = given.projections[source][target][:, kept[source]]

    small = dataclasses.replace(
        plan,
        units=int(target.sum()),
        edges={source: kernel for source, kernel in plan.edges.items() if f"edges.{source}" in tensors},
        skips=tuple(skips),
        blocks=tuple(source for source in plan.blocks if f"edges.{source}" in tensors),
        projections=tuple(source for source in plan.projections if f"projections.{source}" in tensors),
        rows=_renumber(rows, plan.rows, target),
        activation="relu" if plan.activation == "right_relu" else plan.activation,
    )
    return small, tensors


def _renumber(chosen: Tensor, indices: tuple[int, ...] | None, kept: Tensor) -> tuple[int, ...] | None:
    """The chosen entries of ``indices`` counted among the kept units; None if these are all of them."""
    old = torch.arange(len(chosen)) if indices is None else torch.tensor(indices, dtype=torch.long)
    new = (kept.cumsum(0) - 1)[old[chosen]].tolist()
    return None if new == list(range(int(kept.sum()))) else tuple(new)


def _rounded(
    pieces: Mapping[str, tuple[Node, Tensors]], before: Mapping[str, int], round_to: int
) -> dict[str, tuple[Node, Tensors]]:
    """The same nodes with numbers of units rounded up; those ``before`` are of the kept units."""
    fixed = (INPUT, OUTPUT)
    units = {name: n if name in fixed else _round_up(n, round_to) for name, n in before.items()}
    return {name: _widen(node, tensors, before, units, round_to) for name, (node, tensors) in pieces.items()}


def _widen(
    plan: Node, tensors: Tensors, before: Mapping[str, int], units: Mapping[str, int], round_to: int
) -> tuple[Node, Tensors]:
    """The node with as many ``units`` as said for it and its sources instead of ``before``; the new ones are zero."""
    name = plan.name
    computed = list(range(plan.units)) if plan.rows is None else list(plan.rows)
    num_rows = len(computed) if name == OUTPUT else _round_up(len(computed), round_to)
    others = [unit for unit in range(units[name]) if unit not in set(computed)]
    rows = sorted(computed + others[: num_rows - len(computed)])
    places = torch.tensor([rows.index(unit) for unit in computed], dtype=torch.long)

    wide = {}
    for key, tensor in tensors.items():
        kind, _, source = key.partition(".")
        if kind == "projections":
            wide[key] = F.pad(tensor, (0, units[source] - tensor.shape[1], 0, units[name] - len(tensor)))
        elif kind in ("bias", "edges"):
            columns = [units[source]] if source else []
            wide[key] = tensor.new_zeros(len(rows), *columns, *tensor.shape[2:])
            wide[key][(places, slice(tensor.shape[1])) if columns else places] = tensor
        else:
            wide[key] = tensor

    skips = []
    for skip in plan.skips:
        take, put = skip.take, skip.put
        if take is not None or put is not None or units[skip.source] != units[name]:  # the new units are not joined
            take = _all_but_new(take, before[skip.source], units[skip.source])
            put = _all_but_new(put, before[name], units[name])
        skips.append(Skip(skip.source, take, put))
    all_rows = len(rows) == units[name]
    return dataclasses.replace(
        plan, units=units[name], skips=tuple(skips), rows=None if all_rows else tuple(rows)
    ), wide


def _all_but_new(indices: tuple[int, ...] | None, before: int, units: int) -> tuple[int, ...] | None:
    return tuple(range(before)) if indices is None and units > before else indices


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
