"""What is alive of any module, as a graph: its layers, and which of them read which."""

import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

import networkx as nx
import torch
from torch import Tensor, fx, nn

from nas.models.traced.channels import Channels, Kind, Step
from nas.models.traced.graph import Example, Inputs, copied, operation, shape, trace, unwrap
from nas.models.traced.shrink import Removal

INPUT, OUTPUT = "in", "out"
LAYERS = (Kind.MIX, Kind.GROUPED)


@torch.no_grad()
def module_topology(
    model: nn.Module,
    inputs: Inputs,
    *,
    births: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
    deaths: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
) -> nx.DiGraph:
    """The alive part of any module at node level: a vertex per layer, with the attributes of `nas.analysis.topology`.

    A layer reads another one if there is a way between them on which no other layer lies; "in" and "out" are what the
    module takes and returns. What "out" is made of without weights in between is a skip of gate 1. Operations without
    weights (normalisations, activations, pooling, attention) are no vertices.

    Args:
        model: as for `nas.analysis.extract`.
        inputs: one batch for it.
        births, deaths: as of `nas.analysis.topology`, by layer.

    Raises:
        ValueError: the module cannot be copied, run or traced.
    """
    model = copied(unwrap(model)).eval()
    graph = trace(model, Example.of(inputs))
    removal = Removal(Channels(graph), model)
    drawn = _Drawn(removal).graph
    for name, data in drawn.nodes(data=True):
        data |= ages(births.get(name, {}).values(), deaths.get(name, {}).values())
    return drawn


def ages(born: Collection[int], died: Collection[int]) -> dict[str, int]:
    """The attributes of a vertex that say when its units were born, those that are alive, and died."""
    alive = {"born": min(born), "born_last": max(born)} if born else {}
    return {**alive, **({"num_died": len(died), "died": max(died)} if died else {})}


class _Drawn:
    def __init__(self, removal: Removal) -> None:
        self.removal, self.channels = removal, removal.channels
        self.layers = {step.node: step for step in self.channels.steps.values() if step.kind in LAYERS}
        self.names = {node: self._name(step) for node, step in self.layers.items()}
        self.graph = nx.DiGraph(level="node")
        stored = self.channels.graph.stored
        given = [node for node in self.channels.graph.nodes if node.op == "placeholder" and node not in stored]
        self._add(INPUT, "input", sum(map(_width, given)), sum(map(_width, given)), 0.0)
        for node, step in self.layers.items():
            if alive := int(self._rows(step).sum()):
                norm = float(self.removal.values.matrix(step)[self._rows(step)].double().norm())
                self._add(self.names[node], "hidden", alive, len(self._rows(step)), norm)
        outputs = self.channels.graph.outputs
        self._add(OUTPUT, "output", sum(map(_width, outputs)), sum(map(_width, outputs)), 0.0)
        for node, step in self.layers.items():
            for source in self._sources(step.sources[0]):
                self._connect(source, step, self.names[node])
        for output in outputs:
            for source in self._sources(output):
                name = self._source_name(source)
                if name in self.graph:
                    self.graph.add_edge(name, OUTPUT, norm=0.0, gate=1.0, operation="", shape="")

    def _add(self, name: str, kind: str, alive: int, total: int, norm: float) -> None:
        self.graph.add_node(name, kind=kind, layer=len(self.graph), alive=alive, total=total, norm=norm)

    def _name(self, step: Step) -> str:
        return self.channels.graph.names[step.weight].removesuffix(".weight")  # type: ignore[index]

    def _rows(self, step: Step) -> Tensor:
        """Which output channels of a layer stay."""
        return self.removal.kept[self.channels.roots[step.node]]

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The layers, and what the module takes, that a tensor is made of without another layer in between."""
        waiting, seen = [node], set()
        while waiting:
            each = waiting.pop()
            if each in seen or each in self.channels.pure:
                continue
            seen.add(each)
            if each in self.layers or each.op == "placeholder":
                yield each
            else:
                waiting += each.all_input_nodes

    def _source_name(self, source: fx.Node) -> str:
        return self.names.get(source, INPUT)

    def _connect(self, source: fx.Node, step: Step, name: str) -> None:
        """An arc for the weights of a layer on what is alive of a source, if any."""
        start = self._source_name(source)
        if start not in self.graph or name not in self.graph or start == name:
            return
        weight = self.removal.values.matrix(step)[self._rows(step)].double()
        if step.kind is Kind.MIX:
            columns = self.channels.stored[step.weight][step.axes[1]]  # type: ignore[index]
            seen = self.removal.kept[columns] & self._from(source, columns)
            weight = weight[:, seen]
        if not weight.any():
            return
        before = self.graph.get_edge_data(start, name, {"norm": 0.0, "gate": 0.0, "operation": "", "shape": ""})
        looks = {"operation": _looks(step), "shape": "x".join(map(str, (*weight.shape[:2], *_kernel(step))))}
        joined = {key: f"{before[key]} + {text}" if before[key] else text for key, text in looks.items()}
        self.graph.add_edge(start, name, gate=0.0, norm=math.hypot(before["norm"], float(weight.norm())), **joined)

    def _from(self, source: fx.Node, columns: Tensor) -> Tensor:
        """Which columns of a layer may read a source: those of its channels; of the input those of no layer."""
        made = [self.channels.roots[node] for node in self.layers if node in self.channels.roots]
        if source in self.layers:
            found = torch.isin(columns, self.channels.roots[source])
            return found if found.any() else torch.ones_like(found)
        return ~torch.isin(columns, torch.cat(made))


def _width(node: fx.Node) -> int:
    return (*shape(node), 1, 1)[1]


def _kernel(step: Step) -> tuple[int, ...]:
    return shape(step.weight)[2:]  # type: ignore[arg-type]


def _looks(step: Step) -> str:
    """Such as "3x3", "7x7 depthwise" or "matrix"."""
    kernel = "x".join(map(str, _kernel(step))) or "matrix"
    if step.kind is Kind.GROUPED:
        depthwise = shape(step.weight)[step.axes[1]] == (1 if step.axes == (0, 1) else step.groups)  # type: ignore[arg-type]
        kernel += " depthwise" if depthwise else " grouped"
    return f"{kernel} transposed" if operation(step.node).startswith("conv_transpose") else kernel
