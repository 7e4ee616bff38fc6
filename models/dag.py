"""Networks on a directed acyclic graph: edges compute, nodes add. Supernet and compact net are of one class.

Shapes: B samples, n units. The state of a node is (B, n, h, w) in a convolutional net, (B, ..., n) in a fully
connected one.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from nas.files import replacing, write_json
from nas.models.plan import INPUT, OUTPUT, Node, Plan


def right_relu(x: Tensor) -> Tensor:
    """max(x, 0) with derivative 1 at 0, so that a unit whose weights and bias are all zero still gets a gradient."""
    return x.clamp(min=0)  # torch differentiates a clamp to 1 on its boundary, and relu to 0


def identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"right_relu": right_relu, "relu": F.relu, "identity": identity}


class DagNode(nn.Module):
    """x = act( sum_j A_j(x_j) + b ) + sum_k s_k x_k + sum_m P_m x_m.

    Edges A_j are convolutions or matrices, skips have scalar gates s_k, projections P_m are matrices on the units.
    What comes from another level is brought to the resolution of this node first (`resample`).

    A unit is row i of every edge together with entry i of the bias. The activation maps 0 to 0, so that a unit whose
    row is zero puts out exactly 0 (plus what the skips bring). Edges start with He's variance, blocks, gates and
    projections at 0 (gates at 1 in a node without rows, which is nothing but its skips).
    """

    rows: Tensor | None

    def __init__(self, plan: Node, units: Mapping[str, int], levels: Mapping[str, int], unit_axis: int) -> None:
        super().__init__()
        self.plan, self.unit_axis = plan, unit_axis
        self.levels = {source: level - plan.level for source, level in levels.items()}
        self.activation = ACTIVATIONS[plan.activation]
        self.edges = nn.ParameterDict(
            {source: _he_normal(plan.num_rows, units[source], kernel) for source, kernel in plan.edges.items()}
        )
        for source in plan.blocks:
            nn.init.zeros_(self.edges[source])
        self.bias = Parameter(torch.zeros(plan.num_rows))
        self.gates = Parameter(torch.full((len(plan.skips),), 0.0 if plan.num_rows else 1.0))
        self.projections = nn.ParameterDict(
            {source: Parameter(torch.zeros(plan.units, units[source])) for source in plan.projections}
        )
        self._keep_indices("rows", plan.rows)
        for k, skip in enumerate(plan.skips):
            self._keep_indices(f"take{k}", skip.take)
            self._keep_indices(f"put{k}", skip.put)

    def _keep_indices(self, name: str, indices: tuple[int, ...] | None) -> None:
        buffer = None if indices is None else torch.tensor(indices, dtype=torch.long)
        self.register_buffer(name, buffer, persistent=False)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        axis = self.unit_axis
        x: Tensor = self.activation(self._sum_edges(states))
        if self.rows is not None:
            shape = list(x.shape)
            shape[axis] = self.plan.units
            x = x.new_zeros(shape).index_copy_(axis, self.rows, x)
        ours = self.rows is not None
        for k, (skip, gate) in enumerate(zip(self.plan.skips, self.gates, strict=True)):
            take, put = getattr(self, f"take{k}"), getattr(self, f"put{k}")
            source = states[skip.source]
            term = gate * (source if take is None else source.index_select(axis, take))
            if put is None:
                x = x + term
            elif ours:
                x.index_add_(axis, put, term)
            else:  # the activation still needs its output for the gradient
                x = x.index_add(axis, put, term)
            ours = True
        for name, matrix in self.projections.items():
            weight = matrix if axis == -1 else matrix[:, :, None, None]
            x = x + _apply_edge(self._bring(states, name), weight, None)
        return x

    def _bring(self, states: Mapping[str, Tensor], source: str) -> Tensor:
        return resample(states[source], self.levels[source])

    def _sum_edges(self, states: Mapping[str, Tensor]) -> Tensor:
        """sum_j A_j(x_j) + b, on the rows that this node computes."""
        if not self.edges:
            bias = self.bias if self.unit_axis == -1 else self.bias[:, None, None]
            return bias + torch.zeros_like(resample(states[INPUT].narrow(self.unit_axis, 0, 1), self.levels[INPUT]))
        (first, weight), *others = self.edges.items()
        total = _apply_edge(self._bring(states, first), weight, self.bias)
        for source, weight in others:
            total = total + _apply_edge(self._bring(states, source), weight, None)
        return total


def resample(x: Tensor, levels: int) -> Tensor:
    """``x`` (B, n, h, w) with twice the resolution ``levels`` times (nearest), or, if negative, half of it (means)."""
    if levels > 0:
        return F.interpolate(x, scale_factor=2**levels, mode="nearest")
    return F.avg_pool2d(x, 2**-levels) if levels < 0 else x


def _apply_edge(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _he_normal(rows: int, columns: int, kernel: int | None) -> Parameter:
    weight = torch.empty(rows, columns, *(() if kernel is None else (kernel, kernel)))
    return Parameter(weight.normal_(std=math.sqrt(2 / max(1, weight[:1].numel()))))


class DagNet(nn.Module):
    r"""The network of a `Plan`; supernet and compact net alike.

        picture - offset --> patches to units --> in --> n1 --> n2 --> out --> units to patches --> + offset
                                                    \     \---gate---^          (a residual net: --> + picture)
                                                     \------gate-----/

    Args:
        plan: the architecture. Input and output are pictures (B, channels, height, width) of any size, or
            vectors (B, channels) where ``plan.patch`` is None. Where ``plan.pooled`` the output is (B, units of "out").

    Raises:
        ValueError: a node reads a node that is not before it, a skip joins nodes of different width, an even kernel
            size, an unknown activation, or the last node is not "out".
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        plan.check(ACTIVATIONS)
        self.plan = plan
        self.unit_axis = 1 if plan.is_convolutional else -1
        self.nodes = nn.ModuleDict(
            {node.name: DagNode(node, plan.units, plan.node_levels, self.unit_axis) for node in plan.nodes}
        )

    def named_nodes(self) -> dict[str, DagNode]:
        """The nodes by name, in topological order."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, DagNode)}

    def forward(self, x: Tensor) -> Tensor:
        return self._leave(self.states(x)[OUTPUT], x)

    def states(self, x: Tensor) -> dict[str, Tensor]:
        """The state of every node for the input ``x``, "in" first; `unit_axis` is the axis of their units."""
        states = {INPUT: self._enter(x)}
        for name, node in self.nodes.items():
            states[name] = node(states)
        return states

    def _enter(self, x: Tensor) -> Tensor:
        x = x - self.plan.offset
        if self.plan.patch is None:
            return x
        height, width = x.shape[-2:]
        multiple = self.plan.patch * 2**self.plan.levels
        missing = (0, -width % multiple, 0, -height % multiple)
        x = F.pad(x, missing, mode="replicate") if any(missing) else x
        x = F.pixel_unshuffle(x, self.plan.patch)
        if self.unit_axis == -1:
            return x.permute(0, 2, 3, 1)
        return x.contiguous(memory_format=torch.channels_last)  # convolutions of few channels run up to 1.7 x faster

    def _leave(self, state: Tensor, x: Tensor) -> Tensor:
        if self.plan.pooled:
            positions = tuple(axis for axis in range(1, state.ndim) if axis != self.unit_axis % state.ndim)
            return state.mean(positions) if positions else state
        if self.plan.patch is not None:
            state = state if self.unit_axis == 1 else state.permute(0, 3, 1, 2)
            state = F.pixel_shuffle(state, self.plan.patch)[..., : x.shape[-2], : x.shape[-1]]
        return state + (x if self.plan.residual else self.plan.offset)

    def unit_parameters(self) -> dict[str, list[Parameter]]:
        """For each searched node the tensors whose i-th slices are its unit i: its edges but for blocks, its bias."""
        return {
            name: [*(A for source, A in node.edges.items() if source not in node.plan.blocks), node.bias]
            for name, node in self.named_nodes().items()
            if node.plan.searched
        }

    def gate_parameters(self) -> dict[str, Parameter]:
        """For each node that skips arrive at the vector of its gates, in the order of ``node.skips``."""
        return {f"{name}.gates": node.gates for name, node in self.named_nodes().items() if node.plan.skips}

    def block_parameters(self) -> dict[str, Parameter]:
        """The weights of the blocks: a group is a block, and in it each of its rows."""
        return {
            f"{name}.edges.{source}": node.edges[source]
            for name, node in self.named_nodes().items()
            for source in node.plan.blocks
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
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        replacing(folder / "model.safetensors", lambda temporary: save_file(tensors, temporary))
        write_json(folder / "config.json", self.plan.to_dict())
