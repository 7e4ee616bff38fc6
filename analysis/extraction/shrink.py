"""Removal of dead channels from any module, exactly: what is zero, what nobody reads, what is constant."""

import math

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nas.analysis.extraction.changes import FOLDED, PADDED, UNREAD, ZERO, NodeChanges, indices
from nas.channels import Channels, evaluation_copy
from nas.operations import Kind, Step

UNKNOWN = "unknown operation"
LAYERS = (Kind.MIX, Kind.DEPTHWISE, Kind.NORM)


@torch.no_grad()
def shrink(model: nn.Module, example: Tensor) -> tuple[nn.Module, tuple[NodeChanges, ...]]:
    """A smaller copy of ``model`` that computes the same function in evaluation mode; ``model`` is left as it is.

    A channel (of a convolution, axis 1) or feature (of a linear layer) goes if nothing reads it, or if it is constant
    and all its readers can take the constant into their biases. Residual sums, concatenations, flatten, depthwise
    convolutions, normalisations, pooling and activations pass channels on, which then go or stay together. A constant
    other than 0 stays in front of a zero-padded convolution, which turns it into a border. Where an operation is
    not known, all channels that it sees stay.

    Args:
        model: any module that `torch.fx` can trace, with exact zeros.
        example: one batch for it; its shape tells how flatten lays out channels.

    Returns:
        The copy, with the same modules but fewer channels in them, and what was done to the channels that each linear,
        convolution and normalisation module puts out; besides them the operations that are not known.

    Raises:
        ValueError: the model cannot be traced or copied.
    """
    small = evaluation_copy(model)
    removal = _Removal(Channels(small, example))
    found = removal.changes()
    for layer in removal.layers:
        _narrow(layer, removal)
    return small, found


def _constants(channels: Channels) -> dict[fx.Node, Tensor]:
    """Per channel of every tensor its value, NaN if it is not constant, in double precision."""
    found: dict[fx.Node, Tensor] = {}
    for node, step in channels.steps.items():
        if step.kind is Kind.UNKNOWN or node in channels.changed:
            found[node] = torch.full(channels.numbers[node].shape, math.nan, dtype=torch.float64)
        else:
            value = _value(step, [found[source] for source in step.sources])
            found[node] = value.repeat_interleave(len(channels.numbers[node]) // len(value))  # 1 but for a flatten
    return found


def _value(step: Step, values: list[Tensor]) -> Tensor:
    """What a known operation makes of constants."""
    match step.kind:
        case Kind.MIX:
            return _mix(step, values[0])
        case Kind.DEPTHWISE:
            return _depthwise(step, values[0])
        case Kind.NORM:
            return _normalise(step, values[0])
        case Kind.POINTWISE:
            return torch.where(values[0].isnan(), math.nan, step.apply(values[0].nan_to_num(0)))
        case Kind.GATE:
            return values[0].where(values[0] == 0, math.nan)
        case Kind.POOL:
            return values[0] if step.keeps_constants() else values[0].where(values[0] == 0, math.nan)
        case Kind.SUM:
            return step.node.target(values[0].clone(), values[1])  # type: ignore[operator, no-any-return]
        case Kind.PRODUCT:
            return torch.where((values[0] == 0) | (values[1] == 0), 0.0, values[0] * values[1])
        case Kind.CONCATENATE:
            return torch.cat(values)
        case _:
            return values[0]


def _mix(step: Step, constant: Tensor) -> Tensor:
    weight, moving = step.weight(), _moving(step, constant)
    sums = weight.sum(2) @ constant.nan_to_num(0) + _bias(step)
    return torch.where(weight[:, moving].flatten(1).any(dim=1), math.nan, sums)


def _depthwise(step: Step, constant: Tensor) -> Tensor:
    weight, moving = step.weight(), _moving(step, constant)
    value = weight.sum((1, 2)) * constant.nan_to_num(0) + _bias(step)
    return torch.where(moving & weight.flatten(1).any(1), math.nan, value)


def _moving(step: Step, constant: Tensor) -> Tensor:
    """Which input channels a layer does not see as constants."""
    return constant.isnan() | (constant.ne(0) & (not step.keeps_constants()))


def _normalise(step: Step, constant: Tensor) -> Tensor:
    module = step.module
    assert isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    scale = (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.double()
    value = constant.nan_to_num(0) * scale - module.running_mean.double() * scale + _bias(step)
    return torch.where(constant.isnan() & scale.ne(0), math.nan, value)


class _Removal:
    """Which channels of each tensor stay: the smallest set, as masks in ``kept``."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.constant = _constants(channels)
        self.layers = [step for step in channels.steps.values() if step.kind in LAYERS]
        self.kept = {node: torch.ones_like(stays) for node, stays in channels.stays.items()}
        self._settle()
        self._keep_one()

    def _settle(self) -> None:
        numbers = self.channels.numbers
        while True:
            stays = {node: flags.clone() for node, flags in self.channels.stays.items()}
            for layer in self.layers:
                if layer.kind is Kind.MIX:
                    stays[layer.sources[0]] |= self.reads(layer) & ~self._absorbs(layer)
            joined = torch.zeros(sum(map(len, numbers.values())), dtype=torch.bool)
            for node, flags in stays.items():
                joined[numbers[node][flags]] = True
            kept = {node: joined[numbers[node]] for node in stays}
            if all(torch.equal(kept[node], self.kept[node]) for node in kept):
                return
            self.kept = kept

    def _keep_one(self) -> None:
        """A tensor without channels is more than most operations can bear: one stays, with all that goes with it."""
        numbers = self.channels.numbers
        for node, kept in self.kept.items():
            if len(kept) and not kept.any():
                for other in self.kept:
                    self.kept[other] |= numbers[other] == numbers[node][0]

    def reads(self, layer: Step) -> Tensor:
        """Which input channels a kept output channel reads."""
        return layer.weight()[self.kept[layer.node]].ne(0).any(dim=2).any(dim=0)

    def _absorbs(self, layer: Step) -> Tensor:
        """Which input channels are constants that the bias can take up."""
        constant = self.constant[layer.sources[0]]
        return constant.eq(0) | (~constant.isnan() & layer.keeps_constants())

    def changes(self) -> tuple[NodeChanges, ...]:
        """What goes and what stays, and why."""
        numbers, padded = self.channels.numbers, self._padded()
        found = []
        for layer in self.layers:
            kept, constant = self.kept[layer.node], self.constant[layer.node]
            removed = {
                ZERO: ~kept & constant.eq(0),
                FOLDED: ~kept & ~constant.isnan() & constant.ne(0),
                UNREAD: ~kept & constant.isnan(),
            }
            because = {PADDED: kept & ~constant.isnan() & constant.ne(0) & torch.isin(numbers[layer.node], padded)}
            found.append(
                NodeChanges(layer.name, len(kept), int(kept.sum()), indices(removed), indices(because), {}, {})
            )
        for node, name in self.channels.unknown.items():
            seen = sum(len(numbers[source]) for source in node.all_input_nodes if source in numbers)
            found.append(NodeChanges(name, seen, seen, {}, {UNKNOWN: tuple(range(seen))}, {}, {}))
        return tuple(found)

    def _padded(self) -> Tensor:
        """The numbers of the constant channels that a zero-padded convolution would turn into a border."""
        found = [torch.zeros(0, dtype=torch.long)]
        for layer in self.layers:
            if layer.kind is Kind.MIX and not layer.keeps_constants():
                [source] = layer.sources
                constant = self.constant[source]
                stay = self.kept[source] & ~constant.isnan() & constant.ne(0) & self.reads(layer)
                found.append(self.channels.numbers[source][stay])
        return torch.cat(found)


def _narrow(layer: Step, removal: _Removal) -> None:
    """Leave the kept channels in the module, and take constants of the others into its bias."""
    module, rows, columns = layer.module, removal.kept[layer.node], removal.kept[layer.sources[0]]
    assert module is not None
    mixes = layer.kind is Kind.MIX
    if mixes:
        constant = removal.constant[layer.sources[0]].nan_to_num(0)
        gone = ~columns & constant.ne(0) & removal.reads(layer)
        if gone.any():
            bias = _bias(layer) + layer.weight()[:, gone].sum(2) @ constant[gone]
            module.bias = nn.Parameter(bias.to(module.weight.dtype))  # type: ignore[arg-type]
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim:
            narrow = tensor[rows]
            if mixes and tensor.ndim > 1:
                narrow = narrow[:, columns]
            if isinstance(tensor, nn.Parameter):
                setattr(module, name, nn.Parameter(narrow.clone(), requires_grad=tensor.requires_grad))
            else:
                setattr(module, name, narrow.clone())
    sizes = {"in_channels": columns, "out_channels": rows, "in_features": columns, "out_features": rows}
    for name, mask in {**sizes, "num_features": rows}.items():
        if hasattr(module, name):
            setattr(module, name, int(mask.sum()))
    if isinstance(module, _ConvNd) and module.groups > 1:
        module.groups = int(rows.sum())


def _bias(layer: Step) -> Tensor:
    """In double precision, of shape (outputs,); a single 0 for a layer without one."""
    bias = getattr(layer.module, "bias", None)
    return bias.double() if isinstance(bias, Tensor) else torch.zeros((), dtype=torch.float64)
