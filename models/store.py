"""A network in a folder: config.json (its plan) and model.safetensors. Nothing from a file is executed."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nas.models.dag import DagNet
from nas.models.plan import Plan


def save(net: DagNet, folder: Path) -> None:
    """Write ``net`` into an existing folder."""
    (folder / "config.json").write_text(json.dumps(net.plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path) -> DagNet:
    """The network that `save` wrote.

    Raises:
        ValueError: the files are damaged or do not belong together.
        OSError: a file is missing or cannot be read.
    """
    try:
        net = DagNet(Plan.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (ValueError, TypeError, AttributeError, SafetensorError, RuntimeError) as problem:
        raise ValueError(f"the network in {folder} is damaged: {' '.join(str(problem).split())}") from None
    return net
