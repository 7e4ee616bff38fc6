"""A network as Python source: an ordinary module of torch.nn with literal sizes, which needs nothing of ours."""

import textwrap
from collections.abc import Iterator, Sequence

from torch import Tensor

from nas.models.dag import DagNet
from nas.models.plan import DEPTHWISE, INPUT, OUTPUT, Edge, Node, Plan, Skip

WIDTH = 120  # characters of a line
ACTIVATION_CODE = {"right_relu": "F.relu({})", "relu": "F.relu({})", "identity": "{}"}

TEMPLATE = '''"""A network found by bregman-nas, in plain PyTorch; its weights are in the .safetensors beside it."""

from pathlib import Path

import torch
{imports}from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")
{constants}

class Model(nn.Module):
    """{summary}"""

    def __init__(self) -> None:
        super().__init__()
{layers}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
{forward}
{place}

def load(weights: Path | str = WEIGHTS) -> Model:
    """The network with its weights, ready for use."""
    model = Model()
    model.load_state_dict(load_file(weights))
    return model.eval()
'''

PLACE = '''

def place(x: torch.Tensor, units: list[int], out_of: int) -> torch.Tensor:
    """x as these of ``out_of`` units; the others are zero."""
    y = {zeros}
    y[{units}] = x
    return y
'''


def source_code(plan: Plan) -> str:
    """The source of a module with a class ``Model`` and a function ``load()`` that reads the weights beside it.

    Raises:
        ValueError: two layers would get the same name.
    """
    layers = [line for node in plan.nodes for line in _layers(plan, node)]
    if len({layer.split(" = ")[0] for layer in layers}) < len(layers):
        raise ValueError("the names of the nodes are ambiguous in Python source; rename those with an underscore")
    forward = [*_enter(plan), *(line for node in plan.nodes for line in _node(plan, node)), *_leave(plan)]
    constants = [line for node in plan.nodes for line in _constants(node)]
    text = "\n".join(forward)
    return TEMPLATE.format(
        imports="import torch.nn.functional as F\n" if "F." in text else "",
        constants="".join(line + "\n" for line in constants),
        summary=_summary(plan),
        layers=textwrap.indent("\n".join(layers), 8 * " "),
        forward=textwrap.indent(text, 8 * " "),
        place=_place(plan) if "place(" in text else "",
    )


def named_tensors(net: DagNet) -> dict[str, Tensor]:
    """The parameters of ``net`` by their names in the module of `source_code`."""
    tensors: dict[str, Tensor] = {}
    for name, node in net.named_nodes().items():
        for edge in _edges(node.plan):
            tensors[f"{_edge(net.plan, edge, name)}.weight"] = node.edges[edge.key]
        if node.plan.num_rows and node.plan.bias:
            first = _biased(node.plan)
            tensors[f"bias_{name}" if first is None else f"{_edge(net.plan, first, name)}.bias"] = node.bias
        for source, matrix in node.projections.items():
            weight = matrix[:, :, None, None] if net.plan.is_convolutional else matrix
            tensors[f"projection_{source}_{name}.weight"] = weight
        tensors |= {f"gate_{skip.source}_{name}": s for skip, s in zip(node.plan.skips, node.gates, strict=True)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _edges(node: Node) -> tuple[Edge, ...]:
    """The edges that compute something, first the one that has the bias; none where no row is left."""
    return tuple(sorted(node.edges, key=lambda edge: edge.put is not None)) if node.num_rows else ()


def _biased(node: Node) -> Edge | None:
    """The edge whose layer has the bias of the node."""
    return next((edge for edge in _edges(node) if edge.put is None), None) if node.bias else None


def _edge(plan: Plan, edge: Edge, target: str) -> str:
    return f"{'conv' if plan.is_convolutional else 'linear'}_{edge.key}_{target}"


def _layers(plan: Plan, node: Node) -> Iterator[str]:
    """The lines of ``__init__``."""
    for edge in _edges(node):
        rows, columns = edge.shape(node.num_rows, plan.units[edge.source])[:2]
        depthwise = edge.operation == DEPTHWISE
        sizes = f"{rows if depthwise else columns}, {rows}"
        if edge.kernel is not None:
            sizes += f", {edge.kernel}" + (f", padding={edge.kernel // 2}" if edge.kernel > 1 else "")
        sizes += f", groups={rows}" if depthwise and rows > 1 else ""
        module = "Linear" if edge.kernel is None else "Conv2d"
        bias = "" if edge == _biased(node) else ", bias=False"
        yield f"self.{_edge(plan, edge, node.name)} = nn.{module}({sizes}{bias})"
    if _biased(node) is None and node.bias and node.num_rows:
        yield f"self.bias_{node.name} = nn.Parameter(torch.zeros({node.num_rows}))"
    for source in node.projections:
        sizes = f"{plan.units[source]}, {node.units}"
        module = f"Conv2d({sizes}, 1, bias=False)" if plan.is_convolutional else f"Linear({sizes}, bias=False)"
        yield f"self.projection_{source}_{node.name} = nn.{module}"
    for skip in node.skips:
        yield f"self.gate_{skip.source}_{node.name} = nn.Parameter(torch.ones(()))"


def _constants(node: Node) -> Iterator[str]:
    """The unit numbers of skips that join some units only, and of nodes that compute some only."""
    if node.rows:
        yield _assign(f"ROWS_{node.name}", node.rows)
    links: dict[str, Edge | Skip] = {f"EDGE_{edge.key}": edge for edge in _edges(node)}
    for name, link in (links | {skip.source: skip for skip in node.skips}).items():
        if link.take is not None:
            yield _assign(f"TAKE_{name}_{node.name}", link.take)
        if link.put is not None:
            yield _assign(f"PUT_{name}_{node.name}", link.put)


def _assign(name: str, indices: Sequence[int]) -> str:
    numbers = ", ".join(map(str, indices))
    line = f"{name} = [{numbers}]"
    if len(line) <= WIDTH:
        return line
    return f"{name} = [\n{textwrap.indent(textwrap.fill(numbers + ',', WIDTH - 4), '    ')}\n]  # fmt: skip"


def _enter(plan: Plan) -> Iterator[str]:
    """Pictures to units."""
    x = f"x_{INPUT}"
    if plan.extra:
        yield f"picture = x[:, :{plan.channels}]"
        yield f"{x} = torch.cat([picture - {float(plan.offset)!r}, x[:, {plan.channels}:]], dim=1)"
    else:
        yield f"{x} = x - {float(plan.offset)!r}" if plan.offset else f"{x} = x"
    if _is_padded(plan):
        yield "height, width = x.shape[-2:]"
        multiple = (plan.patch or 1) * 2**plan.levels
        pads = f"(0, -width % {multiple}, 0, -height % {multiple})"
        yield f'{x} = F.pad({x}, {pads}, mode="replicate")'
    if (plan.patch or 1) > 1:
        yield f"{x} = F.pixel_unshuffle({x}, {plan.patch})"
    if plan.patch is not None and not plan.is_convolutional:
        yield f"{x} = {x}.permute(0, 2, 3, 1).contiguous()"


def _node(plan: Plan, node: Node) -> Iterator[str]:
    """x = act( sum_j A_j(x_j) + b ) + sum_k s_k x_k."""
    name, every = f"x_{node.name}", ":, " if plan.is_convolutional else "..., "
    terms = []
    if node.num_rows:
        linear = [_edge_term(plan, node, edge, every) for edge in _edges(node)]
        if not linear:
            zeros = f"torch.zeros_like({_resampled(f'x_{INPUT}', -node.level)}[{every}:1])"
            linear = [zeros if node.bias else f"{zeros}.expand({_unit_sizes(plan, node.num_rows)})"]
        if _biased(node) is None and node.bias:
            linear.append(f"self.bias_{node.name}" + ("[:, None, None]" if plan.is_convolutional else ""))
        inner, act = " + ".join(linear), ACTIVATION_CODE[node.activation]
        if len(inner) > WIDTH // 2:  # on lines of its own
            yield _sum(name, linear)
            inner = name
        terms.append(act.format(inner) if node.rows is None else _placed(act.format(inner), f"ROWS_{node.name}", node))
    for skip in node.skips:
        taken = "" if skip.take is None else f"[{every}TAKE_{skip.source}_{node.name}]"
        term = f"self.gate_{skip.source}_{node.name} * x_{skip.source}{taken}"
        terms.append(term if skip.put is None else _placed(term, f"PUT_{skip.source}_{node.name}", node))
    for source in node.projections:
        terms.append(_pointwise(plan, f"self.projection_{source}_{node.name}", f"x_{source}", source, node))
    if not terms:  # nothing arrives here
        zeros = f"torch.zeros_like({_resampled(f'x_{INPUT}', -node.level)}[{every}:1])"
        terms = [f"{zeros}.expand({_unit_sizes(plan, node.units)})"]
    yield _sum(name, terms)


def _edge_term(plan: Plan, node: Node, edge: Edge, every: str) -> str:
    """What an edge brings to the rows of a node."""
    taken = "" if edge.take is None else f"[{every}TAKE_EDGE_{edge.key}_{node.name}]"
    layer = f"self.{_edge(plan, edge, node.name)}"
    if edge.kernel == 1:
        term = _pointwise(plan, layer, f"x_{edge.source}{taken}", edge.source, node)
    else:
        term = f"{layer}({_resampled(f'x_{edge.source}{taken}', plan.node_levels[edge.source] - node.level)})"
    return term if edge.put is None else f"place({term}, PUT_EDGE_{edge.key}_{node.name}, {node.num_rows})"


def _unit_sizes(plan: Plan, units: int) -> str:
    """Arguments that expand a state of one unit to several."""
    return f"-1, {units}, -1, -1" if plan.is_convolutional else f"*x_{INPUT}.shape[:-1], {units}"


def _pointwise(plan: Plan, layer: str, x: str, source: str, node: Node) -> str:
    """What a layer that sees single pixels makes of ``x``: pixels are repeated last."""
    levels = plan.node_levels[source] - node.level
    return _resampled(f"{layer}({_resampled(x, min(levels, 0))})", max(levels, 0))


def _resampled(x: str, levels: int) -> str:
    """``x`` at a resolution that is so much higher."""
    if levels > 0:
        return f'F.interpolate({x}, scale_factor={2**levels}, mode="nearest")'
    return f"F.avg_pool2d({x}, {2**-levels})" if levels < 0 else x


def _is_padded(plan: Plan) -> bool:
    return (plan.patch or 1) > 1 or plan.levels > 0


def _placed(term: str, units: str, node: Node) -> str:
    return f"place({term}, {units}, {node.units})"


def _sum(name: str, terms: Sequence[str]) -> str:
    line = f"{name} = {' + '.join(terms)}"
    if len(line) + 8 <= WIDTH or len(terms) == 1:
        return line
    return f"{name} = (\n    " + "\n    + ".join(terms) + "\n)"


def _leave(plan: Plan) -> Iterator[str]:
    """Units to pictures."""
    x = f"x_{OUTPUT}"
    if plan.pooled:
        vectors = plan.patch is None and not plan.is_convolutional
        axes = "(2, 3)" if plan.is_convolutional else "(1, 2)"
        yield f"return {x}" if vectors else f"return {x}.mean({axes})"
        return
    if plan.patch is not None and not plan.is_convolutional:
        yield f"{x} = {x}.permute(0, 3, 1, 2)"
    if (plan.patch or 1) > 1:
        yield f"{x} = F.pixel_shuffle({x}, {plan.patch})"
    if _is_padded(plan):
        yield f"{x} = {x}[:, :, torch.arange(height)][..., torch.arange(width)]  # a slice would fix sizes in an export"
    if plan.residual:
        yield f"return {'picture' if plan.extra else 'x'} + {x}"
    else:
        yield f"return {x} + {float(plan.offset)!r}" if plan.offset else f"return {x}"


def _place(plan: Plan) -> str:
    if plan.is_convolutional:
        return PLACE.format(zeros="x.new_zeros(x.shape[0], out_of, *x.shape[2:])", units=":, units")
    return PLACE.format(zeros="x.new_zeros(*x.shape[:-1], out_of)", units="..., units")


def _summary(plan: Plan) -> str:
    result = f"vectors (batch, {plan.units[OUTPUT]})" if plan.pooled or plan.patch is None else ""
    if plan.patch is None:
        return f"Vectors (batch, {plan.inputs}) to {result}."
    if result:
        return f"Pictures (batch, {plan.inputs}, height, width) to {result}."
    shape = f"pictures (batch, {plan.channels}, height, width)" if plan.extra else "pictures of the same shape"
    return f"Pictures (batch, {plan.inputs}, height, width) of any size to {shape}."
