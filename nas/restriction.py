"""Steps on a part of the parameters of an optimiser: the coarse level of multilevel LinBreg (arXiv 2602.03535)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nas.bregman import AdaBreg, LinBreg
from nas.groups import ENTRIES, ROWS, Axis, along, dim_of, unit_norms, unit_of, unit_size
from nas.nonzero import any_over, nonzero
from nas.parts import alive_entries
from nas.penalised import axes_of, gradient, state_dtype
from nas.penalties import GroupLasso, free_axes
from nas.reading import SMALL, readings, write_prox
from nas.second_moments import shared_rms, sharing
from nas.selection import Selection, copied, indices, selected, write

Group = dict[str, Any]
States = Mapping[Tensor, dict[str, Any]]  # by parameter
Trained = Mapping[Tensor, tuple[Parameter, Selection]]

MEANS = {"exp_avg", "momentum_buffer"}  # of gradients
KEPT = {"params", "param_names", "penalty", "delta", "joint"}  # options that are not followed before `take_back`


class NothingAwake(ValueError):
    """Nothing of what is trained is awake, so that there is no part to restrict steps to."""


def check_restricts(optimizer: Optimizer) -> None:
    """Raise ValueError unless steps of the optimiser can be restricted exactly to what is awake."""
    if not isinstance(optimizer, AdaBreg | LinBreg):
        raise ValueError(
            f"coarse steps need duals that can stand still, those of AdaBreg or LinBreg; {type(optimizer).__name__} "
            "has no exact restriction to what is awake"
        )


class Restriction:
    """Steps of an optimiser on what is awake, for a smaller network; the rest of its state stands still, bit for bit.

    What sleeps when this is made, and what the smaller network lacks, keeps its weights (which are zero), duals, means
    and second moments. Entries that share a group are kept together, also those that the network lacks, so that the
    prox of what is awake is that of the whole. `take_back` writes weights and state to where they came from.

    Under AdaBreg the step count of a parameter is that of its full steps, which is all that what sleeps has seen. What
    is awake has seen more: it goes on at the count of all steps with the moments that are the same there without their
    bias (`AdaBreg.at_count`), and so it comes back. In a second moment that is shared with something that stands still
    the gradients of that count as they were at the last full step.

    Args:
        optimizer: after a step, with its gradients.
        parts: for each tensor of the smaller network the parameter that it is a part of, and which part.

    Attributes:
        optimizer: of the same kind, for what is awake; it reads the gradients of the smaller network, and writes its
            weights.

    Raises:
        ValueError: the optimiser is neither `AdaBreg` nor `LinBreg`.
        NothingAwake: none of its parameters has a part in the smaller network.
    """

    def __init__(self, optimizer: Optimizer, parts: Mapping[Parameter, tuple[Tensor, Selection]]) -> None:
        check_restricts(optimizer)
        assert isinstance(optimizer, AdaBreg | LinBreg)
        trained = {whole: (small, part) for small, (whole, part) in parts.items() if small.numel()}
        self._whole = optimizer
        found = [(group, _pieces(group, trained, optimizer.state)) for group in optimizer.param_groups]
        self._groups = [(group, pieces) for group, pieces in found if pieces]
        if not self._groups:
            raise NothingAwake("nothing that is trained is awake")
        self.optimizer = _of_kind(optimizer, self._groups)
        self._hooks: list[RemovableHandle] = []
        self._restrict()
        self._hooks += [
            self.optimizer.register_step_pre_hook(lambda *_: self._follow()),
            self.optimizer.register_step_post_hook(lambda *_: self._pass_weights()),
        ]

    @torch.no_grad()
    def _restrict(self) -> None:
        optimizer, whole = self.optimizer, self._whole
        for (group, pieces), own in zip(self._groups, optimizer.param_groups, strict=True):
            masks = dict(alive_entries([own]))
            for piece in pieces:
                piece.let_move(masks.get(piece.part))
                optimizer.state[piece.part] = whole.at_count(*piece.start(whole.state), group)
                if piece.trained is not None and not piece.is_trained_whole:
                    self._hooks.append(piece.trained.register_post_accumulate_grad_hook(piece.pass_gradient))
            if isinstance(optimizer, AdaBreg) and sharing(group) != ENTRIES:
                _count_others(group, pieces, own, optimizer)
        optimizer.adopt()
        optimizer.reread()  # the same but for round-off, so that any later look finds weights and duals in accord
        self._pass_weights()

    def _follow(self) -> None:
        """Before a step: it is of the present size, and joint tensors that the network lacks have no gradient."""
        for (group, pieces), own in zip(self._groups, self.optimizer.param_groups, strict=True):
            own.update({key: value for key, value in group.items() if key not in KEPT})
            for piece in pieces:
                if piece.trained is None:
                    piece.part.grad = piece.gradient

    @torch.no_grad()
    def _pass_weights(self) -> None:
        for _, pieces in self._groups:
            for piece in pieces:
                piece.pass_weights()

    @torch.no_grad()
    def take_back(self) -> None:
        """Write weights and state into the whole, whose next step goes on from there; this one does no more."""
        for hook in self._hooks:  # they would keep the smaller network for ever
            hook.remove()
        for group, pieces in self._groups:
            for piece in pieces:
                piece.take_back(self._whole, self.optimizer.state[piece.part], group)
            if isinstance(pieces[0], _Rest):
                pieces[0].read_weights(self._whole)

    def state_dict(self) -> dict[str, Any]:
        """Where the part stands, within steps; the whole stands where this was made."""
        weights = [piece.part.detach() for _, pieces in self._groups for piece in pieces]
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with a restriction of the same whole."""
        pieces = [piece for _, pieces in self._groups for piece in pieces]
        for piece, weight in zip(pieces, state["weights"], strict=True):
            piece.part.copy_(weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.adopt()
        self._pass_weights()


class _Piece:
    """A tensor of the restriction: the part ``outer`` of a parameter, of which the network has the part ``inner``."""

    def __init__(self, whole: Tensor, outer: Selection, inner: Selection, trained: Parameter | None) -> None:
        self.whole, self.outer, self.trained = whole, outer, trained
        self.awake: Tensor | None = None  # mask of what may move, and of what of it the network has; None: all
        self.awake_there: Tensor | None = None
        if trained is not None and all(index is None for index in inner):
            self.part = trained
            return
        self.part = Parameter(copied(whole.detach(), outer))
        self.gradient = torch.zeros(self.part.shape, dtype=whole.dtype, device=whole.device)  # written where trained
        if trained is not None:
            entries = torch.arange(self.part.numel(), device=whole.device).view(self.part.shape)
            self.places = selected(entries, inner)  # of what the network has among the entries of the part

    def let_move(self, mask: Tensor | None) -> None:
        """These entries alone; None: all."""
        if mask is None or mask.all():
            return
        self.awake = mask
        there = mask if self.trained is self.part or self.trained is None else mask.take(self.places)
        self.awake_there = None if there.all() else there

    @property
    def is_trained_whole(self) -> bool:
        """Whether gradients are for the optimiser as they are."""
        return self.trained is self.part and self.awake is None

    def pass_gradient(self, trained: Tensor) -> None:
        """From the network to the optimiser; what sleeps gets none."""
        gradient = trained.grad
        assert gradient is not None
        if self.awake_there is not None:
            gradient.mul_(self.awake_there)
        if trained is not self.part:
            trained.grad = None
            self.gradient.view(-1).index_copy_(0, self.places.view(-1), gradient.reshape(-1))
            self.part.grad = self.gradient

    def pass_weights(self) -> None:
        """From the optimiser to the network."""
        if self.trained is not None and self.trained is not self.part:
            self.trained.copy_(self.part.take(self.places))

    def start(self, states: States) -> tuple[dict[str, Any], float]:
        """The state of the part, with means of zero where it sleeps, since nothing moves it then; and after how many
        steps it goes on."""
        state = states.get(self.whole, {})
        own = {
            key: copied(value, self._within(value)) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        if self.awake is not None:
            for key in MEANS & own.keys():
                own[key].mul_(self.awake)
        return own, sum(_counts(state))

    def take_back(self, whole: AdaBreg | LinBreg, own: dict[str, Any], group: Group) -> None:
        """Write weights and state into the whole."""
        state = whole.state[self.whole]
        write(self.whole, self.outer, self.part)
        if "step" in own:
            count = float(state["step"])
            state["coarse"] = float(own["step"]) - count
            own = whole.at_count(own, count, group)
        self._write_state(state, own, _cut(group))
        whole.adopt([self.whole])

    def _write_state(self, state: Mapping[str, Any], own: Mapping[str, Any], cut: Callable[[Tensor], Tensor]) -> None:
        """The inverse of `start`, for what is awake; ``cut`` is that of what shares a second moment."""
        for key, value in own.items():
            if isinstance(value, Tensor) and value.ndim and key in state:
                if self.awake is not None:
                    mask = self.awake if value.shape == self.part.shape else cut(self.awake)
                    while mask.ndim > value.ndim:
                        mask = mask.any(0)
                    for axis in (axis for axis, n in enumerate(value.shape) if n == 1):
                        mask = mask.any(axis, keepdim=True)
                    value = torch.where(mask, value, self.part_of(state[key]))
                write(state[key], self._within(state[key]), value)

    def part_of(self, value: Tensor) -> Tensor:
        """The part of an entry of the state."""
        return selected(value, self._within(value))

    def _within(self, value: Tensor) -> Selection:
        """The part of what has one number for each entry, or for each index of some axes, the first of which it may
        lack."""
        if value.ndim == 0 or all(index is None for index in self.outer):
            return ()
        outer = self.outer[len(self.outer) - value.ndim :]
        return tuple(None if n == 1 else index for n, index in zip(value.shape, outer, strict=True))


class _Rest(_Piece):
    """What the other pieces lack of joint units, whose prox depends on their lengths alone: its length in each unit.

    It has neither gradients nor means, so that steps change nothing of it but its length and its second moments.

    Args:
        group: of the whole.
        members: each tensor of the group with the axis of its units, the part that is these units, and the part of
            that which another piece has; None: there is none.
        pieces: the others.
    """

    def __init__(
        self,
        group: Group,
        members: Sequence[tuple[Tensor, int, Selection, Selection | None]],
        pieces: Sequence[_Piece],
    ) -> None:
        self.members, self.delta, self.penalty = members, group["delta"], group["penalty"]
        self.axes, self.others = [axis for _, axis, *_ in members], [axis for _, axis, _, there in members if there]
        awake = unit_norms([piece.part.detach() for piece in pieces], self.others)
        if not awake.all():
            awake = unit_norms([selected(p.detach(), span) for p, _, span, _ in members], self.axes)
        super().__init__(awake, (None,), (None,), None)  # its weights are read off the duals

    @property
    def options(self) -> dict[str, Any]:
        """Of the pieces, this one first: the same penalty of units that have fewer entries."""
        size = unit_size([p for p, *_ in self.members], self.axes)
        penalty = GroupLasso(self.penalty.threshold(size), ROWS, rms=False)
        return {"penalty": penalty, "joint": [0, *self.others]}

    def start(self, states: States) -> tuple[dict[str, Any], float]:
        """As long as the duals of the rest, and squares of 1, which become the factor of all squares."""
        self.length = self._length(states)
        own, count = {"dual": self.length.clone()}, 0.0
        for state in (states[p] for p, *_ in self.members if "step" in states[p]):
            count = sum(_counts(state))
            own["step"], own["exp_avg"] = state["step"], torch.zeros_like(self.length)
            own["exp_avg_sq"] = torch.ones_like(self.length)
        return own, count

    def take_back(self, whole: AdaBreg | LinBreg, own: dict[str, Any], group: Group) -> None:
        """Scale duals and squares as what stands for them, also those that the other pieces write then."""
        factors = {}
        if group["weight_decay"] != 0:
            factors["dual"] = torch.where(self.length > 0, own["dual"] / self.length, 1.0)
        if "step" in own:
            steps = next(float(whole.state[p]["step"]) for p, *_ in self.members if "step" in whole.state[p])
            if sharing(group) == ENTRIES:
                factors["exp_avg_sq"] = whole.at_count(own, steps, group)["exp_avg_sq"]
            for state in (whole.state[p] for p, *_, there in self.members if there is None):
                state["coarse"] = float(own["step"]) - steps
        for key, factor in factors.items():
            self._scale(key, factor if self.awake is None else torch.where(self.awake, factor, 1.0), whole.state)

    def read_weights(self, whole: AdaBreg | LinBreg) -> None:
        """Of all entries of the units, off their duals."""
        duals = [selected(whole.state[p]["dual"], span) for p, _, span, _ in self.members]
        z = duals if self.delta == 1 else [self.delta * dual for dual in duals]
        out = [torch.empty_like(a, dtype=p.dtype) for a, (p, *_) in zip(z, self.members, strict=True)]
        write_prox(readings(self.penalty, z, [self.delta] * len(z), out, self.axes))
        for (p, _, span, _), weights in zip(self.members, out, strict=True):
            write(p, span, weights)
        whole.adopt([p for p, *_ in self.members])

    def _scale(self, key: str, factor: Tensor, states: States) -> None:
        for p, axis, span, there in self.members:
            if key in states[p] and not _is_all(there):
                rows = copied(states[p][key], span)
                write(states[p][key], span, rows.mul_(along(factor, rows, axis)))

    def _length(self, states: States) -> Tensor:
        """Of the duals, without those that another piece has."""
        beside = []
        for p, axis, span, there in self.members:
            if not _is_all(there):
                rows = copied(states[p]["dual"], span)
                if there is not None:
                    write(rows, there, torch.zeros_like(selected(rows, there)))
                beside.append((rows, axis))
        return unit_norms(*zip(*beside, strict=True))


def _pieces(group: Group, trained: Trained, states: States) -> list[_Piece]:
    """The tensors of the restriction for a parameter group, whose groups they have as a whole, or as their lengths."""
    members, penalty = group["params"], group["penalty"]
    axes = axes_of(group["joint"], len(members))
    if axes is None:
        return [_alone(p, *trained[p], free_axes(penalty, p.ndim)) for p in members if p in trained]
    given = [_units(p, axis, trained[p][1]) for p, axis in zip(members, axes, strict=True) if p in trained]
    if not given:
        return []
    some, units = [index for index in given if index is not None], None
    if 0 in free_axes(penalty, 2) and len(some) == len(given):
        units = torch.cat(some).unique()
    return _with_rest(group, units, trained, states) or [
        _joint(p, axis, units, *trained.get(p, (None, None))) for p, axis in zip(members, axes, strict=True)
    ]


def _with_rest(group: Group, units: Tensor | None, trained: Trained, states: States) -> list[_Piece]:
    """The pieces of joint units with these indices, and their rest; none where that is not exact, or gains little."""
    given = axes_of(group["joint"], len(group["params"])) or ()
    axes = [axis for axis in given if isinstance(axis, int)]
    if len(axes) < len(given) or not _goes_by_length(group, states):
        return []
    pieces, members, left_out = [], [], 0
    for p, axis in zip(group["params"], axes, strict=True):
        span = tuple(units if k == axis else None for k in range(p.ndim))
        small, part = trained.get(p, (None, None))
        outer = _moving(states[p], span, axis, part)
        there = None if outer is None else tuple(None if k == axis else index for k, index in enumerate(outer))
        members.append((p, axis, span, there))
        left_out += _size(p, span) - (0 if outer is None else _size(p, outer))
        if outer is not None:
            pieces.append(_piece(p, outer, small, part))
    return [_Rest(group, members, pieces), *pieces] if left_out > SMALL else []


def _goes_by_length(group: Group, states: States) -> bool:
    """Whether of what has neither gradients nor means in joint units its length is enough."""
    found = [states.get(p, {}) for p in group["params"]]
    return (
        type(group["penalty"]) is GroupLasso
        and group["penalty"].groups == ROWS
        and group.get("second_moment") != "group"
        and all("dual" in state for state in found)
        and len({_counts(state) for state in found if "step" in state}) <= 1
    )


def _moving(state: Mapping[str, Any], span: Selection, axis: int, part: Selection | None) -> Selection | None:
    """The least part of the units ``span`` that holds the ``part`` that the network has, and all means; None: none."""
    means = [nonzero(selected(state[key], span)).cpu() for key in MEANS & state.keys()]
    if part is None:
        return span if any(mask.any() for mask in means) else None
    outer = list(span)
    for k, own in enumerate(part):
        if k != axis and own is not None:
            mask = torch.zeros(state["dual"].shape[k], dtype=torch.bool)
            for moves in means:
                mask |= any_over(moves, tuple(other for other in range(moves.ndim) if other != k))
            mask[own] = True
            outer[k] = indices(mask)
    return tuple(outer)


def _units(whole: Tensor, axis: Axis, part: Selection) -> Tensor | None:
    """Of which units a part of a tensor has slices; None: of all."""
    index = part[dim_of(axis)]
    return index if index is None or isinstance(axis, int) else unit_of(whole, axis)[index]


def _alone(whole: Tensor, small: Parameter, part: Selection, free: Sequence[int]) -> _Piece:
    outer = tuple(index if axis in free else None for axis, index in enumerate(part))
    inner = tuple(None if axis in free else index for axis, index in enumerate(part))
    return _Piece(whole, outer, inner, small)


def _joint(whole: Tensor, axis: Axis, units: Tensor | None, small: Parameter | None, part: Selection | None) -> _Piece:
    """Of joint units those with these indices, whole."""
    rows = units
    if units is not None and not isinstance(axis, int):
        rows = torch.isin(unit_of(whole, axis), units).nonzero()[:, 0]
    return _piece(whole, tuple(rows if k == dim_of(axis) else None for k in range(whole.ndim)), small, part)


def _piece(whole: Tensor, outer: Selection, small: Parameter | None, part: Selection | None) -> _Piece:
    """The part ``outer`` of a parameter, in which lies the ``part`` that the network has."""
    inner = outer if part is None else tuple(map(_places, part, outer))
    return _Piece(whole, outer, inner, small)


def _places(indices: Tensor | None, among: Tensor | None) -> Tensor | None:
    """Where increasing indices stand among others; None: all."""
    if indices is None or among is None:
        return indices
    return None if len(indices) == len(among) else torch.searchsorted(among, indices)


def _is_all(part: Selection | None) -> bool:
    return part is not None and all(index is None for index in part)


def _size(tensor: Tensor, part: Selection) -> int:
    """Number of entries of a part."""
    return math.prod(n if index is None else len(index) for n, index in zip(tensor.shape, part, strict=True))


def _counts(state: Mapping[str, Any]) -> tuple[float, float]:
    """Numbers of full and of coarse steps."""
    return float(state.get("step", 0)), state.get("coarse", 0.0)


def _of_kind(optimizer: AdaBreg | LinBreg, groups: Sequence[tuple[Group, Sequence[_Piece]]]) -> AdaBreg | LinBreg:
    """An optimiser with the same options for the pieces."""
    return type(optimizer)(
        [
            {
                **{key: value for key, value in group.items() if key != "param_names"},
                "params": [piece.part for piece in pieces],
                **(pieces[0].options if isinstance(pieces[0], _Rest) else {}),
            }
            for group, pieces in groups
        ]
    )


def _cut(group: Group) -> Callable[[Tensor], Tensor]:
    """How a tensor is cut into what shares a second moment."""
    return sharing(group).cut if "second_moment" in group else ENTRIES.cut


def _count_others(group: Group, pieces: Sequence[_Piece], own: Group, optimizer: AdaBreg) -> None:
    """Remember the mean squares of the gradients that the restriction does not see, at the last full step."""
    moved = [p for p in group["params"] if p.grad is not None]
    if not moved:  # what it knows comes with `load_state_dict`
        return
    grads = [gradient(p).to(state_dtype(p)) for p in moved]
    whole = dict(zip(moved, zip(grads, shared_rms(group, grads), strict=True), strict=True))
    seen = [piece for piece in pieces if piece.whole in whole]
    for piece in seen:
        piece.part.grad = selected(whole[piece.whole][0], piece.outer)
        if piece.awake is not None:
            piece.part.grad = piece.part.grad * piece.awake
    ours = shared_rms(own, [gradient(piece.part) for piece in seen])
    for piece, rms in zip(seen, ours, strict=True):
        share = 1.0 if group["second_moment"] == "group" else piece.part.numel() / piece.whole.numel()
        others = piece.part_of(whole[piece.whole][1]).square() - share * rms.square()
        optimizer.state[piece.part].update(share=share, others=others.clamp_(min=0))
        piece.part.grad = None
