"""Removal of dead channels from any module, exactly: what is zero, what nobody reads, what is constant."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map

from nas.models.traced.channels import Channels, Kind, Step, channels_of
from nas.models.traced.graph import Example, call, call_copy, copied, owner, unwrap
from nas.models.traced.values import Values
from nas.selection import Selection, indices, selected

# Largest difference of an output that is round-off, relative to the largest output if that is above 1
AGREE = {torch.float64: 1e-10, torch.float32: 1e-3}
SIZED = (_ConvNd, nn.Linear, nn.Embedding, _NormBase, nn.PReLU)  # what `resize` knows
Pairs = list[tuple[Tensor, Tensor]]  # what a module puts out, and what its narrow copy does
LAYERS = (Kind.MIX, Kind.GROUPED, Kind.NORM)


class Removal:
    """Which channels of a module stay: the smallest set that it needs.

    Attributes:
        channels: of the module.
        values: of its channels.
        kept: by number of a channel whether it stays.
        renumbers: whether sizes that modules hold as plain numbers become those that are left.
        layers: the layers and normalisations.
    """

    def __init__(self, channels: Channels, model: nn.Module) -> None:
        self.channels, self.model, self.renumbers = channels, model, False
        held = held_by(model)
        stored = {
            node: held.get(channels.graph.names.get(node, ""), each) for node, each in channels.graph.stored.items()
        }
        self.values = Values(channels, {node: tensor.detach() for node, tensor in stored.items()})
        self.layers = [step for step in channels.steps.values() if step.kind in LAYERS]
        self._reading = {
            step.node: self.values.reads(step) & ~self._absorbs(step) for step in self.layers if step.kind is Kind.MIX
        }
        self.settle(channels.fixed)

    def settle(self, fixed: Tensor) -> None:
        """Find the smallest set that holds what is ``fixed``, a mask over the numbers of channels."""
        self.kept = fixed.clone()
        self._settle()
        keep_one(self.channels, self.kept)

    def _settle(self) -> None:
        """Keep what somebody reads who is kept, until nothing is added."""
        while True:
            before = int(self.kept.sum())
            for step in reversed(self.layers):
                if step.kind is Kind.MIX:
                    rows, columns = self._numbers(step)
                    self.kept[columns[self._reading[step.node][self.kept[rows]].any(dim=0)]] = True
            if int(self.kept.sum()) == before:
                return

    def _numbers(self, step: Step) -> tuple[Tensor, Tensor]:
        """Of the output and of the input channels of a layer."""
        return self.channels.roots[step.node], self.channels.stored[step.weight][step.axes[1]]  # type: ignore[index]

    def reads(self, step: Step) -> Tensor:
        """Which input channels a kept output channel of a layer reads."""
        rows, _ = self._numbers(step)
        return self.values.reads(step)[self.kept[rows]].any(dim=0)

    def _absorbs(self, step: Step) -> Tensor:
        """Which input channels are constants that the bias can take up."""
        constant = ~self.values.moving(step)
        if has_place(step, self.channels, self.model):
            return constant
        return constant & self.values.absorbed(step).eq(0).all(dim=0)

    def owners(self, numbers: Tensor) -> list[str]:
        """The names of the weights of the layers that put out some of these channels."""
        layers = [step for step in self.layers if step.kind is Kind.MIX]
        found = [step.weight for step in layers if torch.isin(self._numbers(step)[0], numbers).any()]
        return [self.channels.graph.names[each] for each in found]  # type: ignore[index]

    def spaces(self) -> list[Tensor]:
        """The numbers of the channels that each layer puts out, of those that lose some and are no heads."""
        found = {tuple(self._numbers(step)[0].tolist()) for step in self.layers if step.kind is not Kind.NORM}
        heads = torch.cat([self.kept.nonzero()[:0, 0], *self.heads()])
        spaces = [numbers for space in sorted(found) if not torch.isin(numbers := torch.tensor(space), heads).all()]
        return [numbers for numbers in spaces if not self.kept[numbers].all()]

    def heads(self) -> list[Tensor]:
        """The numbers of the heads of attention that modules of one class have, of those that lose some."""
        found: dict[type[nn.Module], list[Tensor]] = {}
        for step in self.channels.steps.values():
            if step.kind is Kind.HEADS:
                kind = type(self.model.get_submodule(owner(step.node)))
                found.setdefault(kind, []).append(self.channels.roots[step.node])
        classes = [torch.cat(numbers).unique() for numbers in found.values()]
        return [numbers for numbers in classes if not self.kept[numbers].all()]

    def applied_to(self, model: nn.Module) -> nn.Module:
        """A narrow copy of the module, which may be of another precision; weights that stay whole are the same ones."""
        small = copy.deepcopy(model, {id(p): p for p in model.parameters() if p.ndim > 1})
        self.apply(small)
        return small

    def apply(self, model: nn.Module) -> None:
        """Narrow a copy of the module in place."""
        self._absorb(model)
        narrow(model, parts_of(self.channels, self.kept))
        if self.renumbers:
            renumber(model, sizes_of(self.channels, self.kept))

    def _absorb(self, model: nn.Module) -> None:
        """Take constants of channels that go into the biases of those that read them."""
        for step in self.layers:
            if step.kind is not Kind.MIX:
                continue
            rows, columns = self._numbers(step)
            gone = ~self.kept[columns] & ~self.values.moving(step)
            if not self.values.read(step)[gone].any():
                continue  # nothing but zeros
            added = self.values.absorbed(step)[:, gone].sum(1)
            if added[self.kept[rows]].any():
                name = self.channels.graph.names[step.bias if step.bias is not None else step.weight]  # type: ignore[index]
                place, _, attribute = name.rpartition(".")
                module, weight = model.get_submodule(place), model.get_parameter(self.channels.graph.names[step.weight])  # type: ignore[index]
                bias = (self.values.bias(step) + added).to(weight.dtype)
                if step.bias is None:
                    module.bias = nn.Parameter(bias[self.kept[rows]], requires_grad=weight.requires_grad)
                else:
                    getattr(module, attribute).data = bias


def has_place(step: Step, channels: Channels, model: nn.Module) -> bool:
    """Whether a layer has a bias that can take up constants, as nobody else reads it, or its module can have one."""
    names = channels.graph.names
    if step.bias is not None:
        name = names.get(step.bias)
        return name is not None and sum(len(node.users) for node, each in names.items() if each == name) == 1
    name = names[step.weight]  # type: ignore[index]
    owner, _, attribute = name.rpartition(".")
    layers = [each for each in channels.steps.values() if each.kind in LAYERS and each.weight is not None]
    uses = sum(names[each.weight] == name for each in layers)  # type: ignore[index]
    return attribute == "weight" and uses == 1 and isinstance(model.get_submodule(owner), nn.Linear | _ConvNd)


def parts_of(channels: Channels, kept: Tensor) -> dict[str, Selection]:
    """By name of a stored tensor the part of it that is of channels that are ``kept``, a mask over their numbers."""
    first: dict[str, fx.Node] = {}
    for node, name in channels.graph.names.items():
        first.setdefault(name, node)
    return {name: tuple(indices(kept[numbers]) for numbers in channels.stored[node]) for name, node in first.items()}


def sizes_of(channels: Channels, kept: Tensor) -> dict[str, dict[int, int]]:
    """By submodule that gives operations numbers of channels (a view, a split, groups) how many of which are left when
    some are ``kept``, a mask over their numbers; without those of which it could be either of two."""
    found: dict[str, dict[int, set[int]]] = {}
    for node in channels.graph.nodes:
        seen = [channels.roots[each] for each in (node, *node.all_input_nodes) if each in channels.roots]
        seen += [part[1] for part in channels.parts.get(node, []) if part is not None]
        sizes = {len(numbers) for numbers in seen}
        if any(type(given) is int and given in sizes for given in tree_leaves((node.args, node.kwargs))):
            for numbers in seen:
                found.setdefault(owner(node), {}).setdefault(len(numbers), set()).add(int(kept[numbers].sum()))
    sure = {path: {old: min(new) for old, new in sizes.items() if len(new) == 1} for path, sizes in found.items()}
    changed = {path: {old: new for old, new in sizes.items() if old != new} for path, sizes in sure.items()}
    return {path: sizes for path, sizes in changed.items() if sizes}


def renumber(model: nn.Module, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Let submodules hold other numbers, alone or in lists, in place; modules of torch have been resized."""
    for path, changed in sizes.items():
        module = model.get_submodule(path)
        for name, value in list(numbers_in(module).items()):
            setattr(module, name, tree_map(lambda size, new=changed: new.get(size, size), value))


def numbers_in(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module of no class of torch that are numbers, or lists of numbers."""
    if isinstance(module, SIZED):
        return {}
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) is int or (type(value) in (list, tuple) and all(type(each) is int for each in value))
    }


def narrow(model: nn.Module, parts: Mapping[str, Selection]) -> None:
    """Leave of the tensors of a module these parts alone, in place."""
    held = held_by(model)
    for name, part in parts.items():
        old = held[name]
        new = selected(old.detach(), part)
        if new.shape != old.shape:
            _replace(model, [each for each, tensor in held.items() if tensor is old], old, new)
    for name in parts:
        resize(model.get_submodule(name.rpartition(".")[0]))


def _replace(model: nn.Module, owners: list[str], old: Tensor, new: Tensor) -> None:
    new = new.contiguous(memory_format=_format(old))
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for name in owners:
        place, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(place), attribute, new)


def keep_one(channels: Channels, kept: Tensor) -> None:
    """A tensor without channels is more than most operations can bear: one stays, with all that goes with it; ``kept``
    is a mask over the numbers of channels, changed in place."""
    stored = [numbers for axes in channels.stored.values() for numbers in axes]
    for numbers in [*channels.roots.values(), *stored]:
        if len(numbers) and not kept[numbers].any():
            kept[numbers[0]] = True


def held_by(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module, by all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@torch.no_grad()
def shrunk(model: nn.Module, *examples: Example) -> tuple[nn.Module, Removal, Pairs]:
    """A smaller copy of a module that computes the same in evaluation mode, what was removed from it, and what both
    put out.

    Tried on the examples, of which the first is traced. Layers stay as they are whose removed channels a forward
    would notice, for instance since it reshapes to sizes that it has in stock.

    Raises:
        ValueError: the module cannot be copied, run or traced; or it computes something else with fewer channels,
            whichever they are.
    """
    model = copied(unwrap(model)).eval()
    removal = Removal(channels_of(model, examples[0]), model)
    _, pairs = fit(model, removal, *examples)
    removal.apply(model)
    return model, removal, pairs


@torch.no_grad()
def fit(model: nn.Module, removal: Removal, *examples: Example) -> tuple[list[Tensor], Pairs]:
    """Let a removal take from a module what this does not notice on the examples.

    Returns:
        The numbers of channels that stay since the module notices; and what it and its narrow copy put out, in double
        precision if it can compute in that.

    Raises:
        ValueError: the module computes something else with fewer channels, whichever they are; or it cannot be run.
    """
    full, batches, expected = _computed(model, examples)

    def agreeing() -> Pairs:
        for removal.renumbers in (False, True):
            if pairs := _agreeing(removal.applied_to(full), batches, expected):
                return pairs
            if not sizes_of(removal.channels, removal.kept):
                break
        return []

    if pairs := agreeing():
        return [], pairs

    def freed(spaces: list[Tensor], kept: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What has to stay when these layers may lose channels besides those that do already, and which may not."""
        if not spaces:
            return kept, []
        less = kept.clone()
        for numbers in spaces:
            less[numbers] = removal.channels.fixed[numbers]
        removal.settle(less)
        if agreeing():
            return less, []
        if len(spaces) == 1:
            return kept, spaces
        half = len(spaces) // 2
        kept, later = freed(spaces[half:], kept)
        kept, earlier = freed(spaces[:half], kept)
        return kept, earlier + later

    heads, spaces = removal.heads(), removal.spaces()  # in most classes of modules all can lose heads or none
    fixed, held = freed(heads, torch.ones_like(removal.channels.fixed))
    fixed, noticed = freed(spaces, fixed)
    removal.settle(fixed)
    if not (pairs := agreeing()):
        raise ValueError(f"{type(model).__name__} computes something else with fewer channels in its layers")
    return held + noticed, pairs


def _computed(model: nn.Module, examples: Sequence[Example]) -> tuple[nn.Module, list[Example], list[list[Tensor]]]:
    """A module in double precision, its batches, and what it makes of each; as they are if its forward computes in
    another precision."""
    full = copied(model).double()
    batches = [each.map(lambda x: x.double() if x.is_floating_point() else x) for each in examples]
    try:
        found = [call_copy(full, batch, model) for batch in batches]
        if all(y.dtype == torch.float64 for each in found for y in each if y.is_floating_point()):
            return full, batches, found
    except ValueError:
        pass
    full = copied(model)
    return full, list(examples), [call_copy(full, example, model) for example in examples]


def _agreeing(small: nn.Module, examples: Sequence[Example], expected: Sequence[Sequence[Tensor]]) -> Pairs:
    """What was expected of a narrow copy, each with what it computes; nothing if it complains, or computes something
    else but for round-off."""
    pairs: Pairs = []
    for example, wanted in zip(examples, expected, strict=True):
        try:
            found = call(small, example)
        except ValueError:
            return []
        if len(found) != len(wanted) or not all(map(_alike, wanted, found)):
            return []
        pairs += zip(wanted, found, strict=True)
    return pairs


def _alike(y: Tensor, z: Tensor) -> bool:
    if y.shape != z.shape or not y.numel():
        return y.shape == z.shape
    most = AGREE.get(y.dtype, AGREE[torch.float32])
    y, z = y.double(), z.double()
    scale = y.nan_to_num(0, posinf=0, neginf=0).abs().max().clamp(min=1)
    return torch.allclose(z, y, rtol=0, atol=most * float(scale), equal_nan=True)


def _format(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def resize(module: nn.Module) -> None:
    """Let a module of torch say the sizes that its tensors have."""
    if isinstance(module, _ConvTransposeNd):
        module.groups = max(1, module.groups * len(module.weight) // module.in_channels)
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        out, into = module.weight.shape[:2]
        module.groups = max(1, module.groups * out // module.out_channels) if module.groups > 1 else 1
        module.in_channels, module.out_channels = into * module.groups, out
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        held = next((each for each in (module.weight, module.running_mean) if each is not None), None)
        module.num_features = module.num_features if held is None else len(held)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
