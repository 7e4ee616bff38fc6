"""Search: train a supernet and yield what is alive in it after every epoch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from nas.bregman import AdaBreg, LinBreg
from nas.models.alive import active_rows, find_alive, spread
from nas.models.alive_only import alive_only
from nas.models.dag import DagNet
from nas.penalised import Penalised
from nas.search.data.batches import Batches
from nas.steering import Watchdog, check_entry_times

LossFunction = Callable[[Tensor, Tensor], Tensor]


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
    def num_units(self) -> int:
        return sum(map(len, self.units.values()))


def snapshot(net: DagNet, epoch: int, loss: float | None = None) -> Snapshot:
    """What is alive in ``net`` now."""
    alive = find_alive(net)
    units: dict[str, Tensor] = {}
    trunks = set()
    for name, node in net.named_nodes().items():
        computed = spread(active_rows(node, alive.emits), node.plan.rows, node.plan.units) & alive.units[name]
        if node.plan.searched:
            units[name] = computed
        elif node.plan.tied is not None:
            units[node.plan.tied] |= computed
        trunks |= {(skip.source, name) for skip in node.plan.skips if skip.trunk}
    indices = {name: tuple(mask.nonzero()[:, 0].tolist()) for name, mask in units.items()}
    skips = {arc: gate for arc, gate in alive.skips.items() if arc not in trunks}
    return Snapshot(epoch, loss, indices, skips, alive.kernels)


def search(
    net: DagNet,
    batches: Batches,
    optimizer: Penalised,
    loss_fn: LossFunction,
    *,
    scheduler: LRScheduler | None = None,
    first_epoch: int = 1,
) -> Iterator[Snapshot]:
    """Train in place and yield one snapshot per epoch, without end; the caller stops, prints, saves.

    Only what is alive is computed (`nas.models.alive_only`).

    Args:
        net: a sparsely started supernet.
        batches: function of the epoch that iterates over pairs (x, y) on the device of ``net``.
        optimizer: an optimiser of this package for ``nas.param_groups(net, ...)``.
        loss_fn: mean loss of ``(prediction, y)``.
        scheduler: stepped after every batch.
        first_epoch: number of the first epoch, for a search that is continued.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
        ValueError: lam is so small that half of the units would wake within 20 steps of AdaBreg, or 3 of LinBreg; or
            no gradient reaches what is asleep under LinBreg.
        DeadTraining: for three epochs no gradient was left and nothing woke (`nas.steering.Watchdog`).
    """
    if isinstance(optimizer, AdaBreg | LinBreg) and not optimizer.state:
        if isinstance(optimizer, LinBreg):
            x, y = next(iter(batches(first_epoch)))
            loss_fn(net(x), y).backward()
        check_entry_times(optimizer, math.inf)
    watchdog = Watchdog(optimizer)
    with alive_only(net):
        for epoch, loss in train(net, batches, optimizer, loss_fn, scheduler=scheduler, first_epoch=first_epoch):
            watchdog.step(loss)
            yield snapshot(net, epoch, loss)


def train(
    net: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    *,
    scheduler: LRScheduler | None = None,
    first_epoch: int = 1,
) -> Iterator[tuple[int, float]]:
    """Train any network in place; yield the epoch and its mean loss, without end. Arguments as in `search`."""
    for epoch in count(first_epoch):
        losses, num_samples = [], 0
        for x, y in batches(epoch):
            optimizer.zero_grad()
            loss = loss_fn(net(x), y)
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.detach() * len(x))
            num_samples += len(x)
        mean = torch.stack(losses).sum().item() / num_samples
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss of epoch {epoch} is {mean}: training diverged; use a smaller lr")
        yield epoch, mean
