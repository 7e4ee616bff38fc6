"""Retraining: a compact network, trained with an ordinary optimiser."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from nas.models.alive import active_rows, node_reads, pick
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.search.data.batches import Batches
from nas.search.training.compute import Compute
from nas.search.training.loop import Loop, LossFunction, OnStep

SPIKE = 5.0  # times the mean norm, to which a gradient is cut
MEMORY = 0.98  # of that mean
LOST = 1.5  # times the mean loss of the first epoch: what was learnt is lost
GO_BACKS = 5  # at most


class Retraining:
    """A network in training with Adam under a one-cycle schedule, in place; it can stop after any step and go on.

    A gradient that is suddenly much larger than those before is cut to 5 times their mean norm: at high rates a single
    such step can destroy a narrow network, and cutting all of them costs quality.

    Args:
        net: any network, usually a compact one.
        batches: function of the epoch that iterates over ``steps`` pairs (x, y).
        loss_fn: mean loss of ``(prediction, y)``.
        epochs: number of epochs, >= 1.
        steps: batches per epoch.
        lr: highest learning rate, > 0.
        on_epoch: called after every epoch with its number and its mean loss.
        on_step: called between two steps, where the state is complete.
        on_setback: called with a sentence when epochs are repeated.
        validate: how good ``net`` is now, the higher the better; it ends with the weights of its best score.
        or_start: the weights it starts with are a candidate, too.
        every: epochs between two validations, >= 1; the last epoch is always validated.
        patience: stop after so many validations in a row without a new best, >= 1; never by default.
        compute: where and how; ``net`` is moved to its device.

    Attributes:
        best: the best score so far; -inf before the first.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        batches: Batches,
        loss_fn: LossFunction,
        *,
        epochs: int,
        steps: int,
        lr: float = 5e-3,
        on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
        on_step: OnStep = lambda: None,
        on_setback: Callable[[str], None] = warnings.warn,
        validate: Callable[[], float] | None = None,
        or_start: bool = False,
        every: int = 5,
        patience: int | None = None,
        compute: Compute = Compute(),
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if every < 1 or (patience is not None and patience < 1):
            raise ValueError(f"every and patience must be at least 1, got every={every}, patience={patience}")
        self.epochs, self.every, self.patience = epochs, every, patience
        self.on_epoch, self.on_setback = on_epoch, on_setback
        self.validate, self.or_start = validate, or_start
        compute.place(net)
        optimizer = torch.optim.Adam(net.parameters(), lr, fused=True)
        self._guard = _SpikeGuard(list(net.parameters()))
        optimizer.register_step_pre_hook(self._guard)
        rise = min(0.9, max(0.1, 1.5 / (epochs * steps)))  # a rise of exactly one step would divide by zero
        scheduler = OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=steps, pct_start=rise)
        self.loop = Loop(net, batches, optimizer, loss_fn, scheduler=scheduler, on_step=on_step, compute=compute)
        self.best, self._behind = -math.inf, 0
        self._best_weights: dict[str, Any] | None = None
        self._first_loss, self._go_backs = math.inf, 0
        self._recent = [self._now()]  # after the last two epochs that went well

    def run(self) -> None:
        """Train on to the end.

        Raises:
            FloatingPointError: the loss of an epoch is not finite, at lower rates either. The network is left as it is
                then.
        """
        if self.or_start and self._best_weights is None:
            self._look()
        while self.loop.epoch <= self.epochs:
            epoch, loss = self._next_epoch()
            self.on_epoch(epoch, loss)
            if epoch % self.every == 0 or epoch == self.epochs:
                self._look()
            if self.patience is not None and self._behind >= self.patience:
                break
        if self._best_weights is not None:
            self.loop.net.load_state_dict(self._best_weights)

    def _next_epoch(self) -> tuple[int, float]:
        """The next epoch that goes well, and its mean loss."""
        while self._go_backs < GO_BACKS:
            try:
                epoch, loss = next(self.loop)
            except FloatingPointError:
                loss = math.inf
            if math.isfinite(loss) and loss <= LOST * self._first_loss:
                break
            self._go_back(loss)
        else:
            epoch, loss = next(self.loop)
        self._first_loss = min(self._first_loss, loss) if epoch == 1 else self._first_loss
        self._recent = [self._recent[-1], self._now()]
        return epoch, loss

    def _go_back(self, loss: float) -> None:
        """To before the last epoch that went well, whose end may have destroyed the network; on at half the rate."""
        lost = self.loop.epoch - 1 if math.isfinite(loss) else self.loop.epoch
        self._restore(self._recent[0])
        for group in self.loop.optimizer.param_groups:
            group.update({name: group[name] / 2 for name in ("lr", "initial_lr", "max_lr", "min_lr")})
        self._recent, self._go_backs = [self._now()], self._go_backs + 1
        self.on_setback(
            f"epoch {lost} lost what had been learnt (loss {loss:.3g}); going on from epoch {self.loop.epoch} at half "
            "the learning rate"
        )

    def _now(self) -> dict[str, Any]:
        """A copy of where the training stands."""
        return copy.deepcopy({"loop": self.loop.state_dict(), "mean_norm": self._guard.mean})

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.loop.load_state_dict(copy.deepcopy(state["loop"]))
        self._guard.mean = state["mean_norm"]

    def _look(self) -> None:
        """Validate, and keep the weights if they are the best."""
        if self.validate is None:
            return
        score = self.validate()
        self._behind += 1
        if score > self.best:
            self.best, self._best_weights, self._behind = score, copy.deepcopy(self.loop.net.state_dict()), 0

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands, after any step."""
        return {
            "loop": self.loop.state_dict(),
            "mean_norm": self._guard.mean,
            "best": self.best,
            "best_weights": self._best_weights,
            "behind": self._behind,
            "first_loss": self._first_loss,
            "go_backs": self._go_backs,
            "recent": self._recent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._restore(state)
        self.best, self._best_weights, self._behind = state["best"], state["best_weights"], state["behind"]
        self._first_loss, self._go_backs = state["first_loss"], state["go_backs"]
        self._recent = list(state["recent"])


def retrain(net: nn.Module, batches: Batches, loss_fn: LossFunction, **options: Any) -> None:
    """Train ``net`` in place to the end; arguments and errors are those of `Retraining` and its ``run``."""
    Retraining(net, batches, loss_fn, **options).run()


class _SpikeGuard:
    """Before a step of an optimiser: cut the gradient to `SPIKE` times the running mean of its norms."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.mean = parameters, math.inf

    def __call__(self, *_: object) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.parameters, SPIKE * self.mean))
        if math.isfinite(norm):
            self.mean = (
                norm if self.mean == math.inf else MEMORY * self.mean + (1 - MEMORY) * min(norm, SPIKE * self.mean)
            )


@torch.no_grad()
def rewound(net: nn.Module, early: nn.Module, *, seed: int = 0) -> nn.Module:
    """The compact network of ``net`` with the weights that its units had in ``early``, a point of the same search.

    Units that were not born then start afresh, with He's variance and bias 0; their skips start at 0.

    Raises:
        ValueError: ``net`` is no `DagNet`.
    """
    if not isinstance(net, DagNet) or not isinstance(early, DagNet):
        raise ValueError("only a network that is a plan is rewound; retrain one of your own from where it is")
    small = compact(net, weights_of=early)
    generator = torch.Generator().manual_seed(seed)
    for node in small.named_nodes().values():
        every = {name: torch.ones(n, dtype=torch.bool) for name, n in small.plan.units.items()}
        unborn = ~active_rows(node, every, node_reads(node))
        fan_in = sum(weight[0].numel() for weight in node.edges.values() if len(weight))
        for edge, weight in node.weighted_edges():
            rows = pick(unborn, edge.put)
            drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight[rows] = drawn[rows].to(weight.device) * math.sqrt(2 / max(1, fan_in))
    return small
