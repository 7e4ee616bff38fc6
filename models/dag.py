"""Networks on a directed acyclic graph: edges compute, nodes add. Supernet and compact net are of one class.

Shapes: B samples, n units. The state of a node is (B, n, h, w) in a convolutional net, (B, ..., n) in a fully
connected one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import Parameter

from nas.files import write_bytes, write_json
from nas.models.plan import DEPTHWISE, INPUT, OUTPUT, Edge, Node, Plan, Skip

if TYPE_CHECKING:
    from nas.models.alive_only import Liveness


def right_relu(x: Tensor) -> Tensor:
    """max(x, 0) with derivative 1 at 0, so that a unit whose weights and bias are all zero still gets a gradient."""
    return x.clamp(min=0)  # torch differentiates a clamp to 1 on its boundary, and relu to 0


def identity(x: Tensor) -> Tensor:
    return x


NEARLY_ZERO = 0.01  # times the usual start
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"right_relu": right_relu, "relu": F.relu, "identity": identity}


class DagNode(nn.Module):
    """x = act( sum_j A_j(x_j) + b ) + sum_k s_k x_k + sum_m P_m x_m.

    Edges A_j are convolutions (full, pointwise or depthwise) or matrices, skips have scalar gates s_k, projections P_m
    are matrices on the units. What comes from another level is brought to the resolution of this node first
    (`resample`).

    A unit is row i of every edge together with entry i of the bias. The activation maps 0 to 0, so that a unit whose
    row is zero puts out exactly 0 (plus what the skips bring). Edges start with He's variance, before no rectifier with
    half of it (of kernels that grow the core alone), nearly at zero where a trunk goes on; blocks, gates and
    projections at 0 (gates of trunks, and of a node without rows, which is nothing but its skips, at 1).
    """

    rows: Tensor | None
    bias: Tensor

    def __init__(
        self,
        plan: Node,
        units: Mapping[str, int],
        levels: Mapping[str, int],
        unit_axis: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()

        def started(name: str, start: Callable[[], Tensor]) -> Parameter:
            return Parameter(start() if weights is None else weights[name])

        self.plan, self.unit_axis = plan, unit_axis
        self.levels = {source: level - plan.level for source, level in levels.items()}
        self.activation = ACTIVATIONS[plan.activation]
        self.edges = nn.ParameterDict(
            {
                edge.key: started(f"edges.{edge.key}", partial(_start, plan, edge, units[edge.source]))
                for edge in plan.edges
            }
        )
        is_open = not plan.num_rows or any(skip.trunk for skip in plan.skips)
        if plan.bias:
            self.bias = started("bias", lambda: torch.zeros(plan.num_rows))
        self.gates = started("gates", lambda: torch.full((len(plan.skips),), 1.0 if is_open else 0.0))
        if not plan.bias:
            self.register_buffer("bias", self.gates.detach().new_zeros(plan.num_rows), persistent=False)
        self.projections = nn.ParameterDict(
            {
                source: started(f"projections.{source}", partial(torch.zeros, plan.units, units[source]))
                for source in plan.projections
            }
        )
        self._keep_indices("rows", plan.rows)
        links: dict[str, Edge | Skip] = {f"edge{k}": edge for k, edge in enumerate(plan.edges)}
        for name, link in (links | {f"skip{k}": skip for k, skip in enumerate(plan.skips)}).items():
            self._keep_indices(f"{name}_take", link.take)
            self._keep_indices(f"{name}_put", link.put)

    def _keep_indices(self, name: str, indices: tuple[int, ...] | None) -> None:
        buffer = None if indices is None else torch.tensor(indices, dtype=torch.long).to(self.gates.device)
        self.register_buffer(name, buffer, persistent=False)

    def weighted_edges(self) -> Iterator[tuple[Edge, Parameter]]:
        """The edges with their weights."""
        return ((edge, self.edges[edge.key]) for edge in self.plan.edges)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        x = self.computed(states)
        if self.rows is not None:
            x = _zeros_like(x, self.plan.units, self.unit_axis).index_copy_(self.unit_axis, self.rows, x)
        ours = self.rows is not None
        for k, term in enumerate(self.brought(states).values()):
            x, ours = (self._placed(x, term, f"skip{k}", ours) if k < len(self.plan.skips) else x + term), True
        return x

    def computed(self, states: Mapping[str, Tensor]) -> Tensor:
        """act( sum_j A_j(x_j) + b ), on the rows that this node computes."""
        return self.activation(self._sum_edges(states))

    def brought(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the skips bring, s_k x_k on the units that they join, then the projections P_m x_m, by their sources."""
        skips = zip(self.plan.skips, self.gates, strict=True)
        terms = {s.source: gate * self._taken(states[s.source], f"skip{k}") for k, (s, gate) in enumerate(skips)}
        for name in self.projections:
            terms[name] = _apply(None, states[name], self._matrix(name), None, self.levels[name])
        return terms

    def _matrix(self, source: str) -> Tensor:
        """The weight of a projection."""
        matrix: Tensor = self.projections[source]
        return matrix if self.unit_axis == -1 else matrix[:, :, None, None]

    def _sum_edges(self, states: Mapping[str, Tensor]) -> Tensor:
        """sum_j A_j(x_j) + b, on the rows that this node computes."""
        total, bias = None, self.bias if self.plan.bias else None
        for k, (edge, weight) in enumerate(self.weighted_edges()):
            source, levels = self._taken(states[edge.source], f"edge{k}"), self.levels[edge.source]
            if total is None and edge.put is None:
                total, bias = _apply(edge, source, weight, bias, levels), None
            else:
                term = _apply(edge, source, weight, None, levels)
                start = _zeros_like(term, self.plan.num_rows, self.unit_axis) if total is None else total
                total = self._placed(start, term, f"edge{k}", total is None)
        if total is None:
            total = _zeros_like(resample(states[INPUT], self.levels[INPUT]), self.plan.num_rows, self.unit_axis)
        if bias is not None:
            total = total + (bias if self.unit_axis == -1 else bias[:, None, None])
        return total

    def _taken(self, x: Tensor, link: str) -> Tensor:
        """The units of a source that a link reads."""
        take = getattr(self, f"{link}_take")
        return x if take is None else x.index_select(self.unit_axis, take)

    def _placed(self, x: Tensor, term: Tensor, link: str, ours: bool) -> Tensor:
        """``x`` plus what a link brings; in place where ``x`` is ours, and no gradient still needs it as it is."""
        put = getattr(self, f"{link}_put")
        if put is None:
            return x + term
        return x.index_add_(self.unit_axis, put, term) if ours else x.index_add(self.unit_axis, put, term)


def _squares(x: Tensor, side: int) -> Tensor:
    """(B, n, h, w) as (B, h / side, w / side, n side^2); without a copy where one square is all of the picture."""
    squares: Tensor = x.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3)


def _picture_of(squares: Tensor, side: int) -> Tensor:
    """The inverse of `_squares`."""
    x: Tensor = squares.unflatten(-1, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4).flatten(2, 3)


def _zeros_like(x: Tensor, units: int, axis: int) -> Tensor:
    """Zeros in the shape of ``x`` but for the number of units."""
    shape = list(x.shape)
    shape[axis] = units
    return x.new_zeros(shape)


def resample(x: Tensor, levels: int) -> Tensor:
    """``x`` (B, n, h, w) with twice the resolution ``levels`` times (nearest), or, if negative, half of it (means)."""
    if levels > 0:
        return F.interpolate(x, scale_factor=2**levels, mode="nearest")
    return F.avg_pool2d(x, 2**-levels) if levels < 0 else x


def _apply(edge: Edge | None, x: Tensor, weight: Tensor, bias: Tensor | None, levels: int) -> Tensor:
    """What an edge (or projection) makes of ``x``, which is ``levels`` below its node: pixels are repeated last, where
    that is the same."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    last = levels if weight.shape[-1] == 1 and levels > 0 else 0
    groups = len(weight) if edge is not None and edge.operation == DEPTHWISE else 1
    y = F.conv2d(resample(x, levels - last), weight, bias, padding=weight.shape[-1] // 2, groups=groups)
    return resample(y, last)


@torch.no_grad()
def _start(node: Node, edge: Edge, units: int) -> Tensor:
    """Weights that keep the scale of signals, on the core of the kernel, from so many units; nearly zero for what a
    trunk gains, 0 for a block."""
    weight = torch.zeros(edge.shape(node.num_rows, units))
    gain = 1.0 if node.activation == "identity" else 2.0
    scale = NEARLY_ZERO if any(skip.trunk for skip in node.skips) else 1.0
    if not edge.block:
        rim = ((edge.kernel or 0) - (edge.core or edge.kernel or 0)) // 2
        core = weight[..., rim : edge.kernel - rim, rim : edge.kernel - rim] if edge.kernel else weight
        core.normal_(std=scale * math.sqrt(gain / max(1, core[:1].numel())))
    return weight


class DagNet(nn.Module):
    r"""The network of a `Plan`; supernet and compact net alike.

        picture - offset --> patches to units --> in --> n1 --> n2 --> out --> units to patches --> + offset
                                                    \     \---gate---^          (a residual net: --> + picture)
                                                     \------gate-----/

    The output of a residual net starts at nearly zero: it changes nothing, and gradients pass.

    Args:
        plan: the architecture. Input and output are pictures (B, channels, height, width) of any size, or
            vectors (B, channels) where ``plan.patch`` is None; the input has ``plan.extra`` channels more. Where
            ``plan.pooled`` the output is (B, units of "out").
        weights: for every node by name its parameters by name, in the shapes of ``plan``, instead of new ones; they
            are not copied.

    Raises:
        ValueError: a node reads a node that is not before it, a skip joins nodes of different width, an even kernel
            size, an unknown activation, or the last node is not "out".
    """

    def __init__(self, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        super().__init__()
        plan.check(ACTIVATIONS)
        self.plan = plan
        self.unit_axis = 1 if plan.is_convolutional else -1
        self.liveness: Liveness | None = None  # within `nas.models.alive_only`
        units, levels, given = plan.units, plan.node_levels, weights or {}
        self.nodes = nn.ModuleDict(
            {node.name: DagNode(node, units, levels, self.unit_axis, given.get(node.name)) for node in plan.nodes}
        )
        if plan.residual and weights is None:
            for weight in self.named_nodes()[OUTPUT].edges.values():
                weight.data.mul_(NEARLY_ZERO)

    def named_nodes(self) -> dict[str, DagNode]:
        """The nodes by name, in topological order."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, DagNode)}

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self._where_alive(x) or self.states(x), x)

    def states(self, x: Tensor) -> dict[str, Tensor]:
        """The state of every node for the input ``x``, "in" first; `unit_axis` is the axis of their units."""
        states = {INPUT: self._enter(x)}
        for name, node in self.nodes.items():
            states[name] = node(states)
        return states

    def _where_alive(self, x: Tensor) -> dict[str, Tensor]:
        """The state of the last node, computed where it is not zero, within `nas.models.alive_only`; nothing where all
        is computed, as it is if that costs no more, compiled, and by autocast."""
        if torch.compiler.is_compiling() or self.liveness is None or torch.is_autocast_enabled("cpu"):
            return {}  # in this order: what is compiled does not depend on `liveness`
        alive = self.liveness() if x.numel() else None
        return {} if alive is None else {OUTPUT: alive(self._enter(x), self.liveness.weights())}

    def _enter(self, x: Tensor) -> Tensor:
        if self.plan.extra:
            x = torch.cat([self._picture(x) - self.plan.offset, x[:, self.plan.channels :]], dim=1)
        else:
            x = x - self.plan.offset
        if self.plan.patch is None:
            return x
        height, width = x.shape[-2:]
        multiple = self.plan.patch * 2**self.plan.levels
        missing = (0, -width % multiple, 0, -height % multiple)
        x = F.pad(x, missing, mode="replicate") if any(missing) else x
        if self.unit_axis == -1:
            return _squares(x, self.plan.patch)
        x = F.pixel_unshuffle(x, self.plan.patch)
        if x.dtype == torch.float64:
            return x  # on doubles that are channels-last torch's depthwise kernels take 5 times as long
        return x.clone(memory_format=torch.channels_last)  # up to 1.7 x as fast; contiguous() skips one channel

    def output(self, states: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """What the network returns for the input ``x``, of its `states`."""
        state = states[OUTPUT]
        if self.plan.pooled:
            positions = tuple(axis for axis in range(1, state.ndim) if axis != self.unit_axis % state.ndim)
            return state.mean(positions) if positions else state
        if self.plan.patch is not None:
            shuffled = _picture_of if self.unit_axis == -1 else F.pixel_shuffle
            state = shuffled(state, self.plan.patch)[..., : x.shape[-2], : x.shape[-1]]
        return state + (self._picture(x) if self.plan.residual else self.plan.offset)

    def _picture(self, x: Tensor) -> Tensor:
        """The input without what is beside the picture."""
        return x[:, : self.plan.channels] if self.plan.extra else x

    def unit_parameters(self) -> dict[str, list[Parameter]]:
        """For each searched node the tensors whose i-th slices are its unit i: its edges but for blocks, its bias; and
        the same of the nodes that are tied to it, but for depthwise edges, whose kernels belong to no unit there."""
        members: dict[str, list[Parameter]] = {}
        for name, node in self.named_nodes().items():
            if node.plan.searched or node.plan.tied is not None:
                left_out = (DEPTHWISE,) if node.plan.tied is not None else ()
                edges = [A for e, A in node.weighted_edges() if not e.block and e.operation not in left_out]
                biases = [node.bias] if isinstance(node.bias, Parameter) else []
                members.setdefault(node.plan.tied or name, []).extend([*edges, *biases])
        return members

    def gate_parameters(self) -> dict[str, Parameter]:
        """For each node that searched skips arrive at the vector of its gates, in the order of ``node.skips``."""
        return {
            f"{name}.gates": node.gates
            for name, node in self.named_nodes().items()
            if node.plan.skips and not node.plan.skips[0].trunk
        }

    def whole_units(self) -> set[str]:
        """The nodes whose units together are a unit, too."""
        return {name for name, node in self.named_nodes().items() if node.plan.whole}

    def block_parameters(self) -> dict[str, tuple[Parameter, int | None]]:
        """The weights of the blocks, with the side of the cores of kernels that grow: a group is a block, in it each of
        its rows, and in these the rings."""
        return {name: (weight, edge.core) for name, (edge, weight) in self._named_edges().items() if edge.block}

    def growing_parameters(self) -> dict[str, tuple[Parameter, int]]:
        """The weights whose kernels grow and that are no blocks, with the side of their cores."""
        return {
            name: (weight, edge.core)
            for name, (edge, weight) in self._named_edges().items()
            if edge.core is not None and not edge.block
        }

    def _named_edges(self) -> dict[str, tuple[Edge, Parameter]]:
        return {
            f"{name}.edges.{edge.key}": (edge, weight)
            for name, node in self.named_nodes().items()
            for edge, weight in node.weighted_edges()
        }

    def projection_parameters(self) -> dict[str, Parameter]:
        """The matrices of the projections, (units, units of the source) each: a matrix is one group."""
        return {
            f"{name}.projections.{source}": matrix
            for name, node in self.named_nodes().items()
            for source, matrix in node.projections.items()
        }

    def save_pretrained(self, folder: Path | str) -> None:
        """Write model.safetensors and config.json (the plan) into ``folder``; `nas.models.load` reads them.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(folder / "model.safetensors", save(tensors))
        write_json(folder / "config.json", self.plan.to_dict())
