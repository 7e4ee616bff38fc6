"""Removal of dead channels from any module, exactly: what is zero, what nobody reads, what is constant."""

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nas.analysis.changes import FOLDED, PADDED, UNREAD, ZERO, NodeChanges, indices

UNKNOWN = "unknown operation"
POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid),
    *(nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Identity),
)
POINTWISE_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh),
    *(F.hardswish, F.hardsigmoid, F.logsigmoid, F.softsign, F.sigmoid, F.tanh),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.clamp, torch.abs, torch.neg, torch.square, operator.neg),
}
POINTWISE_METHODS = {"relu", "tanh", "sigmoid", "clamp", "abs", "neg", "square", "contiguous", "float", "double"}
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
    try:
        small = copy.deepcopy(model).eval()
    except RuntimeError:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, since some of its weights are computed from others; make them "
            "parameters first, as torch.nn.utils.prune.remove does"
        ) from None
    channels = _Channels(small, example)
    channels.settle()
    found = channels.changes()
    for call in channels.calls:
        _narrow(call, channels)
    return small, found


@dataclass
class _Call:
    """One call of a linear, convolution or normalisation module."""

    name: str
    module: nn.Module
    source: fx.Node
    target: fx.Node

    @property
    def mixes(self) -> bool:
        """Whether outputs are sums over inputs; otherwise channel i goes into channel i."""
        return isinstance(self.module, nn.Linear) or (isinstance(self.module, _ConvNd) and self.module.groups == 1)

    def weight(self) -> Tensor:
        """Shape (outputs, inputs, positions) in double precision; of a convolution without mixing (outputs, 1, ...)."""
        assert isinstance(self.module.weight, Tensor)
        weight = self.module.weight.double()
        return weight.reshape(*weight.shape[:2], -1)

    def takes_constants(self) -> bool:
        """Whether a constant input gives a constant output whatever the constant."""
        return not isinstance(self.module, _ConvNd) or self.module.padding_mode != "zeros" or not _pads(self.module)


def _asks_for_batch_size(node: fx.Node) -> bool:
    """x.size(0), or x.shape of which only entry 0 is used: nothing about channels."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    of_shape = node.target is getattr and node.args[1] == "shape"
    return of_shape and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _drops(node: fx.Node) -> bool:
    """Whether a functional dropout is active, as it is by default."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _pads(module: _ConvNd) -> bool:
    return module.padding not in (0, "valid") and (isinstance(module.padding, str) or any(module.padding))


class _Channels:
    """The channels of all tensors of a traced model: which are constant, which go together, which stay."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        try:
            traced = fx.symbolic_trace(model)
            ShapeProp(traced).propagate(example)
        except Exception as problem:  # whatever a foreign forward raises
            raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {_first_line(problem)}") from None
        self.modules = dict(model.named_modules())
        self.uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
        self.calls: list[_Call] = []
        self.constant: dict[fx.Node, Tensor] = {}  # per channel its value, NaN if it is not constant
        self.stays: dict[fx.Node, Tensor] = {}  # per channel whether it has to stay whatever its readers do
        self.first: dict[fx.Node, int] = {}  # number of the first channel in the union of all channels
        self.opaque: dict[fx.Node, str] = {}
        self.parent: list[int] = []
        for node in traced.graph.nodes:
            self._visit(node)

    # How channels pass through operations

    def _visit(self, node: fx.Node) -> None:
        tensors = [source for source in node.all_input_nodes if source in self.constant]
        meta: Any = node.meta.get("tensor_meta")
        if _asks_for_batch_size(node):
            return
        if node.op == "output" or not hasattr(meta, "shape") or len(meta.shape) < 2:
            self._leave_alone(node, tensors)
            return
        if self._mutates(node):
            for source in tensors:
                if len(source.users) > 1:  # whoever reads it later reads something else
                    self.constant[source][:] = math.nan
                    self.stays[source][:] = True
        rule = self._rule(node, tensors)
        if rule is None:
            self._add(node, torch.full((meta.shape[1],), math.nan, dtype=torch.float64), stays=True)
            if node.op not in ("placeholder", "get_attr"):
                self._leave_alone(node, tensors)
            return
        rule()

    def _rule(self, node: fx.Node, tensors: list[fx.Node]) -> Callable[[], None] | None:
        """What passes the channels of this operation on; None if it is not known."""
        if not tensors:
            return None
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        one = len(tensors) == 1
        if module is not None:
            if self.uses[node.target] > 1 and any(True for _ in module.parameters()):
                return None
            return self._module_rule(node, module, tensors[0]) if one else None
        function, method = node.op == "call_function", node.op == "call_method"
        if function and node.target is torch.cat and node.args and self._axis(node) == 1:
            return lambda: self._concatenate(node)
        if function and node.target in SUMS | PRODUCTS and len(node.args) == 2 and not node.kwargs:
            if len(tensors) == 2 and self._same_shape(node, tensors):
                return lambda: self._combine(node, tensors)
            if one and all(a is tensors[0] for a in node.args):
                return lambda: self._combine(node, [tensors[0], tensors[0]])
        if function and node.target in SCALINGS and one and self._scalars(node, tensors[0]):
            return lambda: self._pointwise(node, tensors[0])
        if function and node.target in (operator.mul, torch.mul) and one and self._gated(node, tensors[0]):
            constant = self.constant[tensors[0]]
            return lambda: self._follow(node, tensors[0], torch.where(constant == 0, constant, math.nan))
        if (function and node.target in POINTWISE_FUNCTIONS) or (method and node.target in POINTWISE_METHODS):
            return (lambda: self._pointwise(node, tensors[0])) if one else None
        if function and node.target in POOL_FUNCTIONS and one:
            return lambda: self._pool(node, tensors[0])
        if function and node.target in DROPOUT_FUNCTIONS and one and not _drops(node):
            return lambda: self._follow(node, tensors[0], self.constant[tensors[0]])
        if one and self._keeps_channels(node, tensors[0]):
            return lambda: self._flatten(node, tensors[0])
        return None

    def _module_rule(self, node: fx.Node, module: nn.Module, source: fx.Node) -> Callable[[], None] | None:
        name = str(node.target)
        if isinstance(module, nn.Linear | _ConvNd) and "weight" not in module._parameters:
            return None  # computed from something else by a parametrisation
        if isinstance(module, nn.Linear):
            return (lambda: self._mix(_Call(name, module, source, node))) if len(_shape(source)) == 2 else None
        if isinstance(module, _ConvNd) and not getattr(module, "transposed", False):
            call = _Call(name, module, source, node)
            if module.groups == 1:
                return lambda: self._mix(call)
            depthwise = module.groups == module.in_channels == module.out_channels
            return (lambda: self._depthwise(call)) if depthwise else None
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            return lambda: self._normalise(_Call(name, module, source, node))
        if isinstance(module, POINTWISE_MODULES) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return lambda: self._pointwise(node, source)
        if isinstance(module, DROPOUTS):
            return lambda: self._follow(node, source, self.constant[source])
        if isinstance(module, POOLS):
            return lambda: self._pool(node, source)
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return lambda: self._flatten(node, source)
        return None

    def _mutates(self, node: fx.Node) -> bool:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return (
            bool(getattr(module, "inplace", False) or node.kwargs.get("inplace", False))
            or node.target in (operator.iadd, operator.isub, operator.imul)
            or (node.op == "call_method" and str(node.target).endswith("_"))
        )

    def _mix(self, call: _Call) -> None:
        weight, constant = call.weight(), self.constant[call.source]
        moving = constant.isnan() | (constant.ne(0) & (not call.takes_constants()))
        sums = weight.sum(2) @ constant.nan_to_num(0)
        reads_moving = weight[:, moving].flatten(1).any(dim=1)
        self._add(call.target, torch.where(reads_moving, math.nan, sums + _bias(call.module)))
        self.calls.append(call)

    def _depthwise(self, call: _Call) -> None:
        weight, constant = call.weight(), self.constant[call.source]
        moving = constant.isnan() | (constant.ne(0) & (not call.takes_constants()))
        value = weight.sum((1, 2)) * constant.nan_to_num(0) + _bias(call.module)
        self._follow(call.target, call.source, torch.where(moving & weight.flatten(1).any(1), math.nan, value))
        self.calls.append(call)

    def _normalise(self, call: _Call) -> None:
        module, constant = call.module, self.constant[call.source]
        assert isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        scale = (module.running_var.double() + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.double()
        shift = -module.running_mean.double() * scale
        shift = shift if module.bias is None else shift + module.bias.double()
        value = constant.nan_to_num(0) * scale + shift
        self._follow(call.target, call.source, torch.where(constant.isnan() & scale.ne(0), math.nan, value))
        self.calls.append(call)

    def _pointwise(self, node: fx.Node, source: fx.Node) -> None:
        constant = self.constant[source]
        value = self._apply(node, source, constant.nan_to_num(0))
        self._follow(node, source, torch.where(constant.isnan(), math.nan, value))

    def _apply(self, node: fx.Node, source: fx.Node, values: Tensor) -> Tensor:
        """What a pointwise operation makes of ``values``."""
        args = fx.node.map_arg(node.args, lambda n: values if n is source else None)
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values if n is source else None)
        if node.op == "call_module":
            result = copy.deepcopy(self.modules[str(node.target)]).double()(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(values, str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        assert isinstance(result, Tensor)
        return result

    def _pool(self, node: fx.Node, source: fx.Node) -> None:
        """A mean or maximum over positions keeps a constant, but for zeros that it pads with."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        padding = node.kwargs.get("padding", 0) if module is None else getattr(module, "padding", 0)
        divisor = node.kwargs.get("divisor_override") if module is None else getattr(module, "divisor_override", None)
        many_args = module is None and node.target in (F.avg_pool1d, F.avg_pool2d) and len(node.args) > 3
        constant = self.constant[source]
        if many_args or divisor or (padding not in (0, (0,), (0, 0), (0, 0, 0)) and "Max" not in type(module).__name__):
            constant = torch.where(constant == 0, constant, math.nan)
        self._follow(node, source, constant)

    def _combine(self, node: fx.Node, sources: list[fx.Node]) -> None:
        a, b = (self.constant[source] for source in sources)
        value = node.target(a.clone(), b)  # type: ignore[operator]
        if node.target in PRODUCTS:
            value = torch.where((a == 0) | (b == 0), 0.0, value)
        self._add(node, value)
        for source in sources:
            self._tie(node, source, torch.arange(len(a)))

    def _concatenate(self, node: fx.Node) -> None:
        sources: Any = node.args[0]
        self._add(node, torch.cat([self.constant[source] for source in sources]))
        start = self.first[node]
        for source in sources:
            for i in range(len(self.constant[source])):
                self._union(start + i, self.first[source] + i)
            start += len(self.constant[source])

    def _flatten(self, node: fx.Node, source: fx.Node) -> None:
        repeat = _shape(node)[1] // _shape(source)[1]
        constant = self.constant[source]
        self._add(node, constant.repeat_interleave(repeat))
        self._tie(node, source, torch.arange(len(constant)).repeat_interleave(repeat))

    def _keeps_channels(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether the operation flattens everything behind the channels, or averages over positions."""
        args: Any = node.args[1:]
        shape, before = _shape(node), _shape(source)
        if node.target in ("flatten", torch.flatten):
            return bool((args or (node.kwargs.get("start_dim"),))[0] == 1) and shape == (
                before[0],
                math.prod(before[1:]),
            )
        if node.target in ("view", "reshape", torch.reshape):
            sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
            return len(sizes) == 2 and bool(sizes[1] == -1) and shape == (before[0], math.prod(before[1:]))
        if node.target in ("mean", torch.mean, "amax", torch.amax):
            dims: Any = node.kwargs.get("dim", args[0] if args else ())
            dims = (dims,) if isinstance(dims, int) else dims
            return bool(dims) and all(d % len(before) > 1 for d in dims)
        return False

    def _axis(self, node: fx.Node) -> int:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return axis % len(_shape(node)) if isinstance(axis, int) else -1

    def _same_shape(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        return all(len(_shape(s)) == len(_shape(node)) and _shape(s)[1] == _shape(node)[1] for s in sources)

    def _scalars(self, node: fx.Node, source: fx.Node) -> bool:
        return (
            not node.kwargs
            and sum(a is source for a in node.args) == 1
            and all(a is source or isinstance(a, int | float) for a in node.args)
        )

    def _gated(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether ``source`` is multiplied by a learned scalar."""
        others = [a for a in node.args if a is not source]
        return len(others) == 1 and isinstance(others[0], fx.Node) and _shape(others[0]) == ()

    # Which channels go together

    def _add(self, node: fx.Node, constant: Tensor, stays: bool = False) -> None:
        self.constant[node] = constant
        self.stays[node] = torch.full((len(constant),), stays)
        self.first[node] = len(self.parent)
        self.parent.extend(range(len(self.parent), len(self.parent) + len(constant)))

    def _follow(self, node: fx.Node, source: fx.Node, constant: Tensor) -> None:
        """Channel i of ``node`` is made of channel i of ``source`` alone."""
        self._add(node, constant)
        self._tie(node, source, torch.arange(len(constant)))

    def _tie(self, node: fx.Node, source: fx.Node, channels: Tensor) -> None:
        for i, j in enumerate(channels.tolist()):
            self._union(self.first[node] + i, self.first[source] + j)

    def _union(self, a: int, b: int) -> None:
        self.parent[self._find(a)] = self._find(b)

    def _find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = self.parent[self.parent[a]]
            a = self.parent[a]
        return a

    def _leave_alone(self, node: fx.Node, sources: list[fx.Node]) -> None:
        for source in sources:
            self.stays[source][:] = True
            if node.op != "output":
                self.opaque[node] = str(getattr(node.target, "__name__", node.target))

    # Which channels stay

    def settle(self) -> None:
        """Find the smallest set of channels to keep: ``kept``, per tensor."""
        roots = torch.tensor([self._find(a) for a in range(len(self.parent))], dtype=torch.long)
        self.kept = {node: torch.ones_like(stays) for node, stays in self.stays.items()}
        while True:
            stays = {node: flags.clone() for node, flags in self.stays.items()}
            for call in self.calls:
                if call.mixes:
                    stays[call.source] |= self._reads(call) & ~self._absorbs(call)
            joined = torch.zeros(len(roots), dtype=torch.bool)
            for node, flags in stays.items():
                joined[roots[self._range(node)][flags]] = True
            kept = {node: joined[roots[self._range(node)]] for node in stays}
            if all(torch.equal(kept[node], self.kept[node]) for node in kept):
                break
            self.kept = kept
        self._keep_one(roots)

    def _keep_one(self, roots: Tensor) -> None:
        """A tensor without channels is more than most operations can bear: one stays, with all that goes with it."""
        for node, kept in self.kept.items():
            if len(kept) and not kept.any():
                root = roots[self.first[node]]
                for other in self.kept:
                    self.kept[other] |= roots[self._range(other)] == root

    def _reads(self, call: _Call) -> Tensor:
        """Which input channels a kept output channel reads."""
        return call.weight()[self.kept[call.target]].ne(0).any(dim=2).any(dim=0)

    def _absorbs(self, call: _Call) -> Tensor:
        """Which input channels are constants that the bias can take up."""
        constant = self.constant[call.source]
        return constant.eq(0) | (~constant.isnan() & call.takes_constants())

    def _range(self, node: fx.Node) -> slice:
        return slice(self.first[node], self.first[node] + len(self.constant[node]))

    def changes(self) -> tuple[NodeChanges, ...]:
        """What goes and what stays, and why."""
        padded = {self._find(a) for call in self.calls if call.mixes for a in self._borders(call)}
        found = []
        for call in self.calls:
            kept, constant = self.kept[call.target], self.constant[call.target]
            roots = [self._find(self.first[call.target] + i) in padded for i in range(len(kept))]
            removed = {
                ZERO: ~kept & constant.eq(0),
                FOLDED: ~kept & ~constant.isnan() & constant.ne(0),
                UNREAD: ~kept & constant.isnan(),
            }
            because = {PADDED: kept & ~constant.isnan() & constant.ne(0) & torch.tensor(roots)}
            found.append(NodeChanges(call.name, len(kept), int(kept.sum()), indices(removed), indices(because), {}, {}))
        for node, name in self.opaque.items():
            seen = sum(len(self.constant[source]) for source in node.all_input_nodes if source in self.constant)
            found.append(NodeChanges(name, seen, seen, {}, {UNKNOWN: tuple(range(seen))}, {}, {}))
        return tuple(found)

    def _borders(self, call: _Call) -> list[int]:
        """The numbers of the constant channels that a zero-padded convolution would turn into a border."""
        constant = self.constant[call.source]
        stay = self.kept[call.source] & ~constant.isnan() & constant.ne(0) & self._reads(call)
        return [] if call.takes_constants() else (stay.nonzero()[:, 0] + self.first[call.source]).tolist()


def _narrow(call: _Call, channels: _Channels) -> None:
    """Leave the kept channels in the module, and take constants of the others into its bias."""
    module, rows, columns = call.module, channels.kept[call.target], channels.kept[call.source]
    if call.mixes:
        constant = channels.constant[call.source].nan_to_num(0)
        gone = ~columns & constant.ne(0) & channels._reads(call)
        if gone.any():
            bias = _bias(module) + call.weight()[:, gone].sum(2) @ constant[gone]
            module.bias = nn.Parameter(bias.to(module.weight.dtype))  # type: ignore[arg-type]
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.ndim:
            narrow = tensor[rows]
            if call.mixes and tensor.ndim > 1:
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


def _bias(module: nn.Module) -> Tensor:
    bias = getattr(module, "bias", None)
    assert isinstance(module.weight, Tensor)
    return (
        bias.double() if isinstance(bias, Tensor) else module.weight.new_zeros(len(module.weight), dtype=torch.float64)
    )


def _shape(node: Any) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else (0, 0)


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
