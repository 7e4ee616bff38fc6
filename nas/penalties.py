"""Penalties J: value, proximal operator, one subgradient (Bungert et al., JMLR 23(192), 2022, section 1).

A penalty of your own is a class with the three methods of `Penalty`; see docs/penalties.md.
"""

import dataclasses
import inspect
import math
from dataclasses import dataclass
from functools import cache, reduce
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nas.groups import ENTRIES, WHOLE, Groups, Rim

Step = float | Tensor  # a tensor gives each entry a step of its own


class Penalty(Protocol):
    """A convex function J of one tensor. Implementations are frozen dataclasses of plain numbers.

    Optional, and present in all penalties of this file (but `Zero`, under which nothing sleeps, has no gauge):
        groups: the entries that vanish together; the whole tensor where a penalty doesn't say.
        prox(..., out=...): write the result into ``out`` (which may be ``z``) instead of a new tensor.
        gauge(p): how near the subgradient ``p`` has come to waking each sleeping group, which wakes above 1:
            max <p_g, w> over all w of this group with J(w) <= 1. Broadcastable to ``groups.cut(p)``.
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

    groups = ENTRIES

    def value(self, weight: Tensor) -> Tensor:
        return weight.new_zeros(())

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        return z if out is None else out.copy_(z)

    def subgradient(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


@dataclass(frozen=True)
class _Strength:
    """The strength ``lam`` of a penalty: a finite number >= 0."""

    lam: float

    def __post_init__(self) -> None:
        if not isinstance(self.lam, Real) or not 0 <= self.lam < math.inf:
            raise ValueError(f"{type(self).__name__}(lam=...) must be a finite number >= 0, got {self.lam!r}")
        object.__setattr__(self, "lam", float(self.lam))  # plain data, whatever kind of number it was


@dataclass(frozen=True)
class L1(_Strength):
    """J(w) = lam * sum |w_i|.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    groups = ENTRIES

    def value(self, weight: Tensor) -> Tensor:
        return self.lam * weight.abs().sum()

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        threshold: Any = step * self.lam
        projected = torch.clamp(z, -threshold, threshold, out=None if out is z else out)
        return torch.sub(z, projected, out=out)  # Moreau: z minus its projection onto the dual ball

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.lam * weight.sign()

    def gauge(self, p: Tensor) -> Tensor:
        return p.abs() / self.lam


@dataclass(frozen=True)
class GroupLasso(_Strength):
    """J(w) = lam * sqrt(n) * sum_g |w_g|, with n the number of entries of a group (group l1,2; JMLR, eq. 1.2).

    A sleeping group wakes when the root mean square of its dual exceeds ``lam``, whatever its size. With ``rms=False``
    the factor sqrt(n) is left out, and large groups wake first (the convolution penalty of DessiLBI).

    Raises:
        ValueError: ``lam`` is negative or not finite, or the groups don't fit a tensor.

    Examples:
        The first row is shorter than lam * sqrt(n) = 1.41 and becomes zero; the second loses so much of its length.

        >>> import torch
        >>> from nas import GroupLasso, Groups
        >>> GroupLasso(1.0, Groups(over=(1,))).prox(torch.tensor([[0.6, 0.8], [3.0, 4.0]]), 1.0)
        tensor([[0.0000, 0.0000],
                [2.1515, 2.8686]])
    """

    groups: Groups
    rms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(self)

    def value(self, weight: Tensor) -> Tensor:
        norms = self.groups.norms(weight)
        return self.threshold(self.groups.size(weight)) * norms.sum()

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        norms = self.groups.norms(z)
        factor = self.shrinkage(norms, self.groups.size(z), step)
        result = torch.empty_like(z) if out is None else out
        return torch.mul(z, self.groups.spread(factor, z), out=result)

    def subgradient(self, weight: Tensor) -> Tensor:
        norms = self.groups.norms(weight)
        lengths = self.groups.spread(torch.where(norms > 0, norms, math.inf), weight, rest=math.inf)
        return self.threshold(self.groups.size(weight)) * (weight / lengths)

    def gauge(self, p: Tensor) -> Tensor:
        norms = self.groups.norms(p)
        return norms / self.threshold(self.groups.size(p))

    def shrinkage(self, norms: Tensor, size: int, step: Step) -> Tensor:
        """What the prox multiplies groups of these norms and this size by: max(1 - threshold / norm, 0)."""
        threshold: Any = step * self.threshold(size)
        if not isinstance(threshold, Tensor) and threshold == 0:
            return torch.ones_like(norms)
        factor = norms.reciprocal().mul_(-threshold).add_(1).clamp_(min=0)  # 1 / 0 is infinite, and 0 remains
        return torch.where(threshold == 0, 1.0, factor) if isinstance(threshold, Tensor) else factor

    def threshold(self, size: int) -> float:
        """The norm up to which the dual of a group of this size sleeps."""
        return self.lam * math.sqrt(size) if self.rms else self.lam


@dataclass(frozen=True)
class NonNegativeL1(_Strength):
    """J(w) = lam * sum w_i where all w_i >= 0, infinite elsewhere: weights that are sparse and never negative.

    A Bregman optimiser needs weights >= 0 to start from. With ``lam=0`` it is the constraint alone.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    groups = ENTRIES

    def value(self, weight: Tensor) -> Tensor:
        return self.lam * weight.sum() + torch.where(weight.ge(0).all(), 0.0, math.inf)

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        return torch.sub(z, step * self.lam, out=out).clamp_(min=0)

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.lam * weight.gt(0)

    def gauge(self, p: Tensor) -> Tensor:
        return p.clamp(min=0) / self.lam


@dataclass(frozen=True)
class SparseGroup:
    """J = inner + group: whole groups vanish, and parts of the groups that survive.

    The parts are entries (``inner`` is an `L1`: the sparse group lasso) or smaller groups that lie in the large ones,
    such as rows in blocks (a `GroupLasso`) which may be nested themselves (a `SparseGroup`): a tree of groups. Because
    they are nested the proximal operator of the sum is that of ``inner`` followed by that of ``group``, from the leaves
    of the tree to its root (Jenatton, Mairal, Obozinski, Bach, JMLR 12(67), 2011).

    Raises:
        ValueError: other penalties, or groups that are not nested.
    """

    inner: "L1 | GroupLasso | SparseGroup"
    group: GroupLasso

    def __post_init__(self) -> None:
        if not isinstance(self.inner, L1 | GroupLasso | SparseGroup) or not isinstance(self.group, GroupLasso):
            given = f"{self.inner!r} and {self.group!r}"
            raise ValueError(
                f"SparseGroup(inner, group) takes an L1, GroupLasso or SparseGroup and a GroupLasso, got {given}"
            )
        if not self.inner.groups.lie_in(self.group.groups):
            raise ValueError(f"SparseGroup: {self.inner.groups} do not lie in {self.group.groups}")

    @property
    def groups(self) -> Groups:
        return self.group.groups

    def value(self, weight: Tensor) -> Tensor:
        return self.inner.value(weight) + self.group.value(weight)

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        return self.group.prox(self.inner.prox(z, step, out), step, out)  # exact in this order only

    def subgradient(self, weight: Tensor) -> Tensor:
        return self.inner.subgradient(weight) + self.group.subgradient(weight)

    def gauge(self, p: Tensor) -> Tensor:
        """The root s of |prox_inner(p_g, s)| = s lam sqrt(n), by bisection."""
        high = self.group.gauge(p)
        low, threshold = torch.zeros_like(high), self.group.threshold(self.groups.size(p))
        for _ in range(60):
            middle = (low + high) / 2
            left = self.inner.prox(p, self.groups.spread(middle, p) if isinstance(self.inner, L1) else middle)
            outside = self.groups.norms(left) > middle * threshold
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        return high


def rings(
    lam: float, kernel: int, *, smallest: int = 3, per: Literal["edge", "channel"] = "edge"
) -> GroupLasso | SparseGroup:
    """The penalty under which kernels grow by rings: from smallest x smallest, which is free, by 2 to kernel x kernel.

    J(w) = lam * sum_i sqrt(n_i) |w outside the middle i x i| over i = smallest, smallest + 2, ..., kernel - 2, with n_i
    entries outside: nested groups (`Rim`), so that an outer ring is zero where a ring inside it is, and the proximal
    operator is exact.

    Args:
        lam: strength, >= 0.
        kernel: size of the kernels, odd and larger than ``smallest``.
        smallest: size of the middle that is not penalised, odd and >= 1.
        per: "edge": all kernels of the weight (out, in, kernel, kernel) grow together; "channel": those of each of its
            filters by themselves.

    Raises:
        ValueError: an argument out of range, so that there is no ring.
    """
    if not (_is_odd(kernel) and _is_odd(smallest) and 1 <= smallest < kernel):
        raise ValueError(
            "rings need an odd kernel that is larger than the odd, positive size of the middle, got "
            f"kernel={kernel!r} and smallest={smallest!r}"
        )
    if per not in ("edge", "channel"):
        raise ValueError(f"rings(per=...) must be 'edge' or 'channel', got {per!r}")
    over = None if per == "edge" else (1, 2, 3)
    rims = (GroupLasso(lam, Rim(inside, over=over)) for inside in range(kernel - 2, smallest - 1, -2))
    return reduce(SparseGroup, rims)  # type: ignore[arg-type]  # the outermost ring is the innermost group


def _is_odd(value: Any) -> bool:
    return isinstance(value, int) and value % 2 == 1


@dataclass(frozen=True)
class Nuclear(_Strength):
    """J(w) = lam * sum of the singular values of w as a matrix (rows, everything else): low rank.

    A vector counts as one column, so that its J is lam times its norm.

    Raises:
        ValueError: ``lam`` is negative or not finite.
    """

    groups = WHOLE

    def value(self, weight: Tensor) -> Tensor:
        sigma: Tensor = torch.linalg.svdvals(_matrix(weight))
        return self.lam * sigma.sum()

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        u, sigma, vh = _svd(z)
        low_rank = (u * (sigma - step * self.lam).clamp(min=0) @ vh).reshape(z.shape)
        return low_rank if out is None else out.copy_(low_rank)

    def subgradient(self, weight: Tensor) -> Tensor:
        u, sigma, vh = _svd(weight)
        size = max(len(u), vh.shape[1])
        in_rank = sigma > sigma[:1] * size * torch.finfo(weight.dtype).eps  # null directions stay free
        return self.lam * (u * in_rank @ vh).reshape(weight.shape)

    def gauge(self, p: Tensor) -> Tensor:
        largest: Tensor = torch.linalg.svdvals(_matrix(p))[0]
        return largest.reshape((1,) * p.ndim) / self.lam


def _svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = _matrix(weight).to(torch.promote_types(weight.dtype, torch.float32))
    u, sigma, vh = (part.to(weight.dtype) for part in torch.linalg.svd(wide, full_matrices=False))
    return u, sigma, vh


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.ndim > 1 else weight.reshape(-1, 1)


@dataclass(frozen=True)
class LogSum(_Strength):
    """J(w) = lam * sum_g sqrt(n) n eps M log(1 + m_g / eps), with m_g the mean of |w_i| over a group of n entries,
    M the contrast and eps = max_g m_g / (M - 1) (Siegel, Chen, Zhang, Xu, arXiv 2008.09661).

    It is not convex. Optimisers use the weighted l1 norm that touches it from above at the present weights,

        lam * sum_i c_i |w_i|,        c_i = sqrt(n) M / (1 + (M - 1) m_g / max m)

    between sqrt(n) for the largest group and M sqrt(n) for one that is zero, and renew the ``weights`` c on a schedule:
    `XRDA` at every step, the others when you call their method ``reweight``. The prox acts on entries, so that
    entries of a group that is awake can be zero.

    Args:
        lam: strength, >= 0.
        contrast: M, > 1.
        groups: what shares one weight: `ENTRIES`, `KERNELS` or `FILTERS`; no blocks or rims.

    Raises:
        ValueError: an argument out of range.
    """

    contrast: float = 500.0
    groups: Groups = ENTRIES

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(self)
        if not 1 < self.contrast < math.inf:
            raise ValueError(f"LogSum(contrast=...) must be a finite number > 1, got {self.contrast}")
        if self.groups.block is not None:
            raise ValueError(f"LogSum(groups=...) takes no blocks, got block={self.groups.block}")
        if isinstance(self.groups, Rim):
            raise ValueError(f"LogSum(groups=...) takes no rims, whose middle has no weight, got {self.groups}")

    @property
    def majoriser(self) -> L1:
        """The penalty that optimisers use, with ``weights`` as factors of its steps."""
        return L1(self.lam)

    def value(self, weight: Tensor) -> Tensor:
        means, size = self.groups.means(weight), self.groups.size(weight)
        eps = (means.max() if means.numel() else means.sum()) / (self.contrast - 1)
        logs = torch.where(eps > 0, means / eps, 0.0).log1p()
        total: Tensor = self.lam * size**1.5 * self.contrast * eps * logs.sum()
        return total

    def weights(self, magnitudes: Tensor, size: int) -> Tensor:
        """The weights c for these magnitudes m of groups of this size, shaped like ``magnitudes``."""
        largest = magnitudes.max() if magnitudes.numel() else magnitudes.new_zeros(())
        relative = torch.where(largest > 0, magnitudes / largest, 0.0)
        weights: Tensor = math.sqrt(size) * self.contrast / (1 + (self.contrast - 1) * relative)
        return weights


def _check_groups(penalty: "GroupLasso | LogSum") -> None:
    if not isinstance(penalty.groups, Groups):
        name = type(penalty).__name__
        raise ValueError(f"{name}(groups=...) must be Groups such as nas.ROWS, got {penalty.groups!r}")


def stacked(penalty: Any, ndim: int) -> Any:
    """The sum of ``penalty`` over a stack of tensors of ``ndim`` axes each, the same object each time; None if it is no
    penalty over groups of this file."""
    return _stacked(penalty, ndim) if type(penalty) in (L1, NonNegativeL1, GroupLasso, SparseGroup) else None


@cache
def _stacked(penalty: Any, ndim: int) -> Any:
    if isinstance(penalty, SparseGroup):
        return SparseGroup(_stacked(penalty.inner, ndim), _stacked(penalty.group, ndim))
    if isinstance(penalty, GroupLasso):
        return dataclasses.replace(penalty, groups=penalty.groups.stacked(ndim))
    return penalty


@dataclass(frozen=True)
class Slabwise:
    """The sum of a penalty over ``count`` slabs of a tensor, which is cut into them along its first axis.

    Only what a step needs of a `Penalty`.

    Args:
        each: what the penalty is over a stack of tensors, see `stacked`.
    """

    each: Any
    count: int

    def prox(self, z: Tensor, step: Step, out: Tensor | None = None) -> Tensor:
        slabs, places = (None if t is None else t.unflatten(0, (self.count, -1)) for t in (z, out))
        result: Tensor = self.each.prox(slabs, step, out=places)
        return result.flatten(0, 1)


def takes_out(penalty: Penalty) -> bool:
    """Whether the prox of ``penalty`` can write its result into a given tensor."""
    return _has_out(type(penalty))


@cache
def _has_out(kind: type) -> bool:
    return "out" in inspect.signature(kind.prox).parameters  # type: ignore[attr-defined]


def groups_of(penalty: Penalty | LogSum) -> Groups:
    """The entries that vanish together under ``penalty``; the whole tensor where it doesn't say."""
    groups: Groups = getattr(penalty, "groups", WHOLE)
    return groups


def free_axes(penalty: Penalty | LogSum, ndim: int) -> list[int]:
    """The axes of a tensor along which any indices have whole groups, so that the prox of these is theirs alone."""
    groups = groups_of(penalty)
    by_groups = isinstance(penalty, Zero | L1 | NonNegativeL1 | GroupLasso | SparseGroup | LogSum)
    if not by_groups or groups.over is None or groups.block is not None:
        return []
    return [axis for axis in range(ndim) if axis not in groups.over]


def strengths(penalty: Any) -> list[float]:
    """Every ``lam`` in ``penalty``; empty for one without strength."""
    found: list[float] = []
    for name, value in _fields(penalty):
        found += [value] if name == "lam" else strengths(value)
    return found


def scaled(penalty: Any, factor: float) -> Any:
    """``factor * penalty``: the same penalty with every ``lam`` multiplied."""
    if not dataclasses.is_dataclass(penalty) or isinstance(penalty, type):
        return penalty
    changes = {name: factor * value if name == "lam" else scaled(value, factor) for name, value in _fields(penalty)}
    return dataclasses.replace(penalty, **changes)


def strength_ratio(old: Any, new: Any) -> float | None:
    """The factor with ``new == scaled(old, factor)``; None if there is none."""
    if old == new:
        return 1.0
    before, after = strengths(old), strengths(new)
    if not before or scaled(old, 0) != scaled(new, 0):
        return None
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a > 0 or b > 0]
    if min(a for a, _ in pairs) == 0:
        return None
    ratios = [b / a for a, b in pairs]
    return ratios[0] if math.isclose(min(ratios), max(ratios), rel_tol=1e-9) else None


def _fields(data: Any) -> list[tuple[str, Any]]:
    if not dataclasses.is_dataclass(data):
        return []
    return [(field.name, getattr(data, field.name)) for field in dataclasses.fields(data)]
