"""Network surgery: parts leave, and what reads them is solved to compute, as nearly as it can, what it did.

That is one linear least-squares problem on samples (`take_up`). Skips enter with small weights (`open_skip`).
"""

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.dag import DagNet, DagNode
from nas.models.plan import FULL

MAX_SAMPLES = 4096  # on which states are expressed by others
RIDGE = 1e-9  # keeps that solvable where others say the same
SMALL = 0.1  # a gate that is opened; of He's start, where a block or projection is

Units = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """What can go as a whole: row ``unit`` of a node (a neuron or filter), or what leads to it from ``source``."""

    node: str
    unit: int | None = None
    source: str | None = None


def parts_of(net: DagNet, units: Units) -> list[Part]:
    """Everything that can go: units of searched nodes, gates, projections, and edges that are not the only one.

    Args:
        net: a compact network.
        units: for every node the names (integers) of its units.
    """
    parts = []
    for name, node in net.named_nodes().items():
        if node.plan.searched:
            parts += [Part(name, unit=int(units[name][row])) for row in rows_of(node)]
        edges = list(node.edges) if len(node.plan.edges) > 1 else []
        sources = [*_gated(node), *node.plan.projections, *edges]
        parts += [Part(name, source=source) for source in dict.fromkeys(sources)]
    return parts


def skips_of(net: DagNet) -> list[Part]:
    """The skips of a supernet, open or not."""
    return [
        Part(name, source=source)
        for name, node in net.named_nodes().items()
        for source in (*_gated(node), *node.plan.projections, *blocks_of(node))
    ]


@torch.no_grad()
def remove(net: DagNet, units: Units, parts: Collection[Part], x: Tensor) -> DagNet:
    """A copy of the network whose ``parts`` are zero.

    What units did is expressed, as well as that goes, by the other sources of their readers (`take_up`).

    Args:
        net, units: as for `parts_of`.
        parts: of the network.
        x: input on which that is solved.
    """
    net = copy.deepcopy(net)
    for name, node in net.named_nodes().items():
        for part in parts:
            if part.node == name and part.source is not None:
                _zero_skip(node, part.source)
        gone = {part.unit for part in parts if part.node == name and part.unit is not None}
        rows = [row for row, unit in enumerate(rows_of(node)) if int(units[name][unit]) in gone]
        if rows:
            before = net.states(x)
            for edge, weight in node.weighted_edges():
                places = range(node.plan.num_rows) if edge.put is None else edge.put
                weight[[k for k, row in enumerate(places) if row in rows]] = 0
            node.bias[rows] = 0
            take_up(net, name, before)
    return net


@torch.no_grad()
def is_closed(net: DagNet, skip: Part) -> bool:
    """Whether a skip of a supernet is zero."""
    return not bool(_weight(net.named_nodes()[skip.node], str(skip.source)).any())


@torch.no_grad()
def open_skip(net: DagNet, units: Units, skip: Part, x: Tensor) -> DagNet:
    """A copy of a supernet in which this skip is open a little: a gate at 0.1, else weights of a tenth of He's start.

    Args:
        net: a network that has the skip and computes all its units.
        units: for every node the indices of the units that are not dead, between which blocks and projections open.
        skip: of the network.
        x: input, for others (`Surgery`).
    """
    net, source = copy.deepcopy(net), str(skip.source)
    weight = _weight(net.named_nodes()[skip.node], source)
    if not weight.ndim:
        weight.fill_(SMALL)
        return net
    chosen = units[skip.node][:, None], units[source]
    drawn = torch.randn(weight[chosen].shape, generator=torch.Generator().manual_seed(0))
    weight[chosen] = SMALL * math.sqrt(2 / drawn[0].numel()) * drawn.to(weight)
    return net


@dataclass(frozen=True)
class Surgery:
    """What `benchmarks.polish` changes networks by: functions of this module, or others like them."""

    remove: Callable[[DagNet, Units, Collection[Part], Tensor], DagNet] = remove
    is_closed: Callable[[DagNet, Part], bool] = is_closed
    open_skip: Callable[[DagNet, Units, Part, Tensor], DagNet] = open_skip


LEAST_SQUARES = Surgery()


def take_up(net: DagNet, name: str, before: Mapping[str, Tensor]) -> None:
    """Readers of a node that has changed since ``before`` read what their sources can express of what is missing.

    With x the states that a reader reads (through full edges of the same form) and r what is missing of the node's, the
    coefficients minimise |x C + c - r|^2; a reader whose weight for the node is W then gets W C on top of the weights
    for x, and W c on its bias.
    """
    after = net.named_nodes()[name](before)
    states = {**before, name: after}
    missing = samples(before[name] - after, net.unit_axis)
    changed = missing.ne(0).any(dim=0)
    for reader in net.named_nodes().values():
        for edges in (reader.edges, reader.projections):
            if name not in edges:
                continue
            lost = edges[name][:, changed].flatten(2) if edges[name].ndim > 2 else edges[name][:, changed, None]
            alike = {
                source: weight
                for source, weight in edges.items()
                if source in states
                and weight.shape[2:] == edges[name].shape[2:]
                and reader.levels[source] == reader.levels[name]
            }
            x = torch.cat([samples(states[source], net.unit_axis) for source in alike], dim=1)
            solved = least_squares(x, missing[:, changed]).to(lost)
            *linear, constant = solved.split([*(weight.shape[1] for weight in alike.values()), 1])
            for weight, coefficients in zip(alike.values(), linear, strict=True):
                weight += torch.einsum("rmk,um->ruk", lost, coefficients).reshape(weight.shape)
            if edges is reader.edges:
                reader.bias.add_(lost.sum(dim=2) @ constant[0])


def _weight(node: DagNode, source: str) -> Tensor:
    """Of a skip: its gate, or the matrix of a projection or block; a view."""
    gates = {skip.source: gate for skip, gate in zip(node.plan.skips, node.gates.detach(), strict=True)}
    weight: Tensor = (dict(node.edges.items()) | dict(node.projections.items()) | gates)[source]
    return weight


def _zero_skip(node: DagNode, source: str) -> None:
    for k, skip in enumerate(node.plan.skips):
        if skip.source == source:
            node.gates[k] = 0
    if source in node.projections:
        node.projections[source].zero_()
    if source in node.edges and len(node.edges) > 1:
        node.edges[source].zero_()


def blocks_of(node: DagNode) -> list[str]:
    """The sources of its blocks in which every row reads every unit."""
    return [edge.source for edge in node.plan.edges if edge.block and edge.operation == FULL]


def _gated(node: DagNode) -> list[str]:
    """The sources of the gates that are searched."""
    return [skip.source for skip in node.plan.skips if not skip.trunk]


def rows_of(node: DagNode) -> list[int]:
    """The units that the rows of a node compute."""
    return list(range(node.plan.units) if node.plan.rows is None else node.plan.rows)


def samples(state: Tensor, axis: int) -> Tensor:
    """At most `MAX_SAMPLES` positions and samples of a state, evenly spaced, as rows; in double precision."""
    rows = state.movedim(axis, -1).flatten(0, -2)
    return rows[:: -(-len(rows) // MAX_SAMPLES)].double()


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The coefficients C, and in the last row the constant c, that minimise |x C + c - y|^2; 0 for what is 0 in x."""
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    live = design.ne(0).any(dim=0)
    gram = design[:, live].T @ design[:, live]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    coefficients = y.new_zeros(len(live), y.shape[1])
    coefficients[live] = torch.linalg.solve(gram, design[:, live].T @ y)
    return coefficients
