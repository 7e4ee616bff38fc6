"""What an extraction leaves out and what it keeps, node by node, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.alive import active_rows, find_alive, pick, reads, spread
from nas.models.dag import DagNet
from nas.models.fold import fold_constants
from nas.models.plan import INPUT, OUTPUT

ZERO, FOLDED, UNREAD = "zero", "constant, folded into biases", "read by nobody"
PADDED, CARRIED_CONSTANT = "constant into a zero-padded convolution", "constant carried by a skip"
CARRIED = "carried by a skip"
VANISHED, NO_WEIGHT, NO_GATE, NOTHING = "node vanished", "no weight on alive units", "zero gate", "carries nothing"


@dataclass(frozen=True)
class NodeChanges:
    """What happened to one node of the searched network.

    Attributes:
        node: its name.
        total: units in the searched network.
        kept: units in the compact one; 0 for a node that vanished.
        removed: indices of the units left out, by reason: "zero" (they put out exactly 0), "constant, folded into
            biases" (of their readers), "read by nobody".
        kept_because: indices of the units kept although they compute nothing, by reason: "carried by a skip", or a
            constant that cannot be folded: "constant into a zero-padded convolution", "constant carried by a skip".
        edges: sources whose edges are left out, with the reason: "no weight on alive units" or "node vanished".
        skips: sources whose skips and projections are left out, with the reason: "zero gate", "no weight on alive
            units" or "carries nothing".
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
    before, after = find_alive(net), find_alive(folded)
    alive = {**after.units, INPUT: torch.ones_like(after.units[INPUT]), OUTPUT: torch.ones_like(after.units[OUTPUT])}
    found = []
    for name, node in folded.named_nodes().items():
        emits, kept = after.emits[name], alive[name]
        removed = {
            ZERO: ~kept & ~emits,
            FOLDED: ~kept & emits & before.units[name],
            UNREAD: ~kept & emits & ~before.units[name],
        }
        computed = spread(active_rows(node, alive), node.plan.rows, len(kept))
        padded = _read_with_padding(folded, name, alive)
        idle = {
            PADDED: kept & constant[name] & padded,
            CARRIED_CONSTANT: kept & constant[name] & ~padded,
            CARRIED: kept & ~constant[name] & ~computed,
        }
        edges = {source: NO_WEIGHT if kept.any() else VANISHED for source in node.edges}
        for source, weight in node.edges.items():
            if reads(weight)[pick(kept & after.units[name], node.plan.rows)][:, alive[source]].any():
                del edges[source]
        skips = {
            skip.source: NO_GATE if gate == 0 else NOTHING
            for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True)
            if (skip.source, name) not in after.skips
        } | {
            source: NOTHING if matrix.any() else NO_WEIGHT
            for source, matrix in node.projections.items()
            if (source, name) not in after.skips
        }
        because = {} if name == OUTPUT else indices(idle)  # the output is kept whole, whatever it computes
        found.append(NodeChanges(name, len(kept), int(kept.sum()), indices(removed), because, edges, skips))
    return tuple(found)


def describe_changes(found: Sequence[NodeChanges]) -> str:
    """A line per node, such as "n2      2 of 32 units; removed: 30 zero; without skip from in (zero gate)"."""
    return "\n".join(map(_line, found))


def _line(change: NodeChanges) -> str:
    parts = [f"{change.node:<8}" + (f"{change.kept} of {change.total} units" if change.kept else "vanished")]
    for title, units in (("removed", change.removed), ("kept", change.kept_because)):
        if units:
            parts.append(f"{title}: " + ", ".join(f"{len(which)} {reason}" for reason, which in units.items()))
    for title, arcs in (("edge", change.edges), ("skip", change.skips)):
        if change.kept and arcs:
            parts.append("without " + ", ".join(f"{title} from {source} ({why})" for source, why in arcs.items()))
    return "; ".join(parts)


def _read_with_padding(net: DagNet, name: str, alive: Mapping[str, Tensor]) -> Tensor:
    """Which units of a node are read through a kernel larger than 1 by a unit that is alive; shape (units,)."""
    found = torch.zeros_like(alive[name])
    for reader, node in net.named_nodes().items():
        if (node.plan.edges.get(name) or 1) > 1:
            found |= reads(node.edges[name])[pick(alive[reader], node.plan.rows)].any(dim=0)
    return found


def indices(masks: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {reason: tuple(mask.nonzero()[:, 0].tolist()) for reason, mask in masks.items() if mask.any()}
