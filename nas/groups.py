"""How a tensor is cut into groups, and how a unit that spans several tensors becomes one row."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import Parameter

from nas.nonzero import any_over, nonzero


@dataclass(frozen=True)
class Groups:
    """The axes that run inside a group; each index of the other axes is one group.

    Of a matrix of shape (out, in) or a convolution weight of shape (out, in, height, width):

        ROWS            Groups(over=(1,))           one group per row
        COLUMNS         Groups(over=(0,))           one per column
        FILTERS         Groups(over=(1, 2, 3))      one per filter (output channel)
        CHANNELS        Groups(over=(0, 2, 3))      one per input channel
        KERNELS         Groups(over=(2, 3))         one per kernel
        WHOLE           Groups(over=None)           the whole tensor, whatever its shape
        ENTRIES         Groups(over=())             one per entry
        Groups(over=(0, 1), block=(4, 16))          one per block of 4 rows and 16 columns

    Results of one number per group are broadcastable to `cut` of the tensor, which is the tensor itself unless
    ``block`` is given: the filters of a weight of shape (8, 4, 3, 3) have norms of shape (8, 1, 1, 1).

    Raises:
        ValueError: an axis of ``over`` is negative or named twice, ``block`` is not one positive size per axis of
            ``over``, or (when a tensor is given to a method) the tensor lacks an axis or is not a multiple of a block.
    """

    over: tuple[int, ...] | None
    block: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("over", "block"):  # lists, as read from a file, are welcome
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif not (value is None or (isinstance(value, tuple) and all(isinstance(i, int) for i in value))):
                raise ValueError(f"Groups({name}=...) must be a tuple of integers, got {value!r}")
        if self.over is not None and (min(self.over, default=0) < 0 or len(set(self.over)) < len(self.over)):
            raise ValueError(f"Groups(over={self.over}) must name each axis once, counted from 0")
        if self.block is not None and (len(self.block) != len(self.over or ()) or min(self.block, default=1) < 1):
            raise ValueError(f"Groups(block={self.block}) must have one size >= 1 for each axis of over={self.over}")

    def cut(self, weight: Tensor) -> Tensor:
        """A view of ``weight`` in which every group runs along whole axes: blocks get axes of their own."""
        if self.block is None:
            return weight
        for axis, size in sorted(zip(self.over or (), self.block, strict=True), reverse=True):
            weight = weight.unflatten(axis, (-1, size))
        return weight

    def norms(self, weight: Tensor) -> Tensor:
        """Euclidean norm of each group, broadcastable to ``cut(weight)``."""
        self.check(weight)
        if self.over == ():
            return weight.abs()
        view = self.cut(weight)
        norms: Tensor = torch.linalg.vector_norm(view, dim=self._axes(view), keepdim=True)
        return norms

    def rms(self, weight: Tensor) -> Tensor:
        """Root mean square of each group, broadcastable to ``cut(weight)``; magnitudes in no group."""
        return self.norms(weight) / math.sqrt(max(1, self.size(weight)))

    def means(self, weight: Tensor) -> Tensor:
        """Mean magnitude of each group, broadcastable to ``cut(weight)``."""
        self.check(weight)
        if self.over == ():
            return weight.abs()
        view = self.cut(weight)
        return view.abs().mean(dim=self._axes(view), keepdim=True)

    def active(self, weight: Tensor) -> Tensor:
        """True where a group has a non-zero entry (exact: no threshold), broadcastable to ``cut(weight)``."""
        self.check(weight)
        found = self.cut(nonzero(weight))
        return found if self.over == () else any_over(found, self._axes(found), keepdim=True)

    def spread(self, per_group: Tensor, weight: Tensor, rest: float | Tensor = 1.0) -> Tensor:
        """The values of the groups, one for each entry, in the shape of ``weight``; ``rest`` in no group."""
        return per_group.expand(self.cut(weight).shape).reshape(weight.shape)

    def size(self, weight: Tensor) -> int:
        """Number of entries in one group."""
        if self.over is None:
            return weight.numel()
        return math.prod(self.block or (weight.shape[axis] for axis in self.over))

    def lie_in(self, larger: "Groups") -> bool:
        """Whether each of these groups lies in one of the ``larger`` ones, or shares no entry with any."""
        if self.over == ():
            return True
        if self._side_of_hole() < larger._side_of_hole():
            return False
        if larger.over is None:
            return True
        return self.over is not None and self.block is None and larger.block is None and {*self.over} <= {*larger.over}

    def stacked(self, ndim: int) -> "Groups":
        """These groups in each tensor of a stack of tensors of ``ndim`` axes, along its first axis."""
        inside = range(ndim) if self.over is None else self.over
        return replace(self, over=tuple(axis + 1 for axis in inside))

    def check(self, weight: Tensor) -> None:
        """Raise ValueError unless the groups fit ``weight``."""
        fits = max(self.over or (-1,)) < weight.ndim and all(
            weight.shape[axis] % size == 0 for axis, size in zip(self.over or (), self.block or (), strict=False)
        )
        if not fits:
            block = "" if self.block is None else f", block={self.block}"
            raise ValueError(f"Groups(over={self.over}{block}) does not fit a tensor of shape {tuple(weight.shape)}")

    def _side_of_hole(self) -> int:
        """Side of the middle whose entries are in no group; 0 where every entry is in one."""
        return 0

    def _axes(self, view: Tensor) -> tuple[int, ...]:
        """The axes of ``cut`` that run inside a group."""
        if self.over is None:
            return tuple(range(view.ndim))
        if self.block is None:
            return self.over
        return tuple(axis + 1 + sum(other < axis for other in self.over) for axis in self.over)


@dataclass(frozen=True)
class Rim(Groups):
    """Of kernels (the last two axes) what lies outside the middle ``inside`` x ``inside``; the middle is in no group.

    Of a convolution weight of shape (out, in, height, width):

        Rim(3)                      one group: the rims of all kernels together
        Rim(3, over=(1, 2, 3))      one per filter
        Rim(3, over=(2, 3))         one per kernel

    A kernel whose rim is zero is a smaller kernel. The rims Rim(3), Rim(5), ... of one weight are nested, see
    `nas.rings`. Methods that give one number per group are as those of `Groups`.

    Args:
        inside: side of the middle, >= 1.
        over: as in `Groups`, with the last two axes among them; all axes by default.
        block: None; a rim is not cut into blocks.

    Raises:
        ValueError: an argument out of range, or a tensor without kernels (of fewer than three axes) or whose last two
            sizes do not exceed ``inside`` by an even number.
    """

    inside: int
    over: tuple[int, ...] | None = field(default=None, kw_only=True)
    block: None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.inside, int) or isinstance(self.inside, bool) or self.inside < 1:
            raise ValueError(f"Rim(inside=...) must be an integer >= 1, got {self.inside!r}")
        if self.block is not None:
            raise ValueError(f"Rim(block=...) must be None: a rim is not cut into blocks, got {self.block!r}")
        super().__post_init__()

    def norms(self, weight: Tensor) -> Tensor:
        """Euclidean norm of each rim, broadcastable to ``weight``."""
        return super().norms(self._rim(weight))

    def rms(self, weight: Tensor) -> Tensor:
        """Root mean square of the rim of each entry, and the magnitudes of the middle; shaped like ``weight``."""
        return self.spread(super().rms(weight), weight, rest=weight.abs())

    def means(self, weight: Tensor) -> Tensor:
        """Mean magnitude of each rim, broadcastable to ``weight``."""
        return super().means(self._rim(weight)) * (super().size(weight) / self.size(weight))

    def active(self, weight: Tensor) -> Tensor:
        """True where a rim has a non-zero entry (exact: no threshold), broadcastable to ``weight``."""
        return super().active(self._rim(weight))

    def spread(self, per_group: Tensor, weight: Tensor, rest: float | Tensor = 1.0) -> Tensor:
        """The values of the rims, one for each entry, in the shape of ``weight``; ``rest`` in the middle."""
        spread = super().spread(per_group, weight).clone()
        self._middle(spread)[...] = self._middle(rest) if isinstance(rest, Tensor) else rest
        return spread

    def size(self, weight: Tensor) -> int:
        """Number of entries in one rim."""
        kernel = weight.shape[-2] * weight.shape[-1]
        return super().size(weight) // kernel * (kernel - self.inside**2)

    def check(self, weight: Tensor) -> None:
        """Raise ValueError unless the rims fit ``weight``."""
        axes, kernel = set(range(weight.ndim)), {weight.ndim - 2, weight.ndim - 1}
        fits = weight.ndim >= 3 and kernel <= set(self._axes(weight)) <= axes
        if not fits or any(size <= self.inside or (size - self.inside) % 2 for size in weight.shape[-2:]):
            raise ValueError(
                f"Rim({self.inside}, over={self.over}) does not fit a tensor of shape {tuple(weight.shape)}: it needs "
                f"kernels, in two last axes that are in over, larger than {self.inside} by an even number"
            )

    def _middle(self, weight: Tensor) -> Tensor:
        """A view of the entries that are in no group."""
        for axis in (-2, -1):
            weight = weight.narrow(axis, (weight.shape[axis] - self.inside) // 2, self.inside)
        return weight

    def _rim(self, weight: Tensor) -> Tensor:
        """``weight`` with zeros in the middle."""
        self.check(weight)
        rim = weight.clone()
        self._middle(rim).zero_()
        return rim

    def _side_of_hole(self) -> int:
        return self.inside


ENTRIES = Groups(over=())
ROWS = Groups(over=(1,))
COLUMNS = Groups(over=(0,))
FILTERS = Groups(over=(1, 2, 3))
CHANNELS = Groups(over=(0, 2, 3))
KERNELS = Groups(over=(2, 3))
WHOLE = Groups(over=None)


Axis = int | tuple[int, int, int, int]
"""Where units lie in a tensor: along an axis, one slice each; or (axis, outer, inner, taken): the axis is cut into
outer x units x inner slices, of which unit i has those with i in the middle, in the first ``taken`` of the outer parts,
or the last ``-taken`` of them if that is negative. The other parts are of no unit."""


class Members(list[Parameter]):
    """The tensors that hold the units of a layer: unit i is what `slices` of all of them have at i.

    Args:
        tensors: each with as many units.
        axes: where they lie in each tensor; along the first axis of all by default.
    """

    def __init__(self, tensors: Iterable[Parameter] = (), axes: Iterable[Axis] | None = None) -> None:
        super().__init__(tensors)
        self.axes: list[Axis] = [0] * len(self) if axes is None else list(axes)


def unit_axes(members: Sequence[Tensor]) -> list[Axis]:
    """The axes of `Members`; of any other sequence the first of each tensor."""
    return members.axes if isinstance(members, Members) else [0] * len(members)


def num_units(tensor: Tensor, axis: Axis) -> int:
    """How many units lie in a tensor.

    Raises:
        ValueError: it lacks the axis, or its size is no multiple of what a unit has.
    """
    k, outer, inner, taken = axis if isinstance(axis, tuple) else (axis, 1, 1, 1)
    if not (
        0 <= k < tensor.ndim and 1 <= abs(taken) <= outer and inner >= 1 and tensor.shape[k] % (outer * inner) == 0
    ):
        raise ValueError(f"no units lie along {axis} in a tensor of shape {tuple(tensor.shape)}")
    return tensor.shape[k] // (outer * inner)


def unit_of(tensor: Tensor, axis: Axis) -> Tensor:
    """By index along the axis of the units which unit this is of; where it is of none, beside which one it lies."""
    k, _, inner, _ = axis if isinstance(axis, tuple) else (axis, 1, 1, 1)
    return torch.arange(tensor.shape[k], device=tensor.device) // inner % max(1, num_units(tensor, axis))


def slices(tensor: Tensor, axis: Axis) -> Tensor:
    """A view of shape (units, ...): what each unit has of a tensor."""
    if not isinstance(axis, tuple):
        return tensor.movedim(axis, 0) if axis else tensor
    k, outer, inner, taken = axis
    parts = tensor.movedim(k, 0).unflatten(0, (outer, num_units(tensor, axis), inner))
    units: Tensor = parts[_own(outer, taken)].movedim(1, 0)
    return units


def whole_axis(axis: Axis) -> Axis:
    """With what is of no unit counted to the units."""
    return (axis[0], axis[1], axis[2], axis[1]) if isinstance(axis, tuple) else axis


def dim_of(axis: Axis) -> int:
    """The axis of the tensor along which its units lie."""
    return axis[0] if isinstance(axis, tuple) else axis


def unit_size(tensors: Sequence[Tensor], axes: Sequence[Axis] | None = None) -> int:
    """Number of entries of one unit: the columns of `join_rows`."""
    return sum(slices(tensor, axis)[:1].numel() for tensor, axis in _pairs(tensors, axes))


def join_rows(tensors: Sequence[Tensor], axes: Sequence[Axis] | None = None) -> Tensor:
    """One row per unit: row i holds the i-th slice of every tensor, for instance a filter and its bias.

    Args:
        tensors: each with as many units.
        axes: where the units lie in each tensor; along the first axis of all tensors by default.

    Returns:
        Tensor of shape (units, entries of one unit).
    """
    return torch.cat([_by_unit(tensor, axis) for tensor, axis in _pairs(tensors, axes)], dim=1)


def split_rows(
    rows: Tensor,
    like: Sequence[Tensor],
    axes: Sequence[Axis] | None = None,
    rest: float | Sequence[Tensor] = 0.0,
) -> list[Tensor]:
    """The inverse of `join_rows`: pieces of ``rows`` in the shapes of ``like``; entries of no unit are ``rest``."""
    pairs = _pairs(like, axes)
    pieces = rows.split([_by_unit(tensor, axis).shape[1] for tensor, axis in pairs], dim=1)
    others: Sequence[float | Tensor] = [rest] * len(pairs) if isinstance(rest, float) else rest
    return [
        piece.reshape(tensor.movedim(axis, 0).shape).movedim(0, axis)
        if not isinstance(axis, tuple)
        else _filled(piece, tensor, axis, other)
        for piece, (tensor, axis), other in zip(pieces, pairs, others, strict=True)
    ]


def _filled(piece: Tensor, like: Tensor, axis: Axis, rest: float | Tensor) -> Tensor:
    whole = torch.empty_like(like, dtype=piece.dtype).copy_(torch.as_tensor(rest))
    place = slices(whole, axis)
    place.copy_(piece.reshape(place.shape))
    return whole


def unit_norms(tensors: Sequence[Tensor], axes: Sequence[Axis] | None = None) -> Tensor:
    """Euclidean norm of each row of `join_rows`, of shape (units,), without joining them."""
    norms = [torch.linalg.vector_norm(_by_unit(tensor, axis), dim=1) for tensor, axis in _pairs(tensors, axes)]
    joined: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return joined


def along(per_unit: Tensor, tensor: Tensor, axis: Axis) -> Tensor:
    """A vector with one entry per unit, broadcastable to ``tensor`` whose units lie along ``axis``; 1 where it has
    none."""
    if not isinstance(axis, tuple):
        return per_unit.reshape(-1, *(1,) * (tensor.ndim - 1 - axis))
    k, outer, inner, taken = axis
    parts = torch.ones_like(per_unit)[None, :, None].repeat(outer, 1, inner)
    parts[_own(outer, taken)] = per_unit[:, None]
    return parts.reshape(-1, *(1,) * (tensor.ndim - 1 - k))


def _own(outer: int, taken: int) -> slice:
    """The outer parts that are of units."""
    return slice(taken) if taken > 0 else slice(outer + taken, None)


def _by_unit(tensor: Tensor, axis: Axis) -> Tensor:
    """Shape (units, entries of a unit in this tensor)."""
    found = slices(tensor, axis)
    return found.unsqueeze(1) if found.ndim == 1 else found.flatten(1)


def _pairs(tensors: Sequence[Tensor], axes: Sequence[Axis] | None) -> list[tuple[Tensor, Axis]]:
    return list(zip(tensors, [0] * len(tensors) if axes is None else axes, strict=True))
