"""Exact rewrites of small fully connected networks, by which `benchmarks.planted` polishes.

Networks with skips can say the same in many ways, most of them larger than need be, and training does not leave them:
they fit. So before a skip goes, neurons are mirrored that spare it (`_mirror`), and where a gate opens, neurons take
the places that it asks for (`_arrange`). All else is as in `benchmarks.surgery`.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import surgery
from benchmarks.surgery import Part, Surgery, Units, least_squares, rows_of, samples, take_up
from nas.models import DagNet
from nas.models.dag import DagNode

WEAK = 0.5  # a gate below is opened anew
CURVED = 0.1  # part of the variance of a neuron that no linear function explains; below, it stands for a linear one
COPY = 0.98  # correlation with a neuron
MAX_MIRRORED = 10  # neurons of which all 2^n orientations are tried


@torch.no_grad()
def remove(net: DagNet, units: Units, parts: Collection[Part], x: Tensor) -> DagNet:
    """As `benchmarks.surgery.remove`; what a skip did, mirrored neurons do as far as they can."""
    for part in parts:
        if part.source is not None:
            net = copy.deepcopy(net)
            _mirror(net, net.named_nodes()[part.node], part.source)
            net = surgery.remove(net, units, [part], x)
    return surgery.remove(net, units, [part for part in parts if part.unit is not None], x)


@torch.no_grad()
def is_closed(net: DagNet, skip: Part) -> bool:
    """As `benchmarks.surgery.is_closed`; also where a gate to a node that is read through edges is below 1/2."""
    gate = _gates(net.named_nodes()[skip.node]).get(str(skip.source))
    is_weak = gate is not None and abs(gate) < WEAK and bool(_readers(net, skip.node))
    return is_weak or surgery.is_closed(net, skip)


@torch.no_grad()
def open_skip(net: DagNet, units: Units, skip: Part, x: Tensor) -> DagNet:
    """As `benchmarks.surgery.open_skip`, but for gates to nodes that are read through edges.

    These become 1 or -1, whichever changes the output less; training would leave a small one as it is, since neurons
    say already what it could bring. Readers of the node make up for it (`_arrange`, `take_up`).
    """
    name, source = skip.node, str(skip.source)
    if source not in _gates(net.named_nodes()[name]) or not _readers(net, name):
        return surgery.open_skip(net, units, skip, x)
    candidates, before, y = [_with_gate(net, skip, gate) for gate in (1, -1)], net.states(x), net(x)
    for candidate in candidates:
        if _has_free_places(net, skip):
            _arrange(candidate, name, source, before)
        else:
            take_up(candidate, name, before)
    return min(candidates, key=lambda each: float((each(x) - y).square().mean()))


REWRITES = Surgery(remove, is_closed, open_skip)


def _with_gate(net: DagNet, skip: Part, gate: float) -> DagNet:
    """A copy of a supernet with this gate, for which the gates from the node and from its source make up."""
    net, source = copy.deepcopy(net), str(skip.source)
    nodes = net.named_nodes()
    node = nodes[skip.node]
    change = gate - _gates(node)[source]
    node.gates[list(_gates(node)).index(source)] = gate
    for reader in nodes.values():  # s x_node has gained s change x_source
        _change_gate(reader, source, -change * _gates(reader).get(skip.node, 0.0))
    return net


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
        for row, unit in enumerate(rows_of(node))
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
        c = reader.edges[name][:, rows_of(node)[row]]
        for source, weight in node.edges.items():
            reader.edges[source] += c.outer(weight[row])
        reader.bias.add_(c * node.bias[row])
    for tensor in (*node.edges.values(), node.bias):
        tensor[row] *= -1


def _has_free_places(net: DagNet, skip: Part) -> bool:
    """Whether the skip is a gate that may become the only skip to a node whose neurons may change places: its source is
    the node's only one, and the node is read through edges, which are matrices, and neither gates nor projections."""
    nodes = net.named_nodes()
    node, source = nodes[skip.node], str(skip.source)
    through_gates = any(_gates(reader).get(skip.node) for reader in nodes.values())
    through_projections = any(skip.node in reader.projections for reader in nodes.values())
    return (
        bool(_readers(net, skip.node))
        and source in _gates(node)
        and not any(gate for each, gate in _gates(node).items() if each != source)
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
    x, rows = samples(before[source], net.unit_axis), _own(node, before, net.unit_axis)
    linear = least_squares(x, rows)
    rest = rows - x @ linear[:-1] - linear[-1]
    curved = (rest.var(dim=0) > CURVED * rows.var(dim=0)).nonzero()[:, 0]
    w, b = node.edges[source][curved].double(), node.bias[curved].double()
    copies = _copies(net, name, x @ w.T + b, before)
    for copied in copies.values():
        for tensor in (copied.reader.edges[name], copied.reader.bias):
            tensor[copied.place] = 0

    readers = _readers(net, name)
    target = samples(before[name], net.unit_axis) @ torch.cat([r.edges[name] for r in readers]).double().T
    p, linear, constant = least_squares(torch.cat([rows[:, curved], gate * x], dim=1), target).split(
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
    return samples(node(states) - sum(gated), axis)


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
