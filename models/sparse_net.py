"""A network of which most is zero, as one function: a sweep over its nodes, and one back with the gradients.

Shapes as in `nas.models.sparse_edges`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.models.plan import INPUT, OUTPUT
from nas.models.sparse_edges import Picks, SparseEdge, at_level, picked, spread

SLOPE_ONE = {"right_relu": torch.ge, "relu": torch.gt}  # where they have slope 1: at z >= 0, at z > 0; elsewhere 0


@dataclass(frozen=True)
class SparseSkip:
    """A skip s x.

    Attributes:
        source: the name of its source.
        units: the units of the source that can be other than zero, which are those of its state; None: all.
        put: where these lie in what its node emits; None: they are all of it.
    """

    source: str
    units: Tensor | None
    put: Tensor | None


@dataclass(frozen=True)
class NodeWeights:
    """The parameters of a node: the A_j, P_m, b and the s_k."""

    edges: Sequence[Tensor]
    projections: Sequence[Tensor]
    bias: Tensor | None
    gates: Tensor | None


class StateGradients:
    """The gradients at the states, whose terms come one by one; at that of the input only if ``at_input``."""

    def __init__(self, at_output: Tensor, at_input: bool) -> None:
        self._sums: dict[str, Tensor | None] = {OUTPUT: at_output}
        self._like, self._at_input = at_output, at_input

    def expects(self, source: str) -> bool:
        """Whether terms at this state are of use. If none comes, it is zero."""
        self._sums.setdefault(source, None)
        return source != INPUT or self._at_input

    def add(self, source: str, term: Tensor) -> None:
        """Add a term that is ours."""
        total = self._sums[source]
        self._sums[source] = term if total is None else total.add_(term)

    def pop(self, name: str, shape: Sequence[int]) -> Tensor | None:
        """The one at this state, which is ours; None if the output does not depend on it."""
        if name not in self._sums:
            return None
        total = self._sums.pop(name)
        return self._like.new_zeros(shape) if total is None else total


@dataclass(frozen=True)
class SparseNode:
    """A node x = act( sum_j A_j x_j + b ) + sum_k s_k x_k + sum_m P_m x_m of which a part is zero.

    Attributes:
        name: its name.
        units: n, how many it has.
        emits: (c,) those that can be other than zero; None: all.
        rows: (r,) the rows R of the sum before the activation that can; None: all.
        put: where R lies in what it emits; None: it is all of it.
        edges: the A_j.
        projections: the P_m.
        skips: the s_k.
        activation: a key of `nas.models.dag.ACTIVATIONS`.
        has_bias: whether there is a b.
        level: how often its resolution is halved.
    """

    name: str
    units: int
    emits: Tensor | None
    rows: Tensor | None
    put: Tensor | None
    edges: tuple[SparseEdge, ...]
    projections: tuple[SparseEdge, ...]
    skips: tuple[SparseSkip, ...]
    activation: str
    has_bias: bool
    level: int

    def weights(self, tensors: Iterator[Tensor]) -> NodeWeights:
        """Its own, which are the next ones."""
        edges, projections = ([next(tensors) for _ in each] for each in (self.edges, self.projections))
        bias = next(tensors) if self.has_bias else None
        return NodeWeights(edges, projections, bias, next(tensors) if self.skips else None)

    @property
    def num_weights(self) -> int:
        """How many tensors these are."""
        return len(self.edges) + len(self.projections) + self.has_bias + bool(self.skips)

    def output(self, states: Mapping[str, Tensor], own: NodeWeights, grid: torch.Size) -> tuple[Tensor, Tensor | None]:
        """x on what it emits, (c, positions), and the slope of the activation on R, (r, positions)."""

        def brought(edges: Sequence[SparseEdge], weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
            members = [(edge, A) for edge, A in zip(edges, weights, strict=True) if not edge.is_silent]
            return [(edge.output(states[edge.source], A, grid), edge.put) for edge, A in members]

        shape, like = (self.units, grid.numel()), states[INPUT]
        z = _sum(brought(self.edges, own.edges), self.rows, shape, like)
        if own.bias is not None:
            z.add_(picked(own.bias, self.rows)[:, None])
        slope = None
        if self.activation in SLOPE_ONE:
            slope = SLOPE_ONE[self.activation](z, 0, out=torch.empty_like(z))  # a float mask: as a bool it is slow
            z.clamp_(min=0)
        skips = [(gate * states[skip.source], skip.put) for skip, gate in self._gated(own) if gate]
        terms = [(z, self.put), *skips, *brought(self.projections, own.projections)]
        return _sum(terms, self.emits, shape, like), slope

    def gradients(
        self,
        g: Tensor,
        slope: Tensor | None,
        states: Mapping[str, Tensor],
        own: NodeWeights,
        grid: torch.Size,
        at_states: StateGradients,
    ) -> list[Tensor]:
        """Those at its weights, from the gradient ``g`` (n, positions) at x, which is ours; and those `at_states`.

        With h = act' g they are h x_j^T at A_j, g x_m^T at P_m, h at b and <g, x_k> at s_k; and A_j^T h, P_m^T g and
        s_k g at the states. Of what is zero only its own gradient is computed.
        """

        def through(edge: SparseEdge, weight: Tensor, g: Picks) -> Tensor:
            if at_states.expects(edge.source) and edge.rim is not None:
                at_states.add(edge.source, edge.to_source(g, weight, grid))
            return edge.to_weight(g, states[edge.source], weight, grid)

        at_x = Picks(g)
        skipped = [(skip.units, states[skip.source]) for skip in self.skips]
        to_gates = [(at_x.rows(units, like=x) * x).sum() for units, x in skipped]
        to_projections = [through(edge, P, at_x) for edge, P in zip(self.projections, own.projections, strict=True)]
        for skip, gate in self._gated(own):
            if at_states.expects(skip.source) and gate:
                at_states.add(skip.source, gate * g)
        h = at_x if slope is None else self._before_activation(at_x, slope)
        to_edges = [through(edge, A, h) for edge, A in zip(self.edges, own.edges, strict=True)]
        to_bias = [] if own.bias is None else [h.whole.sum(1)]
        return [*to_edges, *to_projections, *to_bias, *([torch.stack(to_gates)] if to_gates else [])]

    def _before_activation(self, g: Picks, slope: Tensor) -> Picks:
        """h = act' g, in place of ``g``. On rows that sleep the slope is that at 0: 1, or 0 of relu."""
        alive = g.rows(self.rows, like=slope).mul_(slope)
        if self.rows is not None:
            if self.activation == "relu":
                g.whole.zero_()
            g.put(self.rows, alive)
        return g

    def _gated(self, own: NodeWeights) -> list[tuple[SparseSkip, float]]:
        return list(zip(self.skips, [] if own.gates is None else own.gates.tolist(), strict=True))


@dataclass(frozen=True)
class SparseNet:
    """The nodes of a network of which a part is zero.

    Attributes:
        nodes: in topological order.
        unit_axis: of its input and output.
    """

    nodes: tuple[SparseNode, ...]
    unit_axis: int

    @property
    def saves(self) -> bool:
        """Whether torch would take longer: parts need not be computed, or it is slow at depthwise kernels, and at the
        slope of a clamp on pictures."""
        edges = [edge for node in self.nodes for edge in (*node.edges, *node.projections)]
        return (
            any(edge.units is not None or edge.rim != 0 or edge.depthwise for edge in edges)
            or any(node.rows is not None for node in self.nodes)
            or (self.unit_axis == 1 and any(node.activation == "right_relu" for node in self.nodes))
        )

    def __call__(self, x: Tensor, weights: Iterable[Tensor]) -> Tensor:
        """The state of the last node, of that of the input and of the weights of all nodes; differentiable once."""
        result: Tensor = _Sweeps.apply(self, x, *weights)  # type: ignore[no-untyped-call]
        return result


class _Sweeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: SparseNet, x: Tensor, *weights: Tensor) -> Tensor:
        tensors, slopes, states = iter(weights), [], {INPUT: _matrix(x, net.unit_axis)}
        grid = x.movedim(net.unit_axis, -1).shape[:-1]
        for node in net.nodes:
            states[node.name], slope = node.output(states, node.weights(tensors), at_level(grid, node.level))
            slopes.append(slope)
        y, last = states.pop(OUTPUT), net.nodes[-1]
        ctx.net, ctx.grid, ctx.names = net, grid, list(states)
        ctx.save_for_backward(*states.values(), *slopes, *weights)
        return _state(spread(y, last.emits, (last.units, y.shape[1])), at_level(grid, last.level), net.unit_axis)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # `once_differentiable` lets some pass, with wrong results
            raise RuntimeError("no gradients of gradients (create_graph=True) within alive_only")
        net, grid, tensors = ctx.net, ctx.grid, iter(ctx.saved_tensors)
        states = {name: next(tensors) for name in ctx.names}
        slopes = [next(tensors) for _ in net.nodes]
        weights = [node.weights(tensors) for node in net.nodes]
        at_states = StateGradients(_matrix(gradient, net.unit_axis).clone(), at_input=ctx.needs_input_grad[1])
        at_weights: list[Tensor | None] = []
        for node, slope, own in reversed(list(zip(net.nodes, slopes, weights, strict=True))):
            here = at_level(grid, node.level)
            g = at_states.pop(node.name, (node.units, here.numel()))
            if g is None:
                at_weights[:0] = [None] * node.num_weights
            else:
                at_weights[:0] = node.gradients(g, slope, states, own, here, at_states)
        x = at_states.pop(INPUT, states[INPUT].shape) if ctx.needs_input_grad[1] else None
        return None, None if x is None else _state(x, grid, net.unit_axis), *at_weights


def _sum(
    terms: Sequence[tuple[Tensor, Tensor | None]], units: Tensor | None, shape: tuple[int, int], like: Tensor
) -> Tensor:
    """The sum of terms that are ours, (units, positions), each with its place in it; None: it is all of it."""
    whole = [term for term, put in terms if put is None]
    total = whole[0] if whole else like.new_zeros(shape[0] if units is None else len(units), shape[1])
    for term in whole[1:]:
        total.add_(term)
    for term, put in terms:
        if put is not None:
            total.index_add_(0, put, term)
    return total


def _matrix(x: Tensor, unit_axis: int) -> Tensor:
    """(B, n, h, w), (..., n) or (n,) -> (n, positions)."""
    return x.movedim(unit_axis, -1).reshape(-1, x.shape[unit_axis]).T


def _state(x: Tensor, grid: torch.Size, unit_axis: int) -> Tensor:
    """(n, positions) -> (B, n, h, w) or (..., n)."""
    return x.T.reshape(*grid, len(x)).movedim(-1, unit_axis)
