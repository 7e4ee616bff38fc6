"""Units of any model, found from its graph: what has to be zero together so that a channel is zero and can go."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from nas.groups import Members, join_rows, unit_axes
from nas.models.traced.channels import Channels, Kind, Step, arguments
from nas.models.traced.graph import Example, Inputs, called, copied, operation, shape, trace, unwrap
from nas.models.traced.shrink import Removal, fit
from nas.models.traced.values import PRODUCTS, Values, keeps_constants

Space = tuple[int, ...]  # the numbers of the channels that a layer puts out: unit i is the channel numbered space[i]
SHIFT = 0.37  # stands for any number but 0


@torch.no_grad()
def coupled_units(model: nn.Module, inputs: Inputs, *, strict: bool = True) -> dict[str, Members]:
    """The tensors that hold the units of any model, by layer; slice i of all tensors of a layer is its unit i, along
    the first axis of most tensors, along the second of the weights of transposed convolutions (`nas.groups.Members`).

    A unit is a channel (of a linear layer a feature) with all channels that can only live and die together with it:
    those that residual sums tie to it, and what depthwise convolutions, normalisations, pooling, activations and
    flatten make of it. Its tensors are the filters of all layers that put it out, with their biases, and the shifts
    of the batch normalisations and depthwise convolutions behind. If they are zero, so is the channel, in training
    and (after `settle_norms`) in evaluation, and `nas.analysis.extract` removes it exactly: that is tried here on a
    copy. Factors on the way stay free (the scale of a normalisation, the kernel of a depthwise convolution): a zero
    filter behind a zero factor has no gradient and could never wake. So do the shifts of a normalisation of a
    concatenation, whose channels belong to several layers; behind it a dead channel is a constant, which layers
    without zero padding absorb. Channels that the model takes in or puts out are no units, nor are frozen ones.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        inputs: one batch for it: a tensor, a tuple of arguments, or a mapping of keyword arguments; its shape tells
            how flatten lays out channels. As in training it has to have two examples or more if the model needs them.
        strict: refuse a model with layers whose channels cannot be units; else leave these layers out, which then
            stay dense.

    Returns:
        For `nas.param_groups`, by the name of the first layer that puts the units out.

    Raises:
        ValueError: the model cannot be copied, run or traced, or has no units; with ``strict`` also, naming layer and
            operation: an operation that is not known, channels tied to channels at other places, a channel that is
            not zero or not constant when its weights are, a forward that notices when channels go.
    """
    model = unwrap(model)
    units, problems = find_units(model, Example.of(inputs), all_or_none=strict)
    if strict and problems:
        raise ValueError(f"coupled_units: {problems[0]}; strict=False leaves such layers out")
    if not units:
        raise ValueError(f"coupled_units: {type(model).__name__} has no layer whose channels can be units")
    return units


@torch.no_grad()
def find_units(
    model: nn.Module, example: Example, *, all_or_none: bool = False
) -> tuple[dict[str, Members], list[str]]:
    """The units of `coupled_units`, perhaps none, and why other layers have none; with ``all_or_none`` it is enough to
    know one reason.

    Raises:
        ValueError: the model cannot be copied, run or traced.
    """
    channels = Channels(trace(model, example, training=True))
    search = _Search(channels, model)
    units = search.units
    if not all_or_none or not search.problems:
        for layer in _missed(model, example, channels, units):
            search.problems.append(f"{type(model).__name__} computes something else when channels of {layer} go")
            del units[layer]
    return units, search.problems


@torch.no_grad()
def settle_norms(model: nn.Module, units: Mapping[str, Sequence[Parameter]]) -> None:
    """Set the running means that batch normalisations keep for dead units to 0, in place.

    In training a dead unit is exactly zero. Its running mean tends to 0 from the step at which the unit died on, but
    in evaluation the normalisation still subtracts what is left of it. Call this before extraction.

    Args:
        model: the trained model.
        units: from `coupled_units` (or `nas.parameters.unit_parameters`) of the same model.
    """
    norms = {id(m.bias): m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    for members in units.values():
        dead = ~join_rows(members, unit_axes(members)).any(dim=1)
        for norm in (norms[id(p)] for p in members if id(p) in norms):
            norm.running_mean[dead] = 0  # type: ignore[index]


def _missed(
    model: nn.Module, example: Example, channels: Channels, units: Mapping[str, Sequence[Parameter]]
) -> list[str]:
    """The layers of which the forward of a model would notice that units go: every other one is taken from a copy."""
    copies = copied(model).eval()
    held = dict(copies.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in model.named_parameters()}
    for module in copies.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.zero_()
    for members in units.values():
        for p, axis in zip(members, unit_axes(members), strict=True):
            held[names[id(p)]].movedim(axis, 0)[1::2] = 0
    removal = Removal(channels, copies)
    _, noticed = fit(copies, removal, example)
    lost = {name for numbers in noticed for name in removal.owners(numbers)}
    return [layer for layer, members in units.items() if any(names[id(p)] in lost for p in members)]


class _Search:
    """The units of a model, and the problems that keep other channels from being units."""

    def __init__(self, channels: Channels, model: nn.Module) -> None:
        self.channels = channels
        held = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {node: held[name] for node, name in channels.graph.names.items() if name in held}
        self.problems: list[str] = []
        self.layers: dict[Space, list[Step]] = {}
        for step in channels.steps.values():
            if step.kind is Kind.MIX:
                self.layers.setdefault(self._space(step.node), []).append(step)
        self.free = ~channels.fixed
        self._leave_unknown()
        self._leave_frozen()
        self._leave_unaligned()
        self.members: dict[Space, Members] = {}
        self.causes: dict[int, str] = {}  # by number the first operation behind which the channel is not zero
        self.states = _States(self)
        self._leave_unabsorbed()
        self.units = {self.name(space): members for space, members in self.members.items() if self.is_free(space)}

    # What cannot be a unit

    def leave(self, space: Space, problem: str) -> None:
        self.free[list(space)] = False
        self.problems.append(f"the channels of {self.name(space)} {problem}")

    def _leave_unknown(self) -> None:
        """Note operations between layers, and layers, that are not understood; what they see stays."""
        before_layers: set[fx.Node] = set()
        for node in reversed(self.channels.graph.nodes):
            if self._is_layer(node) or any(user in before_layers for user in node.users):
                before_layers.add(node)
        for node, numbers in self.channels.unknown.items():
            seen = set(numbers.tolist())
            touched = [space for space in self.layers if not seen.isdisjoint(space)]
            what = called(node) + (" in place" if node in self.channels.graph.changed else "")
            if touched and node in before_layers:
                self.problems.append(f"the channels of {self.name(touched[0])} meet {what}, which is not understood")
            elif self._is_layer(node):
                self.problems.append(f"{what} is a layer that is not understood")

    def _leave_frozen(self) -> None:
        for space, layers in self.layers.items():
            trained = [layer for layer in layers if all(p.requires_grad for p in self._tensors(layer))]
            if len(trained) < len(layers):
                self.free[list(space)] = False

    def _leave_unaligned(self) -> None:
        """Layers with a channel that is another channel of theirs, or one of a layer with other channels."""
        numbers = torch.tensor([number for space in self.layers for number in space], dtype=torch.long)
        crowded = torch.bincount(numbers, minlength=len(self.free)) > 1
        for space in self.layers:
            if self.free[list(space)].any() and crowded[list(space)].any():
                self.leave(space, f"are tied to other channels at other places by {self._tie(space)}")

    def _tie(self, space: Space) -> str:
        """The operation that ties channels of a layer to others."""
        steps = [step for step in self.channels.steps.values() if step.node in self.channels.roots]
        tying = [step for step in steps if step.kind in (Kind.GROUPED, Kind.MOVE) or len(step.sources) > 1]
        tied = [step for step in tying or steps if not set(space).isdisjoint(self._space(step.node))]
        return min(tied, key=lambda step: (step.kind is not Kind.ENTRYWISE, self._space(step.node) == space)).name

    def _leave_unabsorbed(self) -> None:
        """Every reader has to see zeros, or constants that its bias can take up."""
        for step in self.channels.steps.values():
            if step.kind is Kind.MIX and step.sources[0] in self.states.of:
                values = self.states.of[step.sources[0]]
                seen = values.isnan() if keeps_constants(step) else values.ne(0)
                for space, number in self.free_layers(self.channels.roots[step.sources[0]][seen]):
                    cause = self.causes[number]
                    self.leave(space, f"are not zero behind {cause} when their weights are, and {step.name} sees it")

    # Layers and their tensors

    def add(self, space: Space, tensors: Sequence[Parameter], axis: int = 0) -> None:
        """Let tensors belong to units; ``axis`` is that of the units in those that are no vectors."""
        members = self.members.setdefault(space, Members())
        for p in tensors:
            if not any(p is member for member in members):
                members.append(p)
                members.axes.append(axis if p.ndim > 1 else 0)

    def _tensors(self, step: Step) -> list[Parameter]:
        return [self.parameters[each] for each in (step.weight, step.bias) if each in self.parameters]

    def free_layers(self, numbers: Tensor) -> list[tuple[Space, int]]:
        """The layers to be units that have some of these channels, each with one of them."""
        seen = set(numbers.tolist())
        return [
            (space, min(seen.intersection(space)))
            for space in self.layers
            if self.is_free(space) and not seen.isdisjoint(space)
        ]

    def is_free(self, space: Space) -> bool:
        return bool(self.free[list(space)].all())

    def name(self, space: Space) -> str:
        return self.channels.graph.names[self.layers[space][0].weight].removesuffix(".weight")  # type: ignore[index]

    def _space(self, node: fx.Node) -> Space:
        return tuple(self.channels.roots[node].tolist()) if node in self.channels.roots else ()

    def _is_layer(self, node: fx.Node) -> bool:
        """Whether a node makes channels by a weight, understood or not."""
        step = self.channels.steps.get(node)
        if step is None or step.kind not in (Kind.MIX, Kind.UNKNOWN):
            return False
        return any(self.parameters[each].ndim > 1 for each in node.all_input_nodes if each in self.parameters)


class _States(Values):
    """What each channel is when its unit is zero: 0, some number for a constant, else NaN; free parameters are numbers.

    On the way the tensors of the units are collected.
    """

    training = True

    def __init__(self, search: _Search) -> None:
        self.search = search
        stored = search.channels.graph.stored
        super().__init__(search.channels, {node: _any_numbers(tensor) for node, tensor in stored.items()})

    def _value(self, step: Step) -> Tensor:
        numbers = self.channels.roots[step.node]
        space = tuple(numbers.tolist())
        if step.kind is Kind.MIX:
            values = torch.where(self.search.free[numbers], 0.0, math.nan).double()
            if self.search.is_free(space):
                self.search.add(space, self.search._tensors(step), step.axes[0])
        elif self._shifts_unit(step, space):
            self.search.add(space, [self.search.parameters[step.bias]])  # type: ignore[index]
            values = torch.zeros(len(numbers), dtype=torch.float64)
        else:
            values = super()._value(step)
            zeros = [self.of[each].eq(0).all() for each in step.sources if each in self.of]
            if step.kind is Kind.ENTRYWISE and operation(step.node) not in PRODUCTS:
                accident = values.eq(0) & ~self._sees_zeros(step)
            else:
                accident = values.isinf() | torch.tensor(_settles_late(step) and bool(zeros))
            values = values.where(values.isnan() | (values.eq(0) & ~accident), SHIFT)
            self._leave_squares(step, numbers)
        for number in numbers[values.ne(0)].tolist():
            self.search.causes.setdefault(number, step.name)
        return values

    def _shifts_unit(self, step: Step, space: Space) -> bool:
        """Whether the shift of a normalisation or depthwise convolution is of a unit: all that it sees is zero."""
        if step.kind not in (Kind.NORM, Kind.GROUPED) or step.bias not in self.search.parameters:
            return False
        before = self.of.get(step.sources[0])
        trained = self.search.parameters[step.bias].requires_grad
        return space in self.search.members and trained and before is not None and not before.ne(0).any()

    def _sees_zeros(self, step: Step) -> Tensor:
        """Whether all that an operation reads of a channel is zero."""
        axis, size = self.channels.axis[step.node], shape(step.node)
        return torch.stack([self.vector(each, axis, size) == 0 for each in step.sources]).all(dim=0)

    def _leave_squares(self, step: Step, numbers: Tensor) -> None:
        if step.kind is Kind.ENTRYWISE and operation(step.node) in PRODUCTS:
            factors = [self.of[each] for each in arguments(step.node) if each in self.of]
            if len(factors) == 2 and len(factors[0]) == len(factors[1]) == len(numbers):
                for space, _ in self.search.free_layers(numbers[torch.maximum(*factors) == 0]):
                    self.search.leave(
                        space, f"are multiplied with each other by {step.name}, so that they could never wake"
                    )


def _any_numbers(tensor: Tensor) -> Tensor:
    """As many different positive numbers; a tensor of no real numbers stays."""
    if not tensor.is_floating_point():
        return tensor
    return torch.linspace(SHIFT, 2 * SHIFT, tensor.numel(), dtype=torch.float64).reshape(tensor.shape)


def _settles_late(step: Step) -> bool:
    """Whether an operation is a normalisation without a shift, whose running mean nobody sets to 0 for dead units."""
    return step.kind is Kind.NORM and step.bias is None and step.node.args[3] is not None
