"""How a tensor is cut into groups, and how a unit that spans several tensors becomes one row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The axes that run inside a group; each index of the other axes is one group.

    For a convolution weight of shape (out, in, height, width):

        Groups(over=(2, 3))          one group per kernel   norms: (out, in, 1, 1)
        Groups(over=(1, 2, 3))       one per filter         norms: (out, 1, 1, 1)
        Groups(over=(0, 1, 2, 3))    the whole tensor       norms: (1, 1, 1, 1)

    Raises:
        ValueError: ``over`` is empty, negative or names an axis twice, or (when a tensor is given to a method)
            names an axis that the tensor lacks.
    """

    over: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "over", tuple(self.over))  # a list, as read from a file, is welcome
        if not self.over:
            raise ValueError("Groups(over=()) has no axis; for groups of one entry use L1")
        if min(self.over) < 0 or len(set(self.over)) < len(self.over):
            raise ValueError(f"Groups(over={self.over}) must name each axis once, counted from 0")

    def norms(self, weight: Tensor) -> Tensor:
        """Euclidean norm of each group, kept broadcastable to ``weight``."""
        self._check(weight)
        norms: Tensor = torch.linalg.vector_norm(weight, dim=self.over, keepdim=True)
        return norms

    def active(self, weight: Tensor) -> Tensor:
        """True where a group has a non-zero entry (exact: no threshold), kept broadcastable to ``weight``."""
        self._check(weight)
        return weight.ne(0).any(dim=self.over, keepdim=True)

    def size(self, weight: Tensor) -> int:
        """Number of entries in one group."""
        self._check(weight)
        return math.prod(weight.shape[axis] for axis in self.over)

    def _check(self, weight: Tensor) -> None:
        if max(self.over) >= weight.ndim:
            raise ValueError(f"Groups(over={self.over}) does not fit a tensor of shape {tuple(weight.shape)}")


ROWS = Groups(over=(1,))


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """One row per unit: row i holds the i-th slice of every tensor, for instance a filter and its bias.

    Args:
        tensors: each of shape (units, ...).

    Returns:
        Tensor of shape (units, entries of one unit).
    """
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)


def split_rows(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `join_rows`: pieces of ``rows`` in the shapes of ``like``."""
    pieces = rows.split([tensor[0].numel() for tensor in like], dim=1)
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
