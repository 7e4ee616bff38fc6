"""Choosing and steering lam: entry times, calibration, a controller towards a target, and a watchdog."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.bregman import Bregman, LinBreg
from nas.penalised import Penalised, gradient, penalised_sets, seen
from nas.penalties import groups_of, scaled, strengths

EARLIEST = 20  # steps; sleeping groups that can wake sooner all wake at once
ROUNDING = 1e-3  # of an entry time of exactly so many steps, in single precision
EARLIEST_LINBREG = 3  # gradients differ, so that groups do not wake together
ATTEMPTS = 12  # of a calibration, each with 4 times the lam of the one before


def active_groups(optimizer: Penalised) -> dict[str, Tensor]:
    """For every parameter group with a penalty: which groups (units) are not zero, a boolean vector."""
    active: dict[str, list[Tensor]] = {}
    for name, group, members in penalised_sets(optimizer.param_groups):
        active.setdefault(name, []).append(_active(members, group))
    return {name: torch.cat(parts) for name, parts in active.items()}


def density(optimizer: Penalised) -> float:
    """Part of the penalised groups (units) that is not zero, in [0, 1]."""
    active = list(active_groups(optimizer).values())
    if not active:
        raise ValueError("density: no parameter group of the optimiser has a penalty")
    return torch.cat(active).cpu().double().mean().item()


@torch.no_grad()
def entry_times(optimizer: Bregman) -> dict[str, Tensor]:
    """For every parameter group with a penalty: in how many steps each sleeping group is expected to wake.

    It wakes when the gauge of its subgradient exceeds 1 (`nas.penalties.Penalty`). While the weights hardly change the
    dual moves by lr times the direction of the optimiser per step: lam / lr steps under AdaBreg, whose direction is
    about 1 in every entry, and lam / (lr * rms of the gradient) under LinBreg, which needs the gradients of a
    backward pass. So does AdaBreg with second moments of tensors, lam / lr * rms over the tensor / rms over the group,
    and of groups; without gradients it counts as if each entry had its own.

    Returns:
        By the name of the parameter group a vector of steps, one entry per sleeping group; inf where nothing moves.

    Raises:
        ValueError: an optimiser without duals, a penalty without gauge, or one with lam = 0.
    """
    _check_steerable(optimizer)
    times: dict[str, list[Tensor]] = {}
    for name, group, members in penalised_sets(optimizer.param_groups):
        asleep = ~_active(members, group)
        direction = seen([optimizer.expected_direction(p) for p in members], group["joint"])
        left = 1 - _gauge(optimizer, members, group).flatten()
        steps = left / (group["lr"] * group["penalty"].gauge(direction).flatten())
        times.setdefault(name, []).append(steps[asleep])
    return {name: torch.cat(parts) for name, parts in times.items()}


def check_entry_times(optimizer: Bregman, steps: float) -> None:
    """Refuse a lam with which everything wakes at once, or nothing within the run.

    Args:
        optimizer: before its first step; for LinBreg, and AdaBreg with shared second moments, after a backward pass.
        steps: length of the run, of coarse steps without these; infinite if it is not known.

    Raises:
        ValueError: half of the sleeping groups of a parameter group are expected to wake within 20 steps (3 under
            LinBreg), or 99 % of them only after ``steps`` steps, or never. It says which lam would do.
    """
    earliest = EARLIEST_LINBREG if isinstance(optimizer, LinBreg) else EARLIEST
    lams = {name: max(strengths(group["penalty"])) for name, group, _ in penalised_sets(optimizer.param_groups)}
    for name, times in entry_times(optimizer).items():
        if len(times) == 0:
            continue
        lam, median, first = lams[name], times.median().item(), _smallest(times, 0.01)
        if first == math.inf:
            raise ValueError(f"parameter group {name!r}: no gradient reaches its sleeping groups; see nas.check_start")
        if median < (1 - ROUNDING) * earliest:
            raise ValueError(
                f"parameter group {name!r}: half of its groups would wake within {median:.3g} steps, all at once; use "
                f"lam of at least {lam * earliest / median:.4g} instead of {lam:g} (nas search: a longer entry_time), "
                "or a smaller lr"
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

    ``steps`` training steps are made in which fewer wake; the gauge of a sleeping group then says which part of its way
    to waking it has gone. All lam of the optimiser are multiplied by the (1 - fraction) quantile of these parts. If too
    many woke, the trial is repeated with 4 times the lam. The model and the optimiser are as before afterwards, except
    for lam.

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
    _check_steerable(optimizer)
    asleep = _asleep(optimizer)
    if not asleep.any():
        raise ValueError("calibrate: no group is asleep, so that lam decides nothing; start sparsely")
    before, start, factor = copy.deepcopy((model.state_dict(), optimizer.state_dict())), _gauges(optimizer)[asleep], 1.0
    for _ in range(ATTEMPTS):
        try:
            _scale(optimizer, factor)
            for _ in range(steps):
                train_step()
            gauges = torch.where(_asleep(optimizer), _gauges(optimizer), math.inf)[asleep]
        finally:
            _restore(model, optimizer, before)
        progress = _smallest((gauges - start) / (1 - start), 1 - fraction)  # of the way that was left
        if progress <= 0:
            raise ValueError(f"calibrate: no gradient reaches {1 - fraction:.0%} of the sleeping groups")
        if progress < 1:
            _scale(optimizer, factor * progress)
            return factor * progress
        factor *= 4
    raise ValueError(
        f"calibrate: groups wake within {steps} steps with even {factor:g} times the lam; use a smaller lr"
    )


class LamController:
    """Steers lam so that a measured number approaches a target (Aloradi et al., arXiv 2605.07892, eq. for lambda).

        lam <- lam / (1 + alpha * gap)     while the number is below the target: sleeping groups wake sooner
        lam <- lam * (1 + alpha * gap)     while it is above

    with gap = |number - target| / total. From the second change of sides on alpha shrinks by 5 % at each. The duals
    follow (`Bregman.resync`), so that no weight jumps: groups keep their relative progress, and what is awake stays
    awake until the loss gives it up. That holds growth back but takes nothing away; where groups enter in bursts, as
    under AdaBreg, the number stays above the target, and lam rises in vain. With ``shrink`` a rising lam acts on the
    weights (`Bregman.reread`): they shrink a little, the weakest groups fall asleep, and the target is reached from
    both sides.

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
        shrink: whether a rising lam may take groups away.

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
        shrink: bool = False,
    ) -> None:
        if not 0 <= target <= total < math.inf or total == 0:
            raise ValueError(f"LamController(target=...) must lie in [0, total={total}], got {target}")
        if every < 1 or not alpha > 0 or not 0 < lam_min <= lam_max:
            raise ValueError(
                "LamController needs every >= 1, alpha > 0 and 0 < lam_min <= lam_max, got "
                f"every={every}, alpha={alpha}, lam_min={lam_min}, lam_max={lam_max}"
            )
        if not any(lam > 0 for group in optimizer.param_groups for lam in strengths(group["penalty"])):
            raise ValueError("LamController: no parameter group of the optimiser has a penalty with lam > 0")
        self.optimizer, self.target, self.total, self.every = optimizer, target, total, every
        self.measure = measure or (lambda: density(optimizer))
        self.lam_min, self.lam_max, self.shrink = lam_min, lam_max, shrink
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
        lams = [lam for group in self.optimizer.param_groups for lam in strengths(group["penalty"]) if lam > 0]
        factor = growth if side > 0 else 1 / growth
        factor = min(max(factor, self.lam_min / min(lams)), self.lam_max / max(lams))
        for group in self.optimizer.param_groups:
            group["penalty"] = scaled(group["penalty"], factor)
        if isinstance(self.optimizer, Bregman):
            if self.shrink and side > 0:
                self.optimizer.reread()
            else:
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

    _SEEN = ("_still", "_guessing", "_first", "_last")

    def __init__(self, optimizer: Penalised, *, patience: int = 3, chance: float | None = None) -> None:
        if patience < 1:
            raise ValueError(f"Watchdog(patience=...) must be at least 1, got {patience}")
        self.optimizer, self.patience, self.chance = optimizer, patience, chance
        self._still, self._guessing, self._first, self._last = 0, 0, -1, -1

    def step(self, loss: float) -> None:
        """Look at the gradients, the number of active groups and the loss.

        Raises:
            DeadTraining: ``patience`` times in a row every gradient was below 1e-12 of its weight's size and no group
                woke or died; or the loss was within 1 % of ``chance`` although groups have woken.
        """
        active = sum(int(mask.sum()) for mask in active_groups(self.optimizer).values())
        still = active == self._last and not any(map(_moves, self._parameters()))
        guessing = self.chance is not None and abs(loss - self.chance) <= 0.01 * self.chance and active != self._first
        self._first, self._last = active if self._last < 0 else self._first, active
        self._still = self._still + 1 if still else 0
        self._guessing = self._guessing + 1 if guessing else 0
        advice = "start with a larger density or a smaller lr (lam / lr of at least 70), and see nas.check_start"
        if self._still >= self.patience:
            raise DeadTraining(f"training is dead: no gradient, and {active} active groups for ever; {advice}")
        if self._guessing >= self.patience:
            raise DeadTraining(f"training is dead: the loss {loss:.4g} is that of guessing; {advice}")

    def state_dict(self) -> dict[str, int]:
        """What it has seen."""
        return {name: getattr(self, name) for name in self._SEEN}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        for name in self._SEEN:
            setattr(self, name, state[name])

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            yield from group["params"]


def _moves(p: Tensor) -> bool:
    if p.grad is None or p.numel() == 0:
        return False
    return bool(gradient(p).abs().max() > 1e-12 * p.detach().abs().max().clamp(min=torch.finfo(p.dtype).tiny))


def _smallest(values: Tensor, part: float) -> float:
    """The value below which the given part of the values lies."""
    return values.kthvalue(max(1, math.ceil(part * len(values)))).values.item()


def _check_steerable(optimizer: Penalised) -> None:
    """Raise ValueError unless every sleeping group has a dual whose way to waking is known."""
    if not isinstance(optimizer, Bregman):
        raise ValueError(f"{type(optimizer).__name__} has no duals; entry times are those of LinBreg, AdaBreg, Bregman")
    for name, group, _ in penalised_sets(optimizer.param_groups):
        penalty = group["penalty"]
        if not hasattr(penalty, "gauge"):
            raise ValueError(f"parameter group {name!r}: {type(penalty).__name__} has no gauge, so no entry times")
        if not any(strengths(penalty)):
            raise ValueError(f"parameter group {name!r}: with lam = 0 nothing sleeps")


def _active(members: list[Tensor], group: Mapping[str, Any]) -> Tensor:
    return groups_of(group["penalty"]).active(seen(members, group["joint"])).flatten()


def _gauge(optimizer: Bregman, members: list[Tensor], group: Mapping[str, Any]) -> Tensor:
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
    return torch.cat(
        [_gauge(optimizer, members, group).flatten() for _, group, members in penalised_sets(optimizer.param_groups)]
    )


def _asleep(optimizer: Penalised) -> Tensor:
    return ~torch.cat([_active(members, group) for _, group, members in penalised_sets(optimizer.param_groups)])


def _scale(optimizer: Bregman, factor: float) -> None:
    for group in optimizer.param_groups:
        group["penalty"] = scaled(group["penalty"], factor)
    optimizer.resync()


def _restore(model: nn.Module, optimizer: Bregman, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    weights, steps = copy.deepcopy(state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(steps)
    optimizer.zero_grad()
