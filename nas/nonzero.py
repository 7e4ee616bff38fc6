"""What is not zero, exactly: what sleeps is 0.0, without a tolerance."""

import torch
from torch import Tensor


def nonzero(x: Tensor) -> Tensor:
    """True where ``x`` is not zero, as ``x.ne(0)``, at a small part of its time on a CPU."""
    return x.bool()


def any_over(mask: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """``mask.any(dim)`` of a boolean mask, at a small part of its time on a CPU."""
    if mask.numel() == 0:  # which has no largest entry
        return mask.any(dim, keepdim=keepdim)
    return mask.view(torch.uint8).amax(dim, keepdim=keepdim).view(torch.bool)


def masked_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """``mask & rows[:, None]`` of boolean masks (n, m) and (n,), at a small part of its time on a CPU."""
    return (mask.view(torch.uint8) * rows.view(torch.uint8)[:, None]).view(torch.bool)
