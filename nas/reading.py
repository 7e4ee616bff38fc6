"""Weights that are read off by the prox of a penalty, many small tensors in one call."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas.groups import ROWS, Axis, along, unit_norms, unit_size
from nas.penalised import axes_of, seen, unseen
from nas.penalties import GroupLasso, Penalty, Step, Zero, stacked, takes_out

SMALL = 2**14  # entries, below which a call costs more than the computation


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


def write_prox(readings: Sequence[Reading]) -> None:
    """out <- prox(z, step) of each, in place; small ones that are alike in one call. (Of larger ones, copying them into
    one costs more than a call.)"""
    alike: dict[Any, list[Reading]] = defaultdict(list)
    for k, reading in enumerate(readings):
        alike[_kind(reading) or k].append(reading)
    for kind, together in alike.items():
        if kind is Zero:
            _write(together, [z for reading in together for z in reading.z])
        elif len(together) == 1:
            _write_prox_of(together[0])
        else:
            _write_prox_of_stack(together)


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


def _write_prox_of(reading: Reading) -> None:
    penalty, z, step, out, joint = reading
    axes = axes_of(joint, len(z))
    if axes is None and takes_out(penalty) and z[0].dtype == out[0].dtype:
        penalty.prox(z[0], step, out=out[0])  # type: ignore[call-arg, arg-type]
    elif axes is not None and _shares_rows(reading):  # without joining
        factor = penalty.shrinkage(unit_norms(z, axes), unit_size(z, axes), step)  # type: ignore[attr-defined]
        for source, target, axis in zip(z, out, axes, strict=True):
            torch.mul(source, along(factor, source, axis), out=target)
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
