"""A device that every machine has: its tensors say they are on "meta", have their numbers in the memory of the CPU,
and refuse what those of CUDA refuse: to meet tensors of the CPU."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

import nas.search.training.compute

aten = torch.ops.aten
DEVICE = "meta"
TAKE_NEAR_INDICES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
TAKE_NEAR_VALUES = (aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.index_fill.int_Tensor)


class Far(torch.Tensor):
    """What is on the device; ``near`` holds its numbers."""

    is_meta = False

    @staticmethod
    def __new__(cls, near):
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        far = torch.Tensor._make_wrapper_subclass(cls, near.shape, **layout, device=DEVICE)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"Far({self.near})"


class Machine(TorchDispatchMode):
    """Within it there is the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    far = [x for x in flat if isinstance(x, Far)]
    check(func, args, far, [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Far)])
    device = kwargs.get("device")
    is_there = bool(far) if device is None else torch.device(device).type == DEVICE
    if is_there and any(isinstance(x, torch.Generator) for x in flat):
        raise RuntimeError(f"{func}: a generator of the CPU for tensors on the device")
    args, kwargs = tree_map_only(Far, lambda x: x.near, (args, kwargs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    result, known = func(*args, **kwargs), {id(x.near): x for x in far}
    if not is_there:
        return result
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Far(x), result)


def check(func, args, far, near):
    """Raise RuntimeError where CUDA would: tensors of two devices meet. Scalars and indices of the CPU may come."""
    if not far or not near or func is aten.copy_.default:
        return
    if func in TAKE_NEAR_INDICES and isinstance(args[0], Far):
        near = [x for x in args[2:3] if not isinstance(x, Far)]  # the values
    may_be_scalars = torch.Tag.pointwise in func.tags or func in TAKE_NEAR_VALUES or func in TAKE_NEAR_INDICES
    if not all(x.ndim == 0 and may_be_scalars for x in near):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")


@contextmanager
def far_away():
    """The machine has the device, and torch's fused optimisers know it."""
    with pytest.MonkeyPatch.context() as patch, Machine():
        for name in ("torch.optim.optimizer", "torch.optim.adam", "torch.optim.sgd"):
            if hasattr(sys.modules[name], "_get_fused_kernels_supported_devices"):
                patch.setattr(sys.modules[name], "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE])
        patch.setattr(nas.search.training.compute, "devices", lambda: ["cpu", DEVICE])
        yield
