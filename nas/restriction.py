"""Steps on a part of the parameters of an optimiser: the coarse level of multilevel LinBreg (arXiv 2602.03535)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from nas.bregman import AdaBreg, LinBreg
from nas.groups import ENTRIES, Axis, dim_of, unit_of
from nas.parts import alive_entries
from nas.penalised import axes_of, gradient, state_dtype
from nas.penalties import L1, GroupLasso, LogSum, NonNegativeL1, Penalty, SparseGroup, Zero, groups_of
from nas.second_moments import shared_rms, sharing
from nas.selection import Selection, copied, selected, write

Group = dict[str, Any]
Trained = Mapping[Tensor, tuple[Parameter, Selection]]

GROUP_BY_GROUP = (Zero, L1, NonNegativeL1, GroupLasso, SparseGroup, LogSum)  # in their prox
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
        found = [(group, _pieces(group, trained)) for group in optimizer.param_groups]
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
                state = whole.state.get(piece.whole, {})
                count = float(state.get("step", 0)) + state.get("coarse", 0)
                optimizer.state[piece.part] = whole.at_count(piece.restricted(state), count, group)
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
                state, own = self._whole.state[piece.whole], self.optimizer.state[piece.part]
                write(piece.whole, piece.outer, piece.part)
                if "step" in own:
                    count = float(state["step"])
                    state["coarse"] = float(own["step"]) - count
                    own = self._whole.at_count(own, count, group)
                piece.write_state(state, own, _cut(group))
            self._whole.adopt([piece.whole for piece in pieces])

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

    def restricted(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of the part, with means of zero where it sleeps: nothing moves it then."""
        own = {
            key: copied(value, self._within(value)) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        for key in ("exp_avg", "momentum_buffer"):
            if self.awake is not None and key in own:
                own[key].mul_(self.awake)
        return own

    def write_state(self, state: Mapping[str, Any], own: Mapping[str, Any], cut: Callable[[Tensor], Tensor]) -> None:
        """The inverse of `restricted`, for what is awake; ``cut`` is that of what shares a second moment."""
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


def _pieces(group: Group, trained: Trained) -> list[_Piece]:
    """The tensors of the restriction for a parameter group, whose groups they have as a whole."""
    members, penalty = group["params"], group["penalty"]
    axes = axes_of(group["joint"], len(members))
    if axes is None:
        return [_alone(p, *trained[p], _free_axes(penalty, p.ndim)) for p in members if p in trained]
    given = [_units(p, axis, trained[p][1]) for p, axis in zip(members, axes, strict=True) if p in trained]
    if not given:
        return []
    some, units = [index for index in given if index is not None], None
    if 0 in _free_axes(penalty, 2) and len(some) == len(given):
        units = torch.cat(some).unique()
    return [_joint(p, axis, units, *trained.get(p, (None, None))) for p, axis in zip(members, axes, strict=True)]


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
    along = dim_of(axis)
    rows = units
    if units is not None and not isinstance(axis, int):
        rows = torch.isin(unit_of(whole, axis), units).nonzero()[:, 0]
    outer = tuple(rows if k == along else None for k in range(whole.ndim))
    inner = outer if part is None else part
    if rows is not None and part is not None:
        own = part[along]
        places = None if own is None or len(own) == len(rows) else torch.searchsorted(rows, own)
        inner = tuple(places if k == along else index for k, index in enumerate(part))
    return _Piece(whole, outer, inner, small)


def _free_axes(penalty: Penalty | LogSum, ndim: int) -> Sequence[int]:
    """The axes along which any indices have whole groups."""
    groups = groups_of(penalty)
    if not isinstance(penalty, GROUP_BY_GROUP) or groups.over is None or groups.block is not None:
        return ()
    return [axis for axis in range(ndim) if axis not in groups.over]


def _of_kind(optimizer: AdaBreg | LinBreg, groups: Sequence[tuple[Group, Sequence[_Piece]]]) -> AdaBreg | LinBreg:
    """An optimiser with the same options for the pieces."""
    return type(optimizer)(
        [
            {
                **{key: value for key, value in group.items() if key != "param_names"},
                "params": [piece.part for piece in pieces],
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
