"""The front: networks of chosen sizes, thinned out from one that grew.

Growth overshoots: what was useful early stays although it is superfluous later. So groups are removed again by
measurement, a few at a time, and the rest is fitted in between.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor

from nas.models.compact import alive_plan, compact, expand, kept_units
from nas.models.dag import DagNet
from nas.models.price import Currency, total
from nas.parameters import param_groups
from nas.parts import Part, active_parts, alive_entries
from nas.search.data.batches import Batches
from nas.search.engine.stopping import Budget
from nas.search.runs.config import SearchConfig
from nas.search.tasks.task import Task
from nas.search.training import ranks
from nas.search.training.compute import Compute, device_of
from nas.search.training.loop import LossFunction, OnStep
from nas.search.training.retrain import Retraining, retrain

FIT_LR, REFIT_LR = 3e-3, 5e-3
PROBE = 4  # batches
SHARE = 0.12  # of what a network costs, removed between two fits
OVERSHOOT = 0.04  # by what part a network may be smaller than it was to be
FREE = 1e-3  # the least price
MARGIN = 0.9  # of the time for a refit, which is planned by the pace of the fits

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


class Slimming:
    """How a run makes a smaller network of a larger one: fitted, thinned out, refitted.

    It can stop after any step and go on from its `state_dict`; of a fit that was stopped nothing is kept.

    Args:
        net: of the searched plan; left as it is.
        size: what the result may cost at most (`SearchConfig.sizes`).
        config: of the run: fit, refit, steps, price.
        task: gives the loss.
        batches: training data; the epochs are numbered from ``first_epoch``.
        first_epoch: such that the data differ from those of the search and of other networks.
        on_fit: called after each fit with the number of parameters.
        on_step: called between two steps of training.
        compute: where and how; the fits, of many networks for a few steps each, are never compiled.
        budget: time that may be spent: half of it on fits, the rest on the refit, which is shortened if need be.
    """

    def __init__(
        self,
        net: DagNet,
        size: int,
        config: SearchConfig,
        task: Task,
        batches: Batches,
        first_epoch: int,
        *,
        on_fit: Callable[[int], None] = lambda params: None,
        on_step: OnStep = lambda: None,
        compute: Compute = Compute(),
        budget: Budget | None = None,
    ) -> None:
        self.net, self.size, self.config, self.task = compute.place(copy.deepcopy(net)), size, config, task
        self.batches, self.first_epoch = batches, first_epoch
        self.on_fit, self.on_step, self.compute = on_fit, on_step, compute
        self.budget = budget
        self._for_refit = 0.0 if budget is None else budget.left / 2
        self._fits, self._pace = 0, 0.0  # so many so far; seconds per step of the last one
        self._refit_length = None if budget is not None else (config.refit, config.steps)  # epochs, of so many steps
        self._refitting: Retraining | None = None
        self._refit_state: Mapping[str, Any] | None = None

    def run(self) -> DagNet:
        """A network of the same plan that costs at most ``size``.

        Raises:
            ValueError: as `thin_out`.
        """
        if not self._fits:
            self._advance(fitted(self.net, self._fit))
        for net in thinning(
            self.net, self.size, self._fit, self.task.loss, self._probe(),
            currency=self.config.sizes_in, rank_by=self.config.currency,
        ):  # fmt: skip
            self._advance(net)
        return fitted(self.net, self._refit)

    def _advance(self, net: DagNet) -> None:
        self.net, self._fits = net, self._fits + 1
        self.on_step()

    def _fit(self, net: DagNet) -> None:
        late = self.budget is not None and self.budget.left < self._for_refit
        steps = 1 if late else self.config.fit
        batches, began = partial(self._pairs, self._fits * self.config.fit, steps), time.perf_counter()
        compute = replace(self.compute, compile=False)
        retrain(net, batches, self.task.loss, epochs=1, steps=steps, lr=FIT_LR, on_step=self.on_step, compute=compute)
        seconds = ranks.on_first(lambda: time.perf_counter() - began)
        self._pace = self._pace if late and self._pace else seconds / steps
        self.on_fit(net.plan.num_params)

    def _refit(self, net: DagNet) -> None:
        if self._refit_length is None:
            self._refit_length = self._affordable()
        epochs, steps = self._refit_length
        self._refitting = Retraining(
            net, partial(self._pairs, self._fits * self.config.fit, steps), self.task.loss,
            epochs=epochs, steps=steps, lr=REFIT_LR, on_step=self.on_step, compute=self.compute,
        )  # fmt: skip
        if self._refit_state is not None:
            self._refitting.load_state_dict(self._refit_state)
        self._refitting.run()

    def _affordable(self) -> tuple[int, int]:
        """Epochs of the refit that there is time for, and the steps of each."""
        assert self.budget is not None
        steps = max(1, int(MARGIN * self.budget.left / self._pace))
        return min(self.config.refit, max(1, steps // self.config.steps)), min(steps, self.config.steps)

    def _pairs(self, begun: int, steps: int, epoch: int) -> Iterator[Pair]:
        """The data of an epoch of so many steps, where ``begun`` steps of data were used before the first."""
        skipped, within = divmod(begun + (epoch - 1) * steps, self.config.steps)
        pairs = chain.from_iterable(map(self.batches, count(self.first_epoch + skipped)))
        return islice(pairs, within, within + steps)

    def _probe(self) -> Pair:
        """A few batches on which it is measured what is missed."""
        x, y = (torch.cat(each) for each in zip(*islice(self.batches(0), PROBE), strict=True))
        return x, y

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: after the last fit, or within the refit."""
        refit = None if self._refitting is None else self._refitting.state_dict()
        return {
            "net": self.net.state_dict(),
            "fits": self._fits,
            "pace": self._pace,
            "refit": refit,
            "refit_length": self._refit_length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.net.load_state_dict(state["net"])
        self._fits, self._pace, self._refit_state = state["fits"], state["pace"], state["refit"]
        if self._refit_state is not None:
            self._refit_length = state["refit_length"]


def steps_of_slimming(cost: float, size: float, config: SearchConfig) -> int:
    """Steps of training on the way from a network that costs so much to one of a smaller size, about."""
    removals = max(0, math.ceil(math.log(size / cost) / math.log(1 - SHARE)))
    return (1 + removals) * config.fit + config.refit * config.steps


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
