"""The edges of a node of which most is zero: outputs and gradients as if all were computed, at the cost of the rest.

Shapes: a state is a matrix here, (positions, n). Of n rows r are alive, and c of the units of a source. The grid of its
positions is (B, h, w) under convolutions.
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
        """x[C], of shape (positions, c)."""
        return _picked(x, self.units)

    def output(self, x: Tensor, read: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
        """A[R, C] x[C], of shape (positions, r), of what was `read` of ``x`` (positions, units)."""
        own = _picked(self._core(weight), self.rows, 0)
        if self.depthwise:
            x = read if self.rows is self.units else _picked(x, self.rows)
            return _product(own, x, grid, groups=own.shape[0])
        return _product(_picked(own, self.units), read, grid)

    def to_weight(self, g: Tensor, read: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
        """g x[C]^T for the gradient ``g`` (positions, n) at y: of all rows, since those that sleep need it to wake."""
        if _is_empty(self.units):
            return torch.zeros_like(weight)
        if self.depthwise:
            gradient = _channelwise_outer(_picked(g, self.units), read, weight, grid)
            return _spread(gradient, self.units, weight.shape, 0)
        return _spread(_outer(g, read, weight, grid), self.units, weight.shape)

    def to_source(self, g: Tensor, own: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
        """A[R, :]^T g[R], given ``own`` = g[R] (positions, r): on all units, for the rows of those that sleep."""
        core = self._core(weight)
        if self.depthwise:
            return _product(core.flip(2, 3), g, grid, groups=core.shape[0])
        adjoint = _picked(core, self.rows, 0).transpose(0, 1)
        return _product(adjoint if adjoint.ndim == 2 else adjoint.flip(2, 3), own, grid)

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
        states = [x.movedim(part.unit_axis, -1) for x in pieces]
        ctx.grid = grid = states[0].shape[:-1]
        matrices = [_matrix(x, -1) for x in states]
        sources, skipped = matrices[: len(part.sources)], matrices[len(part.sources) :]
        read = [edge.read(sources[edge.source]) for edge in part.edges]
        terms = [
            edge.output(sources[edge.source], x, weight, grid)
            for edge, x, weight in zip(part.edges, read, weights, strict=True)
            if not edge.is_silent
        ]
        if bias is not None:
            terms.append(_picked(bias, part.rows, 0))
        total = sum(terms[1:], terms[0]) if terms else sources[0].new_zeros(())
        z = total.expand(grid.numel(), part.units if part.rows is None else part.rows.shape[0])
        slope = None
        if part.activation in SLOPE_ONE:
            slope = SLOPE_ONE[part.activation](z, 0, out=torch.empty_like(z))  # a float mask: as a bool it is slow
            z = z.clamp(min=0)
        ctx.part, ctx.gates, ctx.widths = part, [] if gates is None else gates.tolist(), [x.shape[1] for x in sources]
        ctx.save_for_backward(slope, *weights, *read, *skipped)
        x: Tensor | None = None
        for gate, brought in zip(ctx.gates, skipped, strict=True):
            if gate:
                x = gate * brought if x is None else x.add_(brought, alpha=gate)
        x = _spread(z, part.rows, (z.shape[0], part.units)) if x is None else _add(x, part.rows, z)
        return _state(x, grid, part.unit_axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, grid, needs = ctx.part, ctx.grid, iter(ctx.needs_input_grad[1:])
        slope, *saved = ctx.saved_tensors
        pieces = iter(saved)
        weights, read, skipped = _some(pieces, len(part.edges)), _some(pieces, len(part.edges)), list(pieces)
        g = _matrix(gradient, part.unit_axis)
        to_gates = torch.stack([g.flatten().dot(x.flatten()) for x in skipped]) if skipped else None
        to_skipped = [_state(_scaled(g, gate), grid, part.unit_axis) if gate else None for gate in ctx.gates]

        own = _picked(g, part.rows)
        if slope is not None:
            before, own = own, own * slope
            if part.activation == "right_relu":
                g = own if part.rows is None else g.index_add(1, part.rows, own - before)
            else:  # relu has slope 0 at 0
                g = _spread(own, part.rows, g.shape)
        to_bias = g.sum(0) if next(needs) else None
        next(needs)
        members = list(zip(part.edges, weights, read, strict=True))
        to_weights = [edge.to_weight(g, x, A, grid) if next(needs) else None for edge, A, x in members]
        to_sources = []
        for k, units in enumerate(ctx.widths):
            readers = [(edge, A) for edge, A, _ in members if edge.source == k and edge.rim is not None]
            terms = [edge.to_source(g, own, A, grid) for edge, A in readers] if next(needs) else []
            total = sum(terms[1:], terms[0]) if terms else g.new_zeros(()).expand(grid.numel(), units)
            to_sources.append(_state(total, grid, part.unit_axis))
        return None, to_bias, to_gates, *to_weights, *to_sources, *to_skipped


def _some(pieces: Iterator[Tensor], count: int) -> list[Tensor]:
    """The next ones."""
    return [next(pieces) for _ in range(count)]


def _scaled(x: Tensor, gate: float) -> Tensor:
    return x if gate == 1 else gate * x


def _is_empty(indices: Tensor | None) -> bool:
    return indices is not None and indices.shape[0] == 0


def _picked(x: Tensor, indices: Tensor | None, axis: int = 1) -> Tensor:
    return x if indices is None else x.index_select(axis, indices)


def _add(x: Tensor, indices: Tensor | None, part: Tensor, axis: int = 1) -> Tensor:
    """x[:, R] += part, in place."""
    return x.add_(part) if indices is None else x.index_add_(axis, indices, part)


def _spread(part: Tensor, indices: Tensor | None, shape: Sequence[int], axis: int = 1) -> Tensor:
    """Zeros in this shape, with ``part`` at the indices."""
    return part if indices is None else _add(part.new_zeros(shape), indices, part, axis)


def _matrix(x: Tensor, unit_axis: int) -> Tensor:
    """(B, n, h, w), (..., n) or (n,) -> (positions, n)."""
    return x.movedim(unit_axis, -1).reshape(-1, x.shape[unit_axis])


def _state(x: Tensor, grid: torch.Size, unit_axis: int) -> Tensor:
    """(positions, n) -> (B, n, h, w) or (..., n)."""
    return x.view(*grid, x.shape[1]).movedim(-1, unit_axis)


def _product(weight: Tensor, x: Tensor, grid: torch.Size, groups: int = 1) -> Tensor:
    """A x."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    y = F.conv2d(_pictures(x, weight, grid), weight, padding=weight.shape[-1] // 2, groups=groups)
    return y.movedim(1, -1).flatten(0, -2)


def _outer(g: Tensor, x: Tensor, weight: Tensor, grid: torch.Size, groups: int = 1) -> Tensor:
    """g x^T: the gradient at (some of) ``weight``, between the units of ``x`` and ``g``."""
    if weight.ndim == 2:
        return g.T @ x
    shape, padding = (g.shape[1], x.shape[1] // groups, *weight.shape[2:]), weight.shape[-1] // 2
    pictures, gradients = (_pictures(each, weight, grid) for each in (x, g))
    result: Tensor = conv2d_weight(pictures, shape, gradients, padding=padding, groups=groups)
    return result


def _channelwise_outer(g: Tensor, x: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
    """The same at depthwise kernels. With large ones torch takes long, so that this is a convolution of x with g: each
    channel of each picture, b h w c -> h w (b c), with a kernel of its own."""
    units, side = x.shape[1], weight.shape[-1]
    if side <= LARGE:
        return _outer(g, x, weight, grid, groups=units)
    batch, height, width = grid
    pictures = x.view(*grid, units).permute(1, 2, 0, 3).reshape(1, height, width, batch * units).movedim(-1, 1)
    kernels = g.view(*grid, units).movedim(-1, 1).reshape(batch * units, 1, height, width)
    products = F.conv2d(pictures, kernels, padding=side // 2, groups=batch * units)
    return products.view(batch, units, 1, side, side).sum(0)


def _pictures(x: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
    """(positions, n) -> (B, n, h, w) for a convolution. To a 1 x 1 kernel neighbours are nothing, so that any B will
    do: from 16 on torch leaves it to oneDNN on a single core, which is up to five times as fast."""
    if weight.shape[-1] == 1 and x.shape[0] % 16 == 0:
        grid = torch.Size((16, x.shape[0] // 16, 1))
    return x.view(*grid, x.shape[1]).permute(0, 3, 1, 2)
