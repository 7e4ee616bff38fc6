"""Edges of which most is zero: outputs and gradients as if all were computed, at the cost of the rest.

Shapes: a state is a matrix here, (c, positions), of those of the n units of its node that can be other than zero; the
gradient at it is (n, positions). The grid of its positions is (B, h, w) under convolutions. Either may be transposed in
memory, as convolutions need it, and as products are fast to what has many rows; what follows takes it as it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from nas.models.dag import resample

WIDE = 32  # rows of a matrix from which on its product is transposed
NARROW = 512  # rows of a factor from which on spreading a transposed product costs more than it saves
LARGE = 3  # side of depthwise kernels above which their gradient is computed as a convolution


@dataclass(frozen=True)
class SparseEdge:
    """An edge (or projection) y = A x of which a part is zero.

    Attributes:
        source: the name of its source.
        levels: of the source below its node.
        rows: (r,) the rows R that are computed; None: all.
        put: where R lies in the sum that y is a term of; None: it is all of it.
        units: (c,) the units C of the source that can be other than zero, which are those of its state; None: all.
        take: where what is read lies in C, if depthwise, so that each row reads one unit; None: it is all of it.
        rim: how many rings of the kernels are zero; None where all of A is.
        depthwise: row i reads unit i alone.
        repeats: how many of the levels are made up for by repeating y instead of x.
    """

    source: str
    levels: int
    rows: Tensor | None
    put: Tensor | None
    units: Tensor | None
    take: Tensor | None
    rim: int | None
    depthwise: bool
    repeats: int

    @property
    def is_silent(self) -> bool:
        """Whether it adds nothing."""
        return self.rim is None or _is_empty(self.rows) or _is_empty(self.units)

    def output(self, x: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
        """A[R, C] x[C], of shape (r, positions), of the state ``x`` (c, positions of the source)."""
        x, own, here = self._read(x, grid), picked(self._core(weight), self.rows), self._grid(grid)
        if self.depthwise:
            y = _channelwise(own, picked(x, self.take), here)
        elif _is_matrix(weight):
            y = _product(picked(own.flatten(1), self.units, 1), x)
        else:
            y = _convolution(picked(own, self.units, 1), x, here)
        return _resampled(y, here, self.repeats)

    def to_weight(self, g: "Picks", x: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
        """g x[C]^T for the gradient ``g`` at y: of all rows, since those that sleep need it to wake."""
        if _is_empty(self.units):
            return torch.zeros_like(weight)
        x, here = self._read(x, grid), self._grid(grid)
        own = _gathered(g.rows(self.units) if self.depthwise else g.whole, grid, self.repeats)
        if self.depthwise:
            return spread(_channelwise_outer(own, x, weight, here), self.units, weight.shape)
        return spread(_outer(own, x, weight, here), self.units, weight.shape, 1)

    def to_source(self, g: "Picks", weight: Tensor, grid: torch.Size) -> Tensor:
        """A[R, :]^T g[R]: on all units, for the rows of those that sleep."""
        core, here = self._core(weight), self._grid(grid)
        own = g.whole if self.depthwise else g.rows(self.rows, like=None if _is_matrix(weight) else g.whole)
        own = _gathered(own, grid, self.repeats)
        if self.depthwise:
            result = _convolution(core.flip(2, 3), own, here, groups=len(core))
        elif _is_matrix(weight):
            result = _product(picked(core, self.rows).flatten(1).T, own)
        else:
            result = _convolution(picked(core, self.rows).transpose(0, 1).flip(2, 3), own, here)
        return _gathered(result, here, self.levels - self.repeats)

    def _read(self, x: Tensor, grid: torch.Size) -> Tensor:
        return _resampled(x, at_level(grid, self.levels), self.levels - self.repeats)

    def _grid(self, grid: torch.Size) -> torch.Size:
        """Of the positions at which A is applied."""
        return at_level(grid, self.repeats)

    def _core(self, weight: Tensor) -> Tensor:
        return weight[..., self.rim : -self.rim, self.rim : -self.rim] if self.rim else weight


class Picks:
    """Rows that are picked out of a matrix, by the tensors of their indices; None: all."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self._rows: dict[Tensor | None, Tensor] = {None: whole}

    def rows(self, indices: Tensor | None, like: Tensor | None = None) -> Tensor:
        """Those at the indices; if they are not there yet, as ``like`` is in memory."""
        if indices is not None and indices not in self._rows:
            transposed = like is not None and not like.is_contiguous()
            self._rows[indices] = picked(self.whole.T, indices, 1).T if transposed else picked(self.whole, indices)
        return self._rows[indices]

    def put(self, indices: Tensor, rows: Tensor) -> None:
        """Write others there; from now on these are what is picked."""
        if rows.is_contiguous():
            self.whole.index_copy_(0, indices, rows)
        else:
            self.whole.T.scatter_(1, indices.expand(rows.T.shape), rows.T)
        self._rows = {None: self.whole, indices: rows}


def _is_empty(indices: Tensor | None) -> bool:
    return indices is not None and indices.shape[0] == 0


def picked(x: Tensor, indices: Tensor | None, axis: int = 0) -> Tensor:
    return x if indices is None else x.index_select(axis, indices)


def spread(part: Tensor, indices: Tensor | None, shape: Sequence[int], axis: int = 0) -> Tensor:
    """Zeros in this shape, with ``part`` at the indices."""
    return part if indices is None else part.new_zeros(shape).index_copy_(axis, indices, part)


def at_level(grid: torch.Size, levels: int) -> torch.Size:
    """The grid ``levels`` below this one."""
    if levels == 0:
        return grid
    batch, height, width = grid
    return torch.Size((batch, int(height / 2**levels), int(width / 2**levels)))


def _resampled(x: Tensor, grid: torch.Size, levels: int) -> Tensor:
    return _matrix(resample(_pictures(x, grid), levels)) if levels else x


def _gathered(g: Tensor, grid: torch.Size, levels: int) -> Tensor:
    """The adjoint of `_resampled`, from the ``grid`` to which that led."""
    return 4.0**levels * _resampled(g, grid, -levels) if levels else g


def _pictures(x: Tensor, grid: torch.Size) -> Tensor:
    """(n, positions) -> (B, n, h, w), channels-last."""
    return x.T.flatten().view(*grid, len(x)).permute(0, 3, 1, 2)  # contiguous() skips one channel


def _matrix(pictures: Tensor) -> Tensor:
    """(B, n, h, w) -> (n, positions)."""
    return pictures.transpose(0, 1).flatten(1)


def _is_matrix(weight: Tensor) -> bool:
    """Whether it joins units at the same position alone."""
    return weight.ndim == 2 or weight.shape[-1] == 1


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """A x; transposed in memory where that is faster: of many rows at more positions."""
    rows, positions = len(weight), x.shape[1]
    return (x.T @ weight.T).T if WIDE <= rows < positions else weight @ x


def _convolution(weight: Tensor, x: Tensor, grid: torch.Size, groups: int = 1) -> Tensor:
    """A x."""
    return _matrix(F.conv2d(_pictures(x, grid), weight, padding=weight.shape[-1] // 2, groups=groups))


def _outer(g: Tensor, x: Tensor, weight: Tensor, grid: torch.Size, groups: int = 1) -> Tensor:
    """g x^T: the gradient at (some of) ``weight``, between the units of ``x`` and ``g``."""
    shape = (len(g), len(x) // groups, *weight.shape[2:])
    if groups == 1 and _is_matrix(weight):
        narrow = len(x) < min(len(g), NARROW)  # the narrow factor first: BLAS is up to seven times as fast
        return ((x @ g.T).T if narrow else g @ x.T).view(shape)
    pictures, gradients, padding = _pictures(x, grid), _pictures(g, grid), weight.shape[-1] // 2
    result: Tensor = conv2d_weight(pictures, shape, gradients, padding=padding, groups=groups)
    return result


def _channelwise(weight: Tensor, x: Tensor, grid: torch.Size) -> Tensor:
    """A x with a kernel for each unit; where these are apart in memory as one picture, n b h w -> 1 (n b) h w."""
    if not x.is_contiguous():
        return _convolution(weight, x, grid, groups=len(x))
    (batch, height, width), units = grid, len(x)
    kernels = weight[:, None].expand(-1, batch, -1, -1, -1).flatten(0, 1)
    picture = x.reshape(1, units * batch, height, width)
    return F.conv2d(picture, kernels, padding=weight.shape[-1] // 2, groups=units * batch).view(units, -1)


def _channelwise_outer(g: Tensor, x: Tensor, weight: Tensor, grid: torch.Size) -> Tensor:
    """g x^T likewise. With large kernels torch takes long, so that this is a convolution of x with g."""
    (batch, height, width), (units, _), side = grid, x.shape, weight.shape[-1]
    if side <= LARGE:
        return _outer(g, x, weight, grid, groups=units)
    picture, kernels = x.reshape(1, units * batch, height, width), g.reshape(units * batch, 1, height, width)
    products = F.conv2d(picture, kernels, padding=side // 2, groups=units * batch)
    return products.view(units, batch, 1, side, side).sum(1)
