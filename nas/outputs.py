"""What modules return."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def unpacked(outputs: Any) -> Any:
    """The same with a dictionary of the fields that are set in place of each dataclass that torch does not know."""

    def fields_of(leaf: Any) -> Any:
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        return unpacked({each.name: getattr(leaf, each.name) for each in fields(leaf) if hasattr(leaf, each.name)})

    return tree_map(fields_of, outputs)


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors among what a module returns."""
    return [leaf for leaf in tree_leaves(unpacked(outputs)) if isinstance(leaf, Tensor)]


def unpack_outputs(module: nn.Module) -> None:
    """Let a module return dictionaries in place of such dataclasses; one of TorchScript knows none."""
    if not isinstance(module, torch.jit.ScriptModule):
        module.register_forward_hook(lambda module, args, outputs: unpacked(outputs))
