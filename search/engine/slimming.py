"""Slimming: how a run makes the networks of its front of what has grown."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import nn

from nas.models.network import compacted, num_params, renewed
from nas.search.data.batches import Batches
from nas.search.engine.stopping import Budget
from nas.search.engine.thinning import Pair, fitted, thinning
from nas.search.runs.config import SearchConfig
from nas.search.runs.run import Run
from nas.search.tasks.task import Task
from nas.search.training import ranks
from nas.search.training.compute import Compute
from nas.search.training.loop import OnStep
from nas.search.training.retrain import Retraining, retrain

FIT_LR, REFIT_LR = 3e-3, 5e-3
PROBE = 4  # batches
MARGIN = 0.9  # of the time for a refit, which is planned by the pace of the fits
FITS = 1000  # epochs of data between two networks of the front


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
        net: nn.Module,
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

    def run(self) -> nn.Module:
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

    def _advance(self, net: nn.Module) -> None:
        self.net, self._fits = net, self._fits + 1
        self.on_step()

    def _fit(self, net: nn.Module) -> None:
        late = self.budget is not None and self.budget.left < self._for_refit
        steps = 1 if late else self.config.fit
        batches, began = partial(self._pairs, self._fits * self.config.fit, steps), time.perf_counter()
        compute = replace(self.compute, compile=False)
        retrain(net, batches, self.task.loss, epochs=1, steps=steps, lr=FIT_LR, on_step=self.on_step, compute=compute)
        seconds = ranks.on_first(lambda: time.perf_counter() - began)
        self._pace = self._pace if late and self._pace else seconds / steps
        self.on_fit(num_params(net))

    def _refit(self, net: nn.Module) -> None:
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


def thinned_from_dense(
    run: Run,
    size: int,
    task: Task,
    batches: Batches,
    seed: int,
    compute: Compute = Compute(),
    on_step: OnStep = lambda: None,
) -> nn.Module:
    """What the front does without any growth: the dense supernet, trained for as long as the search, thinned out.

    Raises:
        ValueError: the supernet is smaller than ``size``.
        FloatingPointError: training diverged.
    """
    config = run.config
    torch.manual_seed(seed)
    net = renewed(run.blank, seed)
    retrain(net, batches, task.loss, epochs=config.epochs, steps=config.steps, compute=compute, on_step=on_step)
    first = FITS * (config.epochs + 1)
    return compacted(Slimming(net, size, config, task, batches, first, compute=compute, on_step=on_step).run())
