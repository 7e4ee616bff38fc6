"""The channels of any model, from its graph: which of them live and die together."""

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nas.operations import Kind, Step, asks_for_other_sizes, changes_in_place, function_name, shape, step_of, width


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
        self.graph = trace(model, example)
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
        self.numbers = {node: roots[first : first + width(node)] for node, first in self._first.items()}

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._first]
        if asks_for_other_sizes(node):
            return
        if node.op == "output" or len(shape(node)) < 2:
            self._leave_alone(node, sources)
            return
        if changes_in_place(node, self._module(node)):
            self._change(node, sources)
        step = self._step(node, sources)
        self._first[node] = len(self._parent)
        self._parent.extend(range(len(self._parent), len(self._parent) + width(node)))
        self.stays[node] = torch.full((width(node),), step.kind is Kind.UNKNOWN)
        self.steps[node] = step
        if step.kind is not Kind.UNKNOWN:
            self._tie(step)
        elif node.op not in ("placeholder", "get_attr"):
            self._leave_alone(node, sources)

    def _step(self, node: fx.Node, sources: list[fx.Node]) -> Step:
        module = self._module(node)
        if module is not None and self._uses[node.target] > 1 and any(True for _ in module.parameters()):
            return Step(Kind.UNKNOWN, node, tuple(sources), module)  # called twice, on other channels each time
        return step_of(node, sources, module)

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

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
            made_of = [self._first[source] + i for source in step.sources for i in range(width(source))]
            self._unite(step.node, made_of)
            return
        repeat = width(step.node) // width(step.sources[0])  # 1 but for a flatten
        for source in step.sources:
            self._unite(step.node, [self._first[source] + i // repeat for i in range(width(step.node))])

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


def trace(model: nn.Module, example: Tensor | None = None) -> fx.Graph:
    """The graph of a model, with the shapes of all tensors if an ``example`` is given.

    Raises:
        ValueError: `torch.fx` cannot trace it.
    """
    try:
        traced = fx.symbolic_trace(model)
        if example is not None:
            ShapeProp(traced).propagate(example)
    except Exception as problem:  # whatever a foreign forward raises
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {line}") from None
    return traced.graph
