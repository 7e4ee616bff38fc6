"""The channels of any model, from its graph: how operations pass them on, and which of them go together."""

import copy
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
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


class Channels:
    """The channels of all tensors of a model (axis 1), numbered; those that live and die together have one number.

    Args:
        model: in evaluation mode.
        example: one batch for it; its shape tells how flatten lays out channels.

    Attributes:
        graph: of `torch.fx`; its nodes are the tensors.
        steps: by node what it does, in the order of the graph; a node without a step has no channels.
        numbers: for each node an integer tensor of shape (channels,).
        stays: for each node a mask of shape (channels,), of those that may not go since something that is not known
            sees or makes them, as the outside does.
        changed: nodes that are changed in place while more than one operation reads them.
        unknown: by node the names of operations that are not known.

    Raises:
        ValueError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.graph = _trace(model, example)
        self.steps: dict[fx.Node, Step] = {}
        self.stays: dict[fx.Node, Tensor] = {}
        self.changed: set[fx.Node] = set()
        self.unknown: dict[fx.Node, str] = {}
        self._modules = dict(model.named_modules())
        self._uses = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        self._first: dict[fx.Node, int] = {}
        self._parent: list[int] = []
        for node in self.graph.nodes:
            self._visit(node)
        roots = torch.tensor([self._find(a) for a in range(len(self._parent))], dtype=torch.long)
        self.numbers = {node: roots[first : first + _width(node)] for node, first in self._first.items()}

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._first]
        if _asks_for_other_sizes(node):
            return
        if node.op == "output" or len(_shape(node)) < 2:
            self._leave_alone(node, sources)
            return
        if self._mutates(node):
            self._change(node, sources)
        step = self._step(node, sources)
        self._first[node] = len(self._parent)
        self._parent.extend(range(len(self._parent), len(self._parent) + _width(node)))
        self.stays[node] = torch.full((_width(node),), step.kind is Kind.UNKNOWN)
        self.steps[node] = step
        if step.kind is not Kind.UNKNOWN:
            self._tie(step)
        elif node.op not in ("placeholder", "get_attr"):
            self._leave_alone(node, sources)

    # What an operation does

    def _step(self, node: fx.Node, sources: list[fx.Node]) -> Step:
        if not sources:
            return Step(Kind.UNKNOWN, node)
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            shared = self._uses[node.target] > 1 and any(True for _ in module.parameters())
            kind = Kind.UNKNOWN if shared or len(sources) > 1 else _module_kind(module, node, sources[0])
            return Step(kind, node, tuple(sources), module)
        if node.op == "call_function" and node.target is torch.cat and node.args and _axis(node) == 1:
            parts: Any = node.args[0]
            return Step(Kind.CONCATENATE, node, tuple(parts))
        if node.op == "call_function" and node.target in SUMS | PRODUCTS and len(node.args) == 2 and not node.kwargs:
            terms: Any = node.args
            if all(term in sources and _same_width(term, node) for term in terms):
                return Step(Kind.PRODUCT if node.target in PRODUCTS else Kind.SUM, node, terms)
        kind = _function_kind(node, sources[0]) if len(sources) == 1 else Kind.UNKNOWN
        return Step(kind, node, tuple(sources))

    def _mutates(self, node: fx.Node) -> bool:
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        return (
            bool(getattr(module, "inplace", False) or node.kwargs.get("inplace", False))
            or (node.target in POINTWISE_FUNCTIONS and any(a is True for a in node.args))
            or node.target in (operator.iadd, operator.isub, operator.imul)
            or (node.op == "call_method" and str(node.target).endswith("_"))
        )

    def _change(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        """Whoever else reads the first source, or what that is a view of, may read something else."""
        for source in sources[:1]:
            if len(source.users) > 1:
                self.changed.add(source)
                self.stays[source][:] = True
                self.unknown[node] = function_name(node) + " in place"
            if self.steps[source].kind in (Kind.SAME, Kind.FLATTEN):
                self._change(node, self.steps[source].sources)

    def _leave_alone(self, node: fx.Node, sources: list[fx.Node]) -> None:
        for source in sources:
            self.stays[source][:] = True
            if node.op != "output":
                self.unknown[node] = str(node.target) if node.op == "call_module" else function_name(node)

    # Which channels go together

    def _tie(self, step: Step) -> None:
        """Unite the channels of the result with those of the sources that they are made of."""
        if step.kind is Kind.MIX:
            return
        if step.kind is Kind.CONCATENATE:
            made_of = [self._first[source] + i for source in step.sources for i in range(_width(source))]
            self._unite(step.node, made_of)
            return
        repeat = _width(step.node) // _width(step.sources[0])  # 1 but for a flatten
        for source in step.sources:
            self._unite(step.node, [self._first[source] + i // repeat for i in range(_width(step.node))])

    def _unite(self, node: fx.Node, others: Sequence[int]) -> None:
        for i, other in enumerate(others):
            self._parent[self._find(self._first[node] + i)] = self._find(other)

    def _find(self, a: int) -> int:
        while self._parent[a] != a:
            self._parent[a] = self._parent[self._parent[a]]
            a = self._parent[a]
        return a


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode.

    Raises:
        ValueError: it cannot be copied, since some of its weights are computed from others.
    """
    try:
        return copy.deepcopy(model).eval()
    except RuntimeError:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, since some of its weights are computed from others; make them "
            "parameters first, as torch.nn.utils.prune.remove does"
        ) from None


def function_name(node: fx.Node) -> str:
    """Of the function or method that a node calls, or of the module."""
    return str(getattr(node.target, "__name__", node.target))


def _trace(model: nn.Module, example: Tensor) -> fx.Graph:
    try:
        traced = fx.symbolic_trace(model)
        ShapeProp(traced).propagate(example)
    except Exception as problem:  # whatever a foreign forward raises
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {line}") from None
    return traced.graph


def _module_kind(module: nn.Module, node: fx.Node, source: fx.Node) -> Kind:
    if isinstance(module, nn.Linear | _ConvNd) and "weight" not in module._parameters:
        return Kind.UNKNOWN  # computed from something else by a parametrisation
    if isinstance(module, nn.Linear):
        return Kind.MIX if len(_shape(source)) == 2 else Kind.UNKNOWN
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
    shape, before = _shape(node), _shape(source)
    flat = (before[0], math.prod(before[1:]))
    if node.target in ("flatten", torch.flatten):
        return bool((args or (node.kwargs.get("start_dim"),))[0] == 1) and shape == flat
    if node.target in ("view", "reshape", torch.reshape):
        sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        return len(sizes) == 2 and bool(sizes[1] == -1) and shape == flat
    if node.target in ("mean", torch.mean, "amax", torch.amax):
        dims: Any = node.kwargs.get("dim", args[0] if args else ())
        dims = (dims,) if isinstance(dims, int) else dims
        return bool(dims) and all(d % len(before) > 1 for d in dims)
    return False


def _asks_for_other_sizes(node: fx.Node) -> bool:
    """x.size(2), or x.shape of which entry 1 is not used: nothing about the number of channels."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    rank = len(_shape(node.args[0]))
    if node.target == "size" and len(node.args) > 1:
        return _leaves_channels_out(node.args[1], rank)
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        return all(
            user.target is operator.getitem and (not user.users or _leaves_channels_out(user.args[1], rank))
            for user in node.users
        )
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
    return axis % len(_shape(node)) if isinstance(axis, int) else -1


def _same_width(source: fx.Node, node: fx.Node) -> bool:
    return len(_shape(source)) == len(_shape(node)) and _width(source) == _width(node)


def _with_a_number(node: fx.Node, source: fx.Node) -> bool:
    others = [a for a in node.args if a is not source]
    return not node.kwargs and len(others) == 1 and isinstance(others[0], int | float)


def _with_a_scalar(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``source`` is multiplied by a learned scalar."""
    others = [a for a in node.args if a is not source]
    return len(others) == 1 and isinstance(others[0], fx.Node) and _shape(others[0]) == () and _is_tensor(others[0])


def _is_tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Empty for what is no tensor."""
    meta: Any = node.meta.get("tensor_meta")
    return tuple(meta.shape) if _is_tensor(node) else ()


def _width(node: fx.Node) -> int:
    return _shape(node)[1]
