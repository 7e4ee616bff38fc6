"""Thinning out: the groups of a network that are missed least for what they cost are removed, a few at a time.

Growth overshoots: what was useful early stays although it is superfluous later. So groups are removed again by
measurement, and the rest is fitted in between.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas.models.compact import alive_plan, compact, expand, kept_units
from nas.models.dag import DagNet
from nas.models.price import Currency, total
from nas.parameters import param_groups
from nas.parts import Part, active_parts, alive_entries
from nas.search.training import ranks
from nas.search.training.compute import device_of
from nas.search.training.loop import LossFunction

SHARE = 0.12  # of what a network costs, removed between two fits
OVERSHOOT = 0.04  # by what part a network may be smaller than it was to be
FREE = 1e-3  # the least price

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Inner:
    """The smaller supernet inside a searched one.

    Attributes:
        net: what is alive, with the same searched groups.
        units: for every node, "in" and "out" included, the indices that its units have in the searched network.
    """

    net: DagNet
    units: dict[str, Tensor]

    @classmethod
    def of(cls, net: DagNet) -> "Inner":
        small, kept = compact(net, tight=False), kept_units(net, tight=False)
        return cls(small, {name: kept[name].nonzero()[:, 0] for name in small.plan.units})

    def within(self, net: DagNet) -> DagNet:
        """The same function in the plan of ``net``."""
        return expand(self.net, self.units, net)


def fitted(net: DagNet, fit: Callable[[DagNet], None]) -> DagNet:
    """``net`` after what is alive in it was trained by ``fit``, in place; nothing else comes alive."""
    inner = Inner.of(net)
    for p, alive in alive_entries(_groups(inner.net)):
        p.register_hook(partial(torch.mul, alive))
    fit(inner.net)
    return inner.within(net)


def without_groups(net: DagNet) -> DagNet:
    """What is left of a network of this plan, compact, without any searched group: nothing smaller can be reached."""
    net = copy.deepcopy(net)
    for p in net.parameters():
        p.detach().fill_(1)
    for part in active_parts(_groups(net)):
        part.remove()
    return compact(net)


def thin_out(
    net: DagNet,
    size: float,
    fit: Callable[[DagNet], None],
    loss_fn: LossFunction,
    probe: Pair,
    *,
    currency: Currency = "params",
    rank_by: Currency | None = "params",
    share: float = SHARE,
) -> DagNet:
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
    net: DagNet,
    size: float,
    fit: Callable[[DagNet], None],
    loss_fn: LossFunction,
    probe: Pair,
    *,
    currency: Currency = "params",
    rank_by: Currency | None = "params",
    share: float = SHARE,
) -> Iterator[DagNet]:
    """The networks on the way of `thin_out`, one after each fit."""
    if not 0 < share < 1:
        raise ValueError(f"thin_out(share=...) must lie in (0, 1), got {share}")
    while (cost := total(compact(net).plan, currency)) > size:
        inner = Inner.of(net)
        ranked = _least_missed_first(inner.net, loss_fn, probe, rank_by)
        if not ranked:
            raise ValueError(
                f"what is left costs {cost:,.0f} ({currency}), and none of it can go; {size:,.0f} is too small"
            )
        _remove(inner.net, ranked, max(size, (1 - share) * cost), currency)
        net = fitted(inner.within(net), fit)
        yield net


@torch.no_grad()
def _least_missed_first(net: DagNet, loss_fn: LossFunction, probe: Pair, rank_by: Currency | None) -> list[Part]:
    """The parts by their losses per price. Several ranks (`nas.search.training.ranks`) measure some of them each."""
    x, y = (each.to(device_of(net)) for each in probe)

    def measured() -> tuple[float, float]:
        return float(loss_fn(net(x), y)), 0.0 if rank_by is None else total(alive_plan(net), rank_by)

    def missed(part: Part) -> float:
        with part.removed():
            without, left = measured()
        return (without - loss) / (1.0 if rank_by is None else max(cost - left, FREE))

    loss, cost = measured()
    parts = list(active_parts(_groups(net)))
    ranked = zip(ranks.spread(lambda some: list(map(missed, some)), parts), parts, strict=True)
    return [part for _, part in sorted(ranked, key=lambda each: each[0])]


def _groups(net: DagNet) -> list[dict[str, Any]]:
    """What the penalties of a search act on; empty where nothing of it is left."""
    searched = (
        net.unit_parameters(), net.gate_parameters(), net.block_parameters(), net.projection_parameters(),
        net.growing_parameters(),
    )  # fmt: skip
    return param_groups(net, lam=1.0, lr=1.0) if any(searched) else []


def _remove(net: DagNet, ranked: Sequence[Part], goal: float, currency: Currency) -> None:
    """Remove parts, in this order, until the network costs ``goal``; leave out those that would lead far below it."""
    lowest = (1 - OVERSHOOT) * goal
    cost = total(alive_plan(net), currency)
    costs: dict[Part, float] = {}
    for part in ranked:
        if cost <= goal:
            return
        with part.removed():
            costs[part] = total(alive_plan(net), currency)
        if costs[part] >= lowest:
            part.remove()
            cost = costs[part]
    if cost > goal:  # no part is so small
        max(costs, key=lambda part: costs[part]).remove()
