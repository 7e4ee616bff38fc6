"""Second moments that several entries share: one for each tensor, or for each group (`nas.AdaBreg`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nas.groups import ENTRIES, ROWS, WHOLE, Groups, along, unit_norms, unit_size, whole_axis
from nas.penalised import axes_of
from nas.penalties import groups_of


def sharing(group: Mapping[str, Any]) -> Groups:
    """The entries that share one second moment; rows stand for joint units."""
    if group["second_moment"] == "group":
        return ROWS if group["joint"] else groups_of(group["penalty"])
    if group["second_moment"] == "tensor":
        return Slabs(group["stacked"]) if "stacked" in group else WHOLE
    return ENTRIES


@dataclass(frozen=True)
class Slabs(Groups):
    """Tensors of equal shapes that are joined along their first axis, see `nas.stacks`: one group each."""

    over: None = field(default=None, init=False)
    block: None = field(default=None, init=False)
    count: int

    def cut(self, weight: Tensor) -> Tensor:
        slabs: Tensor = weight.unflatten(0, (self.count, -1))
        return slabs

    def size(self, weight: Tensor) -> int:
        return weight.numel() // self.count

    def _axes(self, view: Tensor) -> tuple[int, ...]:
        return tuple(range(1, view.ndim))


def shared_rms(group: Mapping[str, Any], grads: Sequence[Tensor]) -> list[Tensor]:
    """Root mean square over what shares a second moment, broadcastable to the cut of each gradient of the group."""
    groups = sharing(group)
    if groups == WHOLE:  # as below, in fewer calls
        roots = [math.sqrt(max(1, g.numel())) for g in grads]
        norms = torch._foreach_norm(list(grads))
        return [norm.div_(root).reshape((1,) * g.ndim) for norm, root, g in zip(norms, roots, grads, strict=True)]
    if group["second_moment"] != "group" or not group["joint"]:
        return [groups.rms(g) for g in grads]
    all_axes = axes_of(group["joint"], len(group["params"])) or ()
    axes = [whole_axis(axis) for p, axis in zip(group["params"], all_axes, strict=True) if p.grad is not None]
    units = unit_norms(grads, axes) / math.sqrt(max(1, unit_size(grads, axes)))
    return [along(units, g, axis) for g, axis in zip(grads, axes, strict=True)]


def fit_second_moment(state: dict[str, Any], like: Tensor) -> bool:
    """Let second moments of another number go on from their mean; whether there were any."""
    square = state.get("exp_avg_sq")
    if square is None or square.shape == like.shape:
        return False
    state["exp_avg_sq"] = torch.full_like(like, square.mean(), dtype=square.dtype)
    return True


def step_moments(
    states: Sequence[Mapping[str, Any]],
    grads: Sequence[Tensor],
    rms: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Moves the moments of Adam by a step, in place, and returns what each mean is to be divided by.

        mean   <- beta1 * mean + (1 - beta1) * gradient
        square <- beta2 * square + (1 - beta2) * rms^2
        scale   = (1 - beta1^t) * (sqrt(square / (1 - beta2^t)) + eps)

    Args:
        states: for each tensor t, mean and square, as torch's Adam has them: "step", "exp_avg" and "exp_avg_sq". All of
            one type and on one device.
        grads: for each tensor.
        rms: for each tensor, shaped like its squares.
        betas: beta1 and beta2.
        eps: >= 0.

    Returns:
        For each tensor a tensor shaped like its squares.
    """
    beta1, beta2 = betas
    torch._foreach_lerp_([state["exp_avg"] for state in states], list(grads), 1 - beta1)
    squares = [state["exp_avg_sq"] for state in states]  # many of one number each: joined, so that a call does for all
    square, now = torch.cat([s.flatten() for s in squares]), torch.cat([r.flatten() for r in rms])
    sizes = [s.numel() for s in squares]
    counts = [state["step"] for state in states]
    torch._foreach_add_(counts, 1)
    steps = [count.item() for count in counts]
    bias1, bias2 = (_per_moment([1 - beta**t for t in steps], sizes, square) for beta in betas)
    square.mul_(beta2).addcmul_(now, now, value=1 - beta2)
    torch._foreach_copy_(squares, [part.view_as(s) for part, s in zip(square.split(sizes), squares, strict=True)])
    scale = square.div_(bias2).sqrt_().add_(eps).mul_(bias1)
    return [part.view_as(s) for part, s in zip(scale.split(sizes), squares, strict=True)]


def _per_moment(values: Sequence[float], sizes: Sequence[int], like: Tensor) -> Tensor:
    """A value for each of so many second moments, or one for all if they are equal."""
    each = torch.tensor(values, dtype=like.dtype)
    return (each[0] if len(set(values)) == 1 else each.repeat_interleave(torch.tensor(sizes))).to(like)
