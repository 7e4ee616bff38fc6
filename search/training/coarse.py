"""Multilevel steps: most steps train what is alive as a smaller network, and few see what sleeps (arXiv 2602.03535)."""

from torch.optim import Optimizer

from nas.models.compact import restricted
from nas.models.dag import DagNet
from nas.restriction import Restriction


class CoarseLevel(Restriction):
    """What is alive in a supernet after a full step, as a smaller network with an optimiser of its own.

    Attributes:
        net: the smaller network.
    """

    def __init__(self, net: DagNet, optimizer: Optimizer) -> None:
        self.net, parts = restricted(net)
        whole = dict(net.named_parameters())
        super().__init__(optimizer, {small: (whole[name], parts[name]) for name, small in self.net.named_parameters()})
