"""Polishing: what a search has found gives back the units and skips that do not earn their place.

Growth alone overshoots: what was useful early stays although it is superfluous later, and under AdaBreg every dual
crosses its threshold in the end. So parts are removed again, by measurement: a part is left out, the rest is refitted,
and the removal stands if the validation loss stays what it was.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import torch
from torch import Tensor

from benchmarks.surgery import LEAST_SQUARES, Part, Surgery, parts_of, skips_of
from nas.models.compact import compact, expand, kept_units
from nas.models.dag import DagNet
from nas.search.data.batches import Batches
from nas.search.training.loop import LossFunction
from nas.search.training.retrain import retrain

MORE = 3  # times the steps for the first fit, and for a trial that comes near
NEAR = 1.7  # a refused trial comes near below this multiple of the best loss
ROOM = 2  # times the parameters, from where skips are closed

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Polished:
    """A compact network on the way.

    Attributes:
        net: the network.
        units: for every node, "in" and "out" included, the indices that its units had before polishing.
        loss: its validation loss.
    """

    net: DagNet
    units: dict[str, Tensor]
    loss: float

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    @property
    def parts(self) -> list[Part]:
        """What can go; units are named as before polishing."""
        return parts_of(self.net, self.units)


def polish(
    net: DagNet,
    batches: Batches,
    loss_fn: LossFunction,
    validate: Callable[[DagNet], float],
    probe: Pair,
    *,
    trials: int = 100,
    steps: int = 300,
    lr: float = 0.01,
    tolerance: float = 0.02,
    first_epoch: int = 1,
    on_trial: Callable[[Polished, bool], None] = lambda candidate, accepted: None,
    surgery: Surgery = LEAST_SQUARES,
) -> list[Polished]:
    """Remove, by measured ablation, what the validation loss does not miss; ``net`` is left as it is.

    The compact network is fitted without any penalty first. Then parts go: first the half of the units that costs
    least, a quarter where that is refused, and so on; at last one by one, units before skips. A small network cannot
    find its way to other skips, so these are reconsidered: first all are opened, then each one that is left is taken
    from a network with more room, and the elimination goes on from there. That counts if it ends with fewer parameters.

    Parts are tried in the order of their cost: the loss on ``probe`` without the part, where others take up what they
    can express of it (`benchmarks.surgery.remove`). After a removal the network is fitted with Adam for ``steps``
    steps, and for three times as many more where it then is near. The removal stands if the validation loss is at most
    ``1 + tolerance`` times the best one so far, and times that which as many steps lead to without the removal.

    Args:
        net: a searched supernet.
        batches: function of the epoch that iterates over pairs (x, y).
        loss_fn: mean loss of ``(prediction, y)``.
        validate: loss on held-out data, >= 0.
        probe: a pair (x, y) on which costs are measured.
        trials: at most so many removals are tried, >= 1.
        steps: optimiser steps after a removal, >= 1.
        lr: highest learning rate of a fit.
        tolerance: by what part the validation loss may grow, >= 0, over all removals together.
        first_epoch: number of the first epoch that is drawn from ``batches``.
        on_trial: called after each trial with what it led to, and whether that stands.
        surgery: how parts are removed and skips opened.

    Returns:
        The networks from the fitted one to the result, the smallest, after each removal or opening that stands.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: training diverged.
    """
    if trials < 1 or steps < 1 or not tolerance >= 0:
        raise ValueError(
            f"polish needs trials and steps >= 1 and tolerance >= 0, got {trials}, {steps} and {tolerance}"
        )
    pairs = chain.from_iterable(map(batches, count(first_epoch)))

    def fitted(candidate: Polished, steps: int) -> Polished:
        trained = copy.deepcopy(candidate.net)
        retrain(trained, lambda epoch: islice(pairs, steps), loss_fn, epochs=1, steps=steps, lr=lr)
        return Polished(trained, candidate.units, validate(trained))

    polisher = _Polisher(net, fitted, loss_fn, probe, trials, steps, tolerance, on_trial, surgery)
    start = fitted(_compacted(net), MORE * steps)
    return polisher.reconsider(polisher.eliminate([start]))


@dataclass
class _Polisher:
    supernet: DagNet
    fit: Callable[[Polished, int], Polished]
    loss_fn: LossFunction
    probe: Pair
    trials_left: int
    steps: int
    tolerance: float
    on_trial: Callable[[Polished, bool], None]
    surgery: Surgery

    def reconsider(self, way: list[Polished]) -> list[Polished]:
        """Open all skips, at the end of the way and where there was more room; then close one after the other there."""
        skips = skips_of(self.supernet)
        for back in (-1, self.room(way)):
            way, _ = self.better(way, self.with_skips(way, back, skips))
        todo = [skip for skip in skips if skip in way[-1].parts]
        while todo:
            skip, *todo = todo
            others = [each for each in skips if each in way[-1].parts and each != skip]
            way, changed = self.better(way, self.with_skips(way, self.room(way), others))
            todo = others if changed else todo
        return way

    def room(self, way: Sequence[Polished]) -> int:
        """Where on the way there were last `ROOM` times the parameters of its end."""
        return max(k for k, state in enumerate(way) if k == 0 or state.num_params >= ROOM * way[-1].num_params)

    def better(self, way: list[Polished], other: list[Polished]) -> tuple[list[Polished], bool]:
        """The other way, and whether it is that: if it ends with fewer parameters and as good."""
        end, best = other[-1], _best(way)
        if end.num_params >= way[-1].num_params:
            return way, False
        if (1 + self.tolerance) * best < end.loss <= NEAR * best:
            end = self.fit(end, MORE * self.steps)
        is_good = end.loss <= (1 + self.tolerance) * best
        return ([*other[:-1], end], True) if is_good else (way, False)

    def with_skips(self, way: list[Polished], back: int, wanted: Sequence[Part]) -> list[Polished]:
        """On from one network of the way with these skips instead of its own, if that can be fitted."""
        if not self.trials_left:
            return way
        start = way[back]
        nodes = set(start.net.plan.units)
        skips = [skip for skip in skips_of(self.supernet) if {skip.node, str(skip.source)} <= nodes]
        to_close = [skip for skip in skips if skip in start.parts and skip not in wanted]
        whole = expand(self.without(start, to_close), start.units, self.supernet)
        to_open = [skip for skip in skips if skip in wanted and self.surgery.is_closed(whole, skip)]
        if not (to_close or to_open):
            return way
        self.trials_left -= 1
        for skip in to_open:
            if self.surgery.is_closed(whole, skip):  # it may have been opened with another one
                whole = self.surgery.open_skip(whole, start.units, skip, self.probe[0])
        found, tolerated = self.fit(_compacted(whole), MORE * self.steps), (1 + self.tolerance) * start.loss
        if tolerated < found.loss <= NEAR * start.loss:
            found = self.fit(found, MORE * self.steps)
        accepted = found.loss <= tolerated
        self.on_trial(found, accepted)
        return self.eliminate([*way[:back], start, found]) if accepted else way

    def eliminate(self, way: list[Polished]) -> list[Polished]:
        """Remove what can be removed."""
        return self.one_by_one(self.thin_out(way))

    def thin_out(self, way: list[Polished]) -> list[Polished]:
        """Remove many units at once."""
        share = 0.5
        while True:
            units = [part for part in self.by_cost(way[-1]) if part.unit is not None]
            several = units[: int(share * len(units))]
            if len(several) < 2:
                return way
            before = way[-1].num_params
            way, _ = self.attempt(way, several, hopeful=False)
            if way[-1].num_params == before:
                share /= 2

    def one_by_one(self, way: list[Polished]) -> list[Polished]:
        """Remove parts one by one, units first, until none of those that came near goes."""
        todo = sorted(self.by_cost(way[-1]), key=lambda part: part.unit is None)
        while todo:
            near: list[Part] = []
            before = way[-1].num_params
            for part in todo:
                if part in way[-1].parts:  # it may have gone with another one
                    way, loss = self.attempt(way, [part], hopeful=True)
                    if part in way[-1].parts and loss <= NEAR * _best(way):
                        near.append(part)
            todo = near if way[-1].num_params < before else []
        return way

    def attempt(self, way: list[Polished], parts: Sequence[Part], *, hopeful: bool) -> tuple[list[Polished], float]:
        """Try the last network of the way without these parts.

        What is as good as the best so far must also be as good as the same steps make the network with these parts.

        Returns:
            The way, longer by the network without the parts where the removal stands, and the loss without them.
        """
        if not self.trials_left:
            return way, math.inf
        self.trials_left -= 1
        tolerated, steps = 1 + self.tolerance, self.steps
        found = self.fit(_compacted(self.without(way[-1], parts), way[-1].units), steps)
        if hopeful and tolerated * _best(way) < found.loss <= NEAR * _best(way):
            found, steps = self.fit(found, MORE * steps), (1 + MORE) * steps
        if accepted := found.loss <= tolerated * _best(way):
            same = self.fit(way[-1], steps)
            accepted = found.loss <= tolerated * same.loss
            if not accepted:
                way = [*way[:-1], same]
        self.on_trial(found, accepted)
        return [*way, found] if accepted else way, found.loss

    @torch.no_grad()
    def by_cost(self, state: Polished) -> list[Part]:
        """The parts, those without which the loss on the probe is least first."""
        x, y = self.probe
        costs = {part: float(self.loss_fn(self.without(state, [part])(x), y)) for part in state.parts}
        return sorted(costs, key=lambda part: costs[part])

    def without(self, state: Polished, parts: Sequence[Part]) -> DagNet:
        """The network without these parts, which others take up as well as they can on the probe."""
        return self.surgery.remove(state.net, state.units, parts, self.probe[0])


def _best(way: Sequence[Polished]) -> float:
    return min(state.loss for state in way)


def _compacted(net: DagNet, units: dict[str, Tensor] | None = None) -> Polished:
    """The compact network, yet without a loss; ``units`` are the names of the units of ``net``, else their indices."""
    kept = kept_units(net, tight=False)
    small = compact(net, tight=False)
    names = units or {name: torch.arange(n) for name, n in net.plan.units.items()}
    return Polished(small, {name: names[name][kept[name]] for name in small.plan.units}, math.inf)
