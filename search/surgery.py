"""Network surgery: parts leave or enter, and what is left is solved to compute, as nearly as it can, what it did.

All of it is linear least squares on samples, and exact where a network of the new form computes the same function.
"""

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nas.models.dag import DagNet, DagNode

MAX_SAMPLES = 4096  # on which states are expressed by others
RIDGE = 1e-9  # keeps that solvable where others say the same
SMALL = 0.1  # of a skip that is opened where nothing can make up for it
WEAK = 0.5  # a gate below is opened anew
CURVED = 0.1  # part of the variance of a neuron that no linear function explains; below, it stands for a linear one
COPY = 0.98  # correlation with a neuron
MAX_MIRRORED = 10  # neurons of which all 2^n orientations are tried

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
            parts += [Part(name, unit=int(units[name][row])) for row in _rows(node)]
        edges = node.plan.edges if len(node.plan.edges) > 1 else {}
        sources = [*(skip.source for skip in node.plan.skips), *node.plan.projections, *edges]
        parts += [Part(name, source=source) for source in dict.fromkeys(sources)]
    return parts


def skips_of(net: DagNet) -> list[Part]:
    """The skips of a supernet, open or not."""
    return [
        Part(name, source=source)
        for name, node in net.named_nodes().items()
        for source in (*(skip.source for skip in node.plan.skips), *node.plan.projections, *node.plan.blocks)
    ]


@torch.no_grad()
def remove(net: DagNet, units: Units, parts: Collection[Part], x: Tensor) -> DagNet:
    """A copy of the network whose ``parts`` are zero, and in which others stand for them as well as they can.

    What units did is expressed by the other sources of their readers (`_take_up`); what a skip did, by mirrored neurons
    (`_mirror`).

    Args:
        net, units: as for `parts_of`.
        parts: of the network.
        x: input on which that is measured.
    """
    net = copy.deepcopy(net)
    for name, node in net.named_nodes().items():
        for part in parts:
            if part.node == name and part.source is not None:
                _mirror(net, node, part.source)
                _zero_skip(node, part.source)
        gone = {part.unit for part in parts if part.node == name and part.unit is not None}
        rows = [row for row, unit in enumerate(_rows(node)) if int(units[name][unit]) in gone]
        if rows:
            before = net.states(x)
            for tensor in (*node.edges.values(), node.bias):
                tensor[rows] = 0
            _take_up(net, name, before)
    return net


@torch.no_grad()
def is_closed(net: DagNet, skip: Part) -> bool:
    """Whether a skip of a supernet is zero, or a gate below 1/2 to a node that is read through edges."""
    node, source = net.named_nodes()[skip.node], str(skip.source)
    if source not in _gates(node):
        return not bool(_matrix(node, source).any())
    gate = abs(_gates(node)[source])
    return gate < WEAK if _readers(net, skip.node) else gate == 0


@torch.no_grad()
def open_skip(net: DagNet, units: Units, skip: Part, x: Tensor) -> DagNet:
    """A copy of a supernet in which this skip is open, and which computes about what it did.

    A gate becomes 1 or -1, whichever changes the output less; training would leave a small one as it is, since neurons
    say already what it could bring. Readers of the node make up for it (`_arrange`, `_take_up`); where none reads it
    through an edge, the gate becomes small, and so do projections and blocks.

    Args:
        net: a network that has the skip and computes all its units.
        units: for every node the indices of the units that are not dead, between which blocks and projections open.
        skip: of the network.
        x: input on which changes are measured.
    """
    node, source = net.named_nodes()[skip.node], str(skip.source)
    if source not in _gates(node):
        return _with_small_weights(net, units, skip)
    gates = (1, -1) if _readers(net, skip.node) else (SMALL,)
    candidates = [_with_gate(net, skip.node, source, gate, x) for gate in gates]
    y = net(x)
    return min(candidates, key=lambda each: float((each(x) - y).square().mean()))


def _with_small_weights(net: DagNet, units: Units, skip: Part) -> DagNet:
    """The skip, a block or projection, with a tenth of He's start."""
    net, source = copy.deepcopy(net), str(skip.source)
    node = net.named_nodes()[skip.node]
    weight = _matrix(node, source)
    chosen = units[skip.node][:, None], units[source]
    drawn = torch.randn(weight[chosen].shape, generator=torch.Generator().manual_seed(0))
    weight[chosen] = SMALL * math.sqrt(2 / drawn[0].numel()) * drawn.to(weight)
    return net


def _with_gate(net: DagNet, name: str, source: str, gate: float, x: Tensor) -> DagNet:
    """A copy with this gate from the source to the node, and what the readers of the node make of it."""
    net = copy.deepcopy(net)
    nodes = net.named_nodes()
    node, before = nodes[name], net.states(x)
    change = gate - _gates(node)[source]
    node.gates[list(_gates(node)).index(source)] = gate
    for reader in nodes.values():  # s x_node has gained s change x_source
        _change_gate(reader, source, -change * _gates(reader).get(name, 0.0))
    if _has_free_places(net, name, source):
        _arrange(net, name, source, before)
    else:
        _take_up(net, name, before)
    return net


def _take_up(net: DagNet, name: str, before: Mapping[str, Tensor]) -> None:
    """Readers of a node that has changed since ``before`` read what their sources can express of what is missing.

    With x the states that a reader reads (through edges of the same form) and r what is missing of the node's, the
    coefficients minimise |x C + c - r|^2; a reader whose weight for the node is W then gets W C on top of the weights
    for x, and W c on its bias.
    """
    after = net.named_nodes()[name](before)
    states = {**before, name: after}
    missing = _samples(before[name] - after, net.unit_axis)
    changed = missing.ne(0).any(dim=0)
    for reader in net.named_nodes().values():
        for edges in (reader.edges, reader.projections):
            if name not in edges:
                continue
            lost = edges[name][:, changed].flatten(2) if edges[name].ndim > 2 else edges[name][:, changed, None]
            alike = {
                source: weight
                for source, weight in edges.items()
                if weight.shape[2:] == edges[name].shape[2:] and reader.levels[source] == reader.levels[name]
            }
            x = torch.cat([_samples(states[source], net.unit_axis) for source in alike], dim=1)
            solved = _least_squares(x, missing[:, changed]).to(lost)
            *linear, constant = solved.split([*(weight.shape[1] for weight in alike.values()), 1])
            for weight, coefficients in zip(alike.values(), linear, strict=True):
                weight += torch.einsum("rmk,um->ruk", lost, coefficients).reshape(weight.shape)
            if edges is reader.edges:
                reader.bias.add_(lost.sum(dim=2) @ constant[0])


def _mirror(net: DagNet, reader: DagNode, source: str) -> None:
    """Mirror the neurons whose linear difference from their mirror image is what the reader gets from ``source``.

    relu(z) = z + relu(-z): with c the weights for a neuron z = sum_j w_j x_j + b, c relu(z) is c relu(-z) with c w_j on
    top of the weights for x_j, and c b on the bias. A block that is minus the sum of c w_j over some neurons is spared
    by mirroring these. Only for fully connected edges, and neurons whose readers read all that they read.
    """
    block = reader.edges.get(source)
    if block is None or block.ndim > 2:
        return
    between = [
        (name, row, reader.edges[name][:, unit].outer(node.edges[source][row]).flatten())
        for name, node in net.named_nodes().items()
        if name in reader.edges and source in node.edges and _can_be_mirrored(net, name)
        for row, unit in enumerate(_rows(node))
    ]
    if not between:
        return
    products = torch.stack([product for _, _, product in between], dim=1).double()
    shares = torch.linalg.lstsq(products, -block.flatten().double()[:, None]).solution[:, 0]
    for (name, row, _), share in zip(between, shares.tolist(), strict=True):
        if share > 0.5:
            _mirror_neuron(net, name, row)


def _can_be_mirrored(net: DagNet, name: str) -> bool:
    """Whether the nodes that read this one do so through edges, which bring them all that it reads, too."""
    node = net.named_nodes()[name]
    others = [other for other in net.named_nodes().values() if name in (*_gates(other), *other.projections)]
    readers = _readers(net, name)
    return node.plan.activation == "relu" and not others and all(set(node.edges) <= set(r.edges) for r in readers)


def _mirror_neuron(net: DagNet, name: str, row: int) -> None:
    node = net.named_nodes()[name]
    for reader in _readers(net, name):
        c = reader.edges[name][:, _rows(node)[row]]
        for source, weight in node.edges.items():
            reader.edges[source] += c.outer(weight[row])
        reader.bias.add_(c * node.bias[row])
    for tensor in (*node.edges.values(), node.bias):
        tensor[row] *= -1


def _has_free_places(net: DagNet, name: str, source: str) -> bool:
    """Whether the neurons of a node may change places: the only skip there is the gate from the node's only source,
    the node is read through edges, which are matrices, and neither through gates nor projections."""
    nodes = net.named_nodes()
    node = nodes[name]
    through_gates = any(_gates(reader).get(name) for reader in nodes.values())
    through_projections = any(name in reader.projections for reader in nodes.values())
    return (
        bool(_readers(net, name))
        and [each for each, gate in _gates(node).items() if gate] == [source]
        and list(node.edges) == [source]
        and node.edges[source].ndim == 2
        and not (node.projections or through_gates or through_projections)
    )


def _arrange(net: DagNet, name: str, source: str, before: Mapping[str, Tensor]) -> None:
    """Put the neurons of a node to the places that its gate asks for.

    A node relu(w x + b) + s x ties its neurons to places: the weights for neuron k are those for s x_k, too. In a
    network that was found while the gate was shut, neurons stand anywhere, may be mirrored, and others stand for linear
    functions. With P and L the least-squares weights of the readers for the neurons that are no linear functions, and
    for s x, neuron u stands for place k if P_u is a positive multiple of L_k. If it is mirrored, L has P_u w_u / s too
    much (`_mirror`): of all orientations that is taken with which neurons and places agree best. Neurons that readers
    copy (`_copies`) tell their places themselves, and a gate does what the copies did.
    """
    node = net.named_nodes()[name]
    gate = _gates(node)[source]
    x, rows = _samples(before[source], net.unit_axis), _own(node, before, net.unit_axis)
    linear = _least_squares(x, rows)
    rest = rows - x @ linear[:-1] - linear[-1]
    curved = (rest.var(dim=0) > CURVED * rows.var(dim=0)).nonzero()[:, 0]
    w, b = node.edges[source][curved].double(), node.bias[curved].double()
    copies = _copies(net, name, x @ w.T + b, before)
    for copied in copies.values():
        for tensor in (copied.reader.edges[name], copied.reader.bias):
            tensor[copied.place] = 0

    readers = _readers(net, name)
    target = _samples(before[name], net.unit_axis) @ torch.cat([r.edges[name] for r in readers]).double().T
    p, linear, constant = _least_squares(torch.cat([rows[:, curved], gate * x], dim=1), target).split(
        [len(curved), x.shape[1], 1]
    )

    def oriented(mirrored: Tensor) -> tuple[Tensor, Tensor]:
        places = linear + (mirrored[:, None] * w).T @ p / gate
        alike = F.normalize(p, dim=1) @ F.normalize(places, dim=1).T
        for k, copied in copies.items():
            alike[k, copied.place] = 2  # more than any other
        return places, alike

    def agreement(mirrored: Tensor) -> float:
        alike = oriented(mirrored)[1]
        return float(alike[linear_sum_assignment(-alike)].sum())

    mirrored = max(_orientations(len(curved), copies), key=agreement)
    places, alike = oriented(mirrored)
    chosen, at = (torch.from_numpy(indices) for indices in linear_sum_assignment(-alike))
    scale = (p[chosen] * places[at]).sum(dim=1) / places[at].square().sum(dim=1)
    scale = torch.where(scale > 0, scale, 1)
    for tensor, values in ((node.edges[source], w), (node.bias, b)):
        tensor.zero_()
        tensor[at] = torch.einsum("k...,k->k...", values[chosen], scale * (1 - 2 * mirrored[chosen])).to(tensor)
    weights = places.T.to(target).split([reader.plan.num_rows for reader in readers])
    biases = (constant[0] + (mirrored * b) @ p).split([reader.plan.num_rows for reader in readers])
    for reader, weight, bias in zip(readers, weights, biases, strict=True):
        reader.edges[name].copy_(weight)
        reader.bias.add_(bias.to(reader.bias))
        slopes = {k: copied.slope for k, copied in copies.items() if copied.reader is reader}
        if slopes:
            factors = [slope / float(scale[chosen.tolist().index(k)]) for k, slope in slopes.items()]
            _change_gate(reader, name, median(factors))  # from 0
            _change_gate(reader, source, -median(factors) * gate)


@dataclass(frozen=True)
class _Copy:
    """A unit of a reader that puts out ``slope`` times a neuron, or its mirror image."""

    reader: DagNode
    place: int
    mirrored: bool
    slope: float


def _copies(net: DagNet, name: str, z: Tensor, before: Mapping[str, Tensor]) -> dict[int, _Copy]:
    """Of which neurons of a node, with the arguments ``z`` (samples, neurons), there are copies, by their index."""
    found: dict[int, _Copy] = {}
    for reader in _readers(net, name):
        if name in _gates(reader):
            own = _own(reader, before, net.unit_axis)
            neurons = torch.cat([z.relu(), (-z).relu()], dim=1)
            correlations = _standardised(neurons).T @ _standardised(own)
            for column, place in (correlations > COPY).nonzero().tolist():
                slope = float(own[:, place] @ neurons[:, column] / neurons[:, column].square().sum())
                found[column % z.shape[1]] = _Copy(reader, place, column >= z.shape[1], slope)
    return found


def _standardised(x: Tensor) -> Tensor:
    """Columns of mean 0 and norm 1, or 0."""
    return F.normalize(x - x.mean(dim=0), dim=0)


def _orientations(count: int, copies: Mapping[int, _Copy]) -> list[Tensor]:
    """Which of the neurons may be mirrored: all combinations, but for copied ones; none where these are too many."""
    free = [k for k in range(count) if k not in copies]
    free = free if len(free) <= MAX_MIRRORED else []
    fixed = torch.tensor([k in copies and copies[k].mirrored for k in range(count)], dtype=torch.long)
    orientations = []
    for flags in product((0, 1), repeat=len(free)):
        mirrored = fixed.clone()
        mirrored[free] = torch.tensor(flags, dtype=torch.long)
        orientations.append(mirrored)
    return orientations


def _own(node: DagNode, states: Mapping[str, Tensor], axis: int) -> Tensor:
    """What a node without projections puts out but for its gates, as samples."""
    gated = [gate * states[source] for source, gate in _gates(node).items()]
    return _samples(node(states) - sum(gated), axis)


def _matrix(node: DagNode, source: str) -> Tensor:
    """Of a projection or a block."""
    matrix: Tensor = (node.projections if source in node.projections else node.edges)[source]
    return matrix


def _zero_skip(node: DagNode, source: str) -> None:
    _change_gate(node, source, -_gates(node).get(source, 0.0))
    if source in node.projections:
        node.projections[source].zero_()
    if source in node.edges and len(node.edges) > 1:
        node.edges[source].zero_()


def _readers(net: DagNet, name: str) -> list[DagNode]:
    """The nodes that read this one through edges."""
    return [reader for reader in net.named_nodes().values() if name in reader.edges]


def _gates(node: DagNode) -> dict[str, float]:
    """The gates by their sources."""
    return {skip.source: gate for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True)}


def _change_gate(node: DagNode, source: str, change: float) -> None:
    """Add to a gate, if there is one from this source."""
    for k, skip in enumerate(node.plan.skips):
        if skip.source == source:
            node.gates[k] += change


def _rows(node: DagNode) -> list[int]:
    """The units that the rows of a node compute."""
    return list(range(node.plan.units) if node.plan.rows is None else node.plan.rows)


def _samples(state: Tensor, axis: int) -> Tensor:
    """At most `MAX_SAMPLES` positions and samples of a state, evenly spaced, as rows; in double precision."""
    rows = state.movedim(axis, -1).flatten(0, -2)
    return rows[:: -(-len(rows) // MAX_SAMPLES)].double()


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The coefficients C, and in the last row the constant c, that minimise |x C + c - y|^2; 0 for what is 0 in x."""
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    live = design.ne(0).any(dim=0)
    gram = design[:, live].T @ design[:, live]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    coefficients = y.new_zeros(len(live), y.shape[1])
    coefficients[live] = torch.linalg.solve(gram, design[:, live].T @ y)
    return coefficients
