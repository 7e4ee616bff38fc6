"""Multilevel steps: most steps train what is alive as a smaller network, and few see what sleeps (arXiv 2602.03535)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nas.models.network import restricted
from nas.restriction import Restriction
from nas.selection import write


class CoarseLevel(Restriction):
    """What is alive in a supernet after a full step, as a smaller network with an optimiser of its own.

    Attributes:
        net: the smaller network.
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        self.net, parts = restricted(net)
        parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
        super().__init__(optimizer, {p: (parameters[name], parts[name]) for name, p in self.net.named_parameters()})
        self._buffers = [(buffers[name], parts[name], own) for name, own in self.net.named_buffers() if name in parts]

    @torch.no_grad()
    def take_back(self) -> None:
        """Likewise what the network counts, such as the means of a batch normalisation."""
        super().take_back()
        for whole, part, buffer in self._buffers:
            write(whole, part, buffer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffers": [buffer for *_, buffer in self._buffers]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for (*_, buffer), stored in zip(self._buffers, state["buffers"], strict=True):
            buffer.copy_(stored)
