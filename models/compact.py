"""The compact network inside a sparse one: the same function with nothing that is dead."""

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas.models.alive import AliveUnits, active_rows, beside, columns, find_units, pick, side, spread
from nas.models.bypass import bypass
from nas.models.dag import DagNet, DagNode
from nas.models.fold import fold_constants
from nas.models.plan import DEPTHWISE, INPUT, MAX_SIZE, OUTPUT, Edge, Indices, Node, Plan
from nas.nonzero import any_over, masked_rows
from nas.selection import Selection, copied, indices, selected

Tensors = dict[str, Tensor]
Selections = dict[str, Selection]


@torch.no_grad()
def compact(net: DagNet, *, round_to: int = 1, weights_of: DagNet | None = None, tight: bool = True) -> DagNet:
    """A new network of the same class with the alive units, edges and skips of ``net``, which is left as it is.

    Exact: what is left out contributes exactly 0 (`DagNode`), or a constant that the biases of its readers take up
    where that is the same (`fold_constants`). Only the order of floating point sums may change.
    A node whose units are all dead is left out, one that computes nothing is read through (`bypass`); the input and the
    output keep their width. Where skips bring units that no row computes, the node keeps them as pure skips
    (`Node.rows`). Edges keep the rows and columns that are not zero, and of their kernels the middle that holds all
    weights.

    Args:
        net: any network with exact zeros.
        round_to: the numbers of units, and of rows, of hidden nodes are rounded up to a multiple of this by units that
            are zero, for hardware that works in blocks.
        weights_of: take the weights from this network of the same plan instead, an earlier point of the search; the
            function is then another one.
        tight: if not, the result is a smaller supernet, of which `nas.param_groups` are again the groups: nodes that
            compute nothing stay, tied nodes keep the same units, and full edges all rows and columns between units that
            are kept. `expand` undoes it.

    Raises:
        ValueError: ``round_to`` is no size, or ``weights_of`` has another plan.
    """
    if weights_of is not None and weights_of.plan != net.plan:
        raise ValueError("compact(weights_of=...) needs a network of the same plan")
    if not 1 <= round_to <= MAX_SIZE:
        raise ValueError(f"round_to must be an integer from 1 to {MAX_SIZE}, got {round_to}")
    net, given = _simplified(net, weights_of, tight)
    alive = _alive(net, tight)
    nodes, weights = given.named_nodes(), dict[str, tuple[Node, Tensors]]()
    for name, (node, parts) in _pieces(net, alive, tight).items():
        whole = dict(nodes[name].named_parameters())
        weights[name] = node, {key: copied(whole[key], part) for key, part in parts.items()}
    if round_to > 1:
        weights = _rounded(weights, {name: int(mask.sum()) for name, mask in _kept(alive.units).items()}, round_to)
    return _built(net, weights)


def _built(net: DagNet, pieces: Mapping[str, tuple[Node, Tensors]]) -> DagNet:
    """The network of these nodes with these weights, otherwise like ``net``."""
    return DagNet(_with_nodes(net.plan, pieces), {name: tensors for name, (_, tensors) in pieces.items()})


@torch.no_grad()
def restricted(net: DagNet) -> tuple[DagNet, Selections]:
    """A smaller supernet of what is alive in ``net``, and by name of each of its tensors which part of that it is.

    Outputs and gradients are those of ``net``, to round-off: unlike in `compact` constants are not folded, and units
    keep the slope of their activation at 0.
    """
    pieces = _pieces(net, _alive(net, tight=False), tight=False)
    plans = {node.name: node for node in net.plan.nodes}
    weights = {}
    for name, (node, parts) in pieces.items():
        whole = dict(net.named_nodes()[name].named_parameters())
        tensors = {key: copied(whole[key], part) for key, part in parts.items()}
        weights[name] = dataclasses.replace(node, activation=plans[name].activation), tensors
    names = {f"nodes.{name}.{key}": part for name, (_, parts) in pieces.items() for key, part in parts.items()}
    return _built(net, weights), names


def kept_units(net: DagNet, *, tight: bool = True) -> dict[str, Tensor]:
    """For every node, "in" and "out" included, which of its units `compact` keeps: boolean masks of shape (units,)."""
    return _kept(_alive(simplified(net, tight=tight), tight).units)


@torch.no_grad()
def alive_plan(net: DagNet) -> Plan:
    """The plan of ``compact(net)``, but for what would be folded or read through: cheap enough to ask often."""
    return _with_nodes(net.plan, _pieces(net, _alive(net, tight=True), tight=True))


def _with_nodes(plan: Plan, pieces: Mapping[str, tuple[Node, Any]]) -> Plan:
    return dataclasses.replace(plan, nodes=tuple(node for node, _ in pieces.values()))


def simplified(net: DagNet, *, tight: bool = True) -> DagNet:
    """The network that `compact` cuts: constants are folded, and nodes that compute nothing have no readers."""
    return _simplified(net, None, tight)[0]


def _simplified(net: DagNet, weights_of: DagNet | None, tight: bool) -> tuple[DagNet, DagNet]:
    """The simplified network, and an earlier point of its search changed alike (itself if there is none)."""
    folded, _ = fold_constants(net)
    nets = (folded, folded if weights_of is None else weights_of)
    if not tight:
        return nets
    changed = bypass(*dict.fromkeys(nets))
    return changed[0], changed[-1]


def _tied(net: DagNet, alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks, but the same for all nodes that are tied to each other: alive in one of them. The first one of them
    stays, whatever it puts out."""
    roots = {node.name: node.tied or node.name for node in net.plan.nodes} | {INPUT: INPUT}
    union: dict[str, Tensor] = {}
    for name, mask in alive.items():
        union[roots[name]] = union.get(roots[name], torch.zeros_like(mask)) | mask
    return {name: union[roots[name]] if mask.any() or name == roots[name] else mask for name, mask in alive.items()}


def _with_read(net: DagNet, alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks, and what depthwise rows of alive units read, which are a part of these units."""
    wider = dict(alive)
    for node in reversed(net.plan.nodes):
        rows = pick(wider[node.name], node.rows)
        for edge in node.edges:
            if node.searched and edge.operation == DEPTHWISE and not edge.block:
                read = spread(pick(rows, edge.put), edge.take, net.plan.units[edge.source])
                wider[edge.source] = wider[edge.source] | read
    return wider


def _alive(net: DagNet, tight: bool) -> AliveUnits:
    """The units that are alive; if not ``tight``, with those that the groups of alive ones need."""
    found = find_units(net)
    alive = found.units
    while not tight:
        before, alive = alive, _tied(net, _with_read(net, alive))
        if all(mask.equal(before[name]) for name, mask in alive.items()):
            break
    return dataclasses.replace(found, units=alive)


def _kept(alive: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**alive, INPUT: torch.ones_like(alive[INPUT]), OUTPUT: torch.ones_like(alive[OUTPUT])}


def _pieces(net: DagNet, alive: AliveUnits, tight: bool) -> dict[str, tuple[Node, Selections]]:
    """For every node that is left its plan, and what is kept of its tensors, by name."""
    kept, joint = _kept(alive.units), {name for node in net.plan.nodes if node.tied for name in (node.name, node.tied)}
    return {
        name: _restrict(node, alive.units[name], kept, alive.reads[name], tight, all_rows=not tight and name in joint)
        for name, node in net.named_nodes().items()
        if kept[name].any()
    }


@torch.no_grad()
def expand(small: DagNet, units: Mapping[str, Tensor], like: DagNet) -> DagNet:
    """The inverse of `compact`: a network of the plan of ``like`` that computes what ``small`` does.

    Args:
        small: a network that `compact` made with ``tight=False``, perhaps trained since.
        units: for every node of ``small``, "in" and "out" included, the indices that its units have in ``like``.
        like: a network that has the nodes, edges and skips of ``small``.
    """
    net = copy.deepcopy(like)
    for tensor in net.parameters():
        tensor.zero_()
    nodes = net.named_nodes()
    for name, node in small.named_nodes().items():
        whole, own = nodes[name], units[name]
        rows = _places(own if node.plan.rows is None else own[list(node.plan.rows)], whole.plan.rows)
        if node.plan.bias:
            whole.bias[rows] = node.bias
        edges = {edge.key: edge for edge in whole.plan.edges}
        for edge, weight in node.weighted_edges():
            put = rows if edge.put is None else rows[list(edge.put)]
            take = units[edge.source] if edge.take is None else units[edge.source][list(edge.take)]
            put, take = _places(put, edges[edge.key].put), _places(take, edges[edge.key].take)
            _write_edge(whole.edges[edge.key], edge, weight, put, take)
        for source, matrix in node.projections.items():
            whole.projections[source][own[:, None], units[source]] = matrix
        sources = [skip.source for skip in whole.plan.skips]
        for skip, gate in zip(node.plan.skips, node.gates, strict=True):
            whole.gates[sources.index(skip.source)] = gate
    return net


def _places(chosen: Tensor, among: Indices) -> Tensor:
    """Where these indices stand among increasing ones; None: all."""
    return chosen if among is None else torch.searchsorted(torch.tensor(among), chosen)


def _write_edge(whole: Tensor, edge: Edge, weight: Tensor, put: Tensor, take: Tensor) -> None:
    """Write the weights of a compact edge, whose rows and columns stand at these places, into the whole one."""
    if edge.kernel is not None:
        rim = (whole.shape[-1] - edge.kernel) // 2
        whole = whole[..., rim : whole.shape[-1] - rim, rim : whole.shape[-1] - rim]
    if edge.operation == DEPTHWISE:
        whole[put] = weight
    else:
        whole[put[:, None], take] = weight


def _restrict(
    node: DagNode,
    alive: Tensor,
    kept: dict[str, Tensor],
    found: dict[str, Tensor],
    tight: bool,
    *,
    all_rows: bool,
) -> tuple[Node, Selections]:
    """The plan of ``node``, with the `node_reads` that were ``found``, on the units that are kept, and what it keeps of
    its tensors: of the rows all, or those that compute something."""
    plan, target = node.plan, kept[node.plan.name]
    rows = pick(alive, plan.rows)
    if not all_rows:
        rows = rows & active_rows(node, kept, found)
    parts: Selections = {"bias": (indices(rows),)} if plan.bias else {}
    edges = []
    with_blocks = {edge.source for edge in plan.edges if edge.block and not tight}
    for edge, weight in node.weighted_edges():
        cut = _restrict_edge(edge, weight, rows, kept[edge.source], found[edge.key], tight)
        stays = not edge.block and edge.source in with_blocks  # else these blocks would be skips
        if cut is not None and (stays or selected(found[edge.key], cut[1][:2]).any()):
            edges.append(cut[0])
            parts[f"edges.{edge.key}"] = cut[1]

    skips, open_ = [], torch.zeros(len(plan.skips), dtype=torch.bool)
    for k, (skip, gate) in enumerate(zip(plan.skips, node.gates.tolist(), strict=True)):
        carried = pick(alive, skip.put) & pick(kept[skip.source], skip.take)
        if gate != 0 and carried.any():
            skips.append(
                dataclasses.replace(
                    skip,
                    take=_renumber(carried, skip.take, kept[skip.source]),
                    put=_renumber(carried, skip.put, target),
                )
            )
            open_[k] = True
    parts["gates"] = (indices(open_),)
    for source, matrix in node.projections.items():
        if matrix[target][:, kept[source]].any():
            parts[f"projections.{source}"] = (indices(target), indices(kept[source]))

    projections = tuple(source for source in plan.projections if f"projections.{source}" in parts)
    small = dataclasses.replace(
        plan,
        units=int(target.sum()),
        edges=_with_rows(edges, {*(skip.source for skip in skips), *projections}),
        skips=tuple(skips),
        tied=None if tight else plan.tied,
        whole=plan.whole and not tight,
        projections=projections,
        rows=_renumber(rows, plan.rows, target),
        activation="relu" if plan.activation == "right_relu" else plan.activation,
    )
    return small, parts


def _with_rows(edges: Sequence[Edge], skipped: Collection[str]) -> tuple[Edge, ...]:
    """Edges of a node that skips lead to from the nodes ``skipped``. Blocks that are left alone beside a skip would be
    one themselves: they are counted to the rows."""
    rows = {edge.source for edge in edges if not edge.block}
    alone = {edge.source for edge in edges if edge.source in skipped} - rows
    return tuple(dataclasses.replace(e, block=False, core=None) if e.source in alone else e for e in edges)


def _restrict_edge(
    edge: Edge, weight: Tensor, rows: Tensor, kept: Tensor, found: Tensor, tight: bool
) -> tuple[Edge, Selection] | None:
    """The edge between the rows and units that are kept, and what it keeps of its weights; None if it joins none."""
    put, take = pick(rows, edge.put), pick(kept, edge.take)
    if tight:
        used = masked_rows(found, put) & beside(edge, kept)
        put, take = any_over(used, 1), columns(edge, used)
    if edge.operation == DEPTHWISE:
        put = take = put & take
    part: Selection = (indices(put), None if edge.operation == DEPTHWISE else indices(take))
    if not (put.any() and take.any()):
        return None
    kernel, core = edge.kernel, None
    if edge.kernel is not None:
        kernel = max(side(weight[put]), 1 if tight else edge.core or 1) if edge.kernel > 1 else 1
        inside = (torch.arange(edge.kernel) - edge.kernel // 2).abs() <= kernel // 2
        part = (*part, indices(inside), indices(inside))
        core = edge.core if not tight and (edge.core or kernel) < kernel else None
    cut = dataclasses.replace(
        edge,
        kernel=kernel,
        block=edge.block and not tight,
        core=core,
        take=_renumber(take, edge.take, kept),
        put=_renumber(put, edge.put, rows),
    )
    return cut, part


def _renumber(chosen: Tensor, indices: Indices, kept: Tensor) -> Indices:
    """The chosen entries of ``indices`` counted among the kept units; None if these are all of them."""
    if indices is None and chosen.equal(kept):
        return None
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

    wide, edges = dict(tensors), []
    for source in plan.projections:
        key = f"projections.{source}"
        wide[key] = _padded(tensors[key], units[name], units[source])
    for edge in plan.edges:
        key = f"edges.{edge.key}"
        widened, wide[key] = _widen_edge(edge, tensors[key], places, len(rows), before[edge.source], units[edge.source])
        edges.append(widened)
    if plan.bias:
        wide["bias"] = _placed(tensors["bias"], places, len(rows))

    skips = []
    for skip in plan.skips:
        take, put = skip.take, skip.put
        if take is not None or put is not None or units[skip.source] != units[name]:  # the new units are not joined
            take = _all_but_new(take, before[skip.source], units[skip.source])
            put = _all_but_new(put, before[name], units[name])
        skips.append(dataclasses.replace(skip, take=take, put=put))
    all_rows = len(rows) == units[name]
    return dataclasses.replace(
        plan, units=units[name], edges=tuple(edges), skips=tuple(skips), rows=None if all_rows else tuple(rows)
    ), wide


def _widen_edge(edge: Edge, weight: Tensor, places: Tensor, rows: int, before: int, units: int) -> tuple[Edge, Tensor]:
    """The edge into ``rows`` rows, the old ones of which are at ``places``, from ``units`` instead of ``before``."""
    put = None if edge.put is None else tuple(places[list(edge.put)].tolist())
    if edge.operation == DEPTHWISE:
        if edge.put is None and edge.take is None and rows == units and places.tolist() == list(range(before)):
            return edge, _padded(weight, rows, 1)
        put = tuple(places.tolist()) if put is None else put
        return dataclasses.replace(edge, take=_all_but_new(edge.take, before, units), put=put), weight
    weight = _padded(weight, len(weight), units if edge.take is None else weight.shape[1])
    if put is None:
        weight = _placed(weight, places, rows)
    return dataclasses.replace(edge, put=put), weight


def _placed(tensor: Tensor, places: Tensor, rows: int) -> Tensor:
    """The slices of the tensor at these places among ``rows``, zeros at the others."""
    wide = tensor.new_zeros(rows, *tensor.shape[1:])
    wide[places] = tensor
    return wide


def _padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """The tensor with zeros behind it along its first two axes."""
    wide = tensor.new_zeros(rows, columns, *tensor.shape[2:])
    wide[: len(tensor), : tensor.shape[1]] = tensor
    return wide


def _all_but_new(indices: Indices, before: int, units: int) -> Indices:
    return tuple(range(before)) if indices is None and units > before else indices


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
