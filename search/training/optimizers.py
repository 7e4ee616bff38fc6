"""The optimisers that search: how each starts, how far it steps, and how strong its penalty is.

Gradients of filters, gates, rings and blocks differ by orders of magnitude. AdaBreg divides by them as it goes; for the
others a trial measures once how large they are, the root mean square r of each parameter group (`trial`). With the
option lr = s, the entry time T, and a the price of a group (`nas.models.prices`), each group k of parameters gets

    adabreg             lr_k = s              lam_k = a T s
    linbreg, momentum   lr_k = s / r_k        lam_k = a T s                 the dual moves by s per step, at first
    proxsgd, xrda       lr_k = s / r_k        lam_k = a PULL r_k            no dual, no entry time
    splitlbi            lr_k = s / r_k        lam_k = a T TIE w_k           nu_k = lr_k / TIE

with w_k the root mean square of the weights. So weights move by about s per step at first; a sleeping unit of the mean
price whose gradient is as large as r_k, or whose weights are as large as w_k, wakes after T steps; and under ProxSGD
and XRDA it wakes, or stays awake, while the loss pulls at it with PULL r_k.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam

from nas.bregman import AdaBreg, LinBreg
from nas.penalised import Penalised
from nas.penalties import Zero, scaled
from nas.proximal import XRDA, ProxSGD
from nas.registry import Registry
from nas.search.training.compute import device_of
from nas.search.training.loop import LossFunction
from nas.split_lbi import SplitLBI

TRIAL_STEPS, TRIAL_LR = 100, 2e-3  # with Adam
MOMENTUM = 0.9
PULL = 0.4
TIE = 0.004  # of SplitLBI: the part of their distance by which weights and companion approach each other in a step

Scales = Mapping[str, float]  # a number for every parameter group, by name


class Sizes(NamedTuple):
    """Root mean squares of every parameter group, by name.

    Attributes:
        gradients: of its gradients over all steps of a trial, r; 1 where none arrive.
        weights: of its weights at the end, w.
    """

    gradients: Scales
    weights: Scales


@dataclass(frozen=True)
class Start:
    """What an optimiser is built from.

    Attributes:
        net: started, not trained yet; it is left as it is.
        groups: `nas.param_groups` of it with lr = lam = 1, but for the factors of gates and prices.
        pairs: batches (x, y) for a trial, in single precision where the network is.
        loss_fn: mean loss of ``(prediction, y)``.
        lr: the option s of the equations above.
        entry_time: T, in steps that move what sleeps; not a number where there is none.
        second_moment: of AdaBreg.
    """

    net: nn.Module
    groups: Sequence[Mapping[str, Any]]
    pairs: Iterable[tuple[Tensor, Tensor]]
    loss_fn: LossFunction
    lr: float
    entry_time: float
    second_moment: Literal["entry", "group", "tensor"]

    def scaled(self, lr: Scales, lam: Scales) -> list[dict[str, Any]]:
        """The groups with their lr and lam multiplied."""
        return [
            {**group, "lr": group["lr"] * lr[name], "penalty": scaled(group["penalty"], lam[name])}
            for name, group in self._named()
        ]

    def all(self, value: float) -> Scales:
        """The same number for every group."""
        return {name: value for name, _ in self._named()}

    def steps(self, sizes: Sizes) -> Scales:
        """s / r_k."""
        return {name: self.lr / size for name, size in sizes.gradients.items()}

    def pulls(self, sizes: Sizes) -> Scales:
        """PULL r_k; of gates without the factor that makes up for their larger lr."""
        return {name: PULL * sizes.gradients[name] / group["lr"] for name, group in self._named()}

    def _named(self) -> list[tuple[str, Mapping[str, Any]]]:
        return [(group["name"], group) for group in self.groups]


def trial(start: Start, *, asleep: bool = True) -> Sizes:
    """How large gradients and weights are in a short training of a copy of the network.

    Args:
        start: of a search.
        asleep: whether what is zero stays zero.
    """
    net = copy.deepcopy(start.net)
    parameters = dict(net.named_parameters())
    members = {group["name"]: [parameters[name] for name, _ in group["params"]] for group in start.groups}
    awake = {p: p.detach().ne(0) for p in parameters.values() if asleep}
    rule, squares, device = Adam(parameters.values(), TRIAL_LR), [], device_of(net)
    for x, y in ((x.to(device), y.to(device)) for x, y in start.pairs):
        rule.zero_grad()
        start.loss_fn(net(x), y).backward()
        squares.append({name: _rms(p.grad for p in group) ** 2 for name, group in members.items()})
        rule.step()
        _mask(awake)
    means = {name: fmean(step[name] for step in squares) for name in members}
    return Sizes(
        gradients={name: math.sqrt(mean) or 1.0 for name, mean in means.items()},
        weights={name: _rms(group) for name, group in members.items()},
    )


def _rms(tensors: Iterable[Tensor | None]) -> float:
    flat = [tensor.detach().flatten() for tensor in tensors if tensor is not None]
    return torch.cat(flat).square().mean().sqrt().item() if flat else 0.0


@torch.no_grad()
def _mask(masks: Mapping[Parameter, Tensor]) -> None:
    for p, mask in masks.items():
        p.mul_(mask)


def adabreg(start: Start) -> AdaBreg:
    groups = start.scaled(start.all(start.lr), start.all(start.entry_time * start.lr))
    return AdaBreg(groups, second_moment=start.second_moment)


def linbreg(start: Start, momentum: float = 0.0) -> LinBreg:
    groups = start.scaled(start.steps(trial(start)), start.all(start.entry_time * start.lr))
    return LinBreg(groups, momentum=momentum)


def proxsgd(start: Start) -> ProxSGD:
    sizes = trial(start)
    return ProxSGD(start.scaled(start.steps(sizes), start.pulls(sizes)))


def xrda(start: Start) -> XRDA:
    """With a momentum of 0.9 at the start; it grows as lr falls."""
    sizes, memory = trial(start), -1 / math.log(MOMENTUM)  # in steps
    groups = start.scaled(start.steps(sizes), start.pulls(sizes))
    return XRDA([{**group, "time": memory * group["lr"]} for group in groups])


def splitlbi(start: Start) -> SplitLBI:
    """With a mean of the gradients, as in `nas.LinBreg`."""
    sizes = trial(start, asleep=False)
    lam = {name: start.entry_time * TIE * size for name, size in sizes.weights.items()}
    groups = [{**group, "nu": group["lr"] / TIE} for group in start.scaled(start.steps(sizes), lam)]
    return SplitLBI(groups, momentum=MOMENTUM, dampening=MOMENTUM)


def all_of_it(net: nn.Module, optimizer: Penalised) -> nn.Module:
    """The network that is trained is the one that is found."""
    return net


@torch.no_grad()
def entered(net: nn.Module, optimizer: Penalised) -> nn.Module:
    """A copy of the weights of SplitLBI where their companions are not zero, and of those that have none."""
    names, found = {p: name for name, p in net.named_parameters()}, copy.deepcopy(net)
    copies = dict(found.named_parameters())
    for group in optimizer.param_groups:
        for p in group["params"] if not isinstance(group["penalty"], Zero) else ():
            companion = optimizer.state[p].get("companion", torch.zeros_like(p))
            copies[names[p]].mul_(companion.ne(0))
    return found


@dataclass(frozen=True)
class Kind:
    """An optimiser that can be chosen.

    Attributes:
        build: makes it.
        lr: the default of the option.
        entry_time: likewise; None: it knows no entry times.
        dense: whether it starts from the dense network, not from a sparse one.
        calibrates: whether its lam can be chosen by a trial (`nas.steering.calibrate`).
        restricts: whether it takes coarse steps (`nas.restriction`).
        found: the network that a search with it has found so far, of the one that it trains.
    """

    build: Callable[[Start], Penalised]
    lr: float
    entry_time: float | None
    dense: bool = False
    calibrates: bool = False
    restricts: bool = False
    found: Callable[[nn.Module, Penalised], nn.Module] = all_of_it


OPTIMIZERS: Registry[Kind] = Registry(
    "optimizer",
    {
        "adabreg": Kind(adabreg, 2e-3, 40.0, calibrates=True, restricts=True),
        "linbreg": Kind(linbreg, 2e-4, 40.0, calibrates=True, restricts=True),
        "momentum": Kind(partial(linbreg, momentum=MOMENTUM), 2e-3, 40.0, calibrates=True, restricts=True),
        "proxsgd": Kind(proxsgd, 2e-4, None),
        "splitlbi": Kind(splitlbi, 2e-3, 60.0, dense=True, found=entered),
        "xrda": Kind(xrda, 2e-4, None, dense=True),
    },
)
