"""Convex penalties J: value, proximal operator, one subgradient (Bungert et al., JMLR 23(192), 2022, section 1)."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nas.groups import Groups


class Penalty(Protocol):
    """A convex function J of one tensor. Implementations are frozen dataclasses of plain numbers."""

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
class L1:
    """J(w) = lam * sum |w_i|.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    lam: float

    def __post_init__(self) -> None:
        _check_lam(self)

    def value(self, weight: Tensor) -> Tensor:
        return self.lam * weight.abs().sum()

    def prox(self, z: Tensor, step: float) -> Tensor:
        return z.sign() * (z.abs() - step * self.lam).clamp(min=0)

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.lam * weight.sign()


@dataclass(frozen=True)
class GroupLasso:
    """J(w) = lam * sqrt(n) * sum_g |w_g|, with n the number of entries of a group (group l1,2; JMLR, eq. 1.2).

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    lam: float
    groups: Groups

    def __post_init__(self) -> None:
        _check_lam(self)

    def value(self, weight: Tensor) -> Tensor:
        return self._weight(weight) * self.groups.norms(weight).sum()

    def prox(self, z: Tensor, step: float) -> Tensor:
        threshold = step * self._weight(z)
        norms = self.groups.norms(z)
        return z * torch.where(norms > threshold, 1 - threshold / norms, 0.0)

    def subgradient(self, weight: Tensor) -> Tensor:
        norms = self.groups.norms(weight)
        return self._weight(weight) * torch.where(norms > 0, weight / norms, 0.0)

    def _weight(self, weight: Tensor) -> float:
        return self.lam * math.sqrt(self.groups.size(weight))


def _check_lam(penalty: L1 | GroupLasso) -> None:
    if not 0 <= penalty.lam < math.inf:
        raise ValueError(f"{type(penalty).__name__}(lam=...) must be a finite number >= 0, got {penalty.lam}")
