"""Optimisers with a penalty: Bregman iterations (gradient steps on a dual variable) and proximal SGD."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from nas.groups import join_rows, split_rows
from nas.penalties import Penalty, Zero

NOT_OPTIONS = {"params", "param_names", "name", "initial_lr"}  # what torch, its schedulers and `param_groups` add


class Penalised(Optimizer, ABC):
    """What all optimisers with a penalty share: options, joint units, and a state of plain data.

    Options, also accepted in each parameter group:
        lr: step, > 0.
        penalty: J; biases and norms usually take ``Zero()``.
        joint: the i-th slices of all tensors of a parameter group form one unit, and the penalty sees the matrix
            with one row per unit (`nas.groups.join_rows`): a filter and its bias live and die together.

    Raises:
        ValueError: an option out of range or unknown, or joint tensors with unequal first dimensions.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` returned, None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._step_group(moved, group)
        return loss

    @abstractmethod
    def _step_group(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        """Update one parameter group in place; ``moved`` are its parameters that have a gradient."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; refuses unknown keys and values out of range."""
        name = type(self).__name__
        if unknown := set(param_group) - set(self.defaults) - NOT_OPTIONS:
            raise ValueError(f"{name} has no option {sorted(unknown)}; its options are {sorted(self.defaults)}")
        options = {**self.defaults, **param_group}
        for key in ("lr", "delta"):
            if key in options and not 0 < options[key] < math.inf:
                raise ValueError(f"{name}({key}=...) must be a finite number > 0, got {options[key]}")
        if not all(0 <= beta < 1 for beta in options.get("betas", ())):
            raise ValueError(f"{name}(betas=...) must lie in [0, 1), got {options['betas']}")
        if not 0 <= options.get("momentum", 0.0) < 1:
            raise ValueError(f"{name}(momentum=...) must lie in [0, 1), got {options['momentum']}")
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        if added["joint"] and len({p.shape[:1] for p in added["params"]}) > 1:
            shapes = [tuple(p.shape) for p in added["params"]]
            self.param_groups.pop()
            raise ValueError(f"{name}: joint tensors need the same number of units in front, got shapes {shapes}")

    def state_dict(self) -> dict[str, Any]:
        """Plain data only: a penalty is stored as its name and numbers, so that `torch.load` accepts the file."""
        state = super().state_dict()
        for group in state["param_groups"]:
            penalty = group["penalty"]
            group["penalty"] = {"name": type(penalty).__name__, **dataclasses.asdict(penalty)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`. Each group keeps the kind of penalty it was built with.

        Raises:
            ValueError: the stored penalties are of another kind, or the groups have other sizes.
        """
        stored = state_dict["param_groups"]
        if len(stored) != len(self.param_groups):
            raise ValueError(
                f"the stored state has {len(stored)} parameter groups, the optimiser {len(self.param_groups)}"
            )
        groups = [
            {**old, "penalty": _from_data(old["penalty"], group["penalty"])}
            for old, group in zip(stored, self.param_groups, strict=True)
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})


class Bregman(Penalised):
    """Mirror descent for the elastic-net penalty J(p) + |p|^2 / (2 delta) (JMLR 23(192), eqs. 1 to 6).

        dual <- dual - lr * direction(gradient)
        p    <- prox(delta * dual, delta)                 prox of J

    The dual starts at p / delta + subgradient of J at p, so that the first prox gives p back.
    Groups that are zero stay *exactly* zero until their dual leaves the unit ball of J.

    Options besides those of `Penalised`:
        lr: step on the dual variable.
        delta: > 0; scales the weights of the groups that are awake, not which ones are.
    """

    def _step_group(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        members = group["params"] if group["joint"] else moved
        self._start_duals(members, group)
        self._step_duals(moved, group)
        self._read_weights(members, group)

    @abstractmethod
    def _step_duals(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """dual <- dual - lr * direction(gradient), in place, for parameters that have a gradient."""

    def _start_duals(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """dual = p / delta + subgradient of J at p, for parameters that have no dual yet."""
        new = [p for p in params if "dual" not in self.state[p]]
        for p, subgradient in zip(new, _apply(group["penalty"].subgradient, new, group["joint"]), strict=True):
            self.state[p]["dual"] = p / group["delta"] + subgradient

    def _read_weights(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """p <- prox(delta * dual, delta), in place."""
        delta, duals = group["delta"], [self.state[p]["dual"] for p in params]
        scaled = duals if delta == 1 else [delta * dual for dual in duals]
        _write_prox(group["penalty"], scaled, delta, params, group["joint"])


class LinBreg(Bregman):
    """Linearised Bregman iteration, with momentum if wanted (JMLR 23(192), eqs. 4 and 5 of Algorithms 1 and 2).

        mean <- momentum * mean + (1 - momentum) * gradient          the direction; the gradient without momentum

    With ``Zero()`` and without momentum it is SGD with learning rate ``delta * lr``. The mean starts at 0, unlike the
    buffer of `torch.optim.SGD`, which starts at the first gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        penalty: Penalty = Zero(),
        delta: float = 1.0,
        joint: bool = False,
        momentum: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "penalty": penalty, "delta": delta, "joint": joint, "momentum": momentum}
        super().__init__(params, defaults)

    def _step_duals(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            state, direction = self.state[p], p.grad
            if group["momentum"] != 0:
                mean = state.setdefault("mean", torch.zeros_like(state["dual"]))
                direction = mean.lerp_(direction, 1 - group["momentum"])
            state["dual"].add_(direction, alpha=-group["lr"])


class AdaBreg(Bregman):
    """Bregman iteration with Adam's direction (JMLR 23(192), Algorithm 3).

    A unit whose gradient keeps its sign wakes after about ``lam / lr`` steps, whatever its size: between 70 and
    2000 is healthy, below 20 everything wakes at once.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        penalty: Penalty = Zero(),
        delta: float = 1.0,
        joint: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "penalty": penalty, "delta": delta, "joint": joint, "betas": betas, "eps": eps}
        )

    def _step_duals(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in params]
        for state in states:
            if "step" not in state:
                state["step"] = torch.zeros((), device=state["dual"].device)
                state["exp_avg"] = torch.zeros_like(state["dual"])
                state["exp_avg_sq"] = torch.zeros_like(state["dual"])
        adam(
            [state["dual"] for state in states],
            [_laid_out_like(self.state[p]["dual"], p.grad) for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


class ProxSGD(Penalised):
    """Proximal stochastic gradient descent, the baseline that Bregman iterations differ from (JMLR 23(192), eq. 7).

        p <- prox(p - lr * gradient, lr)                  prox of J

    It has no memory: what is awake pays lr * lam in every step, so that weights are biased towards zero.
    """

    def __init__(self, params: ParamsT, lr: float = 0.1, *, penalty: Penalty = Zero(), joint: bool = False) -> None:
        super().__init__(params, {"lr": lr, "penalty": penalty, "joint": joint})

    def _step_group(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        for p in moved:
            assert p.grad is not None
            p.add_(p.grad, alpha=-group["lr"])
        members = group["params"] if group["joint"] else moved
        _write_prox(group["penalty"], members, group["lr"], members, group["joint"])


def _laid_out_like(dual: Tensor, grad: Tensor) -> Tensor:
    """``grad`` with the strides of ``dual``: torch's fused kernels walk through memory as if they were equal."""
    return grad if grad.stride() == dual.stride() else torch.empty_like(dual).copy_(grad)


def _write_prox(penalty: Penalty, z: list[Tensor], step: float, params: list[Tensor], joint: bool) -> None:
    """p <- prox(z, step), in place; where the penalty only shrinks groups, without a temporary tensor."""
    if not hasattr(penalty, "shrinkage"):
        for p, weight in zip(params, _apply(lambda rows: penalty.prox(rows, step), z, joint), strict=True):
            p.copy_(weight)
        return
    if joint:
        factor = penalty.shrinkage(join_rows(z), step)  # one per unit
        factors = [factor.reshape(-1, *(1,) * (tensor.ndim - 1)) for tensor in z]
    else:
        factors = [penalty.shrinkage(tensor, step) for tensor in z]
    for p, tensor, factor in zip(params, z, factors, strict=True):
        torch.mul(tensor, factor, out=p)


def _apply(function: Callable[[Tensor], Tensor], tensors: list[Tensor], joint: bool) -> list[Tensor]:
    """``function`` of each tensor, or of the matrix of the units that the tensors share."""
    if joint and tensors:
        return split_rows(function(join_rows(tensors)), tensors)
    return [function(tensor) for tensor in tensors]


def _from_data(data: dict[str, Any], kind: Any) -> Any:
    """The dataclass that `state_dict` turned into ``data``; ``kind`` is an object of the same classes."""
    if data.get("name", type(kind).__name__) != type(kind).__name__:
        raise ValueError(f"the stored penalty is {data['name']}, the optimiser was built with {type(kind).__name__}")
    fields = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}
    return type(kind)(
        **{
            key: _from_data(data[key], old) if dataclasses.is_dataclass(old) else data[key]
            for key, old in fields.items()
        }
    )
