"""Choosing and steering lam: entry times, calibration, a controller towards a target, and a watchdog."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nas.bregman import Bregman, LinBreg
from nas.penalised import Penalised, seen, unit_sets
from nas.penalties import Zero, groups_of, scaled, strengths

EARLIEST = 20  # steps; sleeping groups that can wake sooner all wake at once
EARLIEST_LINBREG = 3  # gradients differ, so that groups do not wake together
ATTEMPTS = 12  # of a calibration, each with 4 times the lam of the one before


def active_groups(optimizer: Penalised) -> dict[str, Tensor]:
    """For every parameter group with a penalty: which groups (units) are not zero, a boolean vector."""
    active: dict[str, list[Tensor]] = {}
    for name, group, members in _unit_sets(optimizer):
        active.setdefault(name, []).append(_active(members, group))
    return {name: torch.cat(parts) for name, parts in active.items()}


def density(optimizer: Penalised) -> float:
    """Part of the penalised groups (units) that is not zero, in [0, 1]."""
    active = torch.cat(list(active_groups(optimizer).values()))
    return active.double().mean().item()


@torch.no_grad()
def entry_times(optimizer: Bregman) -> dict[str, Tensor]:
    """For every parameter group with a penalty: in how many steps each sleeping group is expected to wake.

    It wakes when the gauge of its subgradient exceeds 1 (`nas.penalties.Penalty`). While the weights hardly change the
    dual moves by lr times the direction of the optimiser per step: lam / lr steps under AdaBreg, whose direction is
    about 1 in every entry, and lam / (lr * rms of the gradient) under LinBreg, which needs the gradients of a
    backward pass.

    Returns:
        By the name of the parameter group a vector of steps, one entry per sleeping group; inf where nothing moves.
    """
    times: dict[str, list[Tensor]] = {}
    for name, group, members in _unit_sets(optimizer):
        asleep = ~_active(members, group)
        direction = seen([optimizer.expected_direction(p) for p in members], group["joint"])
        left = 1 - _gauge(optimizer, members, group).flatten()
        steps = left / (group["lr"] * group["penalty"].gauge(direction).flatten())
        times.setdefault(name, []).append(steps[asleep])
    return {name: torch.cat(parts) for name, parts in times.items()}


def check_entry_times(optimizer: Bregman, steps: int) -> None:
    """Refuse a lam with which everything wakes at once, or nothing within the run.

    Args:
        optimizer: before its first step; for LinBreg after a backward pass.
        steps: length of the run.

    Raises:
        ValueError: half of the sleeping groups of a parameter group are expected to wake within 20 steps (3 under
            LinBreg), or 99 % of them only after ``steps`` steps. It says which lam would do.
    """
    earliest = EARLIEST_LINBREG if isinstance(optimizer, LinBreg) else EARLIEST
    penalties = {str(group.get("name", k)): group["penalty"] for k, group in enumerate(optimizer.param_groups)}
    for name, times in entry_times(optimizer).items():
        if len(times) == 0:
            continue
        lam, median, first = max(strengths(penalties[name])), times.median().item(), times.quantile(0.01).item()
        if median < earliest:
            raise ValueError(
                f"parameter group {name!r}: half of its groups would wake within {median:.3g} steps, all at once; use "
                f"lam of at least {lam * earliest / median:.3g} instead of {lam:g}, or a smaller lr"
            )
        if first > steps:
            raise ValueError(
                f"parameter group {name!r}: 99 % of its groups would sleep for {first:.3g} steps, and the run has "
                f"{steps}; use lam below {lam * steps / first:.3g} instead of {lam:g}, a larger lr or more steps"
            )


def calibrate(
    model: nn.Module,
    optimizer: Bregman,
    train_step: Callable[[], object],
    *,
    steps: int = 200,
    fraction: float = 0.1,
) -> float:
    """Choose lam by a trial: the part ``fraction`` of the sleeping groups is to wake within ``steps`` steps.

    ``steps`` training steps are made in which next to nothing wakes; the gauge of a sleeping group then says with
    which lam it would have woken. All lam of the optimiser are multiplied by the (1 - fraction) quantile of the gauges.
    The model and the optimiser are as before afterwards, except for lam.

    Args:
        model: sparsely started.
        optimizer: for the parameters of ``model``; its lam are a first guess, and keep their ratios.
        train_step: one step of the training: zero_grad, backward, ``optimizer.step()``.
        steps: length of the trial, >= 1.
        fraction: in (0, 1).

    Returns:
        The factor that every lam was multiplied by.

    Raises:
        ValueError: an argument out of range, no sleeping group, or no gradient reaches the sleeping groups.
    """
    if steps < 1 or not 0 < fraction < 1:
        raise ValueError(f"calibrate needs steps >= 1 and 0 < fraction < 1, got steps={steps}, fraction={fraction}")
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    asleep = _asleep(optimizer)
    if not asleep.any():
        raise ValueError("calibrate: no group is asleep, so that lam decides nothing; start sparsely")
    factor = 1.0
    for _ in range(ATTEMPTS):
        _scale(optimizer, factor)
        for _ in range(steps):
            train_step()
        gauges = torch.where(_asleep(optimizer), _gauges(optimizer), math.inf)[asleep]
        _restore(model, optimizer, before)
        quantile = gauges.kthvalue(math.ceil((1 - fraction) * len(gauges))).values.item()
        if quantile == 0:
            raise ValueError(f"calibrate: no gradient reaches {1 - fraction:.0%} of the sleeping groups")
        if quantile < 1:
            _scale(optimizer, factor * quantile)
            return factor * quantile
        factor *= 4
    raise ValueError(
        f"calibrate: groups wake within {steps} steps even with {factor:g} times the lam; use a smaller lr"
    )


class LamController:
    """Steers lam so that a measured number approaches a target (Aloradi et al., arXiv 2605.07892, eq. for lambda).

        lam <- lam / (1 + alpha * gap)     while the number is below the target: sleeping groups wake sooner
        lam <- lam * (1 + alpha * gap)     while it is above

    with gap = |number - target| / total. From the second change of sides on alpha shrinks by 5 % at each. The duals
    follow (`Bregman.resync`), so that no weight jumps: groups keep their relative progress, and what is awake stays
    awake until the loss gives it up. So approach the target from below, with a lam at which groups enter one by one:
    where all enter within a few steps (AdaBreg on a small net), control comes too late. A large lam also stiffens
    groups, which then change their length more easily than their direction: keep ``lam_max`` moderate.

    Args:
        optimizer: its lam are multiplied by a common factor.
        target: what ``measure`` is to return.
        measure: `density` of the optimiser by default; any function for units, parameters or FLOPs, as in
            ``lambda: cost(compact(net)).flops``.
        total: the unit of ``target``: 1 for a density, the supernet's number of parameters for parameters.
        every: number of calls of ``step`` between two changes.
        alpha: strength of the control, > 0.
        lam_min: lower bound of every lam.
        lam_max: upper bound.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        optimizer: Penalised,
        target: float,
        measure: Callable[[], float] | None = None,
        *,
        total: float = 1.0,
        every: int = 100,
        alpha: float = 1.0,
        lam_min: float = 1e-6,
        lam_max: float = 10.0,
    ) -> None:
        if not 0 <= target <= total < math.inf or total == 0:
            raise ValueError(f"LamController(target=...) must lie in [0, total={total}], got {target}")
        if every < 1 or not alpha > 0 or not 0 < lam_min <= lam_max:
            raise ValueError(
                "LamController needs every >= 1, alpha > 0 and 0 < lam_min <= lam_max, got "
                f"every={every}, alpha={alpha}, lam_min={lam_min}, lam_max={lam_max}"
            )
        self.optimizer, self.target, self.total, self.every = optimizer, target, total, every
        self.measure = measure or (lambda: density(optimizer))
        self.lam_min, self.lam_max = lam_min, lam_max
        self.state: dict[str, float] = {"count": 0, "alpha": alpha, "side": 0, "changes": 0}

    def step(self) -> None:
        """Count a training step, and change lam if it is time."""
        self.state["count"] += 1
        if self.state["count"] % self.every:
            return
        gap = (self.measure() - self.target) / self.total
        side = math.copysign(1, gap) if gap else 0
        if side * self.state["side"] < 0:
            self.state["changes"] += 1
            self.state["alpha"] *= 0.95 if self.state["changes"] > 1 else 1
        self.state["side"] = side or self.state["side"]
        growth = 1 + self.state["alpha"] * abs(gap)
        for group in self.optimizer.param_groups:
            if lams := [lam for lam in strengths(group["penalty"]) if lam > 0]:
                factor = growth if side > 0 else 1 / growth
                factor = min(max(factor, self.lam_min / min(lams)), self.lam_max / max(lams))
                group["penalty"] = scaled(group["penalty"], factor)
        if isinstance(self.optimizer, Bregman):
            self.optimizer.resync()

    def state_dict(self) -> dict[str, float]:
        """Plain numbers; lam itself is in the state of the optimiser."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.state = dict(state_dict)


class DeadTraining(RuntimeError):
    """Nothing will ever change again; the message says what to do."""


class Watchdog:
    """Stops a training that is dead: call ``step`` with the loss, once per epoch or every few hundred steps.

    Args:
        optimizer: with the gradients of the last backward pass still there.
        patience: number of calls in a row that must find the same before it raises.
        chance: the loss of guessing, such as ``math.log(num_classes)``; none by default.
    """

    def __init__(self, optimizer: Penalised, *, patience: int = 3, chance: float | None = None) -> None:
        if patience < 1:
            raise ValueError(f"Watchdog(patience=...) must be at least 1, got {patience}")
        self.optimizer, self.patience, self.chance = optimizer, patience, chance
        self._still, self._guessing, self._last = 0, 0, -1

    def step(self, loss: float) -> None:
        """Look at the gradients, the number of active groups and the loss.

        Raises:
            DeadTraining: ``patience`` times in a row every gradient was below 1e-12 of its weight's size and no group
                woke or died; or the loss was within 1 % of ``chance``. It says what to change.
        """
        active = sum(int(mask.sum()) for mask in active_groups(self.optimizer).values())
        still = active == self._last and not any(map(_moves, self._parameters()))
        guessing = self.chance is not None and abs(loss - self.chance) <= 0.01 * self.chance
        self._last = active
        self._still = self._still + 1 if still else 0
        self._guessing = self._guessing + 1 if guessing else 0
        advice = "start with a larger density or a smaller lr (lam / lr of at least 70), and see nas.check_start"
        if self._still >= self.patience:
            raise DeadTraining(f"training is dead: no gradient, and {active} active groups for ever; {advice}")
        if self._guessing >= self.patience:
            raise DeadTraining(f"training is dead: the loss {loss:.4g} is that of guessing; {advice}")

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]


def _moves(p: Tensor) -> bool:
    if p.grad is None:
        return False
    return bool(p.grad.abs().max() > 1e-12 * p.detach().abs().max().clamp(min=torch.finfo(p.dtype).tiny))


def _unit_sets(optimizer: Penalised) -> Iterator[tuple[str, dict[str, Any], list[Tensor]]]:
    """What a penalty sees at once: name of the parameter group, the group and the tensors."""
    for k, group in enumerate(optimizer.param_groups):
        if not isinstance(group["penalty"], Zero):
            for members in unit_sets(group):
                yield str(group.get("name", k)), group, members


def _active(members: list[Tensor], group: dict[str, Any]) -> Tensor:
    return groups_of(group["penalty"]).active(seen(members, group["joint"])).flatten()


def _gauge(optimizer: Bregman, members: list[Tensor], group: dict[str, Any]) -> Tensor:
    """The gauge of the subgradients dual - p / delta; 0 before the first step."""
    states = [optimizer.state.get(p, {}) for p in members]
    subgradients = [
        state["dual"] - p / group["delta"] if "dual" in state else torch.zeros_like(p)
        for p, state in zip(members, states, strict=True)
    ]
    gauge: Tensor = group["penalty"].gauge(seen(subgradients, group["joint"]))
    return gauge


@torch.no_grad()
def _gauges(optimizer: Bregman) -> Tensor:
    return torch.cat([_gauge(optimizer, members, group).flatten() for _, group, members in _unit_sets(optimizer)])


def _asleep(optimizer: Penalised) -> Tensor:
    return ~torch.cat([_active(members, group) for _, group, members in _unit_sets(optimizer)])


def _scale(optimizer: Bregman, factor: float) -> None:
    for group in optimizer.param_groups:
        group["penalty"] = scaled(group["penalty"], factor)
    optimizer.resync()


def _restore(model: nn.Module, optimizer: Bregman, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    weights, steps = copy.deepcopy(state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(steps)
    optimizer.zero_grad()
