"""Retraining: a compact network, trained with an ordinary optimiser."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from nas.search.loop import LossFunction, train
from nas.search.tasks import Batches


def retrain(
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    *,
    epochs: int,
    steps: int,
    lr: float = 5e-3,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Train ``net`` in place with Adam under a one-cycle schedule.

    Args:
        net: any network, usually a compact one.
        batches: function of the epoch that iterates over ``steps`` pairs (x, y).
        loss_fn: mean loss of ``(prediction, y)``.
        epochs: number of epochs, >= 1.
        steps: batches per epoch.
        lr: highest learning rate, > 0.
        on_epoch: called after every epoch with its number and its mean loss.

    Raises:
        ValueError: ``epochs`` or ``lr`` out of range.
        FloatingPointError: the loss of an epoch is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not lr > 0:
        raise ValueError(f"lr must be > 0, got {lr}")
    optimizer = torch.optim.Adam(net.parameters(), lr)
    scheduler = OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=steps, pct_start=0.1)
    for epoch, loss in islice(train(net, batches, optimizer, loss_fn, scheduler=scheduler), epochs):
        on_epoch(epoch, loss)
