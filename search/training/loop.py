"""Search: train a supernet and yield what is alive in it after every epoch."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler

from nas.bregman import AdaBreg, LinBreg
from nas.models.alive_only import alive_only
from nas.models.network import find, settle
from nas.penalised import Penalised
from nas.restriction import NothingAwake, check_restricts
from nas.search.data.batches import Batches
from nas.search.training import ranks
from nas.search.training.coarse import CoarseLevel
from nas.search.training.compute import Compute, device_of, on_device
from nas.steering import Watchdog, check_entry_times

LossFunction = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[], None]


@dataclass(frozen=True)
class Snapshot:
    """The supernet after one epoch.

    Attributes:
        epoch: number of epochs done.
        loss: mean training loss over the epoch, in the units of the loss function; None before the first epoch and
            for networks of the front.
        units: for every searched node the indices of its units that are alive and computed, of nodes tied to it, too.
        skips: the gates of the alive skips, by (source, target); trunks, which are not searched, are none.
        kernels: the sides of the kernels of the alive operations, by (`nas.models.Edge.key`, target).
    """

    epoch: int
    loss: float | None
    units: dict[str, tuple[int, ...]]
    skips: dict[tuple[str, str], float]
    kernels: dict[tuple[str, str], int]

    @property
    def in_front(self) -> bool:
        """Whether this is a network of the front; else it is the start, or an epoch of the growth."""
        return self.loss is None and self.epoch > 0

    @property
    def num_units(self) -> int:
        return sum(map(len, self.units.values()))


def snapshot(net: nn.Module, epoch: int, loss: float | None = None) -> Snapshot:
    """What is alive in ``net`` now."""
    found = find(net)
    units = {name: tuple(mask.nonzero()[:, 0].tolist()) for name, mask in found.units.items()}
    return Snapshot(epoch, loss, units, found.skips, found.kernels)


class Loop:
    """Trains a network in place and yields the epoch and its mean loss, without end.

    It can stop after any step and go on from its `state_dict`: bit for bit on the same CPU. It computes where the
    network is, and within `nas.search.training.ranks.joined` together with other processes.

    Args:
        net: any network.
        batches: function of the epoch that iterates over pairs (x, y), which are moved to the device of ``net``.
        optimizer: of its parameters.
        loss_fn: mean loss of ``(prediction, y)``.
        scheduler: stepped after every batch.
        on_step: called between two steps of an epoch; the state is complete then.
        compute: precision, and whether to compile.
        coarse: of a `DagNet` or `TracedNet`: how many steps on what is alive follow each full step
            (`nas.search.training.coarse`), with which an epoch begins.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
        ValueError: with ``coarse`` an optimiser without exact restriction.
        RankError: another process has ended, or has other weights or duals after an epoch.
    """

    def __init__(
        self,
        net: nn.Module,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFunction,
        *,
        scheduler: LRScheduler | None = None,
        on_step: OnStep = lambda: None,
        compute: Compute = Compute(),
        coarse: int = 0,
    ) -> None:
        device = device_of(net)
        if ranks.size() > 1 and any(isinstance(module, _BatchNorm) for module in net.modules()):
            raise ValueError("a network with batch normalisation is trained by one process; leave out torchrun")
        self.net, self.optimizer, self.loss_fn = net, optimizer, loss_fn
        self.batches = on_device(ranks.shares(batches), device)
        self.scheduler, self.on_step, self.compute = scheduler, on_step, compute
        self._forward, self._scaler = compute.compiled(net), compute.scaler(device)
        self.epoch, self._losses, self._num_samples = 1, list[Tensor](), 0  # under way; of its steps so far
        if coarse:
            check_restricts(optimizer)
        self.coarse = coarse
        self._level: CoarseLevel | None = None  # within coarse steps

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return self

    def __next__(self) -> tuple[int, float]:
        self.net.train()
        for x, y in islice(self.batches(self.epoch), len(self._losses), None):
            if self._losses:
                self.on_step()
            self._step(x, y)
            self._choose_level()
        self._leave_level()
        epoch, mean = self.epoch, self._mean_loss()
        ranks.check_same(f"after epoch {epoch}", lambda: (self.net.state_dict(), self.optimizer.state_dict()))
        self.epoch, self._losses, self._num_samples = epoch + 1, [], 0
        return epoch, mean

    def _mean_loss(self) -> float:
        """Over the steps of the epoch so far."""
        mean = torch.stack(self._losses).sum().item() / self._num_samples if self._losses else 0.0
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss of epoch {self.epoch} is {mean}: training diverged; use a smaller lr")
        return mean

    def _choose_level(self) -> None:
        """Of the next step; after a full one at once, while its gradients are there."""
        if len(self._losses) % (self.coarse + 1) == 0:
            self._leave_level()
        elif self._level is None:
            with suppress(NothingAwake):  # then the next step is full, too
                self._level = CoarseLevel(self.net, self.optimizer)

    def _leave_level(self) -> None:
        if self._level is not None:
            self._level.take_back()
            self._level = None

    def _step(self, x: Tensor, y: Tensor) -> None:
        level = self._level
        forward, optimizer = (self._forward, self.optimizer) if level is None else (level.net, level.optimizer)
        optimizer.zero_grad()
        with self.compute.autocast(x.device):
            loss = self.loss_fn(forward(x), y)
        self._scaler.scale(loss).backward()
        loss = ranks.average((p for group in optimizer.param_groups for p in group["params"]), loss)
        self._scaler.unscale_(optimizer)
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        was_left_out = self._scaler.get_scale() < scale
        if self.scheduler is not None and not was_left_out:
            self.scheduler.step()
        num_samples = len(x) * ranks.size()
        self._losses.append(loss * num_samples)
        self._num_samples += num_samples

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands; with the network, the optimiser and torch's random numbers.

        Raises:
            FloatingPointError: the losses of the epoch so far are not finite; nothing should go on from there.
        """
        self._mean_loss()
        return {
            "epoch": self.epoch,
            "losses": torch.stack(self._losses) if self._losses else torch.zeros(0),
            "num_samples": self._num_samples,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "level": None if self._level is None else self._level.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if scaler := state.get("scaler"):  # empty under another precision than fp16
            self._scaler.load_state_dict(scaler)
        if state.get("level") is not None:
            self._level = CoarseLevel(self.net, self.optimizer)
            self._level.load_state_dict(state["level"])
        torch.set_rng_state(state["random"])
        self.epoch, self._num_samples = state["epoch"], state["num_samples"]
        self._losses = list(state["losses"].to(device_of(self.net)))


class Growth:
    """What `search` returns: an iterator over the snapshots after every epoch, with a ``state_dict``."""

    def __init__(self, net: nn.Module, loop: Loop, optimizer: Penalised) -> None:
        self.net, self.loop, self.watchdog = net, loop, Watchdog(optimizer)

    def check(self) -> None:
        """Raise ValueError if everything would wake at once, or nothing ever (`nas.steering.check_entry_times`)."""
        optimizer = self.loop.optimizer
        if not isinstance(optimizer, AdaBreg | LinBreg) or optimizer.state:
            return
        if isinstance(optimizer, LinBreg):
            x, y = next(iter(self.loop.batches(self.loop.epoch)))
            loss = self.loop.loss_fn(self.loop.net(x), y)
            loss.backward()
            ranks.average(self.net.parameters(), loss)
        check_entry_times(optimizer, math.inf)
        optimizer.zero_grad()

    def __iter__(self) -> "Growth":
        return self

    def __next__(self) -> Snapshot:
        self.check()
        with alive_only(self.net):
            epoch, loss = next(self.loop)
        settle(self.net)
        self.watchdog.step(loss)
        return snapshot(self.net, epoch, loss)

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands, after any step: with network, optimiser and scheduler."""
        return {"loop": self.loop.state_dict(), "watchdog": self.watchdog.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.loop.load_state_dict(state["loop"])
        self.watchdog.load_state_dict(state["watchdog"])


def search(
    net: nn.Module,
    batches: Batches,
    optimizer: Penalised,
    loss_fn: LossFunction,
    *,
    scheduler: LRScheduler | None = None,
    on_step: OnStep = lambda: None,
    compute: Compute = Compute(),
    coarse: int = 0,
) -> Growth:
    """Train in place and yield one snapshot per epoch, without end; the caller stops, prints, saves.

    Only what is alive is computed (`nas.models.alive_only`).

    Args:
        net: a sparsely started supernet.
        batches: function of the epoch that iterates over pairs (x, y), which are moved to the device of ``net``.
        optimizer: an optimiser of this package for ``nas.param_groups(net, ...)``.
        loss_fn: mean loss of ``(prediction, y)``.
        scheduler: stepped after every batch.
        on_step: called between two steps of an epoch, where the state of what is returned is complete.
        compute: precision, and whether to compile.
        coarse: how many steps on what is alive follow each full step (`nas.search.training.coarse`); an epoch begins
            with a full one. They are never compiled.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
        ValueError: lam is so small that half of the units would wake within 20 full steps of AdaBreg, or 3 of LinBreg;
            no gradient reaches what is asleep under LinBreg; or an optimiser takes no coarse steps.
        DeadTraining: for three epochs no gradient was left and nothing woke (`nas.steering.Watchdog`).
    """
    loop = Loop(net, batches, optimizer, loss_fn, scheduler=scheduler, on_step=on_step, compute=compute, coarse=coarse)
    return Growth(net, loop, optimizer)
