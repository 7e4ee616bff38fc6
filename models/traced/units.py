"""Units of any model, found from its graph: what has to be zero together so that a channel is zero and can go."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from nas.groups import Axis, Members, dim_of, join_rows, num_units, slices, unit_axes
from nas.models.traced.channels import LAYERS, Channels, Kind, Step, arguments, channels_behind
from nas.models.traced.graph import Example, Inputs, call, call_copy, called, copied, operation, shape, trace, unwrap
from nas.models.traced.shrink import Removal, fit, has_place
from nas.models.traced.values import PRODUCTS, Values, attended, keeps_constants

# The numbers of the channels that a layer puts out, each once: unit i has those numbered space[i]
Space = tuple[int, ...]
SHIFT = 0.37  # numbers from here to its double stand for any but 0


@torch.no_grad()
def coupled_units(model: nn.Module, inputs: Inputs, *, strict: bool = True) -> dict[str, Members]:
    """The tensors that hold the units of any model, by layer: what all tensors of a layer have at i is its unit i
    (`nas.groups.Members`), one row or several.

    A unit is a channel (of a linear layer a feature) with all channels that can only live and die together with it:
    those that residual sums, groups, chunks and shuffles tie to it, and what depthwise convolutions,
    normalisations, pooling, activations and flatten make of it. Its tensors are the filters of all layers that put
    it out, with their biases, and the shifts of the batch normalisations and grouped convolutions behind. If they
    are zero, so is the channel, in training and (after `settle_norms`) in evaluation, and `nas.analysis.extract`
    removes it exactly: that is tried here on a copy. Factors on the way stay free (the scale of a normalisation,
    the kernel of a depthwise convolution): a zero filter behind a zero factor has no gradient and could never wake.
    So does one of two factors that are both zero with the unit, as the halves of a gate; of a head of attention, which
    goes as a whole, all but its values. So do the shifts of a normalisation of a concatenation, whose channels belong
    to several layers; behind it a dead channel is a constant, which layers without zero padding absorb in a bias of
    their own. Channels that the model takes in or puts out are no units, nor are frozen ones, nor those that an
    operation needs all together (normalisation over channels).

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
            operation: an operation that is not known, channels tied to others without order, a channel that is
            not zero or not constant when its weights are, a forward that notices when channels go.
    """
    model = unwrap(model)
    units, problems, dense = find_units(model, Example.of(inputs), all_or_none=strict)
    if strict and problems:
        raise ValueError(f"coupled_units: {problems[0]}; strict=False leaves such layers out")
    if not units:
        why = "".join(f": {each}" for each in [*problems, *dense][:1])
        raise ValueError(f"coupled_units: {type(model).__name__} has no layer whose channels can be units{why}")
    return units


@torch.no_grad()
def find_units(
    model: nn.Module, example: Example, *, all_or_none: bool = False
) -> tuple[dict[str, Members], list[str], list[str]]:
    """The units of `coupled_units`, perhaps none, why other layers have none (with ``all_or_none`` one reason is
    enough), and which layers have none by their nature.

    Raises:
        ValueError: the model cannot be copied, run or traced.
    """
    channels = Channels(trace(model, example, training=True))
    search = _Search(channels, model)
    units = search.units
    if not units:
        call_copy(copied(model), example, model)  # what cannot be run is refused all the same
    elif not (all_or_none and search.problems):
        for layer in _missed(model, example, channels, units, search.heads):
            what = "heads" if layer in search.heads else "channels"
            problem = f"{type(model).__name__} computes something else when {what} of {layer} go"
            (search.dense if layer in search.heads else search.problems).append(problem)
            del units[layer]
    return units, search.problems, search.dense


@torch.no_grad()
def settle_norms(model: nn.Module, units: Mapping[str, Sequence[Parameter]]) -> None:
    """Set the running means that batch and instance normalisations keep for dead units to 0, in place.

    In training a dead unit is exactly zero. Its running mean tends to 0 from the step at which the unit died on, but
    in evaluation the normalisation still subtracts what is left of it. Call this before extraction. Normalisations
    without a shift (``affine=False``) are in no unit, and stay as they are.

    Args:
        model: the trained model.
        units: from `coupled_units` (or `nas.parameters.unit_parameters`) of the same model.
    """
    norms = {id(m.bias): m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None}
    for members in units.values():
        if not any(id(p) in norms for p in members):
            continue
        axes = unit_axes(members)
        dead = ~join_rows(members, axes).any(dim=1)
        for p, axis in zip(members, axes, strict=True):
            if id(p) in norms:
                slices(norms[id(p)].running_mean, axis)[dead] = 0  # type: ignore[arg-type]


def _missed(
    model: nn.Module, example: Example, channels: Channels, units: Mapping[str, Members], heads: Collection[str]
) -> list[str]:
    """The layers of which the forward of a model would notice that units go: every other one is taken from a copy; then
    of heads another number of each layer, as a forward may hold one number for those of several."""
    missed = _noticed(model, example, channels, units, every_other(units))
    left = [layer for layer in units if layer in heads and layer not in missed]
    counts = [num_units(units[layer][0], units[layer].axes[0]) for layer in left]
    dead = {layer: slice(n - k % n, None) for k, (layer, n) in enumerate(zip(left, counts, strict=True))}
    return missed + (_noticed(model, example, channels, units, dead) if len(left) > 1 else [])


def _noticed(
    model: nn.Module, example: Example, channels: Channels, units: Mapping[str, Members], dead: Mapping[str, slice]
) -> list[str]:
    """The layers of which the forward would notice that these units go."""
    names = {id(p): name for name, p in model.named_parameters()}
    trial = copied(model)
    stir(trial)
    held = dict(trial.named_parameters(remove_duplicate=False))
    theirs = {layer: Members((held[names[id(p)]] for p in units[layer]), units[layer].axes) for layer in dead}
    kill(trial, theirs, dead, example)
    removal = Removal(channels, trial)
    noticed, _ = fit(trial, removal, example)
    lost = {name for numbers in noticed for name in removal.owners(numbers)}
    return [layer for layer in dead if any(names[id(p)] in lost for p in units[layer])]


@torch.no_grad()
def stir(trial: nn.Module) -> None:
    """Let the parameters of a copy hide nothing: those with one value in all their entries, such as gates, scales and
    shifts at the start of a training, become random numbers near it."""
    generator = torch.Generator().manual_seed(0)
    for p in trial.parameters():
        if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
            p.add_(0.1 * torch.rand(p.shape, generator=generator))


def every_other(layers: Iterable[str]) -> dict[str, slice]:
    """Half of the units of each layer."""
    return dict.fromkeys(layers, slice(1, None, 2))


@torch.no_grad()
def kill(
    trial: nn.Module, units: Mapping[str, Sequence[Parameter]], dead: Mapping[str, slice], example: Example
) -> None:
    """Set the units of a copy that are to be ``dead`` to zero and let normalisations see a batch, so that what they put
    out is neither too small nor too large for a comparison; it is in evaluation mode afterwards."""
    for layer, members in units.items():
        for p, axis in zip(members, unit_axes(members), strict=True):
            slices(p, axis)[dead[layer]] = 0
    for module in trial.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    if any(each.is_floating_point() for each in trial.buffers()):  # else nothing can keep statistics
        call(trial.train(), example)
    settle_norms(trial, units)
    trial.eval()


class _Search:
    """The units of a model, and the problems that keep other channels from being units."""

    def __init__(self, channels: Channels, model: nn.Module) -> None:
        self.channels, self.model = channels, model
        held = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {node: held[name] for node, name in channels.graph.names.items() if name in held}
        self.problems: list[str] = []
        self.dense: list[str] = []
        self.factors: dict[str, Tensor] = {}  # by weight which of its rows are free, since they multiply units
        self.layers: dict[Space, list[Step]] = {}
        self.layouts: dict[fx.Node, tuple[int, int] | None] = {}
        self.numbers: dict[Space, Tensor] = {}
        self.spaces = {node: self._lay_out(node, numbers) for node, numbers in channels.roots.items()}
        for step in channels.steps.values():
            if step.kind is Kind.MIX:
                self.layers.setdefault(self._space(step.node), []).append(step)
        self.free = ~channels.fixed
        self.attended = torch.zeros_like(self.free)  # channels that are heads of attention
        for step in channels.steps.values():
            if step.kind is Kind.HEADS:
                self.attended[channels.roots[step.node]] = True
        self._leave_unknown()
        self._leave_frozen()
        self._leave_unaligned()
        self._visit()
        while self._free_factors() or self._free_weights():
            self._visit()
        self._leave_unabsorbed()
        free = {space: self.name(space) for space in self.members if self.is_free(space)}
        self.units = {name: self.members[space] for space, name in free.items()}
        self.heads = {name for space, name in free.items() if self._has_heads(space)}

    def _visit(self) -> None:
        self.members: dict[Space, Members] = {}
        self.causes: dict[int, str] = {}  # by number the first operation behind which the channel is not zero
        self.states = _States(self)

    def _lay_out(self, node: fx.Node, numbers: Tensor) -> Space:
        """The units among the channels of a tensor, in order; all its channels if they lie without order."""
        laid = layout(numbers)
        self.layouts[node] = None if laid is None else laid[1:]
        units = numbers if laid is None else laid[0]
        space = tuple(units.tolist())
        self.numbers[space] = units
        return space

    # What cannot be a unit

    def leave(self, space: Space, problem: str) -> None:
        self.free[self.numbers[space]] = False
        if self._has_heads(space):
            self.dense.append(f"the heads of {self.name(space)} {problem}")
        else:
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
            if touched and node in before_layers and node not in self.channels.roots:
                self.problems.append(f"the channels of {self.name(touched[0])} meet {what}, which is not understood")
            elif self._is_layer(node):
                self.problems.append(self._computes_weight(node) or f"{what} is a layer that is not understood")
        known: set[Space] = set()
        for node, numbers in self.channels.across.items():
            seen = set(numbers.tolist())
            for space in (space for space in self.layers if space not in known and not seen.isdisjoint(space)):
                known.add(space)
                self.dense.append(f"the channels of {self.name(space)} stay, since {called(node)} needs all of them")

    def _computes_weight(self, node: fx.Node) -> str:
        """What to say of an operation that the weight of a layer is computed with; nothing of others."""
        made = {node}
        for each in self.channels.graph.nodes:
            if made.isdisjoint(each.all_input_nodes):
                continue
            if operation(each) in LAYERS and each.args[1] in made:
                held = [x for x in node.all_input_nodes if x in self.parameters]
                name = self.channels.graph.names[max(held, key=lambda x: self.parameters[x].ndim)]
                return f"{called(each)} is a layer whose weight is computed from another one, {name}"
            made |= {each} & self.channels.pure
        return ""

    def _leave_frozen(self) -> None:
        names = self.channels.graph.names
        for space, layers in self.layers.items():
            held = [each for layer in layers for each in (layer.weight, layer.bias) if each is not None]
            frozen = [x for x in held if x not in self.parameters or not self.parameters[x].requires_grad]
            if frozen and self.free[self.numbers[space]].any():
                self.dense.append(f"the channels of {self.name(space)} stay, since {names[frozen[0]]} is frozen")
                self.free[self.numbers[space]] = False

    def _leave_unaligned(self) -> None:
        """Layers with a channel of other layers that have other units, or whose channels repeat without order; of
        which of the others each channel is, is noted."""
        numbers = torch.tensor([number for space in self.layers for number in space], dtype=torch.long)
        crowded = torch.bincount(numbers, minlength=len(self.free)) > 1
        for space in self.layers:
            if self.free[units := self.numbers[space]].any() and crowded[units].any():
                self.leave(space, f"are tied to other channels at other places by {self._tie(space)}")
        self.place = torch.full_like(self.free, -1, dtype=torch.long)
        for place, space in enumerate(self.layers):
            if self.is_free(space):
                self.place[self.numbers[space]] = place

    def _tie(self, space: Space) -> str:
        """The operation that ties channels of a layer to others."""
        steps = [step for step in self.channels.steps.values() if step.node in self.channels.roots]
        tying = [step for step in steps if step.kind in (Kind.GROUPED, Kind.MOVE) or len(step.sources) > 1]
        tied = [step for step in tying or steps if not set(space).isdisjoint(self._space(step.node))]
        return min(tied, key=lambda step: (step.kind is not Kind.ENTRYWISE, self._space(step.node) == space)).name

    def _leave_unabsorbed(self) -> None:
        """Every reader has to see zeros, or constants that its bias can take up: one of its own."""
        for step in self.channels.steps.values():
            if step.kind is Kind.MIX and step.sources[0] in self.states.of:
                values = self.states.of[step.sources[0]]
                absorbs = keeps_constants(step) and has_place(step, self.channels, self.model)
                seen = values.isnan() if absorbs else values.ne(0)
                for space, number in self.free_layers(self.channels.roots[step.sources[0]][seen]):
                    cause = self.causes[number]
                    self.leave(space, f"are not zero behind {cause} when their weights are, and {step.name} sees it")

    def _free_factors(self) -> bool:
        """Where units are multiplied with each other let one factor be free, as a gate; whether they are anywhere."""
        found = False
        for step, mask in self.states.squares:
            spaces = [space for space, _ in self.free_layers(self.channels.roots[step.node][mask])]
            factors = [each for each in arguments(step.node) if each in self.channels.roots]
            choices = (self._rows_behind([each], mask, spaces) for each in reversed(factors))
            freed = self._free_rows(next(filter(self._are_last, choices), {}))
            for space in spaces:
                if not freed or all(self._taken(layer.node) == 0 for layer in self.layers[space]):
                    self.leave(space, f"are multiplied with each other by {step.name}, so that they could never wake")
            found |= bool(spaces)
        return found

    def _free_weights(self) -> bool:
        """Let what heads of attention weigh their values with be free; whether that changes anything."""
        found = False
        for step, mask in self.states.attended:
            spaces = [space for space, _ in self.free_layers(self.channels.roots[step.node][mask])]
            found |= self._free_rows(self._rows_behind(self.states.weights(step, mask), mask, spaces))
            for space in (each for each in spaces if not any(self._taken(layer.node) for layer in self.layers[each])):
                self.leave(space, f"have values beside what {step.name} weighs them with, so that no unit has them")
                found = True
        return found

    def _free_rows(self, rows: Mapping[fx.Node, Tensor]) -> bool:
        """Let these rows of layers be free; whether some were not."""
        before = {node: self._rows_that_multiply(node) for node in rows}
        for node, mask in rows.items():
            self.factors[self._weight(node)] = self._rows_that_multiply(node) | mask
        return any(bool((mask & ~before[node]).any()) for node, mask in rows.items())

    def _are_last(self, rows: Mapping[fx.Node, Tensor]) -> bool:
        """Whether these rows are the last parts of each layer, or the whole of it."""
        parts = [rows[node].reshape(self.outer(node), -1) for node in rows]
        return bool(parts) and all(bool(each.all()) or not each[0].any() for each in parts)

    def _rows_behind(self, nodes: Sequence[fx.Node], mask: Tensor, spaces: Collection[Space]) -> dict[fx.Node, Tensor]:
        """By layer that puts out such units the rows that these channels of tensors come from directly."""
        waiting = dict.fromkeys(nodes, mask)
        found: dict[fx.Node, Tensor] = {}
        for each in reversed(self.channels.graph.nodes):
            if each not in waiting:
                continue
            step = self.channels.steps.get(each)
            if step is not None and step.kind is Kind.MIX:
                found |= {each: waiting[each]} if self.spaces[each] in spaces else {}
            elif step is not None:
                for source, rows in channels_behind(self.channels, step, waiting[each]).items():
                    waiting[source] = waiting.get(source, torch.zeros_like(rows)) | rows
        return found

    # Layers and their tensors

    def outer(self, node: fx.Node) -> int:
        """In how many parts of its channels each unit has some."""
        return (self.layouts[node] or (1, 1))[0]

    def _has_heads(self, space: Space) -> bool:
        return bool(self.attended[self.numbers[space]].any())

    def _taken(self, node: fx.Node, zero: Tensor | None = None, known: Iterable[Axis] = ()) -> int:
        """Which of these parts are of units, as `nas.groups.Axis` says it, 0 for none: those that are ``zero`` and no
        factor, and lie in all that are ``known``."""
        rows = ~self._rows_that_multiply(node)
        parts = (rows if zero is None else rows & zero).reshape(self.outer(node), -1).all(dim=1)
        for _, outer, _, taken in (axis for axis in known if isinstance(axis, tuple)):
            slices(inside := torch.zeros_like(parts), (0, outer, 1, taken)).fill_(True)
            parts &= inside
        first, last = (int(each.cumprod(0).sum()) for each in (parts, parts.flip(0)))
        return first or -last

    def _rows_that_multiply(self, node: fx.Node) -> Tensor:
        """Which rows of a layer are factors of units."""
        none = torch.zeros_like(self.channels.roots[node], dtype=torch.bool)
        return self.factors.get(self._weight(node), none)

    def _weight(self, node: fx.Node) -> str:
        return self.channels.graph.names.get(self.channels.steps[node].weight, "")  # type: ignore[arg-type]

    def add(self, step: Step, tensors: Sequence[Parameter], zero: Tensor, axis: int = 0) -> Tensor:
        """Let tensors belong to units, where channels of the step are ``zero``; which channels then do.

        Their axis is ``axis`` in tensors that are no vectors. Where one of them has the same units along another axis,
        too, it would not be zero with them, and none do.
        """
        outer, inner = self.layouts[step.node] or (1, 1)
        members = self.members.get(self.spaces[step.node], Members())
        known = {id(p): own for p, own in zip(members, members.axes, strict=True)}
        taken = self._taken(step.node, zero, [known[id(p)] for p in tensors if id(p) in known])
        found = torch.zeros_like(zero)
        if not taken or any(dim_of(known[id(p)]) != axis for p in tensors if p.ndim > 1 and id(p) in known):
            return found
        self.members[self.spaces[step.node]] = members
        for p in tensors:
            if id(p) not in known:
                own = axis if p.ndim > 1 else 0
                members.append(p)
                members.axes.append(own if outer == inner == 1 else (own, outer, inner, taken))
        slices(found, (0, outer, inner, taken)).fill_(True)
        return found

    def _tensors(self, step: Step) -> list[Parameter]:
        return [self.parameters[each] for each in (step.weight, step.bias) if each in self.parameters]

    def free_layers(self, numbers: Tensor) -> list[tuple[Space, int]]:
        """The layers to be units that have some of these channels, each with one of them."""
        spaces, places = list(self.layers), self.place[numbers]
        found = [(spaces[place], int(numbers[places == place].min())) for place in places.unique() if place >= 0]
        return [(space, number) for space, number in found if self.is_free(space)]

    def is_free(self, space: Space) -> bool:
        return bool(self.free[self.numbers[space]].all())

    def name(self, space: Space) -> str:
        layers = [layer for layer in self.layers[space] if self._taken(layer.node)]
        [first, *_] = layers or self.layers[space]
        return self.channels.graph.names[first.weight].removesuffix(".weight")  # type: ignore[index]

    def _space(self, node: fx.Node) -> Space:
        return self.spaces.get(node, ())

    def _is_layer(self, node: fx.Node) -> bool:
        """Whether a node makes channels by a weight, understood or not."""
        step = self.channels.steps.get(node)
        if step is None or step.kind not in (Kind.MIX, Kind.UNKNOWN) or operation(node) == "index":
            return False
        return any(self.parameters[each].ndim > 1 for each in node.all_input_nodes if each in self.parameters)


class _States(Values):
    """What each channel is when its unit is zero: 0, some number for a constant, else NaN; free parameters are numbers.

    On the way the tensors of the units are collected.
    """

    training = True

    def __init__(self, search: _Search) -> None:
        self.search = search
        # Products of units, with a mask of the channels that are zero whether one factor is or not
        self.squares: list[tuple[Step, Tensor]] = []
        self.attended: list[tuple[Step, Tensor]] = []  # likewise products of heads
        self._generator = torch.Generator().manual_seed(0)
        self._drawn: dict[str | fx.Node, Tensor] = {}  # what has a name is one tensor, wherever it is read
        super().__init__(search.channels, search.channels.graph.stored)

    def held(self, node: fx.Node) -> Tensor:
        tensor = super().held(node)
        if node not in self.channels.graph.stored or not tensor.is_floating_point():
            return tensor
        key = self.channels.graph.names.get(node, node)
        if key not in self._drawn:
            self._drawn[key] = self._any_numbers(tensor.shape)
        return self._drawn[key]

    def _any_numbers(self, size: Sequence[int]) -> Tensor:
        """As many different positive numbers."""
        return SHIFT * (1 + torch.rand(tuple(size), generator=self._generator, dtype=torch.float64))

    def _value(self, step: Step) -> Tensor:
        numbers = self.channels.roots[step.node]
        space = self.search.spaces[step.node]
        if step.kind is Kind.MIX:
            values = torch.full((len(numbers),), math.nan, dtype=torch.float64)
            if self.search.is_free(space):
                zero = self.search.add(step, self.search._tensors(step), torch.ones_like(numbers).bool(), step.axes[0])
                values[zero] = 0
        else:
            values = super()._value(step)
            zeros = [self.of[each].eq(0).all() for each in step.sources if each in self.of]
            if step.kind is Kind.ENTRYWISE and operation(step.node) not in PRODUCTS:
                accident = values.eq(0) & ~self._sees_zeros(step)
            else:
                accident = values.isinf() | torch.tensor(_settles_late(step) and bool(zeros))
            if step.kind is not Kind.MOVE:
                known = values.isnan() | (values.eq(0) & ~accident)
                values = values if known.all() else values.where(known, self._constants(step))
            if self._shifts_units(step, space):
                before = self.of[step.sources[0]].eq(0)
                zero = before.reshape(max(1, step.groups), -1).all(dim=1) if step.kind is Kind.GROUPED else before
                zero = zero.repeat_interleave(len(values) // len(zero))
                values[self.search.add(step, [self.search.parameters[step.bias]], zero)] = 0  # type: ignore[index]
            self._note_squares(step)
            self.attended += [(step, values == 0)] if step.kind is Kind.HEADS else []
        if new := [number for number in numbers[values.ne(0)].tolist() if number not in self.search.causes]:
            self.search.causes |= dict.fromkeys(new, step.name)
        return values

    def _constants(self, step: Step) -> Tensor:
        """What stands for the constants of an operation: one number for all channels that are made of the same."""
        axis, size = self.channels.axis[step.node], shape(step.node)
        if step.kind is Kind.ENTRYWISE:
            made_of = torch.stack([self.vector(each, axis, size) for each in step.sources])
        elif step.kind is Kind.ALONG:
            made_of = self.of[step.sources[0]][None]
        else:  # of weights and statistics of their own
            return self._any_numbers(size[axis : axis + 1])
        classes = made_of.unique(dim=1, return_inverse=True)[1]
        return self._any_numbers(classes.shape)[classes]

    def _shifts_units(self, step: Step, space: Space) -> bool:
        """Whether the shift of a normalisation or grouped convolution may be of units."""
        if step.kind not in (Kind.NORM, Kind.GROUPED) or step.bias not in self.search.parameters:
            return False
        trained = self.search.parameters[step.bias].requires_grad
        return space in self.search.members and trained and step.sources[0] in self.of

    def _sees_zeros(self, step: Step) -> Tensor:
        """Whether all that an operation reads of a channel is zero."""
        axis, size = self.channels.axis[step.node], shape(step.node)
        return torch.stack([self.vector(each, axis, size) == 0 for each in step.sources]).all(dim=0)

    def weights(self, step: Step, mask: Tensor) -> list[fx.Node]:
        """The factors of attention beside the last one of which these channels are zero."""
        [*_, last] = [each for each in attended(step) if self.of[each][mask].eq(0).all()] or step.sources
        return [each for each in step.sources if each is not last]

    def _note_squares(self, step: Step) -> None:
        if step.kind is Kind.ENTRYWISE and operation(step.node) in PRODUCTS:
            factors = [self.of[each] for each in arguments(step.node) if each in self.of]
            if len(factors) == 2 and len(factors[0]) == len(factors[1]):
                zero = torch.maximum(*factors) == 0
                if self.search.free_layers(self.channels.roots[step.node][zero]):
                    self.squares.append((step, zero))


def layout(numbers: Tensor) -> tuple[Tensor, int, int] | None:
    """The different ones among the numbers of channels, in order, and the outer and inner slices that each has
    (`nas.groups.Axis`); None if they do not lie so."""
    if not len(numbers):
        return numbers, 1, 1
    _, places = numbers.unique(return_inverse=True)
    first = torch.full((int(places.max()) + 1,), len(numbers)).scatter_reduce_(
        0, places, torch.arange(len(numbers)), "amin"
    )
    units = numbers[first.sort().values]
    inner = int((numbers != numbers[0]).nonzero()[0]) if len(units) > 1 else len(numbers)
    outer, left = divmod(len(numbers), len(units) * inner)
    if left or not torch.equal(numbers, units.repeat_interleave(inner).repeat(outer)):
        return None
    return units, outer, inner


def _settles_late(step: Step) -> bool:
    """Whether an operation is a normalisation without a shift, whose running mean nobody sets to 0 for dead units."""
    return step.kind is Kind.NORM and step.bias is None and step.node.args[3] is not None
