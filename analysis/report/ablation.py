"""What is lost without each unit, skip and operation, measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.groups import Axis, num_units, slices, unit_axes
from nas.models.dag import DagNet
from nas.models.network import alive_cost, inner
from nas.parameters import unit_parameters
from nas.parts import Part
from nas.search.engine.thinning import removed
from nas.search.training.loop import LossFunction

MOST = 200  # parts of a network that are measured
LARGEST = 1e4  # growth that is told from a larger one, or from a loss that is no number


@dataclass(frozen=True)
class Loss:
    """What is missed without one part.

    Attributes:
        kind: "unit", "skip" or "operation".
        node: that it belongs to.
        name: such as "h3.7", "n1 to n4" or "t0 to d1 (depthwise)".
        growth: of the loss, as a part of it: 0.1 if it is a tenth larger without.
        saved: parameters that the network has less without it.
    """

    kind: str
    node: str
    name: str
    growth: float
    saved: int


@torch.no_grad()
def ablate(
    net: nn.Module, loss_fn: LossFunction, probe: tuple[Tensor, Tensor], most: int = MOST
) -> tuple[list[Loss], int]:
    """Set each part to zero for a while and measure.

    Args:
        net: a searched network; it is left as it is.
        loss_fn: mean loss of ``(prediction, y)``.
        probe: a pair (x, y).
        most: where there are more parts, so many evenly spaced ones are measured.

    Returns:
        The losses and how many parts there are.
    """
    net, units = inner(net)
    net.eval()
    x, y = probe
    before, params = float(loss_fn(net(x), y)), alive_cost(net, "params")
    parts = [*_units(net, units), *_arcs(net)]
    saved: dict[tuple[str, str], int] = {}  # by kind and node: the units of one node save about the same
    losses = []
    for kind, node, part in parts[:: max(1, math.ceil(len(parts) / most))]:
        with removed(net, part):
            growth = (float(loss_fn(net(x), y)) - before) / before if before > 0 else 0.0
            key = (kind, node if kind == "unit" else part.name)
            if key not in saved:
                saved[key] = int(params - alive_cost(net, "params"))
        losses.append(Loss(kind, node, part.name, growth if growth < LARGEST else LARGEST, saved[key]))
    return losses, len(parts)


def _units(net: nn.Module, indices: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Part]]:
    for name, members in unit_parameters(net).items():
        tensors = [
            each for each in zip(members, unit_axes(members), strict=True) if num_units(*each) == len(indices[name])
        ]
        for index, number in enumerate(indices[name].tolist()):
            masks = [(p, _slice(p, index, axis)) for p, axis in tensors]
            if any(p[mask].any() for p, mask in masks):
                yield "unit", name, Part(f"{name}.{number}", tuple(masks))


def _slice(p: Tensor, index: int, axis: Axis = 0) -> Tensor:
    mask = torch.zeros_like(p, dtype=torch.bool)
    slices(mask, axis)[index] = True
    return mask


def _arcs(net: nn.Module) -> Iterator[tuple[str, str, Part]]:
    if not isinstance(net, DagNet):
        return
    for name, node in net.named_nodes().items():
        for k, skip in enumerate(node.plan.skips):
            if node.gates[k] != 0:
                yield "skip", name, Part(f"{skip.source} to {name}", ((node.gates, _slice(node.gates, k)),))
        for source, matrix in node.projections.items():
            yield "skip", name, Part(f"{source} to {name}", ((matrix, torch.ones_like(matrix, dtype=torch.bool)),))
        for edge, weight in node.weighted_edges():
            whole = weight.ne(0)
            if whole.any():
                yield "operation", name, Part(f"{edge.source} to {name} ({edge.operation})", ((weight, whole),))


def by_node(losses: Sequence[Loss]) -> list[dict[str, object]]:
    """The measured units of every node, the most missed first, as plain data."""
    nodes: dict[str, list[Loss]] = {}
    for loss in losses:
        if loss.kind == "unit":
            nodes.setdefault(loss.node, []).append(loss)
    for each in nodes.values():
        each.sort(key=lambda loss: -loss.growth)
    return [
        {
            "node": node,
            "saved": each[0].saved,
            "units": [loss.name for loss in each],
            "growths": [round(100 * loss.growth, 4) for loss in each],
        }
        for node, each in nodes.items()
    ]
