"""Weights that are read off by the prox of a penalty, many small tensors in one call."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nas.groups import ROWS, Axis, Groups, along, unit_norms, unit_size
from nas.penalised import axes_of, seen, unseen
from nas.penalties import GroupLasso, Penalty, Step, Zero, stacked, takes_out

SMALL = 2**14  # entries, below which a call costs more than the computation
LARGE = 2**19  # entries, from which on it pays to look for what is awake
FEW = 0.5  # share of the groups that are awake, below which writing these alone is faster


class Reading(NamedTuple):
    """What a penalty sees at once, of which its prox is read off: one tensor, or those that share units.

    Attributes:
        penalty: J.
        z: the tensors.
        step: of the prox.
        out: where the results go, in place; it may be ``z``.
        joint: as in `Penalised`.
    """

    penalty: Penalty
    z: Sequence[Tensor]
    step: Step
    out: Sequence[Tensor]
    joint: bool | Sequence[Axis]


Mark = tuple[int, int]


def mark(tensor: Tensor) -> Mark:
    """Changes when torch writes into a tensor, and when it gets other storage."""
    return tensor._version, tensor.data_ptr()


class Sleeping:
    """Which units of tensors are zero, of those that are mostly zero, as long as nobody writes into these tensors."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()  # marks and zero units, by the first tensor

    def note(self, tensors: Sequence[Tensor], zero: Tensor) -> None:
        """These units are ``zero`` now."""
        self._known.pop(tensors[0], None)
        if zero.count_nonzero() > (1 - FEW) * len(zero):
            self._known[tensors[0]] = list(map(mark, tensors)), zero

    def awake(self, tensors: Sequence[Tensor], zero: Tensor) -> Tensor | None:
        """The indices of units that are not zero, or are not to be ``zero``; None if that is not known."""
        marks, asleep = self._known.get(tensors[0], ([], zero))
        return (asleep & zero).logical_not_().nonzero()[:, 0] if marks == list(map(mark, tensors)) else None

    def clear(self) -> None:
        self._known.clear()


def readings(
    penalty: Penalty,
    z: Sequence[Tensor],
    steps: Sequence[Step],
    out: Sequence[Tensor],
    joint: bool | Sequence[Axis],
) -> list[Reading]:
    """Of each tensor, or of the units that they share."""
    if axes_of(joint, len(z)) is not None:
        return [Reading(penalty, z, steps[0], out, joint)]
    return [Reading(penalty, [a], step, [b], False) for a, step, b in zip(z, steps, out, strict=True)]


def write_prox(readings: Sequence[Reading], sleeping: Sleeping | None = None) -> None:
    """out <- prox(z, step) of each, in place; small ones that are alike in one call. (Of larger ones, copying them into
    one costs more than a call.) What is ``sleeping`` and stays so need not be written."""
    alike: dict[Any, list[Reading]] = defaultdict(list)
    for k, reading in enumerate(readings):
        alike[_kind(reading) or k].append(reading)
    for kind, together in alike.items():
        if kind is Zero:
            _write(together, [z for reading in together for z in reading.z])
        elif len(together) > 1:
            _write_prox_of_stack(together)
        elif (axes := _rows(together[0])) is not None:
            _shrink(together[0], axes, sleeping)
        else:
            _write_prox_of(together[0])


def _kind(reading: Reading) -> Any:
    """What is equal in readings that can be done in one call; None: by itself. The results are the same bit for bit, so
    that `Bregman.resync` finds no change where there is none."""
    penalty, z, step, out, joint = reading
    if isinstance(penalty, Zero):
        return Zero
    if isinstance(step, Tensor) or _shares_rows(reading) or sum([tensor.numel() for tensor in z]) > SMALL:
        return None
    many = stacked(penalty, 2 if joint else z[0].ndim)  # the same object for equal penalties
    layout = [(tensor.shape, tensor.dtype, tensor.device) for tensor in z]
    return many and (id(many), step, axes_of(joint, len(z)), *layout, out[0].dtype)


def _shares_rows(reading: Reading) -> bool:
    """Whether the groups are joint units, whose norms can be found without joining the tensors."""
    return bool(reading.joint) and isinstance(reading.penalty, GroupLasso) and reading.penalty.groups == ROWS


def _rows(reading: Reading) -> tuple[Axis, ...] | None:
    """Where the groups of a group lasso lie, if they are joint units or slices of a tensor along its first axis."""
    if _shares_rows(reading):
        return axes_of(reading.joint, len(reading.z))
    over = tuple(range(1, reading.z[0].ndim))
    slices = not reading.joint and over and isinstance(reading.penalty, GroupLasso)
    return (0,) if slices and reading.penalty.groups == Groups(over=over) else None  # type: ignore[attr-defined]


def _shrink(reading: Reading, axes: Sequence[Axis], sleeping: Sleeping | None) -> None:
    """The prox of a group lasso, which multiplies each group by a factor."""
    penalty, z, step, out, _ = reading
    factor = penalty.shrinkage(unit_norms(z, axes), unit_size(z, axes), step)  # type: ignore[attr-defined]
    if not factor.is_cpu or not any(map(_is_large, out)):
        sleeping = None  # finding what is awake costs more than it spares
    zero = factor == 0
    few = None if sleeping is None else sleeping.awake(out, zero)
    for source, target, axis in zip(z, out, axes, strict=True):
        if few is not None and axis == 0 and _is_large(target):
            awake = source.index_select(0, few).mul_(along(factor[few], source, axis))
            target.index_copy_(0, few, awake.to(target.dtype))
        else:
            torch.mul(source, along(factor, source, axis), out=target)
    if sleeping is not None:
        sleeping.note(out, zero)


def _is_large(tensor: Tensor) -> bool:
    return tensor.numel() >= LARGE


def _write_prox_of(reading: Reading) -> None:
    penalty, z, step, out, joint = reading
    if axes_of(joint, len(z)) is None and takes_out(penalty) and z[0].dtype == out[0].dtype:
        penalty.prox(z[0], step, out=out[0])  # type: ignore[call-arg, arg-type]
    else:
        _write([reading], unseen(penalty.prox(seen(z, joint), step), out, joint, rest=z))  # type: ignore[arg-type]


def _write_prox_of_stack(together: Sequence[Reading]) -> None:
    """As `_write_prox_of`, for readings of one `_kind`."""
    penalty, z, step, _, joint = together[0]
    many = stacked(penalty, 2 if joint else z[0].ndim)
    results = many.prox(torch.stack([seen(reading.z, joint) for reading in together]), step)
    pairs = zip(together, results.unbind(), strict=True)
    _write(together, [part for reading, result in pairs for part in unseen(result, reading.out, joint, rest=reading.z)])


def _write(readings: Sequence[Reading], results: Sequence[Tensor]) -> None:
    torch._foreach_copy_([tensor for reading in readings for tensor in reading.out], list(results))
