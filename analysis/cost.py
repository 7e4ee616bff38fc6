"""What a network costs: parameters and floating point operations."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.models.dag import DagNet
from nas.models.network import input_shape
from nas.models.traced.graph import Example, Inputs, call
from nas.models.traced.network import TracedNet

SIDE = 256


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: number of parameters.
        flops: floating point operations, two per multiply-add, for one picture of 256 x 256 pixels or one vector, or
            for the batch that was given.
        bytes: of the parameters in memory.
    """

    params: int
    flops: int
    bytes: int


@torch.no_grad()
def cost(net: nn.Module, *, inputs: Inputs | None = None) -> Cost:
    """Count by running ``net`` once; convolutions and matrix products are counted, elementwise work is not.

    Args:
        net: any network.
        inputs: one batch for a module that is no `DagNet`; the operations are those of the whole batch.

    Raises:
        ValueError: a module that is no `DagNet` comes without inputs, or cannot be run.
    """
    parameters = list(net.parameters())
    if inputs is None and isinstance(net, DagNet | TracedNet):
        inputs = torch.zeros(input_shape(net, 1, SIDE), dtype=parameters[0].dtype, device=parameters[0].device)
    if inputs is None:
        raise ValueError(f"cost: {type(net).__name__} is no DagNet; give inputs=..., one batch")
    counter = FlopCounterMode(display=False)
    with counter:
        call(net, Example.of(inputs))
    num_bytes = sum(p.numel() * p.element_size() for p in parameters)
    return Cost(sum(p.numel() for p in parameters), counter.get_total_flops(), num_bytes)
