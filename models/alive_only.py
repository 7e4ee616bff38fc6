"""Training that computes only what is alive, exactly: most of a supernet is zero while it grows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.models.alive import side
from nas.models.dag import DagNet, DagNode
from nas.models.plan import DEPTHWISE, INPUT, Edge, Indices
from nas.models.sparse_edges import SparseEdge, SparseRows
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
    `torch.compile` and `torch.autocast`; and so is what is no `DagNet`. Gradients of gradients are not available.
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


@dataclass(frozen=True)
class LiveNode:
    """What is alive at a node: its rows; those of edges by their keys that are computed at the lower resolution of
    their sources; and those of its projections by their sources."""

    rows: SparseRows
    coarse: Mapping[str, SparseRows]
    projections: Mapping[str, SparseRows]

    @property
    def saves(self) -> bool:
        """Whether torch would take longer."""
        return any(part.saves for part in (self.rows, *self.coarse.values(), *self.projections.values()))


class Liveness:
    """What is alive in a network now, by node; nothing where computing all of it costs no more.

    It depends on nothing but which rows, rings, biases and gates are zero. These are read at every call, whoever has
    written to them; the sets of indices are made anew at births and deaths.
    """

    def __init__(self, net: DagNet) -> None:
        self.net = net
        self._awake: Tensor | None = None
        self._nodes: dict[str, LiveNode] = {}

    @torch.no_grad()
    def __call__(self) -> Mapping[str, LiveNode]:
        awake = torch.cat([part for node in self.net.named_nodes().values() for part in _awake(node)])
        if self._awake is None or not torch.equal(awake, self._awake):
            nodes = self._find()
            self._awake, self._nodes = awake, nodes if any(node.saves for node in nodes.values()) else {}
        return self._nodes

    def _find(self) -> dict[str, LiveNode]:
        emits = {INPUT: torch.ones(self.net.plan.units[INPUT], dtype=torch.bool)}
        nodes = {}
        for name, node in self.net.named_nodes().items():
            rows, fine, coarse = nonzero(node.bias), [], {}
            alive = rows
            for edge, weight in node.weighted_edges():
                own = _rows(weight)
                own = own & emits[edge.source] if edge.operation == DEPTHWISE else own
                alive = alive | own
                if node.levels[edge.source] > 0 and edge.kernel == 1 and node.plan.activation == "identity":
                    coarse[edge.key] = _sparse_rows(node, [(edge, weight)], own, emits, "identity")
                else:
                    fine.append((edge, weight))
                    rows = rows | own
            whole = _sparse_rows(node, fine, rows, emits, node.plan.activation)
            emits[name], projections = alive, {}
            for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True):
                if gate:
                    emits[name] = emits[name] | emits[skip.source]
            for source, matrix in node.projections.items():
                own = _rows(matrix)
                projections[source] = _sparse_rows(node, [(Edge(source), matrix)], own, emits, "identity")
                emits[name] = emits[name] | own
            nodes[name] = LiveNode(whole, coarse, projections)
        return nodes


def _joins_all(net: DagNet) -> bool:
    """Whether all edges and skips join all units of their nodes."""
    some: list[Indices] = []
    for node in net.plan.nodes:
        some.append(node.rows)
        some.extend(part for edge in node.edges for part in (edge.take, edge.put))
        some.extend(part for skip in node.skips for part in (skip.take, skip.put))
    return all(part is None for part in some)


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


def _sparse_rows(
    node: DagNode,
    edges: list[tuple[Edge, Parameter]],
    rows: Tensor,
    emits: Mapping[str, Tensor],
    activation: str,
) -> SparseRows:
    """What of ``edges`` is not zero, from the masks of ``rows`` that are alive and of what each source ``emits``."""
    own = _indices(rows)
    sources = tuple(dict.fromkeys(edge.source for edge, _ in edges)) or (INPUT,)
    parts = []
    for edge, weight in edges:
        depthwise = edge.operation == DEPTHWISE
        units = own if depthwise and torch.equal(rows, emits[edge.source]) else _indices(emits[edge.source])
        parts.append(SparseEdge(sources.index(edge.source), own, units, _rim(edge, weight), depthwise))
    return SparseRows(len(rows), own, tuple(parts), sources, activation, node.unit_axis)


def _indices(mask: Tensor) -> Tensor | None:
    """Of what is alive; None, for all, if that is most."""
    return mask.nonzero()[:, 0] if mask.sum() <= DENSE_ABOVE * len(mask) else None


def _rim(edge: Edge, weight: Tensor) -> int | None:
    """How many rings of kernels that grow are zero; None if all is."""
    if not weight.any():
        return None
    return 0 if edge.core is None else (weight.shape[-1] - side(weight)) // 2
