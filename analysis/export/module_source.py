"""Any module as plain Python: its primitive operations, one a line, and its tensors beside them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from nas.files import write_bytes
from nas.models.traced.graph import AUTOCAST, inline

HEAD = '''"""A network as the primitive operations of torch that it consists of. It needs torch and safetensors."""

import operator
from math import inf, nan

import torch
from safetensors.torch import load_file
from torch import device, nn


class Network(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, {inputs}):
        found = compute({given})
        return found[0] if len(found) == 1 else found


def load(weights):
    """The network with the weights of a .safetensors file."""
    return Network(load_file(weights)).eval()


'''


def write_module_source(program: torch.export.ExportedProgram, path: Path, weights: Path) -> None:
    """Write the operations of a program as ``path``, and the tensors that it holds as ``weights``.

    Outputs that are no single tensor are returned as a flat tuple.

    Raises:
        ValueError: a part of it has a precision of its own (`torch.autocast`).
    """
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, fx.GraphModule)]
    if any(str(node.target) == AUTOCAST for graph in graphs for node in graph.nodes):
        raise ValueError("the format python cannot hold a region of another precision (torch.autocast)")
    inline(program.graph_module)
    tensors: dict[str, Tensor] = {}
    inputs, given = [], []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
            given.append(name)
        else:
            tensors[name] = _held(program, str(spec.target))
            given.append(f"self.{name}")
    code = program.graph.python_code("self").src.replace("def forward(self, ", "def compute(", 1)
    head = HEAD.replace("{inputs}", ", ".join(inputs)).replace("{given}", ", ".join(given))
    path.write_text(head + code[code.index("def compute") :], encoding="utf-8")
    write_bytes(weights, save(tensors))


def _held(program: torch.export.ExportedProgram, name: str) -> Tensor:
    sources: list[Mapping[str, object]] = [program.state_dict, program.constants]
    tensor = next(source[name] for source in sources if name in source)
    assert isinstance(tensor, Tensor)
    return tensor.detach().clone().contiguous()
