"""What all optimisers with a penalty share."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from nas.groups import Axis, join_rows, num_units, split_rows, unit_size
from nas.penalties import LogSum, Penalty, Step, Zero, groups_of

NOT_OPTIONS = {  # what torch, its schedulers and `param_groups` add
    *("params", "param_names", "name", "initial_lr", "swa_lr"),
    *("max_lr", "min_lr", "max_momentum", "base_momentum"),
}
Range = tuple[Callable[[Any], bool], str]
RANGES: dict[str, Range] = {
    "lr": (lambda v: 0 < v < math.inf, "a finite number > 0"),
    "delta": (lambda v: 0 < v < math.inf, "a finite number > 0"),
    "kappa": (lambda v: 0 < v < math.inf, "a finite number > 0"),
    "nu": (lambda v: 0 < v < math.inf, "a finite number > 0"),
    "momentum": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "dampening": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "betas": (lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v), "two numbers in [0, 1)"),
    "eps": (lambda v: 0 <= v < math.inf, "a finite number >= 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "a finite number >= 0"),
    "second_moment": (lambda v: v in ("entry", "group", "tensor"), "'entry', 'group' or 'tensor'"),
    "averaging": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "time": (lambda v: 0 < v < math.inf, "a finite number > 0"),
    "weight_time": (lambda v: 0 < v < math.inf, "a finite number > 0"),
}

MovedGroups = list[tuple[dict[str, Any], list[Tensor]]]  # parameter groups, with their parameters that have a gradient


class Penalised(Optimizer, ABC):
    """What all optimisers with a penalty share: options, joint units, finite gradients, a state of plain data.

    Options are accepted in each parameter group, too.

    Other args:
        lr: step, > 0.
        penalty: J of each tensor; biases and norms usually take ``Zero()``.
        joint: the i-th slices of all tensors of a parameter group form one unit, and the penalty sees the matrix
            with one row per unit (`nas.groups.join_rows`): a filter and its bias live and die together. True if the
            units lie along the first axis of every tensor, else where they lie in each (`nas.groups.Axis`), as in
            ``(0, 1)``. What is of no unit has no penalty.

    Parameters are written in place and keep their storage. Those without gradient are left alone, unless they belong
    to a joint unit, which vanishes and wakes as a whole. A sparse gradient counts as the dense one it stands for.
    Weights in half precision have a state in single precision.

    Raises:
        ValueError: an option unknown or out of range, a parameter given twice or not of real numbers, groups that
            don't fit a parameter, joint tensors with different numbers of units.
        FloatingPointError: in ``step``, if a gradient is NaN or infinite; nothing has moved then.
    """

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as torch's own do; torch.compiler.disable takes seconds to load
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` returned, None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [
            (group, [p for p in group["params"] if p.grad is not None and (p.numel() or group["joint"])])
            for group in self.param_groups
        ]
        groups = [(group, moved) for group, moved in given if moved]
        gathered = self._gathered(groups)
        self._check_gradients(gathered)
        self._step_groups(groups, gathered)
        return loss

    def _gathered(self, groups: MovedGroups) -> MovedGroups:
        """Tensors to be moved for these parameters, where several of them are joined."""
        return groups

    @abstractmethod
    def _step_groups(self, groups: MovedGroups, gathered: MovedGroups) -> None:
        """Update parameter groups in place, each with its parameters that have a gradient."""

    def reweight(self) -> None:
        """Renew the weights of every `LogSum` penalty from the magnitudes of the parameters as they are now."""
        for group in self.param_groups:
            if isinstance(group["penalty"], LogSum):
                for p in group["params"]:
                    self.state[p]["weights"] = _log_sum_weights(group["penalty"], p)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; refuses near misses of options, values out of range and parameters that don't fit."""
        name = type(self).__name__
        unknown = set(param_group) - set(self.defaults) - NOT_OPTIONS
        if slips := [key for key in unknown if key in RANGES or get_close_matches(key, self.defaults, cutoff=0.75)]:
            raise ValueError(f"{name} has no option {sorted(slips)}; its options are {sorted(self.defaults)}")
        options = {**self.defaults, **param_group}
        self._check_options(options)
        if isinstance(param_group["params"], set):
            raise TypeError(f"{name}: a set has no order; give the parameters as a list")
        params = param_group["params"]
        param_group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        self._check_parameters(param_group["params"], options)
        super().add_param_group(param_group)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option out of range."""
        check_ranges(type(self).__name__, options, RANGES)
        penalty = options["penalty"]
        if not dataclasses.is_dataclass(penalty) or isinstance(penalty, type) or not hasattr(penalty, "value"):
            raise ValueError(
                f"{type(self).__name__}(penalty=...) must be a penalty, a dataclass such as L1(0.1), got {penalty!r}"
            )
        joint = options["joint"]
        if not isinstance(joint, bool) and not (isinstance(joint, tuple | list) and all(map(_is_axis, joint))):
            raise ValueError(
                f"{type(self).__name__}(joint=...) must be True, False or one axis per tensor, got {joint!r}"
            )

    def _check_parameters(self, params: Sequence[Any], options: dict[str, Any]) -> None:
        name = type(self).__name__
        seen = {id(p) for group in self.param_groups for p in group["params"]}
        tensors = {}
        for index, item in enumerate(params):
            label, p = item if isinstance(item, tuple) else (f"{index} of its group", item)
            if not isinstance(p, Tensor):
                continue  # torch says what is wrong
            if id(p) in seen:
                raise ValueError(f"{name}: parameter {label} is given twice; each may be in one group, once")
            if not p.is_floating_point():
                raise ValueError(f"{name}: parameter {label} must be of real floating-point numbers, got {p.dtype}")
            seen.add(id(p))
            tensors[f"parameter {label}"] = p
        axes = axes_of(options["joint"], len(tensors))
        if axes is not None and tensors:
            tensors = {"the joint units": self._joined(list(tensors.values()), axes, options["penalty"])}
        for label, p in tensors.items():
            try:
                groups_of(options["penalty"]).check(p)
            except ValueError as problem:
                raise ValueError(f"{name}: the penalty does not fit {label}: {problem}") from None

    def _joined(self, tensors: list[Tensor], axes: tuple[Axis, ...], penalty: Penalty | LogSum) -> Tensor:
        """The matrix of joint units, without its numbers."""
        if isinstance(penalty, LogSum):
            raise ValueError(f"{type(self).__name__}: LogSum weighs entries, and takes no joint units")
        try:
            fits = len({num_units(p, axis) for p, axis in zip(tensors, axes, strict=True)}) == 1
        except ValueError:
            fits = False
        if not fits:
            shapes = [tuple(p.shape) for p in tensors]
            raise ValueError(
                f"{type(self).__name__}: joint tensors need as many units along axes {axes}, got shapes {shapes}"
            )
        return torch.empty(num_units(tensors[0], axes[0]), unit_size(tensors, axes), device="meta")

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
        if not all("penalty" in old for old in stored):
            raise ValueError(f"the stored state is of an optimiser without penalty, not of {type(self).__name__}")
        self._check_stored(state_dict)
        groups = [
            {**old, "penalty": _from_data(old["penalty"], group["penalty"])}
            for old, group in zip(stored, self.param_groups, strict=True)
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})
        ids = [key for group in stored for key in group["params"]]
        for key, (_, p) in zip(ids, self._named_parameters(), strict=True):
            for entry, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][entry].dtype:
                    self.state[p][entry] = value.to(p.device, copy=True)  # torch cast it to the type of the weights
        self._restored()

    def _check_stored(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError for the state of another optimiser, or of parameters of other shapes."""
        name = type(self).__name__
        for old, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            missing = self.defaults.keys() - old.keys() - {"second_moment"}  # of a file older than this option
            if other := missing | ((old.keys() & RANGES.keys()) - group.keys()):
                raise ValueError(
                    f"the stored state is of another optimiser, not of {name}: they differ in {sorted(other)}"
                )
            labelled = zip(old["params"], group.get("param_names", old["params"]), group["params"], strict=False)
            for key, label, p in labelled:
                dual = state_dict["state"].get(key, {}).get("dual")
                if dual is not None and dual.shape != p.shape:
                    raise ValueError(
                        f"the stored state of parameter {label} has shape {tuple(dual.shape)}, the parameter has "
                        f"{tuple(p.shape)}"
                    )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._restored()

    def _restored(self) -> None:
        """Rebuild what is derived from ``state`` and ``param_groups``, after these were replaced."""

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for k, group in enumerate(self.param_groups):
            names = group.get(
                "param_names", [f"{i} of group {group.get('name', k)}" for i in range(len(group["params"]))]
            )
            yield from zip(names, group["params"], strict=True)

    def _totals(self, groups: MovedGroups) -> Tensor:
        """Numbers that are finite only if all entries of the gradients are."""
        grads = [gradient(p) for _, moved in groups for p in moved]
        if all(g.is_cpu for g in grads):  # where norms of several tensors take one thread alone
            return torch.stack([g.sum() for g in grads])
        return get_total_norm(grads)

    def _check_gradients(self, groups: MovedGroups) -> None:
        """Refuse a gradient that is not finite; looks at entries only where their sum or norm is not."""
        if not groups or bool(self._totals(groups).isfinite().all()):
            return
        for name, p in self._named_parameters():
            if p.grad is not None and not gradient(p).isfinite().all():
                raise FloatingPointError(
                    f"{type(self).__name__}: the gradient of parameter {name} has NaN or infinite entries, and no "
                    "parameter was changed; use a smaller lr, or skip the batch"
                )


def check_ranges(name: str, options: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise ValueError for an option of the optimiser ``name`` that is out of range."""
    for key, (accepts, accepted) in ranges.items():
        try:
            fits = key not in options or accepts(options[key])
        except TypeError:  # not even a number
            fits = False
        if not fits:
            raise ValueError(f"{name}({key}=...) must be {accepted}, got {options[key]!r}")


def _is_axis(value: Any) -> bool:
    """Whether this is a `nas.groups.Axis`, perhaps as a list."""
    numbers = value if isinstance(value, tuple | list) else [value]
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in numbers)
    return whole and len(numbers) == (1 if numbers is not value else 4)


def gradient(p: Tensor) -> Tensor:
    """The dense gradient of ``p``."""
    grad = p.grad
    assert grad is not None
    return grad.to_dense() if grad.is_sparse else grad


def axes_of(joint: bool | Sequence[Axis], count: int) -> tuple[Axis, ...] | None:
    """Where the units lie in each of ``count`` tensors; None if the tensors are not joint."""
    if isinstance(joint, bool):
        return (0,) * count if joint else None
    return tuple(axis if isinstance(axis, int) else (axis[0], axis[1], axis[2], axis[3]) for axis in joint)


def convex(penalty: Penalty | LogSum, states: Sequence[dict[str, Any]]) -> tuple[Penalty, list[Step]]:
    """The convex penalty of a step, and the factor of the step for each tensor."""
    if isinstance(penalty, LogSum):
        return penalty.majoriser, [state["weights"] for state in states]
    return penalty, [1.0] * len(states)


def start_weights(penalty: Penalty | LogSum, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
    """The first weights of a `LogSum` penalty, for parameters that have none."""
    for p, state in zip(params, states, strict=True):
        if isinstance(penalty, LogSum) and "weights" not in state:
            state["weights"] = _log_sum_weights(penalty, p)


def unit_sets(group: Mapping[str, Any], params: Sequence[Tensor] | None = None) -> list[list[Tensor]]:
    """What the penalty of a parameter group sees at once: all tensors of a joint group, else each one by itself.

    Args:
        group: as `nas.param_groups` or an optimiser has it.
        params: of a group that is not joint, only these.
    """
    members = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
    return [members] if group.get("joint", False) else [[p] for p in (members if params is None else params)]


def penalised_sets(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any], list[Tensor]]]:
    """Name of the parameter group, the group and its tensors, for everything that a penalty sees at once."""
    for index, group in enumerate(groups):
        if not isinstance(group.get("penalty", Zero()), Zero):
            for members in unit_sets(group):
                yield str(group.get("name", index)), group, members


def seen(members: Sequence[Tensor], joint: bool | Sequence[Axis]) -> Tensor:
    """The tensor that the penalty sees: the only member, or the matrix with one row per joint unit."""
    axes = axes_of(joint, len(members))
    return members[0] if axes is None else join_rows(members, axes)


def unseen(
    result: Tensor, members: Sequence[Tensor], joint: bool | Sequence[Axis], *, rest: float | Sequence[Tensor] = 0.0
) -> list[Tensor]:
    """The inverse of `seen`: pieces of ``result`` in the shapes of the members; ``rest`` where these are of no unit."""
    axes = axes_of(joint, len(members))
    return [result] if axes is None else split_rows(result, members, axes, rest)


def _log_sum_weights(penalty: LogSum, p: Tensor) -> Tensor:
    wide = p.to(state_dtype(p))
    return penalty.weights(penalty.groups.means(wide), penalty.groups.size(p))


def state_dtype(p: Tensor) -> torch.dtype:
    """Single precision at least: small steps onto a large dual would be lost in half precision."""
    return torch.promote_types(p.dtype, torch.float32)


def _from_data(data: dict[str, Any], kind: Any) -> Any:
    """The dataclass that `state_dict` turned into ``data``; ``kind`` is an object of the same classes."""
    if data.get("name", type(kind).__name__) != type(kind).__name__:
        raise ValueError(f"the stored penalty is {data['name']}, the optimiser was built with {type(kind).__name__}")
    fields = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}
    if data.keys() - {"name"} != fields.keys():
        raise ValueError(f"the stored penalty has a part {data}, the optimiser was built with {kind}")
    return type(kind)(
        **{
            key: _from_data(data[key], old) if dataclasses.is_dataclass(old) else data[key]
            for key, old in fields.items()
        }
    )
