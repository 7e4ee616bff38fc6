"""Training that computes only what is alive, exactly: most of a supernet is zero while it grows.

Shapes: the state of a node has its units last here, (..., n). Of these, r rows are alive, and c units of a source.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from nas.models.plan import DEPTHWISE, INPUT, Edge

if TYPE_CHECKING:
    from nas.models.dag import DagNet, DagNode

DENSE_ABOVE = 0.75  # share of rows or units that are alive, above which picking them out costs more than it saves
SLOPE_ONE = {"right_relu": torch.ge, "relu": torch.gt}  # has z slope 1? (0 elsewhere; that of the identity is 1)


@dataclass(frozen=True)
class LiveEdge:
    """An edge y = A x of which a part is zero.

    Attributes:
        source: index of its source among those of the node.
        rows: (r,) the rows R of the node that are alive; None: all.
        units: (c,) the units C of the source that are not zero throughout; None: all.
        rim: how many rings of the kernels are zero; None where all of A is.
        depthwise: row i reads unit i alone.
    """

    source: int
    rows: Tensor | None
    units: Tensor | None
    rim: int | None
    depthwise: bool

    @property
    def is_silent(self) -> bool:
        """Whether it adds nothing."""
        return self.rim is None or _is_empty(self.rows) or _is_empty(self.units)

    def output(self, x: Tensor, read: Tensor, weight: Tensor) -> Tensor:
        """A[R, C] x[C] (..., r), of the state ``x`` (..., units) and what is ``read`` of it, x[C] (..., c)."""
        own = _picked(self._core(weight), self.rows, 0)
        if self.depthwise:
            return _product(read if self.rows is self.units else _picked(x, self.rows), own, groups=len(own))
        return _product(read, _picked(own, self.units, 1))

    def to_weight(self, g: Tensor, read: Tensor, weight: Tensor) -> Tensor:
        """g x[C]^T for the gradient ``g`` (..., n): of all rows, since those that sleep need it to wake."""
        if _is_empty(self.units):
            return torch.zeros_like(weight)
        if self.depthwise:
            return _spread(_outer(_picked(g, self.units), read, weight, depthwise=True), self.units, weight, 0)
        return _spread(_outer(g, read, weight, depthwise=False), self.units, weight, 1)

    def to_source(self, g: Tensor, weight: Tensor) -> Tensor:
        """A[R, :]^T g[R] for the gradient ``g`` (..., n): on all units, since the rows of those that sleep need it."""
        core = self._core(weight)
        if self.depthwise:
            return _product(g, core.flip(2, 3), groups=len(core))
        adjoint = _picked(core, self.rows, 0).transpose(0, 1)
        return _product(_picked(g, self.rows), adjoint if adjoint.ndim == 2 else adjoint.flip(2, 3))

    def _core(self, weight: Tensor) -> Tensor:
        return weight[..., self.rim : -self.rim, self.rim : -self.rim] if self.rim else weight


@dataclass(frozen=True)
class LiveRows:
    """Which ``rows`` (r,) of ``units`` can put out something (None: all), of which ``edges`` from ``sources``."""

    units: int
    rows: Tensor | None
    edges: tuple[LiveEdge, ...]
    sources: tuple[str, ...]
    activation: str
    unit_axis: int

    def __call__(self, sources: list[Tensor], weights: list[Tensor], bias: Tensor | None) -> Tensor:
        """act( sum_j A_j(x_j) + b ) for ``sources`` x_j, as states; the same with its gradients as if all were alive."""
        result: Tensor = _Rows.apply(self, bias, *weights, *sources)  # type: ignore[no-untyped-call]
        return result


@dataclass(frozen=True)
class LiveNode:
    """What is alive at a node: its rows, and those of its projections by their sources."""

    rows: LiveRows
    projections: Mapping[str, LiveRows]


class _Rows(torch.autograd.Function):
    """y[R] = act( sum_j A_j[R, C_j] x_j[C_j] + b[R] ), and act(0) = 0 on the rows that sleep.

    With g = act' * (gradient at y), the gradients are g x_j[C_j]^T at A_j, g at b, and A_j[R, :]^T g[R] at x_j.
    """

    @staticmethod
    def forward(ctx: Any, live: LiveRows, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        weights, states = tensors[: len(live.edges)], tensors[len(live.edges) :]
        sources = [x.movedim(live.unit_axis, -1) for x in states]
        read = [_picked(sources[edge.source], edge.units) for edge in live.edges]
        terms = [
            edge.output(sources[edge.source], x, weight)
            for edge, x, weight in zip(live.edges, read, weights, strict=True)
            if not edge.is_silent
        ]
        if bias is not None:
            terms.append(_picked(bias, live.rows, 0))
        num_rows = live.units if live.rows is None else len(live.rows)
        z = sum(terms[1:], terms[0] if terms else sources[0].new_zeros(())).expand(*sources[0].shape[:-1], num_rows)
        slope = None
        if live.activation in SLOPE_ONE:
            slope = SLOPE_ONE[live.activation](z, 0, out=torch.empty_like(z))
            z = z.clamp(min=0)
        ctx.save_for_backward(slope, *weights, *read)
        ctx.live, ctx.shapes = live, [x.shape for x in sources]
        y = z if live.rows is None else _spread(z, live.rows, z.new_empty(()).expand(*z.shape[:-1], live.units))
        return y.movedim(-1, live.unit_axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        live, needs = ctx.live, ctx.needs_input_grad[1:]
        slope, *saved = ctx.saved_tensors
        weights, read = saved[: len(live.edges)], saved[len(live.edges) :]
        g = grad.movedim(live.unit_axis, -1).contiguous()
        if slope is not None:
            awake = _picked(g, live.rows) * slope
            asleep = g if live.activation == "right_relu" else torch.zeros_like(g)  # relu has slope 0 at 0
            g = awake if live.rows is None else asleep.index_copy(-1, live.rows, awake)
        members = list(zip(live.edges, weights, read, strict=True))
        to_bias = g.flatten(0, -2).sum(0) if needs[0] else None
        to_weights = [edge.to_weight(g, x, weight) for edge, weight, x in members]
        to_sources = []
        for k, shape in enumerate(ctx.shapes):
            reads = [(edge, weight) for edge, weight, _ in members if edge.source == k and edge.rim is not None]
            terms = [edge.to_source(g, weight) for edge, weight in reads if needs[1 + len(members) + k]]
            total = sum(terms[1:], terms[0]) if terms else g.new_zeros(()).expand(shape)
            to_sources.append(total.movedim(-1, live.unit_axis))
        return None, to_bias, *to_weights, *to_sources


class _Skips(torch.autograd.Function):
    """y = x + sum_k s_k x_k: of a closed gate, s_k = 0, the gradient <g, x_k> alone is computed."""

    @staticmethod
    def forward(ctx: Any, unit_axis: int, x: Tensor, gates: Tensor, *sources: Tensor) -> Tensor:
        ctx.unit_axis, ctx.gates = unit_axis, gates.tolist()
        ctx.save_for_backward(*sources)
        y = x
        for gate, source in zip(ctx.gates, sources, strict=True):
            if gate:
                y = y.add(source, alpha=gate)
        return y.view_as(x) if y is x else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        flat = g.movedim(ctx.unit_axis, -1).flatten()
        to_gates = torch.stack([flat.dot(x.movedim(ctx.unit_axis, -1).flatten()) for x in ctx.saved_tensors])
        return None, g, to_gates, *(gate * g if gate else None for gate in ctx.gates)


def add_skips(x: Tensor, gates: Tensor, sources: list[Tensor], unit_axis: int) -> Tensor:
    """x + sum_k s_k x_k, for ``gates`` s (k,) and ``sources`` x_k in the shape of ``x``; closed gates cost little."""
    result: Tensor = _Skips.apply(unit_axis, x, gates, *sources)  # type: ignore[no-untyped-call]
    return result


class Liveness:
    """What is alive in a network now, by node.

    It depends on nothing but which rows, rings, biases and gates are zero. That is read from the weights at every call,
    whoever has changed them; the sets are made anew where it has changed.
    """

    def __init__(self, net: "DagNet") -> None:
        self.net = net
        self._awake: Tensor | None = None
        self._sets: dict[str, LiveNode] = {}

    @torch.no_grad()
    def __call__(self) -> Mapping[str, LiveNode]:
        awake = torch.cat([part for node in self.net.named_nodes().values() for part in _extremes(node)]).ne(0)
        if self._awake is None or awake.device != self._awake.device or not torch.equal(awake, self._awake):
            self._awake, self._sets = awake, self._find()
        return self._sets

    def _find(self) -> dict[str, LiveNode]:
        device = next(self.net.parameters()).device
        emits = {INPUT: torch.ones(self.net.plan.units[INPUT], dtype=torch.bool, device=device)}
        sets = {}
        for name, node in self.net.named_nodes().items():
            edges = [(edge, weight.detach()) for edge, weight in node.weighted_edges()]
            rows = node.bias.detach().ne(0)
            for edge, weight in edges:
                own = _live_rows(weight)
                rows = rows | (own & emits[edge.source] if edge.operation == DEPTHWISE else own)
            live = _live(edges, rows, emits, node.plan.activation, node.unit_axis)
            emits[name], projections = rows, {}
            for skip, gate in zip(node.plan.skips, node.gates.tolist(), strict=True):
                if gate:
                    emits[name] = emits[name] | emits[skip.source]
            for source, matrix in node.projections.items():
                matrix = matrix.detach()
                own = _live_rows(matrix)
                projections[source] = _live([(Edge(source), matrix)], own, emits, "identity", node.unit_axis)
                emits[name] = emits[name] | own
            sets[name] = LiveNode(live, projections)
        return sets


@contextmanager
def alive_only(net: "DagNet") -> Iterator[None]:
    """Compute ``net`` on what is alive for a while; outputs and gradients are those of the dense computation.

    Per step and edge: the output on alive rows x alive units of the source, the gradient at the weights on all rows x
    alive units, that at the source on alive rows x all units. A network whose edges join some of the units of their
    nodes, as those of compact networks do, is computed densely: little in it is zero. So is one that is compiled.
    """
    links = [link for node in net.plan.nodes for link in (*node.edges, *node.skips)]
    some = any(node.rows is not None for node in net.plan.nodes) or any((link.take, link.put) != (None, None) for link in links)
    before, net.liveness = net.liveness, None if some else Liveness(net)
    try:
        yield
    finally:
        net.liveness = before


def _extremes(node: "DagNode") -> Iterator[Tensor]:
    """Largest and smallest number in each row and ring, and the biases and gates: what is zero is seen from them."""
    for edge, weight in node.weighted_edges():
        rows = weight.flatten(1)
        yield from (rows.amax(1), rows.amin(1))
        if edge.core is not None:
            yield from (weight.amax((0, 1)).flatten(), weight.amin((0, 1)).flatten())
    for matrix in node.projections.values():
        yield from (matrix.amax(1), matrix.amin(1))
    yield from (node.bias, node.gates)


def _live_rows(weight: Tensor) -> Tensor:
    """A mask of the rows that are not zero."""
    return weight.flatten(1).ne(0).any(1)


def _live(
    edges: list[tuple[Edge, Tensor]], rows: Tensor, emits: Mapping[str, Tensor], activation: str, unit_axis: int
) -> LiveRows:
    own = _indices(rows)
    sources = tuple(dict.fromkeys(edge.source for edge, _ in edges)) or (INPUT,)
    live = []
    for edge, weight in edges:
        depthwise = edge.operation == DEPTHWISE
        units = own if depthwise and torch.equal(rows, emits[edge.source]) else _indices(emits[edge.source])
        live.append(LiveEdge(sources.index(edge.source), own, units, _rim(edge, weight), depthwise))
    return LiveRows(len(rows), own, tuple(live), sources, activation, unit_axis)


def _indices(mask: Tensor) -> Tensor | None:
    """Of the units that are alive; None, so that all are computed, if these are most."""
    return mask.nonzero()[:, 0] if mask.sum() <= DENSE_ABOVE * len(mask) else None


def _rim(edge: Edge, weight: Tensor) -> int | None:
    """How many rings of growing kernels are zero; None if all are."""
    if not weight.any():
        return None
    if edge.core is None:
        return 0
    places = weight.ne(0).flatten(0, 1).any(0).nonzero()
    return int(min(places.min(), len(weight[0, 0]) - 1 - places.max()))


def _is_empty(indices: Tensor | None) -> bool:
    return indices is not None and not len(indices)


def _picked(x: Tensor, indices: Tensor | None, axis: int = -1) -> Tensor:
    if indices is None:
        return x
    if axis == -1:
        return x.flatten(0, -2).index_select(-1, indices).reshape(*x.shape[:-1], len(indices))  # twice as fast
    return x.index_select(axis, indices)


def _spread(part: Tensor, indices: Tensor | None, whole: Tensor, axis: int = -1) -> Tensor:
    """Zeros in the shape of ``whole``, with ``part`` at the indices."""
    return part if indices is None else part.new_zeros(whole.shape).index_copy_(axis, indices, part)


def _product(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """A x, units last."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return F.conv2d(x.movedim(-1, 1), weight, padding=weight.shape[-1] // 2, groups=groups).movedim(1, -1)


def _outer(g: Tensor, x: Tensor, weight: Tensor, *, depthwise: bool) -> Tensor:
    """g x^T, the gradient at weights like ``weight`` between the units of ``x`` and ``g``."""
    if weight.ndim == 2:
        return (x.flatten(0, -2).T @ g.flatten(0, -2)).T
    rows, units, kernel = g.shape[-1], x.shape[-1], weight.shape[2:]
    return conv2d_weight(
        x.movedim(-1, 1), (rows, 1 if depthwise else units, *kernel), g.movedim(-1, 1),
        padding=kernel[0] // 2, groups=rows if depthwise else 1,
    )  # fmt: skip
