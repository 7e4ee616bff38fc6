"""Convex penalties J: value, proximal operator, one subgradient (Bungert et al., JMLR 23(192), 2022, section 1)."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nas.groups import Groups


class Penalty(Protocol):
    """A convex function J of one tensor. Implementations are frozen dataclasses of plain numbers.

    A penalty whose prox does nothing but shrink whole groups may also have ``shrinkage(z, step)``: factors in [0, 1],
    broadcastable to ``z``, with ``prox(z, step) == z * shrinkage(z, step)``. Optimisers then write the product straight
    into the weights.
    """

    def value(self, weight: Tensor) -> Tensor:
        """J(weight), a scalar."""
        ...

    def prox(self, z: Tensor, step: float) -> Tensor:
        """The minimiser w of J(w) + |w - z|^2 / (2 step), shaped like ``z``."""
        ...

    def subgradient(self, weight: Tensor) -> Tensor:
        """The subgradient of J at ``weight`` that is zero wherever it may be, shaped like ``weight``."""
        ...


@dataclass(frozen=True)
class Zero:
    """J = 0: turns every Bregman optimiser into its unregularised parent."""

    def value(self, weight: Tensor) -> Tensor:
        return weight.new_zeros(())

    def prox(self, z: Tensor, step: float) -> Tensor:
        return z

    def subgradient(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


@dataclass(frozen=True)
class _Strength:
    """The strength ``lam`` of a penalty: a finite number >= 0."""

    lam: float

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"{type(self).__name__}(lam=...) must be a finite number >= 0, got {self.lam}")


@dataclass(frozen=True)
class L1(_Strength):
    """J(w) = lam * sum |w_i|.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    def value(self, weight: Tensor) -> Tensor:
        return self.lam * weight.abs().sum()

    def prox(self, z: Tensor, step: float) -> Tensor:
        return z.sign() * (z.abs() - step * self.lam).clamp(min=0)

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.lam * weight.sign()


@dataclass(frozen=True)
class GroupLasso(_Strength):
    """J(w) = lam * sqrt(n) * sum_g |w_g|, with n the number of entries of a group (group l1,2; JMLR, eq. 1.2).

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    groups: Groups

    def value(self, weight: Tensor) -> Tensor:
        return self._weight(weight) * self.groups.norms(weight).sum()

    def prox(self, z: Tensor, step: float) -> Tensor:
        return z * self.shrinkage(z, step)

    def shrinkage(self, z: Tensor, step: float) -> Tensor:
        """max(1 - threshold / norm, 0) of each group, kept broadcastable to ``z``; 0 for a group that is 0."""
        threshold = step * self._weight(z)
        norms = self.groups.norms(z)
        return torch.where(norms > threshold, 1 - threshold / norms, 0.0)

    def subgradient(self, weight: Tensor) -> Tensor:
        norms = self.groups.norms(weight)
        return self._weight(weight) * torch.where(norms > 0, weight / norms, 0.0)

    def _weight(self, weight: Tensor) -> float:
        return self.lam * math.sqrt(self.groups.size(weight))


@dataclass(frozen=True)
class NonNegativeL1(_Strength):
    """J(w) = lam * sum w_i where all w_i >= 0, infinite elsewhere: weights that are sparse and never negative.

    A Bregman optimiser needs weights >= 0 to start from. With ``lam=0`` it is the constraint alone.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    def value(self, weight: Tensor) -> Tensor:
        return self.lam * weight.sum() + torch.where(weight.ge(0).all(), 0.0, math.inf)

    def prox(self, z: Tensor, step: float) -> Tensor:
        return (z - step * self.lam).clamp(min=0)

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.lam * weight.gt(0)


@dataclass(frozen=True)
class SparseGroup:
    """J = l1 + group: whole groups vanish, and entries inside the groups that survive."""

    l1: L1
    group: GroupLasso

    def value(self, weight: Tensor) -> Tensor:
        return self.l1.value(weight) + self.group.value(weight)

    def prox(self, z: Tensor, step: float) -> Tensor:
        return self.group.prox(self.l1.prox(z, step), step)  # exact in this order only

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.l1.subgradient(weight) + self.group.subgradient(weight)


@dataclass(frozen=True)
class Nuclear(_Strength):
    """J(w) = lam * sum of the singular values of w as a matrix (rows, everything else): low rank.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    def value(self, weight: Tensor) -> Tensor:
        sigma: Tensor = torch.linalg.svdvals(weight.flatten(1))
        return self.lam * sigma.sum()

    def prox(self, z: Tensor, step: float) -> Tensor:
        u, sigma, vh = _svd(z)
        return (u * (sigma - step * self.lam).clamp(min=0) @ vh).reshape(z.shape)

    def subgradient(self, weight: Tensor) -> Tensor:
        u, sigma, vh = _svd(weight)
        size = max(len(u), vh.shape[1])
        in_rank = sigma > sigma[:1] * size * torch.finfo(weight.dtype).eps  # null directions stay free
        return self.lam * (u * in_rank @ vh).reshape(weight.shape)


def _svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, sigma, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return u, sigma, vh
