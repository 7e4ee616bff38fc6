"""What the operations of a model traced by `torch.fx` do to its channels."""

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid),
    *(nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign),
)
POINTWISE_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh),
    *(F.hardswish, F.hardsigmoid, F.logsigmoid, F.softsign, F.sigmoid, F.tanh),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.clamp, torch.abs, torch.neg, torch.square, operator.neg),
}
POINTWISE_METHODS = {"relu", "tanh", "sigmoid", "clamp", "abs", "neg", "square"}
SAME_METHODS = {"contiguous", "float", "double"}
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub}
PRODUCTS = {operator.mul, operator.imul, torch.mul}
SCALINGS = {operator.mul, operator.truediv, torch.mul, torch.div} | SUMS  # with a number
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample),
)
POOL_FUNCTIONS = {
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate),
}
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
DROPOUT_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


class Kind(Enum):
    """What an operation does to channels."""

    UNKNOWN = auto()  # the input, a stored tensor, or the result of an operation that is not known
    MIX = auto()  # a linear layer or convolution: every output channel is a sum over all input channels
    DEPTHWISE = auto()  # a convolution of each channel by itself
    NORM = auto()  # a batch normalisation
    POINTWISE = auto()  # a function of each entry
    SAME = auto()  # nothing, in evaluation mode
    GATE = auto()  # times a learned scalar
    POOL = auto()  # means or maxima over positions
    SUM = auto()  # channel by channel, or a difference
    PRODUCT = auto()
    CONCATENATE = auto()
    FLATTEN = auto()  # a channel becomes as many features as it has positions


@dataclass(frozen=True)
class Step:
    """One operation: what it does to the channels of ``sources`` (in the order of the arguments) to give ``node``."""

    kind: Kind
    node: fx.Node
    sources: tuple[fx.Node, ...] = ()
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        """Of the module that is called, else of the function."""
        return str(self.node.target) if self.node.op == "call_module" else function_name(self.node)

    def weight(self) -> Tensor:
        """Of shape (outputs, inputs, positions), in double precision; a depthwise convolution has 1 input."""
        assert self.module is not None and isinstance(self.module.weight, Tensor)
        weight = self.module.weight.double()
        return weight.reshape(*weight.shape[:2], -1)

    def keeps_constants(self) -> bool:
        """Whether a layer or pool makes a constant of a constant, whatever its value: no zeros are padded."""
        if self.kind is Kind.POOL:
            return self._pads_no_zeros()
        module = self.module
        return not isinstance(module, _ConvNd) or module.padding_mode != "zeros" or not _pads(module)

    def apply(self, values: Tensor) -> Tensor:
        """What a pointwise operation makes of ``values``, of any shape and in double precision."""
        args = fx.node.map_arg(self.node.args, lambda n: values if n is self.sources[0] else None)
        kwargs = fx.node.map_arg(self.node.kwargs, lambda n: values if n is self.sources[0] else None)
        if self.module is not None:
            result = copy.deepcopy(self.module).double()(*args, **kwargs)
        elif self.node.op == "call_method":
            result = getattr(values, str(self.node.target))(*args[1:], **kwargs)
        else:
            result = self.node.target(*args, **kwargs)  # type: ignore[operator]
        assert isinstance(result, Tensor)
        return result

    def _pads_no_zeros(self) -> bool:
        node, module = self.node, self.module
        padding = node.kwargs.get("padding", 0) if module is None else getattr(module, "padding", 0)
        divisor = node.kwargs.get("divisor_override") if module is None else getattr(module, "divisor_override", None)
        many_args = module is None and node.target in (F.avg_pool1d, F.avg_pool2d) and len(node.args) > 3
        takes_maxima = "Max" in type(module).__name__
        return not many_args and not divisor and (takes_maxima or padding in (0, (0,), (0, 0), (0, 0, 0)))


def step_of(node: fx.Node, sources: Sequence[fx.Node], module: nn.Module | None) -> Step:
    """What a node does.

    Args:
        node: its result is a tensor with channels (axis 1).
        sources: those of its inputs that have channels.
        module: that it calls, if it calls one.
    """
    if len(sources) == 1 and module is not None:
        return Step(_module_kind(module, sources[0]), node, tuple(sources), module)
    function = node.target if node.op == "call_function" else None
    if function is torch.cat and sources and node.args and _axis(node) == 1:
        parts: Any = node.args[0]
        return Step(Kind.CONCATENATE, node, tuple(parts))
    if function in SUMS | PRODUCTS and len(node.args) == 2 and not node.kwargs:
        terms: Any = node.args
        if all(term in sources and _same_width(term, node) for term in terms):
            return Step(Kind.PRODUCT if function in PRODUCTS else Kind.SUM, node, terms)
    kind = _function_kind(node, sources[0]) if len(sources) == 1 else Kind.UNKNOWN
    return Step(kind, node, tuple(sources), module)


def changes_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation writes its result into its first input."""
    return (
        bool(getattr(module, "inplace", False) or node.kwargs.get("inplace", False))
        or (node.target in POINTWISE_FUNCTIONS and any(a is True for a in node.args))
        or node.target in (operator.iadd, operator.isub, operator.imul)
        or (node.op == "call_method" and str(node.target).endswith("_"))
    )


def asks_for_other_sizes(node: fx.Node) -> bool:
    """x.size(2), or x.shape of which entry 1 is not used: nothing about the number of channels."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    rank = len(shape(node.args[0]))
    if node.target == "size" and len(node.args) > 1:
        return _leaves_channels_out(node.args[1], rank)
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        return all(
            user.target is operator.getitem and (not user.users or _leaves_channels_out(user.args[1], rank))
            for user in node.users
        )
    return False


def function_name(node: fx.Node) -> str:
    """Of the function or method that a node calls, or of the module."""
    return str(getattr(node.target, "__name__", node.target))


def _module_kind(module: nn.Module, source: fx.Node) -> Kind:
    if isinstance(module, nn.Linear | _ConvNd) and "weight" not in module._parameters:
        return Kind.UNKNOWN  # computed from something else by a parametrisation
    if isinstance(module, nn.Linear):
        return Kind.MIX if len(shape(source)) == 2 else Kind.UNKNOWN
    if isinstance(module, _ConvNd) and not getattr(module, "transposed", False):
        if module.groups == 1:
            return Kind.MIX
        return Kind.DEPTHWISE if module.groups == module.in_channels == module.out_channels else Kind.UNKNOWN
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        return Kind.NORM
    if isinstance(module, POINTWISE_MODULES) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
        return Kind.POINTWISE
    if isinstance(module, (*DROPOUTS, nn.Identity)):
        return Kind.SAME
    if isinstance(module, POOLS):
        return Kind.POOL
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return Kind.FLATTEN
    return Kind.UNKNOWN


def _function_kind(node: fx.Node, source: fx.Node) -> Kind:
    """Of a function or method of one tensor with channels."""
    function, method = node.op == "call_function", node.op == "call_method"
    if function and node.target in SCALINGS and _with_a_number(node, source):
        return Kind.POINTWISE
    if function and node.target in (operator.mul, torch.mul) and _with_a_scalar(node, source):
        return Kind.GATE
    if (function and node.target in POINTWISE_FUNCTIONS) or (method and node.target in POINTWISE_METHODS):
        return Kind.POINTWISE if len(node.all_input_nodes) == 1 else Kind.UNKNOWN
    if function and node.target in POOL_FUNCTIONS:
        return Kind.POOL
    if (method and node.target in SAME_METHODS) or (function and node.target in DROPOUT_FUNCTIONS and not _drops(node)):
        return Kind.SAME
    return Kind.FLATTEN if _keeps_channels(node, source) else Kind.UNKNOWN


def _keeps_channels(node: fx.Node, source: fx.Node) -> bool:
    """Whether the operation flattens everything behind the channels, or averages over positions."""
    args: Any = node.args[1:]
    after, before = shape(node), shape(source)
    flat = (before[0], math.prod(before[1:]))
    if node.target in ("flatten", torch.flatten):
        return bool((args or (node.kwargs.get("start_dim"),))[0] == 1) and after == flat
    if node.target in ("view", "reshape", torch.reshape):
        sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        return len(sizes) == 2 and bool(sizes[1] == -1) and after == flat
    if node.target in ("mean", torch.mean, "amax", torch.amax):
        dims: Any = node.kwargs.get("dim", args[0] if args else ())
        dims = (dims,) if isinstance(dims, int) else dims
        return bool(dims) and all(d % len(before) > 1 for d in dims)
    return False


def _leaves_channels_out(index: Any, rank: int) -> bool:
    if isinstance(index, slice):
        return not any(isinstance(end, fx.Node) for end in (index.start, index.stop)) and 1 not in range(rank)[index]
    return isinstance(index, int) and range(rank)[index] != 1


def _drops(node: fx.Node) -> bool:
    """Whether a functional dropout is active, as it is by default."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _pads(module: _ConvNd) -> bool:
    return module.padding not in (0, "valid") and (isinstance(module.padding, str) or any(module.padding))


def _axis(node: fx.Node) -> int:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis % len(shape(node)) if isinstance(axis, int) else -1


def _same_width(source: fx.Node, node: fx.Node) -> bool:
    return len(shape(source)) == len(shape(node)) and width(source) == width(node)


def _with_a_number(node: fx.Node, source: fx.Node) -> bool:
    others = [a for a in node.args if a is not source]
    return not node.kwargs and len(others) == 1 and isinstance(others[0], int | float)


def _with_a_scalar(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``source`` is multiplied by a learned scalar."""
    others = [a for a in node.args if a is not source]
    return len(others) == 1 and isinstance(others[0], fx.Node) and shape(others[0]) == () and _is_tensor(others[0])


def _is_tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


def shape(node: fx.Node) -> tuple[int, ...]:
    """Empty for what is no tensor."""
    meta: Any = node.meta.get("tensor_meta")
    return tuple(meta.shape) if _is_tensor(node) else ()


def width(node: fx.Node) -> int:
    return shape(node)[1]
