"""The edges of a node of which most is zero: outputs and gradients as if all were computed, at the cost of the rest.

Shapes: states have their units last here, (..., n). Of n rows r are alive, and c of the units of a source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

SLOPE_ONE = {"right_relu": torch.ge, "relu": torch.gt}  # where they have slope 1: at z >= 0, at z > 0; elsewhere 0

LARGE = 3  # side of depthwise kernels above which their gradient is computed as a convolution


@dataclass(frozen=True)
class SparseEdge:
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

    def read(self, x: Tensor) -> Tensor:
        """x[C] (..., c)."""
        return _picked(x, self.units)

    def output(self, x: Tensor, read: Tensor, weight: Tensor) -> Tensor:
        """A[R, C] x[C] (..., r), of what was `read` of ``x`` (..., units)."""
        own = _picked(self._core(weight), self.rows, 0)
        if self.depthwise:
            return _product(own, read if self.rows is self.units else _picked(x, self.rows), groups=own.shape[0])
        return _product(_picked(own, self.units, 1), read)

    def to_weight(self, g: Tensor, read: Tensor, weight: Tensor) -> Tensor:
        """g x[C]^T for the gradient ``g`` (..., n) at y: of all rows, since those that sleep need it to wake."""
        if _is_empty(self.units):
            return torch.zeros_like(weight)
        if self.depthwise:
            return _spread(_channelwise_outer(_picked(g, self.units), read, weight), self.units, weight.shape, 0)
        return _spread(_outer(g, read, weight), self.units, weight.shape, 1)

    def to_source(self, g: Tensor, own: Tensor, weight: Tensor) -> Tensor:
        """A[R, :]^T g[R], given ``own`` = g[R] (..., r): on all units, since the rows of those that sleep need it."""
        core = self._core(weight)
        if self.depthwise:
            return _product(core.flip(2, 3), g, groups=core.shape[0])
        adjoint = _picked(core, self.rows, 0).transpose(0, 1)
        return _product(adjoint if adjoint.ndim == 2 else adjoint.flip(2, 3), own)

    def _core(self, weight: Tensor) -> Tensor:
        return weight[..., self.rim : -self.rim, self.rim : -self.rim] if self.rim else weight


@dataclass(frozen=True)
class SparseRows:
    """The rows of a node, of which a part is zero: x = act( sum_j A_j(x_j) + b ) + sum_k s_k x_k.

    Attributes:
        units: how many there are.
        rows: (r,) those that can be other than 0; None: all.
        edges: the A_j.
        sources: the names of the x_j.
        activation: a key of `nas.models.dag.ACTIVATIONS`.
        unit_axis: of the states.
    """

    units: int
    rows: Tensor | None
    edges: tuple[SparseEdge, ...]
    sources: tuple[str, ...]
    activation: str
    unit_axis: int

    @property
    def saves(self) -> bool:
        """Whether torch would take longer: parts need not be computed, or it is slow at depthwise kernels, and at the
        slope of an activation on pictures."""
        parts = any(edge.units is not None or edge.rim != 0 or edge.depthwise for edge in self.edges)
        return parts or self.rows is not None or (self.activation in SLOPE_ONE and self.unit_axis == 1)

    def __call__(
        self,
        sources: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor | None = None,
        skipped: Sequence[Tensor] = (),
        gates: Tensor | None = None,
    ) -> Tensor:
        """The state x, of the states ``sources`` x_j and ``skipped`` x_k; differentiable once."""
        result: Tensor = _Rows.apply(self, bias, gates, *weights, *sources, *skipped)  # type: ignore[no-untyped-call]
        return result


class _Rows(torch.autograd.Function):
    """x = sum_k s_k x_k, then x[R] += act( sum_j A_j[R, C_j] x_j[C_j] + b[R] ): rows that sleep would add act(0) = 0.

    With g the gradient at x and h = act' g, the gradients are h x_j[C_j]^T at A_j, h at b, A_j[R, :]^T h[R] at x_j,
    <g, x_k> at s_k, and s_k g at x_k. Of a closed gate, s_k = 0, only its own gradient is computed.
    """

    @staticmethod
    def forward(ctx: Any, part: SparseRows, bias: Tensor | None, gates: Tensor | None, *tensors: Tensor) -> Tensor:
        pieces = iter(tensors)
        weights = _some(pieces, len(part.edges))
        sources = [x.movedim(part.unit_axis, -1) for x in _some(pieces, len(part.sources))]
        skipped = [x.movedim(part.unit_axis, -1) for x in pieces]
        read = [edge.read(sources[edge.source]) for edge in part.edges]
        terms = [
            edge.output(sources[edge.source], x, weight)
            for edge, x, weight in zip(part.edges, read, weights, strict=True)
            if not edge.is_silent
        ]
        if bias is not None:
            terms.append(_picked(bias, part.rows, 0))
        total = sum(terms[1:], terms[0]) if terms else sources[0].new_zeros(())
        z = total.expand(*sources[0].shape[:-1], part.units if part.rows is None else part.rows.shape[0])
        slope = None
        if part.activation in SLOPE_ONE:
            slope = SLOPE_ONE[part.activation](z, 0, out=torch.empty_like(z))  # a float mask: as a bool it is slow
            z = z.clamp(min=0)
        ctx.part, ctx.gates, ctx.shapes = part, [] if gates is None else gates.tolist(), [x.shape for x in sources]
        ctx.save_for_backward(slope, *weights, *read, *skipped)
        x: Tensor | None = None
        for gate, brought in zip(ctx.gates, skipped, strict=True):
            if gate:
                x = gate * brought if x is None else x.add_(brought, alpha=gate)
        x = _spread(z, part.rows, (*z.shape[:-1], part.units)) if x is None else _add(x, part.rows, z)
        return x.movedim(-1, part.unit_axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, needs = ctx.part, iter(ctx.needs_input_grad[1:])
        slope, *saved = ctx.saved_tensors
        pieces = iter(saved)
        weights, read, skipped = _some(pieces, len(part.edges)), _some(pieces, len(part.edges)), list(pieces)
        g = gradient.movedim(part.unit_axis, -1).contiguous()
        to_gates = torch.stack([g.flatten().dot(x.flatten()) for x in skipped]) if skipped else None
        to_skipped = [(gate * g).movedim(-1, part.unit_axis) if gate else None for gate in ctx.gates]

        own = _picked(g, part.rows)
        if slope is not None:
            before, own = own, own * slope
            if part.activation == "right_relu":
                g = own if part.rows is None else g.index_add(-1, part.rows, own - before)
            else:  # relu has slope 0 at 0
                g = _spread(own, part.rows, g.shape)
        to_bias = g.flatten(0, -2).sum(0) if next(needs) else None
        next(needs)
        members = list(zip(part.edges, weights, read, strict=True))
        to_weights = [edge.to_weight(g, x, A) if next(needs) else None for edge, A, x in members]
        to_sources: list[Tensor | None] = []
        for k, shape in enumerate(ctx.shapes):
            readers = [(edge, A) for edge, A, _ in members if edge.source == k and edge.rim is not None]
            terms = [edge.to_source(g, own, A) for edge, A in readers] if next(needs) else []
            total = sum(terms[1:], terms[0]) if terms else g.new_zeros(()).expand(shape)
            to_sources.append(total.movedim(-1, part.unit_axis))
        return None, to_bias, to_gates, *to_weights, *to_sources, *to_skipped


def _some(pieces: Iterator[Tensor], count: int) -> list[Tensor]:
    """The next ones."""
    return [next(pieces) for _ in range(count)]


def _is_empty(indices: Tensor | None) -> bool:
    return indices is not None and indices.shape[0] == 0


def _picked(x: Tensor, indices: Tensor | None, axis: int = -1) -> Tensor:
    """x[..., R]."""
    if indices is None:
        return x
    if axis == -1:  # of a matrix it takes half the time
        return x.flatten(0, -2).index_select(-1, indices).reshape(*x.shape[:-1], indices.shape[0])
    return x.index_select(axis, indices)


def _add(x: Tensor, indices: Tensor | None, part: Tensor, axis: int = -1) -> Tensor:
    """x[..., R] += part, in place."""
    return x.add_(part) if indices is None else x.index_add_(axis, indices, part)


def _spread(part: Tensor, indices: Tensor | None, shape: Sequence[int], axis: int = -1) -> Tensor:
    """Zeros in this shape, with ``part`` at the indices."""
    return part if indices is None else _add(part.new_zeros(shape), indices, part, axis)


def _product(weight: Tensor, x: Tensor, groups: int = 1) -> Tensor:
    """A x."""
    if weight.ndim == 2:
        return F.linear(x.flatten(0, -2), weight).reshape(*x.shape[:-1], weight.shape[0])
    y = F.conv2d(_laid_out(x, weight), weight, padding=weight.shape[-1] // 2, groups=groups)
    return y.movedim(1, -1).reshape(*x.shape[:-1], weight.shape[0])


def _outer(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """g x^T: the gradient at (some of) ``weight``, between the units of ``x`` and ``g``."""
    if weight.ndim == 2:
        return g.flatten(0, -2).T @ x.flatten(0, -2)
    shape = (g.shape[-1], x.shape[-1], *weight.shape[2:])
    gradient: Tensor = conv2d_weight(_laid_out(x, weight), shape, _laid_out(g, weight), padding=weight.shape[-1] // 2)
    return gradient


def _channelwise_outer(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same at depthwise kernels. With large ones torch takes long, so that this is a convolution of x with g: each
    channel of each picture, b h w c -> h w (b c), with a kernel of its own."""
    batch, height, width, units = x.shape
    side = weight.shape[-1]
    if side <= LARGE:
        shape, pictures = (units, 1, side, side), x.movedim(-1, 1)
        gradient: Tensor = conv2d_weight(pictures, shape, g.movedim(-1, 1), padding=side // 2, groups=units)
        return gradient
    pictures = x.permute(1, 2, 0, 3).reshape(1, height, width, batch * units).movedim(-1, 1)
    kernels = g.movedim(-1, 1).reshape(batch * units, 1, height, width)
    products = F.conv2d(pictures, kernels, padding=side // 2, groups=batch * units)
    return products.reshape(batch, units, 1, side, side).sum(0)


def _laid_out(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` for a convolution, (B, units, h, w). To a 1 x 1 kernel neighbours are nothing, so that any B will do: from
    16 pictures on torch leaves it to oneDNN on a single core, which is up to five times as fast."""
    positions = x.shape[:-1].numel()
    if weight.shape[-1] == 1 and positions % 16 == 0:
        x = x.reshape(16, positions // 16, 1, x.shape[-1])
    return x.movedim(-1, 1)
