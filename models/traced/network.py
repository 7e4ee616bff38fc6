"""A module of somebody else as a network that a search can train, cut and store, as it does a `nas.models.DagNet`."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nas.groups import Axis, Members, join_rows, unit_axes
from nas.models import network
from nas.models.network import Found, Sight
from nas.models.price import Currency, factor
from nas.models.traced.awake import silent_layers
from nas.models.traced.channels import Channels, Kind, channels_of
from nas.models.traced.graph import Example, copied, operation, shape, unwrap
from nas.models.traced.shrink import Removal, fit, held_by, keep_one, narrow, parts_of
from nas.models.traced.store import Numbers, filled, other_numbers, read_module, write_module
from nas.models.traced.units import every_other, find_units, kill, settle_norms, stir
from nas.selection import Selection, write

EVERYWHERE = 1 << 20  # pixels: the reach of a network that sees all of a picture
PROBES = 128, 512  # sides, at least, of the pictures on which it is found out how far a network sees


@dataclass(frozen=True)
class Origin:
    """Where a module comes from, and what it is given.

    Attributes:
        factory: what makes it, as of `nas.models.save_module`.
        options: keyword arguments of the factory.
        channels: of a picture.
        extra: channels of the input behind those.
        example: a batch of two inputs.
        numbers: by submodule and attribute what is another number in it than the factory makes, since channels went.
    """

    factory: str
    options: Mapping[str, Any]
    channels: int
    extra: int
    example: Tensor
    numbers: Numbers = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> "Origin":
        return self


class Anatomy:
    """The graph of a module and what its channels cost; copies of the module share it.

    Attributes:
        channels: from the graph in evaluation.
        nodes: of the stored tensors, by name.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.channels = channels_of(module, Example.of(example))
        self.nodes = {name: node for node, name in reversed(self.channels.graph.names.items())}
        graph = self.channels.graph
        self._sizes = [size for node in graph.nodes if node not in graph.stored and len(size := shape(node)) > 1]
        self._example = tuple(example.shape)

    def __deepcopy__(self, memo: object) -> "Anatomy":
        return self

    def cost(self, module: nn.Module, kept: Tensor, currency: Currency) -> float:
        """Of the channels that are ``kept``, a mask over their numbers, as `nas.models.network.cost`."""
        if currency == "params":
            named = module.named_parameters()
            return sum(self._size(self.nodes[name], kept) if name in self.nodes else p.numel() for name, p in named)
        pixels = math.prod(self._example[2:]) if len(self._example) == 4 else 1
        return math.fsum(
            self._size(step.weight, kept) * self._uses(step.node, shape(step.weight)[step.axes[0]]) / pixels
            for step in self.channels.steps.values()
            if step.kind in (Kind.MIX, Kind.GROUPED) and step.weight is not None
        )

    def outputs(self, kept: Tensor) -> dict[str, int]:
        """By layer how many of the channels that it puts out are ``kept``."""
        found = {}
        for step in self.channels.steps.values():
            if step.kind in (Kind.MIX, Kind.GROUPED) and step.weight is not None:
                name = self.channels.graph.names[step.weight].removesuffix(".weight")
                found[name] = int(kept[self.channels.roots[step.node]].sum())
        return found

    def _size(self, node: fx.Node, kept: Tensor) -> int:
        """How many entries a stored tensor has."""
        return math.prod(int(kept[numbers].sum()) for numbers in self.channels.stored[node])

    def _uses(self, node: fx.Node, outputs: int) -> float:
        """How often each weight of a layer is used for one input."""
        if operation(node) == "embedding":
            return 0.0
        if operation(node).startswith("conv_transpose"):
            return math.prod(shape(node.all_input_nodes[0])[2:])
        return math.prod(shape(node)) / (self._example[0] * outputs)

    @cached_property
    def grain(self) -> int:
        """By how much the resolution is lower somewhere: pictures have to have sides that are multiples of it."""
        height = self._example[-2] if len(self._example) == 4 else 1
        sides = {size[-2] for size in self._sizes if len(size) == 4}
        return math.lcm(*(round(height / side) for side in sides if 1 < side < height))

    @property
    def floats(self) -> float:
        """Numbers in the two largest tensors, for one input."""
        return float(sum(sorted(math.prod(size) for size in self._sizes)[-2:]) / self._example[0])


Slices = tuple[str, Axis]  # the name of a tensor, and where its units lie


class Searched:
    """The units of a module that a search can take away; copies of the module share it.

    Attributes:
        units: by layer the names of the tensors whose slices are its units, with their axes.
        numbers: by layer the numbers of its units among the channels of the `Anatomy`.
        problems: why other layers have none.
    """

    def __init__(self, units: Mapping[str, Sequence[Slices]], anatomy: Anatomy, problems: Sequence[str] = ()) -> None:
        self.units, self.anatomy, self.problems = dict(units), anatomy, list(problems)
        self.numbers = {
            layer: _numbers_of(anatomy.channels.stored[anatomy.nodes[name]], axis)
            for layer, ((name, axis), *_) in units.items()
        }
        self._silent: list[str] | None = None

    @classmethod
    def find(cls, module: nn.Module, anatomy: Anatomy, example: Tensor) -> "Searched":
        """The units of a module, perhaps none."""
        names = {id(p): name for name, p in module.named_parameters()}
        units, problems, dense = find_units(module, Example.of(example))
        found = cls(
            {
                layer: [(names[id(p)], axis) for p, axis in zip(members, unit_axes(members), strict=True)]
                for layer, members in units.items()
            },
            anatomy,
            [*problems, *dense],
        )
        found._leave_out_what_stays(module, anatomy.channels, Example.of(example))
        return found

    def __deepcopy__(self, memo: object) -> "Searched":
        return self

    def of(self, module: nn.Module) -> dict[str, Members]:
        """The units of a copy of the module."""
        held = dict(module.named_parameters())
        return {
            layer: Members((held[name] for name, _ in pairs), (axis for _, axis in pairs))
            for layer, pairs in self.units.items()
        }

    def alive(self, module: nn.Module) -> dict[str, Tensor]:
        """By layer which units are not zero."""
        return {
            layer: join_rows(members, members.axes).ne(0).any(dim=1).cpu() for layer, members in self.of(module).items()
        }

    def awake(self, module: nn.Module, example: Tensor) -> Tensor:
        """Which channels are of no unit that can be left out in training as it sleeps: a mask over their numbers."""
        channels, alive = self.anatomy.channels, self.alive(module)
        if self._silent is None:
            self._silent = silent_layers(module, channels, self.units, self.numbers, Example.of(example))
        kept = self.channels_of({layer: alive[layer].nonzero()[:, 0] for layer in self._silent})
        keep_one(channels, kept)
        return kept

    def channels_of(self, units: Mapping[str, Tensor]) -> Tensor:
        """All channels, but of these layers only those of ``units``: a mask over their numbers."""
        kept = torch.ones_like(self.anatomy.channels.fixed)
        for layer, indices in units.items():
            kept[self.numbers[layer]] = False
            kept[self.numbers[layer][indices]] = True
        return kept

    @torch.no_grad()
    def _leave_out_what_stays(self, module: nn.Module, channels: Channels, example: Example) -> None:
        """Of layers whose dead units an extraction would keep nothing is searched: tried on a copy."""
        trial = copied(module)
        stir(trial)
        kill(trial, self.of(trial), every_other(self.units), example)
        removal = Removal(channels, trial)
        fit(trial, removal, example)
        for layer, numbers in list(self.numbers.items()):
            if removal.kept[numbers[1::2]].any():
                self.problems.append(f"the channels of {layer} stay in evaluation when their weights are zero")
                del self.units[layer], self.numbers[layer]


def _numbers_of(stored: Sequence[Tensor], axis: Axis) -> Tensor:
    """Of units, from those of the channels along all axes of a tensor that holds them."""
    k, *cut = axis if isinstance(axis, tuple) else (axis,)
    along: Axis = (0, cut[0], cut[1], cut[2]) if cut else 0
    return join_rows([stored[k]], [along])[:, 0]


class TracedNet(nn.Module):
    """A module of somebody else, with what a search needs to know of it.

    Pictures whose sides are no multiples of what the module needs (`Anatomy.grain`) are padded for it, and its output
    is cut again.

    Args:
        module: it takes one tensor and returns one.
        origin: where it comes from.

    Attributes:
        restores: whether it returns pictures of the size that it is given.

    Raises:
        ValueError: it cannot be copied, run or traced, or returns no single tensor.
    """

    def __init__(self, module: nn.Module, origin: Origin) -> None:
        super().__init__()
        self.module, self.origin = unwrap(module), origin
        self.anatomy = Anatomy(self.module, origin.example)
        with torch.no_grad():
            output = copied(self.module).eval()(origin.example)
        if not isinstance(output, Tensor):
            raise ValueError(f"{type(module).__name__} must return one tensor, got {type(output).__name__}")
        self.restores = output.ndim == 4 and output.shape[2:] == origin.example.shape[2:]
        self._grain = self.anatomy.grain if self.restores else 1
        self._searched: Searched | None = None
        self._sight: Sight | None = None

    @property
    def searched(self) -> Searched:
        """The units, perhaps none: of heads of which as many are left as a head has entries nobody could tell them."""
        if self._searched is None:
            self._searched = Searched.find(self.module, self.anatomy, self.origin.example)
        return self._searched

    def forward(self, x: Tensor) -> Tensor:
        if (padded := self.padded(x)) is x:
            return self.module(x)  # type: ignore[no-any-return]
        height, width = x.shape[-2:]
        return self.module(padded)[..., :height, :width]  # type: ignore[no-any-return]

    def padded(self, x: Tensor) -> Tensor:
        """What the module is given for a batch ``x``."""
        if self._grain == 1:
            return x
        height, width = x.shape[-2:]
        missing = (0, -width % self._grain, 0, -height % self._grain)
        return F.pad(x, missing, mode="replicate") if any(missing) else x

    def unit_parameters(self) -> dict[str, Members]:
        """For `nas.param_groups`.

        Raises:
            ValueError: there are none.
        """
        if not self.searched.units:
            why = "".join(f": {problem}" for problem in self.searched.problems[:1])
            raise ValueError(f"{type(self.module).__name__} has no layer whose channels can be units{why}")
        return self.searched.of(self.module)

    def alive_channels(self) -> Tensor:
        """Which channels are of no unit that is zero, and one of each layer at least: a mask over their numbers."""
        alive = self.searched.alive(self.module)
        kept = self.searched.channels_of({layer: mask.nonzero()[:, 0] for layer, mask in alive.items()})
        keep_one(self.anatomy.channels, kept)
        return kept

    def layers_at(self, units: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """How many channels each layer puts out when these units are alive, by layer."""
        alive = {layer: torch.tensor(each, dtype=torch.long) for layer, each in units.items()}
        return self.anatomy.outputs(self.searched.channels_of(alive))

    def parts(self, kept: Tensor) -> dict[str, Selection]:
        """Of all parameters and buffers what is of channels that are ``kept``, a mask over their numbers."""
        held, found = held_by(self), parts_of(self.anatomy.channels, kept)
        parts = {id(held[f"module.{name}"]): part for name, part in found.items()}
        return {name: parts.get(id(tensor), (None,) * tensor.ndim) for name, tensor in held.items()}

    def cut(self) -> tuple[nn.Module, Removal]:
        """The module without what is dead, on the CPU, and what was removed."""
        module = copied(self.module).eval()
        removal = Removal(self.anatomy.channels, module)
        fit(module, removal, Example.of(self.origin.example))
        removal.apply(module)
        return module, removal


@network.find.register
def _(net: TracedNet) -> Found:
    return Found(net.searched.alive(net.module), {}, {})


@network.widths.register
def _(net: TracedNet) -> dict[str, int]:
    return {layer: len(numbers) for layer, numbers in net.searched.numbers.items()}


@network.num_skips.register
def _(net: TracedNet) -> int:
    return 0


@network.left_dense.register
def _(net: TracedNet) -> list[str]:
    return net.searched.problems


@network.compacted.register
@torch.no_grad()
def _(net: TracedNet) -> TracedNet:
    small = net.cut()[0]
    numbers = {**net.origin.numbers}
    for path, changed in other_numbers(net.module, small).items():
        numbers[path] = {**numbers.get(path, {}), **changed}
    return TracedNet(small, replace(net.origin, numbers=numbers)).to(next(net.parameters()).device).eval()


@network.cost.register
def _(net: TracedNet, currency: Currency) -> float:
    return net.anatomy.cost(net.module, torch.ones_like(net.anatomy.channels.fixed), currency)


@network.alive_cost.register
def _(net: TracedNet, currency: Currency) -> float:
    return net.anatomy.cost(net.module, net.alive_channels(), currency)


@network.prices.register
def _(net: TracedNet, currency: Currency) -> dict[str, float]:
    whole = torch.ones_like(net.anatomy.channels.fixed)
    full, added = net.anatomy.cost(net.module, whole, currency), {}
    for layer, numbers in net.searched.numbers.items():
        less = whole.index_fill(0, numbers[:1], False)
        added[layer] = full - net.anatomy.cost(net.module, less, currency)
    mean = fmean(added.values(), [len(net.searched.numbers[layer]) for layer in added])
    return {layer: factor(each / mean) for layer, each in added.items()}


@network.inner.register
@torch.no_grad()
def _(net: TracedNet) -> tuple[TracedNet, dict[str, Tensor]]:
    kept, module = net.searched.awake(net.module, net.origin.example), copy.deepcopy(net.module)
    narrow(module, parts_of(net.anatomy.channels, kept))
    small = TracedNet(module, net.origin)
    small._searched = Searched(net.searched.units, small.anatomy, net.searched.problems)
    return small, {layer: kept[numbers].nonzero()[:, 0] for layer, numbers in net.searched.numbers.items()}


@network.within.register
@torch.no_grad()
def _(small: TracedNet, units: Mapping[str, Tensor], net: TracedNet) -> TracedNet:
    whole = copy.deepcopy(net)
    held, parts = held_by(whole), whole.parts(net.searched.channels_of(units))
    for name, tensor in held_by(small).items():
        write(held[name], parts[name], tensor)
    return whole


@network.restricted.register
@torch.no_grad()
def _(net: TracedNet) -> tuple[TracedNet, dict[str, Selection]]:
    kept, small = net.searched.awake(net.module, net.origin.example), copy.deepcopy(net)
    narrow(small.module, parts_of(net.anatomy.channels, kept))
    return small, net.parts(kept)


@network.settle.register
def _(net: TracedNet) -> None:
    settle_norms(net.module, net.unit_parameters())


@network.renewed.register
def _(net: TracedNet, seed: int) -> TracedNet:
    new = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in new.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return new


@network.alike.register
def _(a: TracedNet, b: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (a, b)]
    return isinstance(b, TracedNet) and shapes[0] == shapes[1]


@network.sight.register
def _(net: TracedNet) -> Sight:
    if not net.restores:
        raise ValueError("the network returns no picture of the size that it is given; it cannot restore a picture")
    if net._sight is None:
        anatomy, origin = net.anatomy, net.origin
        pixels = math.prod(origin.example.shape[2:])
        net._sight = Sight(origin.channels, origin.extra, anatomy.grain, _reach(net), 4 * anatomy.floats / pixels)
    return net._sight


def _reach(net: TracedNet) -> int:
    """How far a pixel acts."""
    return next((far for side in PROBES if (far := _reach_within(net, side)) < EVERYWHERE), EVERYWHERE)


@torch.no_grad()
def _reach_within(net: TracedNet, side: int) -> int:
    """The same on a picture with such sides: what is no number spreads to all that depends on it, whatever the weights
    are; `EVERYWHERE` if that is up to the border."""
    module, grain = copied(net.module).eval(), net.anatomy.grain
    cells = -(-side // grain)
    x = torch.zeros(1, net.origin.example.shape[1], cells * grain, cells * grain)
    first = cells // 2 * grain
    x[..., first : first + grain, first : first + grain] = math.nan
    seen = module(x)[0].isnan().any(dim=0)
    places = torch.cat([seen.any(dim=axis).nonzero()[:, 0] for axis in (0, 1)])
    if not len(places):
        return 0
    low, high = int(places.min()), int(places.max())
    if low == 0 or high == len(seen) - 1:
        return EVERYWHERE
    return max(first - low, high - (first + grain - 1))


@network.input_shape.register
def _(net: TracedNet, batch: int, side: int) -> tuple[int, ...]:
    size = net.origin.example.shape
    return (batch, size[1], side, side) if net.restores else (batch, *size[1:])


@network.save.register
def _(net: TracedNet, folder: Path) -> None:
    write_module(net.module, folder, net.origin.factory, net.origin.options, net.origin.numbers)


@network.load_like.register
def _(net: TracedNet, folder: Path) -> TracedNet:
    tensors, numbers = read_module(folder)
    module = filled(copy.deepcopy(net.module).cpu(), tensors, net.origin.factory, numbers)
    return TracedNet(module, replace(net.origin, numbers=numbers)).eval()
