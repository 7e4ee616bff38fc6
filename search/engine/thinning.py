"""Thinning out: the groups of a network that are missed least for what they cost are removed, a few at a time.

Growth overshoots: what was useful early stays although it is superfluous later. So groups are removed again by
measurement, and the rest is fitted in between.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.init import buffers_kept
from nas.models import network
from nas.models.network import alive_cost, compacted, inner, settle, within
from nas.models.price import Currency
from nas.parameters import (
    block_parameters,
    gate_parameters,
    growing_parameters,
    param_groups,
    projection_parameters,
    unit_parameters,
)  # fmt: skip
from nas.parts import Part, active_parts, alive_entries
from nas.search.training import ranks
from nas.search.training.compute import device_of
from nas.search.training.loop import LossFunction

SHARE = 0.12  # of what a network costs, removed between two fits
OVERSHOOT = 0.04  # by what part a network may be smaller than it was to be
FREE = 1e-3  # the least price

Pair = tuple[Tensor, Tensor]


def fitted(net: nn.Module, fit: Callable[[nn.Module], None]) -> nn.Module:
    """``net`` after what is alive in it was trained by ``fit``, in place; nothing else comes alive."""
    small, units = inner(net)
    for p, alive in alive_entries(_groups(small)):
        p.register_hook(partial(torch.mul, alive))
    fit(small)
    settle(small)
    return within(small, units, net)


def without_groups(net: nn.Module) -> nn.Module:
    """What is left of a network of this plan, compact, without any searched group: nothing smaller can be reached."""
    net = copy.deepcopy(net)
    for p in net.parameters():
        p.detach().fill_(1)
    for part in active_parts(_groups(net)):
        part.remove()
    return compacted(net)


def thin_out(
    net: nn.Module,
    size: float,
    fit: Callable[[nn.Module], None],
    loss_fn: LossFunction,
    probe: Pair,
    *,
    currency: Currency = "params",
    rank_by: Currency | None = "params",
    share: float = SHARE,
) -> nn.Module:
    """Remove the groups that are missed least for what they cost, until the network costs at most ``size``.

    Groups are those that the penalties of a search act on: units, blocks, gates, projections, rings of kernels. How
    much one is missed is the growth of the loss on ``probe`` without it, divided by its price. After some are removed
    the rest is fitted.

    Args:
        net: a searched network, left as it is.
        size: what the compact network may cost, in ``currency``.
        fit: trains a network for a while, in place.
        loss_fn: mean loss of ``(prediction, y)``.
        probe: a pair (x, y).
        currency: "params" or "flops" (multiply-adds per pixel).
        rank_by: the currency of the prices that losses are divided by; None: they are not.
        share: part of the present cost that is removed between two fits, in (0, 1).

    Returns:
        A network of the plan of ``net`` that costs at most ``size``; ``net`` itself if it does.

    Raises:
        ValueError: what cannot be removed costs more than ``size``, or ``share`` is out of range.
    """
    steps = thinning(net, size, fit, loss_fn, probe, currency=currency, rank_by=rank_by, share=share)
    return [net, *steps][-1]


def thinning(
    net: nn.Module,
    size: float,
    fit: Callable[[nn.Module], None],
    loss_fn: LossFunction,
    probe: Pair,
    *,
    currency: Currency = "params",
    rank_by: Currency | None = "params",
    share: float = SHARE,
) -> Iterator[nn.Module]:
    """The networks on the way of `thin_out`, one after each fit."""
    if not 0 < share < 1:
        raise ValueError(f"thin_out(share=...) must lie in (0, 1), got {share}")
    before = None
    while (cost := network.cost(compacted(net), currency)) > size:
        alive = network.alive_cost(net, currency)
        if (cost, alive) == before:
            raise ValueError(
                f"the network stays at {cost:,.0f} ({currency}) although groups were removed; {size:,.0f} is too small"
            )
        before, (small, units) = (cost, alive), inner(net)
        ranked = _least_missed_first(small, loss_fn, probe, rank_by)
        if not ranked:
            raise ValueError(
                f"what is left costs {cost:,.0f} ({currency}), and none of it can go; {size:,.0f} is too small"
            )
        _remove(small, ranked, max(size, (1 - share) * cost), currency)
        net = fitted(within(small, units, net), fit)
        yield net


@contextmanager
def removed(net: nn.Module, part: Part) -> Iterator[None]:
    """A network in evaluation mode without one of its parts, for a while."""
    with buffers_kept(net), part.removed():
        settle(net)
        yield


@torch.no_grad()
def _least_missed_first(net: nn.Module, loss_fn: LossFunction, probe: Pair, rank_by: Currency | None) -> list[Part]:
    """The parts by their losses per price. Several ranks (`nas.search.training.ranks`) measure some of them each."""
    x, y = (each.to(device_of(net)) for each in probe)

    def measured() -> tuple[float, float]:
        return float(loss_fn(net(x), y)), 0.0 if rank_by is None else alive_cost(net, rank_by)

    def missed(part: Part) -> float:
        with removed(net, part):
            without, left = measured()
        return (without - loss) / (1.0 if rank_by is None else max(cost - left, FREE))

    net.eval()
    loss, cost = measured()
    parts = list(active_parts(_groups(net)))
    ranked = zip(ranks.spread(lambda some: list(map(missed, some)), parts), parts, strict=True)
    return [part for _, part in sorted(ranked, key=lambda each: each[0])]


def _groups(net: nn.Module) -> list[dict[str, Any]]:
    """What the penalties of a search act on; empty where nothing of it is left."""
    searched = (
        unit_parameters(net), gate_parameters(net), block_parameters(net), projection_parameters(net),
        growing_parameters(net),
    )  # fmt: skip
    return param_groups(net, lam=1.0, lr=1.0) if any(searched) else []


def _remove(net: nn.Module, ranked: Sequence[Part], goal: float, currency: Currency) -> None:
    """Remove parts, in this order, until the network costs ``goal``; leave out those that would lead far below it."""
    lowest = (1 - OVERSHOOT) * goal
    cost = alive_cost(net, currency)
    costs: dict[Part, float] = {}
    for part in ranked:
        if cost <= goal:
            return
        with part.removed():
            costs[part] = alive_cost(net, currency)
        if costs[part] >= lowest:
            part.remove()
            cost = costs[part]
    if cost > goal:  # no part is so small
        max(costs, key=lambda part: costs[part]).remove()
