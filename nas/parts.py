"""What can go as a whole: the groups of the penalties, one by one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.groups import Groups
from nas.penalised import penalised_sets, seen, unseen
from nas.penalties import SparseGroup, groups_of


@dataclass(frozen=True, eq=False)
class Part:
    """One group that is not zero.

    Attributes:
        name: of its parameter group.
        masks: for each tensor that it has entries in a boolean mask of these.
    """

    name: str
    masks: tuple[tuple[Tensor, Tensor], ...]

    @torch.no_grad()
    def remove(self) -> None:
        """Zero its entries, in place."""
        for p, mask in self.masks:
            p.masked_fill_(mask, 0)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Without it, for a while."""
        kept = [p.detach().clone() for p, _ in self.masks]
        self.remove()
        try:
            yield
        finally:
            with torch.no_grad():
                for (p, _), before in zip(self.masks, kept, strict=True):
                    p.copy_(before)


def active_parts(param_groups: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """Every group of a penalty that is not zero, and of nested penalties those of all levels, the small ones first."""
    for name, group, members in penalised_sets(param_groups):
        joint = group.get("joint", False)
        joined = seen([p.detach() for p in members], joint)
        for groups in levels(group["penalty"]):
            active = groups.active(joined)
            for index in active.flatten().nonzero()[:, 0]:
                chosen = torch.zeros_like(active).flatten().index_fill(0, index, True).reshape(active.shape)
                mask = groups.spread(chosen, joined, rest=False)
                pieces = zip(members, unseen(mask, members, joint), strict=True)
                yield Part(name, tuple((p, piece) for p, piece in pieces if piece.any()))


def alive_entries(param_groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Every penalised tensor with a boolean mask of the entries that are in no group that is zero."""
    for _, group, members in penalised_sets(param_groups):
        joint = group.get("joint", False)
        joined = seen([p.detach() for p in members], joint)
        mask = torch.ones_like(joined, dtype=torch.bool)
        for groups in levels(group["penalty"]):
            active = groups.active(joined)
            if not active.all():
                mask &= groups.spread(active, joined, rest=True)
        yield from zip(members, unseen(mask, members, joint, rest=1.0), strict=True)


def levels(penalty: Any) -> list[Groups]:
    """The groups of a penalty; of a nested one those of every level, the smallest first."""
    if isinstance(penalty, SparseGroup):
        return [*levels(penalty.inner), *levels(penalty.group)]
    return [groups_of(penalty)]
