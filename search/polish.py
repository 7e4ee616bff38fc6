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

from nas.models.compact import compact, expand, kept_units
from nas.models.dag import DagNet, DagNode
from nas.search.batches import Batches
from nas.search.loop import LossFunction
from nas.search.retrain import retrain

MORE = 3  # times the steps for the first fit, and for a trial that comes near
NEAR = 1.7  # a refused trial comes near below this multiple of the best loss
MAX_SAMPLES = 4096  # on which one unit is expressed by others
SMALL = 0.1  # of a skip that is opened
RIDGE = 1e-9  # keeps that solvable where others say the same

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Part:
    """What can go as a whole: row ``unit`` of a node (a neuron or filter), or what leads to it from ``source``."""

    node: str
    unit: int | None = None
    source: str | None = None


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
) -> list[Polished]:
    """Remove, by measured ablation, what the validation loss does not miss; ``net`` is left as it is.

    The compact network is fitted without any penalty first. Then parts go: first the half of the units that costs
    least, a quarter where that is refused, and so on; at last one by one, units before skips. Since a small network
    cannot find its way to do without a skip, or to make use of another one, each skip is then reconsidered: it is taken
    from the first network, or opened in it, and the elimination repeated. That counts if it ends with fewer parameters.

    Parts are tried in the order of their cost: the loss on ``probe`` without the part, where the other units of its
    node take up what they can express of it (linear least squares, exact for a unit that doubles another). After a
    removal the network is fitted with Adam for ``steps`` steps, and for three times as many more where it then is near.
    The removal stands if the validation loss is at most ``1 + tolerance`` times the best one so far, and times that
    which as many steps lead to without the removal.

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

    Returns:
        The networks from the fitted one, the largest, to the result, each with what was removed.

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

    polisher = _Polisher(fitted, loss_fn, probe, trials, steps, tolerance, on_trial)
    start = fitted(_compacted(net, _all_units(net)), MORE * steps)
    way = polisher.eliminate([start])
    for skip in _skips(net):
        other = polisher.reconsider(start, way[-1], skip, net)
        way = min(way, other or way, key=lambda way: way[-1].num_params)
    return way


@dataclass
class _Polisher:
    fit: Callable[[Polished, int], Polished]
    loss_fn: LossFunction
    probe: Pair
    trials_left: int
    steps: int
    tolerance: float
    on_trial: Callable[[Polished, bool], None]

    def reconsider(self, start: Polished, end: Polished, skip: Part, net: DagNet) -> list[Polished] | None:
        """The way from ``start`` with the skips of ``end``, but for ``skip``; None if that cannot be fitted."""
        if not self.trials_left or not {skip.node, str(skip.source)} <= set(start.net.plan.units):
            return None
        self.trials_left -= 1
        whole = expand(start.net, start.units, net)
        for part in _skips(net):
            if (part in _parts(end)) == (part == skip):
                _zero_skip(whole.named_nodes()[part.node], str(part.source))
        if skip not in _parts(start):
            _open_skip(whole, skip, start.units)
        found = self.fit(_compacted(whole, _all_units(net)), MORE * self.steps)
        accepted = found.loss <= (1 + self.tolerance) * start.loss
        self.on_trial(found, accepted)
        return self.eliminate([start, found]) if accepted else None

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
                if part in _parts(way[-1]):  # it may have gone with another one
                    way, loss = self.attempt(way, [part], hopeful=True)
                    if part in _parts(way[-1]) and loss <= NEAR * _best(way):
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
        found = self.fit(_without(way[-1], parts, self.probe[0]), steps)
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
        costs = {part: float(self.loss_fn(_zeroed(state, [part], x)(x), y)) for part in _parts(state)}
        return sorted(costs, key=lambda part: costs[part])


def _best(way: Sequence[Polished]) -> float:
    return min(state.loss for state in way)


def _parts(state: Polished) -> list[Part]:
    """Everything that can go: units of searched nodes, gates, projections, and edges that are not the only one."""
    parts = []
    for name, node in state.net.named_nodes().items():
        if node.plan.searched:
            parts += [Part(name, unit=int(state.units[name][row])) for row in _rows(node)]
        edges = node.plan.edges if len(node.plan.edges) > 1 else {}
        sources = [*(skip.source for skip in node.plan.skips), *node.plan.projections, *edges]
        parts += [Part(name, source=source) for source in dict.fromkeys(sources)]
    return parts


def _skips(net: DagNet) -> list[Part]:
    """The skips of a supernet, open or not."""
    return [
        Part(name, source=source)
        for name, node in net.named_nodes().items()
        for source in (*(skip.source for skip in node.plan.skips), *node.plan.projections, *node.plan.blocks)
    ]


def _all_units(net: DagNet) -> dict[str, Tensor]:
    return {name: torch.arange(n) for name, n in net.plan.units.items()}


def _rows(node: DagNode) -> list[int]:
    """The units that the rows of a node compute."""
    return list(range(node.plan.units) if node.plan.rows is None else node.plan.rows)


def _without(state: Polished, parts: Sequence[Part], x: Tensor) -> Polished:
    return _compacted(_zeroed(state, parts, x), state.units)


def _compacted(net: DagNet, units: dict[str, Tensor]) -> Polished:
    kept = kept_units(net)
    small = compact(net)
    return Polished(small, {name: units[name][kept[name]] for name in small.plan.units}, float("inf"))


@torch.no_grad()
def _zeroed(state: Polished, parts: Sequence[Part], x: Tensor) -> DagNet:
    """A copy of the network whose ``parts`` are zero, and in which other units stand for them as well as they can."""
    net = copy.deepcopy(state.net)
    for name, node in net.named_nodes().items():
        for part in parts:
            if part.node == name and part.source is not None:
                _zero_skip(node, part.source)
        gone = {part.unit for part in parts if part.node == name and part.unit is not None}
        rows = [row for row, unit in enumerate(_rows(node)) if int(state.units[name][unit]) in gone]
        if rows:
            before = net.states(x)
            for tensor in (*node.edges.values(), node.bias):
                tensor[rows] = 0
            _take_up(net, name, [_rows(node)[row] for row in rows], before)
    return net


@torch.no_grad()
def _zero_skip(node: DagNode, source: str) -> None:
    for k, skip in enumerate(node.plan.skips):
        if skip.source == source:
            node.gates[k] = 0
    if source in node.projections:
        node.projections[source].zero_()
    if source in node.edges and len(node.edges) > 1:
        node.edges[source].zero_()


@torch.no_grad()
def _open_skip(net: DagNet, skip: Part, units: dict[str, Tensor]) -> None:
    """Give a skip between these ``units`` a small value: a tenth of He's start, or of a gate that is open."""
    node, source = net.named_nodes()[skip.node], str(skip.source)
    for k, each in enumerate(node.plan.skips):
        if each.source == source:
            node.gates[k] = SMALL
    for tensors in (node.projections, {name: node.edges[name] for name in node.plan.blocks}):
        if source in tensors:
            chosen = units[skip.node][:, None], units[source]
            drawn = torch.randn(tensors[source][chosen].shape, generator=torch.Generator().manual_seed(0))
            tensors[source][chosen] = SMALL * math.sqrt(2 / drawn[0].numel()) * drawn.to(tensors[source])


def _take_up(net: DagNet, name: str, gone: list[int], before: dict[str, Tensor]) -> None:
    """Readers of the units ``gone`` of a node read what the others can express of them.

    With x the states of the node without these units, and r what is missing of these, the coefficients minimise
    |x C + c - r|^2; a reader with the weight W then gets W[:, gone] C on top, and W[:, gone] c on its bias.
    """
    node, axis = net.named_nodes()[name], net.unit_axis
    after = node(before)
    x, lost = (_samples(tensor, axis) for tensor in (after, before[name] - after))
    live = x.ne(0).any(dim=0)
    design = torch.cat([x[:, live], torch.ones_like(x[:, :1])], dim=1)
    gram = design.T @ design
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    coefficients = torch.linalg.solve(gram, design.T @ lost[:, gone]).to(next(net.parameters()).dtype)
    for reader in net.named_nodes().values():
        if name in reader.edges:
            weight = reader.edges[name]
            missing = weight[:, gone]
            weight[:, live] += torch.einsum("rk...,lk->rl...", missing, coefficients[:-1])
            reader.bias.add_(missing.reshape(*missing.shape[:2], -1).sum(dim=2) @ coefficients[-1])
        if name in reader.projections:
            matrix = reader.projections[name]
            matrix[:, live] += matrix[:, gone] @ coefficients[:-1].T


def _samples(state: Tensor, axis: int) -> Tensor:
    """At most `MAX_SAMPLES` positions and samples of a state, evenly spaced, as rows; in double precision."""
    rows = state.movedim(axis, -1).flatten(0, -2)
    return rows[:: -(-len(rows) // MAX_SAMPLES)].double()
