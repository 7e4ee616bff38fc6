"""A part of a tensor: some of the indices along each of its axes."""

import torch
from torch import Tensor

Selection = tuple[Tensor | None, ...]  # along each axis the indices, in increasing order; None: all


def indices(mask: Tensor) -> Tensor | None:
    """Where a boolean vector is true; None if everywhere."""
    return None if mask.all() else mask.nonzero()[:, 0]


def copied(tensor: Tensor, part: Selection) -> Tensor:
    """A copy of the part."""
    found = selected(tensor, part)
    return found.clone() if found is tensor else found


def selected(tensor: Tensor, part: Selection) -> Tensor:
    """A copy of the part; the tensor itself if that is all of it."""
    for axis, index in enumerate(part):
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def write(tensor: Tensor, part: Selection, values: Tensor) -> None:
    """tensor[part] <- values, in place."""
    some = [(axis, index.to(tensor.device)) for axis, index in enumerate(part) if index is not None]
    if not some:
        tensor.copy_(values)
    elif len(some) == 1:
        tensor.index_copy_(*some[0], values)
    else:
        tensor.index_put_(_grid(tensor, part), values)


def _grid(tensor: Tensor, part: Selection) -> tuple[Tensor, ...]:
    """The indices along each axis, broadcastable to the shape of the part."""
    given = [
        torch.arange(n, device=tensor.device) if index is None else index.to(tensor.device)
        for n, index in zip(tensor.shape, part, strict=True)
    ]
    return tuple(index.reshape(-1, *(1,) * (tensor.ndim - 1 - axis)) for axis, index in enumerate(given))
