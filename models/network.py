"""What a search asks of a network: what is alive in it, what that costs, the smaller network inside, files.

The answers of a `DagNet` stand here; `nas.models.traced.network` registers those of a `TracedNet`, a module of somebody
else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.models import price
from nas.models.alive import active_rows, find_alive, spread
from nas.models.compact import alive_plan, compact, expand, kept_units
from nas.models.compact import restricted as restricted_plan
from nas.models.dag import DagNet
from nas.models.plan import Plan
from nas.models.price import Currency
from nas.models.reach import grain, reach
from nas.models.store import load
from nas.selection import Selection


@dataclass(frozen=True)
class Found:
    """What is alive in a network.

    Attributes:
        units: for every searched layer which of its units are alive and computed, a boolean mask.
        skips: the gates of the alive skips, by (source, target); trunks, which are not searched, are none.
        kernels: the sides of the kernels of the alive operations, by (`nas.models.Edge.key`, target).
    """

    units: dict[str, Tensor]
    skips: dict[tuple[str, str], float]
    kernels: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Sight:
    """How a network that restores pictures sees them.

    Attributes:
        channels: of a picture.
        extra: channels of the input behind those.
        grain: side in pixels of the squares that it never cuts.
        reach: how many pixels beyond a square of the output, at each side, the output in it depends on at most.
        bytes_per_pixel: of memory, about.
    """

    channels: int
    extra: int
    grain: int
    reach: int
    bytes_per_pixel: float

    @classmethod
    def of(cls, plan: Plan) -> "Sight":
        """That of a `DagNet`.

        Raises:
            ValueError: it does not return pictures.
        """
        levels = plan.node_levels
        sizes: list[float] = [units / 4 ** levels[name] for name, units in plan.units.items()]
        floats = (sum(sizes) + 3 * max(sizes)) / (plan.patch or 1) ** 2  # all states, what is on its way to the largest
        return cls(plan.channels, plan.extra, grain(plan), reach(plan), 4.0 * floats)


@singledispatch
def find(net: nn.Module) -> Found:
    """What is alive in a network now."""
    net = _dag(net)
    alive = find_alive(net)
    units: dict[str, Tensor] = {}
    trunks = set()
    for name, node in net.named_nodes().items():
        computed = (
            spread(active_rows(node, alive.emits, alive.reads[name]), node.plan.rows, node.plan.units)
            & alive.units[name]
        )
        if node.plan.searched:
            units[name] = computed
        elif node.plan.tied is not None:
            units[node.plan.tied] |= computed
        trunks |= {(skip.source, name) for skip in node.plan.skips if skip.trunk}
    return Found(units, {arc: gate for arc, gate in alive.skips.items() if arc not in trunks}, alive.kernels)


@singledispatch
def widths(net: nn.Module) -> dict[str, int]:
    """How many units each searched layer has, dead ones included."""
    return {node.name: node.units for node in _dag(net).plan.nodes if node.searched}


@singledispatch
def num_skips(net: nn.Module) -> int:
    """How many skips are searched."""
    return sum(node.num_skips for node in _dag(net).plan.nodes)


@singledispatch
def left_dense(net: nn.Module) -> list[str]:
    """Sentences on the layers of a supernet whose units cannot go."""
    return []


@singledispatch
def compacted(net: nn.Module) -> nn.Module:
    """The network without what is dead: it computes the same, and is of the same kind and where ``net`` is."""
    return compact(_dag(net))


@singledispatch
def cost(net: nn.Module, currency: Currency) -> float:
    """Number of parameters, or of multiply-adds per pixel (per input where there are no pixels)."""
    return price.total(_dag(net).plan, currency)


@singledispatch
def alive_cost(net: nn.Module, currency: Currency) -> float:
    """`cost` of `compacted`, or more where constants go, too, and in a `TracedNet` what nobody reads any more: cheap
    enough to ask often."""
    return price.total(alive_plan(_dag(net)), currency)


@singledispatch
def prices(net: nn.Module, currency: Currency) -> dict[str, float]:
    """Factors for lam: what one more group costs, see `nas.models.prices`."""
    return price.prices(_dag(net).plan, currency)


@singledispatch
def inner(net: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with the searched groups that are alive in ``net``, to be trained instead of it; and for every layer
    the indices that its units have in ``net``."""
    small, kept = compact(_dag(net), tight=False), kept_units(_dag(net), tight=False)
    return small, {name: kept[name].nonzero()[:, 0] for name in small.plan.units}


@singledispatch
def within(small: nn.Module, units: Mapping[str, Tensor], net: nn.Module) -> nn.Module:
    """The inverse of `inner`: what ``small``, trained since, computes, as a network with all the units of ``net``."""
    return expand(_dag(small), units, _dag(net))


@singledispatch
def restricted(net: nn.Module) -> tuple[nn.Module, dict[str, Selection]]:
    """What is alive in ``net`` as a smaller network with the same outputs and gradients in training, to round-off; and
    by name of each of its tensors which part of that of ``net`` it is."""
    return restricted_plan(_dag(net))


@singledispatch
def settle(net: nn.Module) -> None:
    """Let what is dead in training be dead in evaluation, in place, after a training."""


@singledispatch
def renewed(net: nn.Module, seed: int) -> nn.Module:
    """The same architecture with new random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DagNet(_dag(net).plan)


@singledispatch
def alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks are of one architecture."""
    return isinstance(b, DagNet) and _dag(a).plan == b.plan


@singledispatch
def sight(net: nn.Module) -> Sight:
    """How a network sees pictures.

    Raises:
        ValueError: it does not return pictures.
    """
    return Sight.of(_dag(net).plan)


@singledispatch
def input_shape(net: nn.Module, batch: int, side: int) -> tuple[int, ...]:
    """Of a batch of pictures with such sides, or of what else the network takes."""
    plan = _dag(net).plan
    return (batch, plan.inputs, *((side, side) if plan.patch is not None else ()))


@singledispatch
def save(net: nn.Module, folder: Path) -> None:
    """Write the network as files, of plain data, into ``folder``.

    Raises:
        OSError: the folder cannot be written.
    """
    _dag(net).save_pretrained(folder)


@singledispatch
def load_like(net: nn.Module, folder: Path) -> nn.Module:
    """The network that `save` wrote, which was taken from ``net`` or from networks like it.

    Raises:
        ValueError: the files are damaged.
        OSError: a file is missing or cannot be read.
    """
    return load(folder)


def num_params(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def _dag(net: nn.Module) -> DagNet:
    if not isinstance(net, DagNet):
        raise TypeError(f"a search knows a DagNet and a TracedNet, not {type(net).__name__}")
    return net
