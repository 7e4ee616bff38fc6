"""Training that computes only what is alive, exactly: most of a supernet is zero while it grows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.models.alive import side
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, INPUT, Edge, Indices
from nas.models.sparse_edges import SparseEdge
from nas.models.sparse_net import SparseNet, SparseNode, SparseSkip
from nas.nonzero import any_over, nonzero

DENSE_ABOVE = 0.6  # share of rows or units that are alive, above which picking them out costs more than it saves


@contextmanager
def alive_only(net: nn.Module) -> Iterator[None]:
    """Compute ``net`` where it is not zero, for a while: outputs and gradients are those of the dense computation.

    For each edge y = A x that is the output on alive rows and alive units of the source, the gradient at A on all rows
    and alive units, and the gradient at x on alive rows and all units, so that what sleeps wakes as it would. Whatever
    changes the weights, the next call of the network sees it.

    A network whose edges join some of the units of two nodes, as those of compact ones do, is computed densely, since
    little in it is zero; so is any on another device than a CPU, which would wait for the indices, and within
    `torch.compile` and `torch.autocast`; and so is what is no `DagNet`. Gradients of gradients, and the transforms of
    `torch.func`, are not available, and hooks of the nodes are not called. Copies made within are outside.
    """
    if not isinstance(net, DagNet):
        yield
        return
    on_cpu = all(p.device.type == "cpu" for p in net.parameters())
    before, net.liveness = net.liveness, Liveness(net) if on_cpu and _joins_all(net) else None
    try:
        yield
    finally:
        net.liveness = before


class Liveness:
    """What is alive in a network now.

    It depends on nothing but which rows, rings, biases and gates are zero. These are read at every call, whoever has
    written to them; the sets of indices are made anew at births and deaths.
    """

    def __init__(self, net: DagNet) -> None:
        self.net = net
        self._last: tuple[Tensor, SparseNet | None] | None = None  # in one place, for threads

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the network, or what is read of a file, is outside of the `with` block

    @torch.no_grad()
    def __call__(self) -> SparseNet | None:
        """The network without what is zero; None where computing all of it costs no more."""
        awake = torch.cat([part for node in self.net.named_nodes().values() for part in _awake(node)])
        last = self._last
        if last is None or not torch.equal(awake, last[0]):
            found = _Finder(self.net).found
            self._last = last = awake, found if found.saves else None
        return last[1]

    def weights(self) -> list[Tensor]:
        """Those of the network, as a `SparseNet` takes them."""
        return [weight for node in self.net.named_nodes().values() for weight in _weights(node)]


def _joins_all(net: DagNet) -> bool:
    """Whether all edges and skips join all units of their nodes."""
    some: list[Indices] = []
    for node in net.plan.nodes:
        some.append(node.rows)
        some.extend(part for edge in node.edges for part in (edge.take, edge.put))
        some.extend(part for skip in node.skips for part in (skip.take, skip.put))
    return all(part is None for part in some)


def _weights(node: DagNode) -> Iterator[Tensor]:
    """In the order of `SparseNode.weights`."""
    yield from (weight for _, weight in node.weighted_edges())
    yield from node.projections.values()
    if node.plan.bias:
        yield node.bias
    if node.plan.skips:
        yield node.gates


def _awake(node: DagNode) -> Iterator[Tensor]:
    """Whether what matters is not zero: each row and each place of a growing kernel, the gates, and each bias and its
    rows together, so that a bias which joins an alive row changes nothing."""
    joint = nonzero(node.bias)
    for edge, weight in node.weighted_edges():
        rows = _rows(weight)
        joint = joint if edge.operation == DEPTHWISE else joint | rows
        yield rows
        if edge.core is not None:
            yield any_over(nonzero(weight), (0, 1)).flatten()
    yield from map(_rows, node.projections.values())
    yield from (joint, nonzero(node.gates))


def _rows(weight: Tensor) -> Tensor:
    """Which rows of a weight are not zero."""
    return any_over(nonzero(weight).flatten(1), 1)


class _Finder:
    """Finds what of a network is not zero, node by node."""

    def __init__(self, net: DagNet) -> None:
        self._emits = {INPUT: torch.ones(net.plan.units[INPUT], dtype=torch.bool)}
        self._sets: dict[bytes, Tensor] = {}
        self.found = SparseNet(tuple(self._node(name, node) for name, node in net.named_nodes().items()), net.unit_axis)

    def _node(self, name: str, node: DagNode) -> SparseNode:
        edges, projections = list(node.weighted_edges()), [(Edge(s, 1), P) for s, P in node.projections.items()]
        alive = [_rows(A) & self._emits[e.source] if e.operation == DEPTHWISE else _rows(A) for e, A in edges]
        rows = _rounded(_union(nonzero(node.bias), *alive))
        projected = [_rounded(_rows(P)) for _, P in projections]
        opened = [self._emits[s.source] for s, gate in zip(node.plan.skips, node.gates.tolist(), strict=True) if gate]
        emits = self._emits[name] = _rounded(_union(rows, *projected, *opened))
        ends = zip(projections, projected, strict=True)
        return SparseNode(
            name=name,
            units=node.plan.units,
            emits=self._indices(emits),
            rows=self._indices(rows),
            put=self._indices(rows, emits),
            edges=tuple(self._edge(node, e, A, rows, rows) for e, A in edges),
            projections=tuple(self._edge(node, e, P, some, emits) for (e, P), some in ends),
            skips=tuple(self._skip(skip.source, emits) for skip in node.plan.skips),
            activation=node.plan.activation,
            has_bias=node.plan.bias,
            level=node.plan.level,
        )

    def _edge(self, node: DagNode, edge: Edge, weight: Parameter, rows: Tensor, total: Tensor) -> SparseEdge:
        """An edge (or projection), from the masks of its ``rows`` that are alive, and of those that it adds to."""
        depthwise, levels, emits = edge.operation == DEPTHWISE, node.levels[edge.source], self._emits[edge.source]
        rows = rows & emits if depthwise else rows
        return SparseEdge(
            source=edge.source,
            levels=levels,
            rows=self._indices(rows),
            put=self._indices(rows, total),
            units=self._indices(emits),
            take=self._indices(rows, emits) if depthwise else None,
            rim=_rim(edge, weight),
            depthwise=depthwise,
            repeats=levels if edge.kernel == 1 and levels > 0 else 0,
        )

    def _skip(self, source: str, total: Tensor) -> SparseSkip:
        emits = self._emits[source]
        return SparseSkip(source, self._indices(emits), self._indices(emits & total, total))

    def _indices(self, mask: Tensor, among: Tensor | None = None) -> Tensor | None:
        """Of what is true, among what is true of another mask that covers it, as one tensor for each set; None for
        all of it."""
        mask = mask if among is None else mask[among]
        return None if mask.all() else self._sets.setdefault(mask.numpy().tobytes(), mask.nonzero()[:, 0])


def _union(*masks: Tensor) -> Tensor:
    return any_over(torch.stack(masks), 0)


def _rounded(mask: Tensor) -> Tensor:
    """Of what is alive; all, if that is most."""
    return torch.ones_like(mask) if mask.sum() > DENSE_ABOVE * len(mask) else mask


def _rim(edge: Edge, weight: Tensor) -> int | None:
    """How many rings of kernels that grow are zero; None if all is."""
    if not weight.any():
        return None
    return 0 if edge.core is None else (weight.shape[-1] - side(weight)) // 2
