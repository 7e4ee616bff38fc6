"""What any module computes: its graph of primitive operations, traced by `torch.export`."""

import contextlib
import copy
import functools
import gc
import io
import logging
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import config
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from nas.outputs import tensors_in, unpack_outputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
AUTOCAST = "wrap_with_autocast"
REGIONS = {AUTOCAST, "wrap_with_set_grad_enabled"}
VIEWS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}  # return their input in evaluation


@dataclass(frozen=True)
class Example:
    """What a module is called with: one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Inputs) -> "Example":
        """One tensor; a tuple or list of arguments; or a mapping of keyword arguments.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(inputs, Tensor | Sequence | Mapping) or isinstance(inputs, str):
            raise ValueError(
                "inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments, got "
                f"{type(inputs).__name__}"
            )
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {})

    def map(self, change: Any) -> "Example":
        """With ``change(tensor)`` instead of each tensor."""
        args, kwargs = tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, (self.args, self.kwargs))
        return Example(args, kwargs)

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def __str__(self) -> str:
        return " and ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in self.tensors())


@dataclass(frozen=True)
class Graph:
    """The operations of a module on one batch.

    Attributes:
        nodes: operations of `torch.ops.aten` and what they read, in order. What an operation writes in place, later
            ones read from its result.
        stored: by node the tensor that the module holds, or that its forward makes of numbers.
        names: by node the name of a stored tensor that is a parameter or buffer; shared ones have one name.
        outputs: the tensors that the module returns.
        changed: what is written in place while a view of it, or what it is a view of, is read later.
    """

    nodes: tuple[fx.Node, ...]
    stored: dict[fx.Node, Tensor]
    names: dict[fx.Node, str]
    outputs: tuple[fx.Node, ...]
    changed: frozenset[fx.Node]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := dict(model.named_children()).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the CPU.

    Raises:
        ValueError: it cannot be copied, since some of its weights are computed from others; or it has lazy parameters.
    """
    if any(nn.parameter.is_lazy(p) for p in [*model.parameters(), *model.buffers()]):
        raise ValueError(f"{type(model).__name__} has parameters without a shape; run one batch first")
    try:
        return copy.deepcopy(model).cpu()
    except RuntimeError:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, since some of its weights are computed from others; make them "
            "parameters first, as torch.nn.utils.prune.remove does"
        ) from None


def call(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors among what a module returns for a copy of the batch, which it may change.

    Raises:
        ValueError: the module raises, or returns no tensor.
    """
    name, cloned = type(model).__name__, example.map(Tensor.clone)
    try:
        outputs = model(*cloned.args, **cloned.kwargs)
    except Exception as problem:  # whatever a foreign forward raises
        raise ValueError(f"{name} cannot compute inputs of {example} (one batch): {first_line(problem)}") from None
    found = tensors_in(outputs)
    if not found:
        raise ValueError(f"{name} returns no tensor, but {type(outputs).__name__}")
    return found


def call_copy(model: nn.Module, example: Example, original: nn.Module) -> list[Tensor]:
    """As `call`, of a copy of a module, perhaps in another precision, whose forward has to leave its parameters alone.

    Raises:
        ValueError: it changes some; or as `call`.
    """
    found = call(model, example)
    before = dict(original.named_parameters())
    refuse_new(model, before)
    for name, p in model.named_parameters():
        was = before[name].to(p)
        if not torch.equal(p, was) and not torch.allclose(p, was, rtol=0, atol=0, equal_nan=True):
            raise ValueError(f"{type(model).__name__} changes its own weights while it computes, such as {name}")
    return found


def refuse_new(model: nn.Module, known: Collection[str]) -> None:
    """Refuse a module with parameters that it did not have before its forward, by their names."""
    if new := [name for name, _ in model.named_parameters() if name not in known]:
        raise ValueError(
            f"{type(model).__name__} makes parameters in its first forward, such as {new[0]}; run one batch first"
        )


@torch.no_grad()
def trace(model: nn.Module, example: Example, *, training: bool = False) -> Graph:
    """The graph of a module in evaluation or training mode, from a copy that is thrown away.

    Raises:
        ValueError: the module cannot be copied, run or traced.
    """
    scratch = copied(model).train(training)
    for module in scratch.modules():
        if isinstance(module, _BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # a mean over all batches is weighted by a number that no graph has
    unpack_outputs(scratch)
    example, known = example.map(Tensor.cpu), dict(scratch.named_parameters())
    try:
        with silence(), _haste():
            program = torch.export.export(
                scratch, example.map(Tensor.clone).args, example.map(Tensor.clone).kwargs, strict=False
            )
    except Exception as problem:
        call_copy(copied(model).train(training), example, model)  # says what is wrong with the model or the inputs
        raise ValueError(f"torch.export cannot trace {type(model).__name__}: {first_line(problem)}") from None
    refuse_new(scratch, known)
    if any(isinstance(size, torch.SymInt) for node in program.graph.nodes for size in _sizes(node)):
        raise ValueError(f"{type(model).__name__} makes tensors whose sizes depend on the numbers that it is given")
    return _graph(program, model)


def _graph(program: "ExportedProgram", model: nn.Module) -> Graph:
    from torch.export.graph_signature import InputKind  # takes a second to load, as torch.export does

    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    first: dict[int, str] = {}
    for name, tensor in held.items():
        first.setdefault(id(tensor), name)
    nodes = {node.name: node for node in program.graph.nodes}
    stored, names = {}, {}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        target = str(spec.target)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and target in held:
            stored[node], names[node] = held[target].detach().cpu(), first[id(held[target])]
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            stored[node] = program.constants[target].detach()
    inline(program.graph_module)
    _spell_out_gates(program.graph)
    changed = _read_results(program.graph)
    [output] = program.graph.find_nodes(op="output")
    listed = tuple(node for node in program.graph.nodes if node.op != "output")
    return Graph(listed, stored, names, tuple(output.all_input_nodes), frozenset(changed))


def inline(module: fx.GraphModule) -> None:
    """Let regions of another precision or without gradients be part of the graph around them."""
    for node in [each for each in module.graph.nodes if str(each.target) in REGIONS]:
        place = next(k for k, each in enumerate(node.args) if isinstance(each, fx.Node) and each.op == "get_attr")
        inner: Any = getattr(module, str(node.args[place].target))
        inline(inner)
        known = dict(zip(inner.graph.find_nodes(op="placeholder"), node.args[place + 1 :], strict=True))
        with module.graph.inserting_before(node):
            outputs = module.graph.graph_copy(inner.graph, known)
        for user in list(node.users):
            user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
            module.graph.erase_node(user)
        module.graph.erase_node(node)


def _spell_out_gates(graph: fx.Graph) -> None:
    """Let gated linear units be products of one half of their channels and of the sigmoid of the other."""
    for node in [each for each in graph.nodes if operation(each) == "glu"]:
        x, axis = (*node.args, node.kwargs.get("dim", -1))[:2]

        def put(target: Any, *args: Any, like: fx.Node = node) -> fx.Node:
            new = graph.call_function(target, args)
            new.meta = like.meta | {"val": target(*fx.node.map_arg(args, _value))}
            return new

        with graph.inserting_before(node):
            halves = put(torch.ops.aten.chunk.default, x, 2, axis)
            first, second = (put(operator.getitem, halves, k) for k in (0, 1))
            gated = put(torch.ops.aten.mul.Tensor, first, put(torch.ops.aten.sigmoid.default, second))
        node.replace_all_uses_with(gated)
        graph.erase_node(node)


def _read_results(graph: fx.Graph) -> set[fx.Node]:
    """Let operations read the results of earlier ones in place; what is seen through views, too, is returned."""
    order = {node: k for k, node in enumerate(graph.nodes)}
    families: dict[fx.Node, list[fx.Node]] = {}  # by node all that are views of the same, up to here
    changed: set[fx.Node] = set()
    for node in graph.nodes:
        source = _seen_through(node)
        family = [] if source is None else families[source]
        for target in written(node):
            later = [user for user in target.users if order[user] > order[node]]
            target.replace_all_uses_with(node, delete_user_cb=later.__contains__)
            family = families[target]
            if any(order[user] > order[node] for other in family for user in other.users):
                changed.update([node, *family])
        family.append(node)
        families[node] = family
    return changed


def _schema(node: fx.Node) -> torch.FunctionSchema | None:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None


@functools.cache
def _parameters(overload: torch._ops.OpOverload) -> list[torch.Argument]:
    return list(overload._schema.arguments)


def _arguments(node: fx.Node) -> Iterator[tuple[torch.Argument, Any]]:
    """The arguments in the schema of an operation, with what is given for them."""
    if isinstance(node.target, torch._ops.OpOverload):
        for k, argument in enumerate(_parameters(node.target)):
            given = node.args[k] if k < len(node.args) else node.kwargs.get(argument.name)
            yield argument, given


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operation changes in place."""
    return [
        given
        for argument, given in _arguments(node)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, fx.Node)
    ]


def _seen_through(node: fx.Node) -> fx.Node | None:
    """The tensor that the result of an operation may be a view of."""
    if node.target is operator.getitem or operation(node) in VIEWS:
        return node.all_input_nodes[0]
    for argument, given in _arguments(node):
        if argument.alias_info is not None and not argument.alias_info.is_write and isinstance(given, fx.Node):
            return given
    return None


def operation(node: fx.Node) -> str:
    """The name of a primitive operation without its variant, and without the mark of what works in place."""
    if node.target is operator.getitem:
        return "getitem"
    schema = _schema(node)
    name = str(node.target) if schema is None else str(schema.name)  # type: ignore[attr-defined, unused-ignore]
    return name.rpartition("::")[2].rstrip("_")


def shape(node: fx.Node) -> tuple[int, ...]:
    """Of a tensor; empty for anything else."""
    return tuple(map(int, _sizes(node)))


def _value(node: fx.Node) -> Any:
    """What stands for the result of an operation while it is traced."""
    return node.meta.get("val")


def _sizes(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    value = _value(node)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def owner(node: fx.Node) -> str:
    """The submodule whose forward does an operation."""
    return str(list(node.meta.get("nn_module_stack", {"": ("", "")}).values())[-1][0])


def lies_in(node: fx.Node, kind: type[nn.Module]) -> bool:
    """Whether an operation is done by the forward of such a module."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return any(str(each) == name for _, each in node.meta.get("nn_module_stack", {}).values())


def called(node: fx.Node) -> str:
    """What to call an operation: a module of torch by its name, else the operation and the submodule it is in."""
    stack = list(node.meta.get("nn_module_stack", {"": ("", "")}).values())
    path, kind = stack[-1]
    if path and str(kind).removeprefix("<class '").startswith("torch.nn."):
        return str(path)
    return f"{operation(node)} in {path}" if path else operation(node)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing of what torch says while it traces is heard."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _haste() -> Iterator[None]:
    """Tracing takes a third less: torch doesn't note the line of each operation, and nobody looks for garbage."""
    noting, collecting = getattr(config, "do_not_emit_stack_traces", False), gc.isenabled()
    config.do_not_emit_stack_traces = True  # unknown to older versions
    gc.disable()
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = noting
        if collecting:
            gc.enable()


def first_line(problem: BaseException) -> str:
    """What a problem says, or its kind if it says nothing."""
    return next(iter(str(problem).splitlines()), "") or type(problem).__name__
