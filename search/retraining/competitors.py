"""What a found network is compared with: hand-made networks and random ones, of its size at most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nas.models.dag import DagNet
from nas.models.families import HAND_MADE, describe, widest
from nas.models.plan import Plan
from nas.models.recipes import separable_autoencoder
from nas.models.sample import random_subnet
from nas.models.traced.network import TracedNet

RANDOM = "random network"  # how the titles of such begin


@dataclass(frozen=True)
class Competitor:
    """A network to compare.

    Attributes:
        title: unique among those that are compared.
        network: the network to start from, by seed: with fresh weights, or those that were found. It is copied.
    """

    title: str
    network: Callable[[int], nn.Module]


def fresh(plan: Plan) -> Callable[[int], DagNet]:
    """Makes the network of a plan with weights drawn by a seed."""

    def network(seed: int) -> DagNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DagNet(plan)

    return network


def hand_made_networks(like: Plan, params: int, names: Sequence[str] = HAND_MADE) -> list[Competitor]:
    """Of every family that makes sense for such inputs and outputs, the network as wide as ``params`` parameters allow.

    Args:
        like: a plan with the same input and output.
        params: most parameters.
        names: such as "chain3", "residual2", "separable5k7" (`nas.models.families`).

    Raises:
        ValueError: there is no such family.
    """
    plans = {name: widest(name, like, params) for name in names}
    return [
        Competitor(f"{describe(name)}, {plan.nodes[0].units} wide", fresh(plan))
        for name, plan in plans.items()
        if plan is not None
    ]


def plan_like(net: nn.Module) -> Plan | None:
    """A plan with the inputs and outputs of a network; None for a module that does not return pictures."""
    if isinstance(net, DagNet):
        return net.plan
    if not isinstance(net, TracedNet) or not net.restores:
        return None
    return separable_autoencoder(net.origin.channels).plan.with_extra(net.origin.extra)


def random_networks(supernet: Plan, params: int, count: int) -> list[Competitor]:
    """The first ``count`` random networks of a supernet with at most ``params`` parameters (`random_subnet`).

    Raises:
        ValueError: the supernet holds none of this size.
    """
    return [Competitor(f"{RANDOM} {k}", fresh(random_subnet(supernet, params, k))) for k in range(1, count + 1)]
