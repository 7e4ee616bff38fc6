"""Growing: the supernet of a search in training, with what steers how much of it wakes."""

import math
from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas import param_groups
from nas.bregman import Bregman
from nas.models import network
from nas.models.alive_only import alive_only
from nas.penalised import Penalised
from nas.penalties import scaled, strengths
from nas.search.data.batches import Batches
from nas.search.runs.config import SearchConfig
from nas.search.runs.options import AUTO
from nas.search.tasks.task import Task
from nas.search.training import optimizers
from nas.search.training.compute import Compute
from nas.search.training.loop import OnStep, Snapshot, search, snapshot
from nas.steering import EARLIEST, LamController, calibrate

TRIAL_STEPS, TRIAL_FRACTION = 200, 0.1  # of the trial that chooses lam
HEADROOM = 1.5  # a network of the front is thinned out from one with so many times its size, if there is one
STEERING = 16  # steps between two changes of lam


class Growing:
    """How the supernet of a run grows, epoch by epoch; it can stop after any step and go on from its `state_dict`.

    Args:
        net: sparsely started; trained in place.
        config: of the run.
        task: gives the loss.
        batches: training data on the device of ``net``.
        resumed: lam is not chosen and nothing is checked, since `load_state_dict` follows.
        on_step: called between two steps of an epoch, where the state is complete.
        compute: precision, and whether to compile; the trials that choose lam and steps are in single precision.

    Raises:
        ValueError: everything would wake at once, or nothing ever.
    """

    def __init__(
        self,
        net: nn.Module,
        config: SearchConfig,
        task: Task,
        batches: Batches,
        *,
        resumed: bool,
        on_step: OnStep,
        compute: Compute,
    ) -> None:
        self.net, self.config, self.task, self.batches = net, config, task, batches
        self._prices = {} if config.currency is None else dict(network.prices(net, config.currency))
        self.optimizer = self._make_optimizer()
        if not resumed and config.entry_time == AUTO:
            self._calibrate()
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=config.epochs * config.steps)
        self._controller = None if config.target is None else self._steered_to(config.target)
        self.epochs = search(
            net, batches, self.optimizer, task.loss, scheduler=self.scheduler, on_step=on_step, compute=compute,
            coarse=config.coarse,
        )  # fmt: skip
        if not resumed:
            self.epochs.check()

    def __iter__(self) -> Iterator[tuple[Snapshot, nn.Module]]:
        return self

    def __next__(self) -> tuple[Snapshot, nn.Module]:
        """What is found after the next epoch, and the network that it was found in."""
        seen, net = next(self.epochs), self.found
        if net is not self.net:
            network.settle(net)
            seen = snapshot(net, seen.epoch, seen.loss)
        return seen, net

    @property
    def found(self) -> nn.Module:
        """The network that the search has found so far; with SplitLBI another one than it trains."""
        return self.config.kind.found(self.net, self.optimizer)

    @property
    def entry_time(self) -> float | None:
        """Steps until units of the mean price can wake; None where the optimiser knows none."""
        config = self.config
        if isinstance(config.entry_time, str):
            return (config.coarse + 1) * self.lam / config.learning_rate
        if config.entry_time is None and config.kind.entry_time is not None:
            return (config.coarse + 1) * config.kind.entry_time
        return config.entry_time

    @property
    def lam(self) -> float:
        """Strength of the penalty on units of the mean price; on those of the first node where nodes differ."""
        group = self.optimizer.param_groups[0]
        return strengths(group["penalty"])[0] / self._prices.get(group["name"], 1.0)

    def _make_optimizer(self) -> Penalised:
        config, scale = self.config, self.config.gate_scale
        groups = param_groups(self.net, lam=1.0, lr=1.0, gate_lam=scale, gate_lr=scale, prices=self._prices)
        entry_time = TRIAL_STEPS * (config.coarse + 1) if config.entry_time == AUTO else self.entry_time
        pairs = islice(chain.from_iterable(map(self.batches, count(1))), optimizers.TRIAL_STEPS)
        start = optimizers.Start(
            self.net, groups, pairs, self.task.loss, config.learning_rate,
            math.nan if entry_time is None else entry_time / (config.coarse + 1), config.second_moment,
        )  # fmt: skip
        return config.kind.build(start)

    def _steered_to(self, target: int) -> LamController:
        """Steers lam after every few steps, so that what grows leaves room for a network of this size."""
        currency, full = self.config.sizes_in, network.cost(self.net, self.config.sizes_in)
        controller = LamController(
            self.optimizer, min(HEADROOM * target, full), lambda: network.alive_cost(self.found, currency),
            total=full, every=math.ceil(STEERING / (self.config.coarse + 1)), lam_max=math.inf, shrink=True,
        )  # fmt: skip
        self.optimizer.register_step_post_hook(lambda *_: controller.step())
        return controller

    def _calibrate(self) -> None:
        """Choose lam by a trial (`nas.steering.calibrate`)."""
        pairs = chain.from_iterable(map(self.batches, count(1)))

        def train_step() -> None:
            x, y = next(pairs)
            self.optimizer.zero_grad()
            self.task.loss(self.net(x), y).backward()
            self.optimizer.step()

        assert isinstance(self.optimizer, Bregman)
        with alive_only(self.net):
            calibrate(self.net, self.optimizer, train_step, steps=TRIAL_STEPS, fraction=TRIAL_FRACTION)
        too_early = EARLIEST * self.config.learning_rate / self.lam
        if too_early > 1:
            for group in self.optimizer.param_groups:
                group["penalty"] = scaled(group["penalty"], too_early)

    def state_dict(self) -> dict[str, Any]:
        """Where the growth stands, after any step."""
        return {
            "growth": self.epochs.state_dict(),
            "controller": None if self._controller is None else self._controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.epochs.load_state_dict(state["growth"])
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
