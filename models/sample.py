"""Random networks inside a supernet, of a given size: what a search is to be better than."""

import copy
import math
from collections.abc import Callable, Mapping
from random import Random

import torch

from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.plan import OUTPUT, Plan

TIGHT = 0.95  # of the wanted size, at least
ATTEMPTS, HALVINGS = 30, 8
NARROW = 0.2  # the narrowest of the random widths, as part of the widest

Widths = dict[str, int]


def random_subnet(plan: Plan, size: int, seed: int) -> Plan:
    """A random network of a supernet, without anything dead in it.

    Gates, projections, blocks and whole nodes are there or not, kernels that grow get a random odd side, and the widths
    of the searched nodes are random multiples of one factor that is as large as ``size`` allows; tied nodes share their
    units, the output has all of its.

    Args:
        plan: the supernet.
        size: number of parameters; the network has at most these and at least 95 % of them.
        seed: another one gives another network.

    Raises:
        ValueError: the supernet holds no such network, or only rarely.
    """
    choose = Random(seed)
    for _ in range(ATTEMPTS):
        found = _fitted(_drawn(plan, choose), size, choose)
        if found is not None:
            return found
    raise ValueError(
        f"no random network of {math.ceil(TIGHT * size)} to {size} parameters was found in a supernet of "
        f"{plan.num_params} parameters"
    )


@torch.no_grad()
def _drawn(plan: Plan, choose: Random) -> DagNet:
    """The supernet at full width, non-zero where the network has weights."""
    net = DagNet(plan)
    for p in net.parameters():
        p.fill_(1)
    share = choose.uniform(0.25, 1)  # of what can be left out as a whole

    def absent() -> bool:
        return choose.random() > share

    for gates in net.gate_parameters().values():
        gates.copy_(torch.tensor([float(not absent()) for _ in gates]))
    for matrix in net.projection_parameters().values():
        matrix.mul_(not absent())
    for weight, core in net.block_parameters().values():
        weight.mul_(not absent())
        _crop(weight, core, choose)
    for weight, core in net.growing_parameters().values():
        _crop(weight, core, choose)
    units = net.unit_parameters()
    for name in sorted(net.whole_units()):
        if absent():
            for p in units[name]:
                p.zero_()
    return net


def _crop(weight: torch.Tensor, core: int | None, choose: Random) -> None:
    """Zero what is outside of a random odd side between the core and the kernel."""
    kernel = weight.shape[-1]
    if core is not None:
        rim = (kernel - choose.randrange(core, kernel + 1, 2)) // 2
        inside = torch.zeros(kernel, kernel)
        inside[rim : kernel - rim, rim : kernel - rim] = 1
        weight.mul_(inside)


def _fitted(net: DagNet, size: int, choose: Random) -> Plan | None:
    """The network with random widths that make it as large as ``size`` allows; None if they cannot."""
    most = {node.name: node.units for node in net.plan.nodes if node.searched and node.name != OUTPUT}
    shares = {name: choose.uniform(NARROW, 1) for name in most}

    def scaled(factor: float) -> Widths:
        return {name: min(n, max(1, math.ceil(factor * shares[name] * n))) for name, n in most.items()}

    if _narrowed(net, most).num_params < TIGHT * size or _narrowed(net, scaled(0)).num_params > size:
        return None
    widths = scaled(_largest(lambda factor: _narrowed(net, scaled(factor)).num_params <= size, 1 / NARROW))
    return _filled(net, widths, most, size, choose)


def _largest(fits: Callable[[float], bool], high: float) -> float:
    """About the largest number from 0 to ``high`` that still fits; 0 does."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _filled(net: DagNet, widths: Widths, most: Mapping[str, int], size: int, choose: Random) -> Plan | None:
    """The network, with single units added here and there until it has its size; None if none fits any more."""
    plan, names = _narrowed(net, widths), list(widths)
    while plan.num_params < TIGHT * size:
        choose.shuffle(names)
        wider = (widths | {name: widths[name] + 1} for name in names if widths[name] < most[name])
        grown = ((candidate, _narrowed(net, candidate)) for candidate in wider)
        fitting = ((ws, each) for ws, each in grown if plan.num_params < each.num_params <= size)
        widths, found = next(fitting, (widths, None))
        if found is None:
            return None
        plan = found
    return plan


@torch.no_grad()
def _narrowed(net: DagNet, widths: Widths) -> Plan:
    """The compact network with the first units of every node alone."""
    net = copy.deepcopy(net)
    units, nodes = net.unit_parameters(), net.named_nodes()
    for name, width in widths.items():
        blocks = [weight for edge, weight in nodes[name].weighted_edges() if edge.block]
        for p in (*units[name], *blocks, *nodes[name].projections.values()):
            p[width:] = 0
    return compact(net).plan
