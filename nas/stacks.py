"""Many small tensors that move alike, joined along their first axis, so that one call does for all of them."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas.penalised import MovedGroups, axes_of, gradient, unit_sets
from nas.penalties import L1, GroupLasso, NonNegativeL1, Slabwise, SparseGroup, Zero, free_axes, stacked
from nas.reading import SMALL
from nas.second_moments import sharing

Group = dict[str, Any]
State = dict[str, Any]
States = Mapping[Tensor, State]
Set = tuple[Group, Sequence[Tensor]]  # tensors whose units are joint, or one tensor; and its parameter group
Options = Callable[[Group], tuple[Any, ...]]

KNOWN = {"dual", "exp_avg", "exp_avg_sq", "momentum_buffer", "step", "coarse", "share", "others"}  # in a state


class Member(NamedTuple):
    """A tensor with its part of a longer one, and its state."""

    tensor: Tensor
    place: Tensor
    state: State


class Stack:
    """Sets of tensors with equal shapes and options as one set of longer tensors, which have the rows of all.

    A step of these is a step of the members, but for round-off. What the members have in their states are views of what
    the longer tensors have in theirs; only the counts of steps are copies.

    Args:
        sets: the members.
        states: of all parameters.

    Attributes:
        tensors: the longer ones; they have the members' values after `gather` alone.
        states: theirs.
    """

    def __init__(self, sets: Sequence[Set], states: States) -> None:
        self._groups = list({id(group): group for group, _ in sets}.values())
        self._forms = list(map(_form, self._groups))
        self._parts: dict[tuple[int, str], tuple[Tensor, list[Tensor]]] = {}  # what the members have of each entry
        alike = list(zip(*(members for _, members in sets), strict=True))
        self.tensors = [torch.cat(each) for each in alike]
        places = [_split(tensor, len(sets), tensor.ndim) for tensor in self.tensors]
        self._members = [
            [Member(p, place, states[p]) for p, place in zip(*pair, strict=True)]
            for pair in zip(alike, places, strict=True)
        ]
        self.states = [self._joined([member.state for member in members]) for members in self._members]
        self.share()

    @property
    def group(self) -> Group:
        """With the options that the members' groups have now."""
        group, penalty, count = self._groups[0], self._groups[0]["penalty"], len(self._members[0])
        if 0 not in free_axes(penalty, 1):  # groups that have entries in several rows
            penalty = Slabwise(stacked(penalty, 2 if group["joint"] else self.tensors[0].ndim), count)
        return {**group, "params": self.tensors, "penalty": penalty, "stacked": count}

    def holds(self, states: States, options: Options) -> bool:
        """Whether the members still have equal ``options``, and their types, shapes and parts of these states."""
        first = options(self._groups[0])
        return (
            list(map(_form, self._groups)) == self._forms
            and all(options(group) == first for group in self._groups)
            and all(
                states.get(p) is own and p.is_cpu and p.dtype == place.dtype and p.shape == place.shape
                for p, place, own in self.members()
            )
            and all(
                member.state.get(key) is part
                for (k, key), (_, parts) in self._parts.items()
                for member, part in zip(self._members[k], parts, strict=True)
            )
        )

    def gather(self) -> None:
        """Take the members' gradients, and their weights where these decay."""
        for tensor, members in zip(self.tensors, self._members, strict=True):
            tensor.grad = torch.cat([gradient(member.tensor) for member in members])
            if self._groups[0]["weight_decay"] != 0:
                torch.cat([member.tensor for member in members], out=tensor)

    def share(self) -> None:
        """Let the members have their parts of the states as these are now."""
        for k, state in enumerate(self.states):
            for key, value in state.items():
                if isinstance(value, Tensor) and self._parts.get((k, key), (None,))[0] is not value:
                    parts = _split(value, len(self._members[k]), self.tensors[k].ndim)
                    self._parts[k, key] = value, parts
                    for member, part in zip(self._members[k], parts, strict=True):
                        member.state[key] = part
        for value, parts in self._parts.values():
            if value.ndim == 0:
                torch._foreach_copy_(parts, [value] * len(parts))

    def members(self) -> Iterator[Member]:
        """All of them."""
        return chain.from_iterable(self._members)

    def _joined(self, own: Sequence[State]) -> State:
        state = dict(own[0])
        for key, value in own[0].items():
            if isinstance(value, Tensor):
                one_each = key in ("exp_avg_sq", "others") and self._groups[0].get("second_moment") == "tensor"
                join = torch.stack if one_each else torch.cat
                state[key] = join([each[key] for each in own]) if value.ndim else value.clone()
        return state


class Stacks:
    """The stacks of an optimiser, as long as they hold.

    Args:
        options: of an optimiser.

    Attributes:
        states: of their tensors.
    """

    def __init__(self, options: Iterable[str]) -> None:
        self._options = itemgetter(*(key for key in options if key != "penalty"))
        self.states: dict[Tensor, State] = {}
        self._stacks: list[Stack] = []
        self._rest: MovedGroups = []
        self._made_of: list[list[int]] | None = None

    def hold(self, groups: MovedGroups, states: States) -> bool:
        """Whether they are made of these parameters, and members are still alike."""
        same = self._made_of == _ids(groups)
        return same and all(stack.holds(states, self._options) for stack in self._stacks)

    def make(self, groups: MovedGroups, states: States) -> None:
        """Anew, of what is small and alike. That depends on what is given alone, not on steps before, so that an
        optimiser that was restored goes on bit for bit."""
        alike: dict[Hashable, list[Set]] = defaultdict(list)
        for group, moved in groups:
            for members in _stackable(group, moved, states):
                kinds = (_kind(p, states[p]) for p in members)
                alike[group["penalty"], _hashable(self._options(group)), *kinds].append((group, members))
        sets = [each for each in alike.values() if len(each) > 1]
        stacked_now = {id(p) for each in sets for _, members in each for p in members}
        rest = [(group, [p for p in moved if id(p) not in stacked_now]) for group, moved in groups]
        self._rest = [(group, moved) for group, moved in rest if moved]
        self._stacks = [Stack(each, states) for each in sets]
        self._made_of = _ids(groups)
        pairs = [pair for stack in self._stacks for pair in zip(stack.tensors, stack.states, strict=True)]
        self.states = dict(pairs)

    def expire(self) -> None:
        """They are made anew at the next step."""
        self._made_of = None

    def gathered(self) -> MovedGroups:
        """What they are made of, with stacks in place of their members."""
        for stack in self._stacks:
            stack.gather()
        return self._rest + [(stack.group, stack.tensors) for stack in self._stacks]

    def scatter(self) -> None:
        """Give the members their weights and states."""
        members = [member for stack in self._stacks for member in stack.members()]
        if members:
            torch._foreach_copy_([member.tensor for member in members], [member.place for member in members])
        for stack in self._stacks:
            stack.share()


def _ids(groups: MovedGroups) -> list[list[int]]:
    """Of each group and what moves of it."""
    return [[id(group), *map(id, moved)] for group, moved in groups]


def _stackable(group: Group, moved: list[Tensor], states: States) -> Iterator[list[Tensor]]:
    """What the penalty sees at once and can be joined with the same of others, along the first axis."""
    penalty, joint = group["penalty"], group["joint"]
    known = type(penalty) in (Zero, L1, NonNegativeL1, GroupLasso, SparseGroup)
    units_in_rows = not any(axes_of(joint, len(group["params"])) or ())
    has_all = not joint or len(moved) == len(group["params"])
    moments_by_rows = joint or group.get("second_moment") != "group" or 0 in free_axes(penalty, 1)
    if known and units_in_rows and has_all and moments_by_rows:
        for members in unit_sets(group, moved):
            if sum(p.numel() for p in members) <= SMALL and all(_fits(p, states.get(p, {}), group) for p in members):
                yield members


def _fits(p: Tensor, state: State, group: Group) -> bool:
    """Whether a tensor can be a member."""
    whole = p.is_cpu and p.ndim > 0 and p.numel() > 0 and p.is_contiguous()
    return whole and "dual" in state and state.keys() <= KNOWN and _has_its_moments(p, state, group)


def _has_its_moments(p: Tensor, state: State, group: Group) -> bool:
    """Whether it has as many second moments as from now on, if any."""
    if "exp_avg_sq" not in state:
        return True
    of_units = group["second_moment"] == "group" and group["joint"]
    count: int = state["exp_avg_sq"].numel()
    return count == (p.shape[0] if of_units else sharing(group).rms(p).numel())


def _kind(p: Tensor, state: State) -> Hashable:
    """What is equal in members of a stack."""
    entries = {key: (v.shape, v.dtype, v.stride()) for key, v in state.items() if isinstance(v, Tensor)}
    return (p.shape, p.dtype, float(state.get("step", -1)), state.get("share"), *sorted(entries.items()))


def _form(group: Group) -> tuple[Any, ...]:
    """What says how groups lie, and how entries of a state are shaped."""
    return group["penalty"], group["joint"], group.get("second_moment")


def _hashable(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _split(value: Tensor, count: int, ndim: int) -> list[Tensor]:
    """The parts of the members: their rows of a tensor of ``ndim`` axes, what one of more axes has for each member, and
    copies of a number."""
    if value.ndim == 0:
        return list(value.repeat(count).unbind())
    return list((value if value.ndim > ndim else value.unflatten(0, (count, -1))).unbind())
