"""What an extraction leaves out and what it keeps, node by node, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.alive import active_rows, edge_reads, find_alive, pick, spread
from nas.models.bypass import bypass
from nas.models.dag import DagNet
from nas.models.fold import fold_constants
from nas.models.plan import INPUT, OUTPUT

ZERO, FOLDED, UNREAD = "zero", "constant, folded into biases", "read by nobody"
PADDED, UNBIASED = "constant into a zero-padded convolution", "constant into a node without bias"
CARRIED_CONSTANT = "constant carried by a skip"
CARRIED, READ_THROUGH = "carried by a skip", "read through"
VANISHED, NO_WEIGHT, NO_GATE, NOTHING = "node vanished", "no weight on alive units", "zero gate", "carries nothing"


@dataclass(frozen=True)
class NodeChanges:
    """What happened to one node of the searched network.

    Attributes:
        node: its name.
        total: units in the searched network.
        kept: units in the compact one; 0 for a node that vanished.
        removed: indices of the units left out, by reason: "zero" (they put out exactly 0), "constant, folded into
            biases" (of their readers), "read through" (a multiple of another node, which their readers read), "read by
            nobody".
        kept_because: indices of the units kept although they compute nothing, by reason: "carried by a skip", or a
            constant that cannot be folded: "constant into a zero-padded convolution", "constant into a node without
            bias", "constant carried by a skip".
        edges: edges that are left out, by `nas.models.Edge.key`, with the reason: "no weight on alive units", "node
            vanished" or "read through".
        skips: sources whose skips and projections are left out, with the reason: "zero gate", "no weight on alive
            units", "carries nothing" or "read through".
    """

    node: str
    total: int
    kept: int
    removed: dict[str, tuple[int, ...]]
    kept_because: dict[str, tuple[int, ...]]
    edges: dict[str, str]
    skips: dict[str, str]


def changes(net: DagNet) -> tuple[NodeChanges, ...]:
    """What `nas.models.compact` does to every node of ``net``, "in" excepted."""
    folded, constant = fold_constants(net)
    (cut,) = bypass(folded)
    before, whole, after = find_alive(net), find_alive(folded), find_alive(cut)
    alive = {**after.units, INPUT: torch.ones_like(after.units[INPUT]), OUTPUT: torch.ones_like(after.units[OUTPUT])}
    read_through = {name for name, mask in whole.units.items() if mask.any() and not alive[name].any()}
    found = []
    for name, node in folded.named_nodes().items():
        kept = alive[name]
        gone = ~kept & whole.emits[name]
        removed = {
            ZERO: ~kept & ~whole.emits[name],
            FOLDED: gone & before.units[name] & (name not in read_through),
            READ_THROUGH: gone & before.units[name] & (name in read_through),
            UNREAD: gone & ~before.units[name],
        }
        computed = spread(active_rows(node, whole.emits, whole.reads[name]), node.plan.rows, len(kept))
        padded, unbiased = (_read_by_edges(cut, name, alive, biased=biased) for biased in (True, False))
        idle = {
            PADDED: kept & constant[name] & padded,
            UNBIASED: kept & constant[name] & ~padded & unbiased,
            CARRIED_CONSTANT: kept & constant[name] & ~padded & ~unbiased,
            CARRIED: kept & ~constant[name] & ~computed,
        }
        edges = {edge.key: NO_WEIGHT if kept.any() else VANISHED for edge in node.plan.edges}
        for edge, weight in node.weighted_edges():
            used = edge_reads(edge, weight, node.plan.num_rows, net.plan.units[edge.source])
            used = used[pick(kept & after.units[name], node.plan.rows)]
            if edge.source in read_through and used.any():
                edges[edge.key] = READ_THROUGH
            elif used[:, alive[edge.source]].any():
                del edges[edge.key]
        skips = {
            skip.source: NO_GATE if gate == 0 else READ_THROUGH if {skip.source, name} & read_through else NOTHING
            for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True)
            if (skip.source, name) not in after.skips
        } | {
            source: READ_THROUGH if source in read_through else NOTHING if matrix.any() else NO_WEIGHT
            for source, matrix in node.projections.items()
            if (source, name) not in after.skips
        }
        because = {} if name == OUTPUT else indices(idle)  # the output is kept whole, whatever it computes
        found.append(NodeChanges(name, len(kept), int(kept.sum()), indices(removed), because, edges, skips))
    return tuple(found)


def describe_changes(found: Sequence[NodeChanges]) -> str:
    """A line per node, such as "n2      2 of 32 units; removed: 30 zero; without skip from in (zero gate)"."""
    wide = max([6, *(len(change.node) for change in found)]) + 2
    return "\n".join(_line(change, wide) for change in found)


def _line(change: NodeChanges, wide: int) -> str:
    parts = [f"{change.node:<{wide}}" + (f"{change.kept} of {change.total} units" if change.kept else "vanished")]
    for title, units in (("removed", change.removed), ("kept", change.kept_because)):
        if units:
            parts.append(f"{title}: " + ", ".join(f"{len(which)} {reason}" for reason, which in units.items()))
    for title, arcs in (("edge", change.edges), ("skip", change.skips)):
        if change.kept and arcs:
            parts.append("without " + ", ".join(f"{title} from {source} ({why})" for source, why in arcs.items()))
    return "; ".join(parts)


def _read_by_edges(net: DagNet, name: str, alive: Mapping[str, Tensor], *, biased: bool) -> Tensor:
    """Which units of a node are read through edges by an alive unit with (without) a bias; shape (units,)."""
    found = torch.zeros_like(alive[name])
    for reader, node in net.named_nodes().items():
        for edge, weight in node.weighted_edges():
            if edge.source == name and node.plan.bias == biased:
                used = edge_reads(edge, weight, node.plan.num_rows, len(found))
                found |= used[pick(alive[reader], node.plan.rows)].any(dim=0)
    return found


def indices(masks: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {reason: tuple(mask.nonzero()[:, 0].tolist()) for reason, mask in masks.items() if mask.any()}
