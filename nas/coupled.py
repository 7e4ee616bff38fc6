"""Units of any model, found from its graph: what has to be zero together so that a channel is zero and can go."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from nas.channels import Channels, evaluation_copy, trace
from nas.groups import join_rows
from nas.operations import Kind, Step

ZERO, CONSTANT, MOVING = range(3)  # what a channel is whose unit is zero, whatever the free parameters are
Space = tuple[int, ...]  # the numbers of the channels that a layer puts out: unit i is the channel numbered space[i]


@torch.no_grad()
def coupled_units(model: nn.Module, inputs: Tensor, *, strict: bool = True) -> dict[str, list[Parameter]]:
    """The tensors that hold the units of any model, by layer; slice i of all tensors of a layer is its unit i.

    A unit is a channel (of a linear layer a feature) with all channels that can only live and die together with it:
    those that residual sums tie to it, and what depthwise convolutions, normalisations, pooling, activations and
    flatten make of it. Its tensors are the filters of all layers that put it out, with their biases, and the shifts
    of the batch normalisations and depthwise convolutions behind. If they are zero, so is the channel, in training
    and (after `settle_norms`) in evaluation, and `nas.analysis.extract` removes it exactly. Factors on the way
    stay free (the scale of a normalisation, the kernel of a depthwise convolution): a zero filter behind a zero factor
    has no gradient and could never wake. So do the shifts of a normalisation of a concatenation, whose channels
    belong to several layers; behind it a dead channel is a constant, which layers without zero padding absorb.
    Channels that the model takes in or puts out are no units.

    Args:
        model: any module that `torch.fx` can trace; it is left as it is.
        inputs: one batch for it; its shape tells how flatten lays out channels.
        strict: refuse a model with layers whose channels cannot be units; else leave these layers out, which then
            stay dense.

    Returns:
        For `nas.param_groups`, by the name of the first layer that puts the units out.

    Raises:
        ValueError: the model cannot be copied or traced, does something else in training mode than in evaluation
            mode, or has no units; with ``strict`` also, naming layer and operation: an operation that is not known,
            channels tied to channels at other places, weights that several layers share, a channel that is not zero
            or not constant when its weights are.
    """
    copied, inputs = evaluation_copy(model).cpu(), inputs.cpu()
    channels = Channels(copied, inputs)
    _check_trace(copied, channels.graph, inputs)
    search = _Search(channels, model)
    if strict and search.problems:
        raise ValueError(f"coupled_units: {search.problems[0]}; strict=False leaves such layers out")
    if not search.units:
        raise ValueError(f"coupled_units: {type(model).__name__} has no layer whose channels can be units")
    return search.units


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
        dead = ~join_rows(members).any(dim=1)
        for norm in (norms[id(p)] for p in members if id(p) in norms):
            norm.running_mean[dead] = 0  # type: ignore[index]


class _Search:
    """The units of a model, and the problems that keep other channels from being units."""

    def __init__(self, channels: Channels, model: nn.Module) -> None:
        self.channels, self.model = channels, model
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.problems: list[str] = []
        self.layers: dict[Space, list[Step]] = {}
        for step in channels.steps.values():
            if step.kind is Kind.MIX:
                self.layers.setdefault(self._space(step.node), []).append(step)
        self.free = torch.zeros(sum(map(len, channels.numbers.values())), dtype=torch.bool)  # to be units, by number
        for space in self.layers:
            self.free[list(space)] = True
        self._leave_unknown()
        for node, stays in channels.stays.items():
            self.free[channels.numbers[node][stays]] = False
        self._leave_shared()
        self._leave_unaligned()
        self.members: dict[Space, list[Parameter]] = {}
        self.states: dict[fx.Node, Tensor] = {}
        self.causes: dict[int, str] = {}  # by number the first operation behind which the channel is not zero
        for step in channels.steps.values():
            self._visit(step)
        self._leave_unabsorbed()
        self.units = {self._name(space): members for space, members in self.members.items() if self._is_free(space)}

    # What cannot be a unit

    def _leave(self, space: Space, problem: str) -> None:
        self.free[list(space)] = False
        self.problems.append(f"the channels of {self._name(space)} {problem}")

    def _leave_unknown(self) -> None:
        """Note operations between layers, and layers, that are not understood; what they see stays."""
        numbers = self.channels.numbers
        before_layers: set[fx.Node] = set()
        for node in reversed(self.channels.graph.nodes):
            if self._is_layer(node) or any(user in before_layers for user in node.users):
                before_layers.add(node)
        stored = [node for node in numbers if node.op == "get_attr"]
        for node in [*self.channels.unknown, *stored]:
            seen = {number for each in (node, *node.all_input_nodes) for number in self._space(each)}
            touched = [space for space in self.layers if not seen.isdisjoint(space)]
            what = self.channels.unknown.get(node, str(node.target)) + _place(node)
            if touched and node in before_layers:
                self.problems.append(f"the channels of {self._name(touched[0])} meet {what}, which is not understood")
            elif self._is_layer(node):
                self.problems.append(f"{what} is a layer that is not understood")

    def _leave_shared(self) -> None:
        uses = Counter(map(id, self.parameters.values()))
        for space, layers in self.layers.items():
            if self._is_free(space) and any(uses[id(p)] > 1 for layer in layers for p in self._parameters(layer)):
                self._leave(space, "share their weights with another layer")

    def _leave_unaligned(self) -> None:
        """Layers with a channel that is another channel of theirs, or one of a layer with other channels."""
        numbers = torch.tensor([number for space in self.layers for number in space], dtype=torch.long)
        crowded = torch.bincount(numbers, minlength=len(self.free)) > 1
        for space in self.layers:
            if self.free[list(space)].any() and crowded[list(space)].any():
                self._leave(space, f"are tied to other channels at other places by {self._tie(space)}")

    def _tie(self, space: Space) -> str:
        """The sum or product that ties channels of a layer to others."""
        steps = [step for step in self.channels.steps.values() if step.kind in (Kind.SUM, Kind.PRODUCT)]
        tied = [step for step in steps if not set(space).isdisjoint(self._space(step.node))]
        return _what(min(tied, key=lambda step: self._space(step.node) == space))

    def _leave_unabsorbed(self) -> None:
        """Every reader has to see zeros, or constants that its bias can take up."""
        for step in self.channels.steps.values():
            if step.kind is not Kind.MIX:
                continue
            [source] = step.sources
            worst = ZERO if not step.keeps_constants() else CONSTANT
            for space, number in self._free_layers(self.channels.numbers[source][self.states[source] > worst]):
                cause = self.causes[number]
                self._leave(space, f"are not zero behind {cause} when their weights are, and {step.name} sees it")

    # What a channel is when its unit is zero

    def _visit(self, step: Step) -> None:
        """Find the state of every channel, and collect the tensors of its unit."""
        numbers, space = self.channels.numbers[step.node], self._space(step.node)
        before = [self.states[source] for source in step.sources]
        if step.kind is Kind.MIX:
            state = torch.where(self.free[numbers], ZERO, MOVING)
            if self._is_free(space):
                self.members.setdefault(space, []).extend(self._parameters(step))
        elif step.kind is Kind.UNKNOWN:
            state = torch.full(numbers.shape, MOVING)
        else:
            shift = getattr(step.module, "bias", None) if step.kind in (Kind.NORM, Kind.DEPTHWISE) else None
            in_unit = shift is not None and space in self.members and not before[0].any()
            if in_unit:
                self.members[space].append(self.parameters[f"{step.name}.bias"])
            state = _state(step, before, in_unit)
            state = state.repeat_interleave(len(numbers) // len(state))  # 1 but for a flatten
            for number in numbers[state.ne(ZERO)].tolist():
                self.causes.setdefault(number, _what(step))
            if step.kind is Kind.PRODUCT:
                for layer, _ in self._free_layers(numbers[torch.maximum(*before) == ZERO]):
                    self._leave(
                        layer, f"are multiplied with each other by {_what(step)}, so that they could never wake"
                    )
        self.states[step.node] = state

    def _free_layers(self, numbers: Tensor) -> list[tuple[Space, int]]:
        """The layers to be units that have some of these channels, each with one of them."""
        seen = set(numbers.tolist())
        return [
            (space, min(seen.intersection(space)))
            for space in self.layers
            if self._is_free(space) and not seen.isdisjoint(space)
        ]

    def _is_free(self, space: Space) -> bool:
        return bool(self.free[list(space)].all())

    def _name(self, space: Space) -> str:
        return self.layers[space][0].name

    def _space(self, node: fx.Node) -> Space:
        """The numbers of the channels of a tensor; none for what has no channels."""
        return tuple(self.channels.numbers[node].tolist()) if node in self.channels.numbers else ()

    def _parameters(self, layer: Step) -> list[Parameter]:
        return list(self.model.get_submodule(layer.name).parameters(recurse=False))

    def _is_layer(self, node: fx.Node) -> bool:
        """Whether a node makes channels by a weight, understood or not."""
        step = self.channels.steps.get(node)
        if step is None or step.kind not in (Kind.MIX, Kind.UNKNOWN) or node.op in ("placeholder", "get_attr"):
            return False
        own = [] if step.module is None else list(step.module.parameters())
        used = [p for each in node.all_input_nodes if (p := self.parameters.get(str(each.target))) is not None]
        return any(p.ndim > 1 for p in [*own, *used])


def _state(step: Step, before: Sequence[Tensor], shift_in_unit: bool) -> Tensor:
    """What an operation makes of channels in the given states, of shape (channels,) each."""
    first = before[0]
    unpadded = torch.where(first == CONSTANT, MOVING, first)
    match step.kind:
        case Kind.NORM:
            return first if shift_in_unit else first.clamp(min=CONSTANT)
        case Kind.DEPTHWISE:
            state = first if step.keeps_constants() else unpadded
            return state if shift_in_unit or getattr(step.module, "bias", None) is None else state.clamp(min=CONSTANT)
        case Kind.POINTWISE:
            return first if step.apply(torch.zeros(1, dtype=torch.float64)).eq(0).all() else first.clamp(min=CONSTANT)
        case Kind.SAME:
            return torch.full_like(first, MOVING) if isinstance(step.module, nn.AlphaDropout) else first
        case Kind.GATE:
            return unpadded
        case Kind.POOL:
            return first if step.keeps_constants() else unpadded
        case Kind.SUM:
            return torch.maximum(*before)
        case Kind.PRODUCT:
            return torch.where(torch.minimum(*before) == ZERO, ZERO, torch.maximum(*before))
        case Kind.CONCATENATE:
            return torch.cat(list(before))
        case _:
            return first


def _check_trace(copied: nn.Module, graph: fx.Graph, inputs: Tensor) -> None:
    """Raise ValueError unless the graph computes what the model does, and has the same operations in training mode."""
    name = type(copied).__name__
    expected, traced = (_tensors(each(inputs)) for each in (copied, fx.GraphModule(copied, graph)))
    if not all(torch.equal(y, z) for y, z in zip(expected, traced, strict=True)):
        raise ValueError(
            f"coupled_units: torch.fx traces another function than {name} computes; it does so where a "
            "tensor is changed in place, or the outputs are random"
        )
    training = trace(copied.train())
    if [(node.op, node.target) for node in training.nodes] != [(node.op, node.target) for node in graph.nodes]:
        raise ValueError(f"coupled_units: {name} has other operations in training mode than in evaluation mode")
    copied.eval()


def _tensors(outputs: Any) -> list[Tensor]:
    return [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]


def _what(step: Step) -> str:
    return step.name + _place(step.node)


def _place(node: fx.Node) -> str:
    """Where the forward of a submodule calls a function."""
    stack = [] if node.op == "call_module" else list(node.meta.get("nn_module_stack", {}))
    return f" in {stack[-1]}" if stack else ""
