"""A network from a folder that `DagNet.save_pretrained` wrote, with nothing executed; and the hash of a network."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nas.models.dag import ACTIVATIONS, DagNet
from nas.models.plan import Plan


def load(folder: Path | str) -> DagNet:
    """The network in ``folder``, in the precision it was saved in.

    Raises:
        ValueError: the files are damaged or do not belong together.
        OSError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        plan = Plan.from_dict(json.loads(text, object_pairs_hook=_without_repetition))
        tensors = load_file(folder / "model.safetensors")
        plan.check(ACTIVATIONS)
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != plan.shapes:
            raise ValueError("config.json and model.safetensors are of different networks")  # before memory is taken
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("its weights are not finite")
        net = DagNet(plan).to(_dtype(list(tensors.values())))
        net.load_state_dict(tensors)
    except (ValueError, TypeError, AttributeError, KeyError, SafetensorError, RuntimeError, RecursionError) as problem:
        raise ValueError(f"the network in {folder} is damaged: {' '.join(str(problem).split())}") from None
    return net


def fingerprint(net: nn.Module) -> str:
    """SHA-256 over the plan (of any other module its class) and the names, shapes, types and bytes of all tensors; 64
    hexadecimal digits."""
    layout = json.dumps(net.plan.to_dict(), sort_keys=True) if isinstance(net, DagNet) else type(net).__name__
    digest = hashlib.sha256(layout.encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands twice among {[name for name, _ in pairs]}")
    return dict(pairs)


def _dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    (dtype, *others) = {tensor.dtype for tensor in tensors}
    if others or not dtype.is_floating_point:
        raise ValueError("its tensors are not real floating-point numbers of one precision")
    return dtype
