"""Importing torchvision beside a torch build that its compiled operators do not fit."""

from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """torchvision, for its data sets and transforms, which need none of its compiled operators.

    Where these operators cannot load (a CPU build of torch beside the wheel for another build), the import fails
    on the two operators that torchvision describes but did not register; declaring them first is enough.
    """
    try:
        import torchvision
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision  # type: ignore[no-any-return]
