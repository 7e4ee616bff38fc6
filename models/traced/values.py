"""Which channels of a module are constants, whatever it is given: zero in most cases."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from nas.models.traced.channels import (
    SHIFTED,
    ZEROED,
    Channels,
    Kind,
    Step,
    argument,
    laid_out,
    rows_along,
    run,
    spread,
)
from nas.models.traced.graph import operation, shape
from nas.models.traced.heads import ATTENTION

PRODUCTS = {"mul", "multiply", "prelu"}


class Values:
    """By tensor the value of each of its channels, NaN where that is no constant; in double precision.

    Args:
        channels: of the module.
        stored: by node the tensors that the module holds.
    """

    training = False  # whether normalisations see the statistics of the batch, where the graph says so

    def __init__(self, channels: Channels, stored: dict[fx.Node, Tensor]) -> None:
        self.channels = channels
        self._held = dict(stored)
        self._read: dict[fx.Node, Tensor] = {}
        self.of: dict[fx.Node, Tensor] = {}
        self.parts: dict[fx.Node, list[Tensor]] = {}
        for node in channels.graph.nodes:
            if node.op == "call_function":
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node in self.channels.pure:
            self._compute(node)
        step = self.channels.steps.get(node)
        if step is not None and step.kind is Kind.MOVE and step.sources[0] in self.parts:
            self.of[node] = self.parts[step.sources[0]][node.args[1]]  # type: ignore[index]
        elif step is not None and node in self.channels.axis:
            value = self._value(step)
            changes = node in self.channels.graph.changed
            self.of[node] = torch.full_like(value, math.nan) if changes else value
        elif step is not None and node in self.channels.parts:
            self._move_parts(step)

    def _compute(self, node: fx.Node) -> None:
        """What depends on nothing but stored tensors."""
        values = {each: self._whole(each) for each in node.all_input_nodes if each in self._held}
        if len(values) == len(node.all_input_nodes):
            result = run(node, values)
            if isinstance(result, Tensor):
                self._held[node] = result

    def held(self, node: fx.Node) -> Tensor:
        """What a tensor holds that is stored, or made of such alone, in its own precision."""
        return self._held[node]

    def _whole(self, node: fx.Node) -> Tensor:
        tensor = self.held(node)
        return tensor.double() if tensor.is_floating_point() else tensor

    def vector(self, node: fx.Node, axis: int, size: tuple[int, ...]) -> Tensor:
        """The values of a tensor along an axis of a result of this size; NaN where it is no constant."""
        count = size[axis]
        own = axis - len(size) + len(shape(node))
        if node in self._held and not (held := self.held(node)).is_complex():
            tensor = held.double()
            rows = rows_along(tensor, own) if tensor.numel() and own >= 0 else tensor.reshape(1, -1)
            return _uniform(rows).expand(count) if len(rows) in (1, count) else torch.full((count,), math.nan).double()
        if node in self.of and self.channels.axis[node] == own and len(self.of[node]) == count:
            return self.of[node]
        return torch.full((count,), math.nan, dtype=torch.float64)

    def tensor(self, node: fx.Node) -> Tensor:
        """What a stored tensor holds."""
        return self.held(node).double()

    def _value(self, step: Step) -> Tensor:
        axis, size = self.channels.axis[step.node], shape(step.node)
        match step.kind:
            case Kind.MIX:
                return self._mix(step)
            case Kind.GROUPED:
                return self._grouped(step)
            case Kind.NORM:
                return self._normalise(step)
            case Kind.ENTRYWISE:
                return self._entrywise(step, axis, size)
            case Kind.HEADS:
                return self._attend(step)
            case _:
                result = self._moved(step)
                return _uniform(rows_along(result, axis))

    def read(self, step: Step) -> Tensor:
        """The values of what a layer reads, along its channels."""
        [x] = step.sources
        inputs = shape(step.weight)[step.axes[1]]  # type: ignore[arg-type]
        count = inputs * step.groups if step.axes == (0, 1) else inputs  # transposed weights hold those of all groups
        along = self.channels.axis[step.node] if step.along is None else step.along
        found = self.of.get(x)
        fits = found is not None and len(found) == count and self.channels.axis[x] == along
        return found if fits else torch.full((count,), math.nan, dtype=torch.float64)  # type: ignore[return-value]

    def moving(self, step: Step) -> Tensor:
        """Which input channels a layer does not see as constants."""
        values = self.read(step)
        return values.isnan() | (values.ne(0) & (not keeps_constants(step)))

    def absorbed(self, step: Step) -> Tensor:
        """What a layer makes of the constants that it reads, one number per output and input channel."""
        values = self.read(step).where(~self.moving(step), 0)
        return self.matrix(step).sum(2, dtype=torch.float64) * values

    def reads(self, step: Step) -> Tensor:
        """Which inputs each output of a layer reads, of shape (outputs, inputs)."""
        if step.node not in self._read:
            self._read[step.node] = self.matrix(step).ne(0).any(dim=2)
        return self._read[step.node]

    def matrix(self, step: Step) -> Tensor:
        """The weights of a layer in their own precision, of shape (outputs, inputs, positions); of groups the inputs
        of each."""
        weight = self.held(step.weight)  # type: ignore[arg-type]
        weight = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
        if step.kind is Kind.GROUPED and step.axes == (1, 0):
            groups = weight.reshape(step.groups, -1, *weight.shape[1:])
            return groups.transpose(1, 2).flatten(0, 1)
        return weight.movedim(step.axes, (0, 1))

    def bias(self, step: Step) -> Tensor:
        """Of a layer; zero if it has none, NaN if that is not known."""
        if step.bias in self._held:
            return self.tensor(step.bias)
        return torch.full((), 0 if step.bias is None else math.nan, dtype=torch.float64)

    def _mix(self, step: Step) -> Tensor:
        moving = self.moving(step)
        constant = ~(self.reads(step) & moving).any(dim=1)
        result = torch.full((len(constant),), math.nan, dtype=torch.float64)
        if constant.any():
            values = self.read(step).where(~moving, 0)
            seen = values.ne(0)
            sums = self.matrix(step)[:, seen][constant].sum(2, dtype=torch.float64) @ values[seen]
            result[constant] = sums + self.bias(step).expand(len(constant))[constant]
        return result

    def _grouped(self, step: Step) -> Tensor:
        weight = self.matrix(step).unflatten(0, (step.groups, -1))
        values, moving = (each.reshape(step.groups, 1, -1) for each in (self.read(step), self.moving(step)))
        sums = (weight.sum(3, dtype=torch.float64) * values.where(~moving, 0)).sum(2).flatten() + self.bias(step)
        return torch.where((weight.any(3) & moving).any(2).flatten(), math.nan, sums)

    def _normalise(self, step: Step) -> Tensor:
        node, values = step.node, self.of[step.sources[0]]
        mean, variance, batch, eps = node.args[3], node.args[4], bool(node.args[5]), float(node.args[7])  # type: ignore[arg-type]
        scale = self.tensor(step.weight) if step.weight is not None else torch.ones(()).double()
        if mean is None or (batch and self.training):
            return torch.where(values.isnan() & scale.ne(0), math.nan, torch.zeros_like(values) + self.bias(step))
        scale = scale * (self.tensor(variance) + eps).rsqrt()  # type: ignore[arg-type]
        result = values.nan_to_num(0) * scale - self.tensor(mean) * scale + self.bias(step)  # type: ignore[arg-type]
        return torch.where(values.isnan() & scale.ne(0), math.nan, result)

    def _entrywise(self, step: Step, axis: int, size: tuple[int, ...]) -> Tensor:
        name = operation(step.node)
        if name == "prelu":
            x, slopes = self.of[step.sources[0]], self.tensor(step.sources[1])
            return torch.where(x > 0, x, x * slopes)
        known = {each: self.vector(each, axis, size) for each in step.sources}
        if name in ZEROED | SHIFTED and step.node.args[1] and step.node.args[2]:  # with a probability, in training
            [x] = known.values()
            return x.where((x == 0) & (name in ZEROED), math.nan)
        places = {
            each: spread(v.nan_to_num(0), axis, [1] * axis + [len(v)] + [1] * (len(size) - axis - 1)).to(_kind(each))
            for each, v in known.items()
        }
        result: Tensor = run(step.node, places).double().reshape(-1).expand(size[axis])
        result = result.where(~torch.stack([v.isnan() for v in known.values()]).any(dim=0), math.nan)
        if name in PRODUCTS:
            result = result.where(~torch.stack([v == 0 for v in known.values()]).any(dim=0), 0.0)
        return result

    def _attend(self, step: Step) -> Tensor:
        zero = torch.stack([self.of[each] == 0 for each in attended(step)]).any(dim=0)
        return torch.where(zero, 0.0, torch.full((), math.nan, dtype=torch.float64))

    def _given(self, node: fx.Node) -> Tensor:
        """What a tensor holds, NaN where that is no constant."""
        if node in self._held:
            return self._whole(node)
        if node in self.of:
            return spread(self.of[node], self.channels.axis[node], shape(node))
        return torch.full((), math.nan, dtype=torch.float64).expand(shape(node))

    def _moved(self, step: Step) -> Any:
        if step.kind is Kind.MOVE:
            return laid_out(self.channels, step.node, self._given)
        return run(step.node, {each: self._given(each) for each in step.sources})

    def _move_parts(self, step: Step) -> None:
        self.parts[step.node] = [
            torch.zeros(0) if part is None else _uniform(rows_along(result, part[0])).double()
            for result, part in zip(self._moved(step), self.channels.parts[step.node], strict=False)
        ]


def attended(step: Step) -> tuple[fx.Node, ...]:
    """The factors of attention that make it zero where one of them is; those before weigh positions."""
    return step.sources[-1:] if operation(step.node) == ATTENTION else step.sources


def keeps_constants(step: Step) -> bool:
    """Whether a layer makes a constant of a constant, whatever its value: no zeros are padded or inserted."""
    name = operation(step.node)
    if name.startswith("conv_transpose"):
        return False
    if not name.startswith("conv"):
        return True
    padding = argument(step.node, "padding") or ()
    if isinstance(padding, str):
        return padding == "valid" or all(side == 1 for side in shape(step.weight)[2:])  # type: ignore[arg-type]
    return not any(padding)


def _kind(node: fx.Node) -> torch.dtype:
    """What to compute with: double precision, but for integers and truth values."""
    dtype: torch.dtype = node.meta["val"].dtype
    return torch.float64 if dtype.is_floating_point or dtype.is_complex else dtype


def _uniform(rows: Tensor) -> Tensor:
    """The entry of each row, NaN where its entries differ; ``rows`` of shape (channels, positions)."""
    return rows[:, 0].where((rows == rows[:, :1]).all(dim=1), math.nan)
