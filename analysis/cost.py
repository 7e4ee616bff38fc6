"""What a network costs: parameters and floating point operations."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from nas.models.dag import DagNet

SIDE = 256


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: number of parameters.
        flops: floating point operations, two per multiply-add, for one picture of 256 x 256 pixels or one vector.
        bytes: of the parameters in memory.
    """

    params: int
    flops: int
    bytes: int


@torch.no_grad()
def cost(net: DagNet) -> Cost:
    """Count by running ``net`` once; convolutions and matrix products are counted, elementwise work is not."""
    parameter = next(net.parameters())
    size = (SIDE, SIDE) if net.plan.patch is not None else ()
    counter = FlopCounterMode(display=False)
    with counter:
        net(torch.zeros(1, net.plan.inputs, *size, dtype=parameter.dtype, device=parameter.device))
    parameters = list(net.parameters())
    num_bytes = sum(p.numel() * p.element_size() for p in parameters)
    return Cost(sum(p.numel() for p in parameters), counter.get_total_flops(), num_bytes)
