"""The front: networks of chosen sizes, thinned out from one that grew.

Growth overshoots: what was useful early stays although it is superfluous later. So groups are removed again by
measurement, a few at a time, and the rest is fitted in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.models.compact import compact, expand, kept_units
from nas.models.dag import DagNet
from nas.models.price import Currency, price, total
from nas.parameters import param_groups
from nas.parts import Part, active_parts
from nas.search.loop import LossFunction

SHARE = 0.12  # of what a network costs, removed between two fits

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
    fit(inner.net)
    return inner.within(net)


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
        ValueError: what cannot be removed costs more than ``size``.
    """
    while (cost := total(compact(net).plan, currency)) > size:
        inner = Inner.of(net)
        ranked = _by_loss_per_price(inner.net, loss_fn, probe, currency, rank_by)
        if not ranked:
            raise ValueError(
                f"the smallest network of this search costs {cost:,.0f} ({currency}), more than {size:,.0f}"
            )
        _remove(ranked, min(cost - size, share * cost))
        net = fitted(inner.within(net), fit)
    return net


def _remove(ranked: Sequence[tuple[Part, float]], budget: float) -> None:
    """Remove parts, in this order, until they save the budget; leave out those that save far more."""
    fitting = [(part, saved) for part, saved in ranked if saved <= 2 * budget]
    for part, saved in fitting or [min(ranked, key=lambda each: each[1])]:
        if budget > 0:
            part.remove()
            budget -= saved


@torch.no_grad()
def _by_loss_per_price(
    net: DagNet, loss_fn: LossFunction, probe: Pair, currency: Currency, rank_by: Currency | None
) -> list[tuple[Part, float]]:
    """The parts with what each saves in ``currency``, the least missed first."""
    x, y = probe
    whole = float(loss_fn(net(x), y))
    ranked = []
    for part in active_parts(param_groups(net, lam=1.0, lr=1.0)):
        with part.removed():
            loss = float(loss_fn(net(x), y)) - whole
        per = 1.0 if rank_by is None else max(price(part, net.plan, rank_by), 1e-9)
        ranked.append((loss / per, part, price(part, net.plan, currency)))
    return [(part, saved) for _, part, saved in sorted(ranked, key=lambda each: each[0])]
