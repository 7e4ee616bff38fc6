"""The weights that can be looked at: what the first layer reads from the input, and depthwise kernels."""

from collections.abc import Iterator
from functools import singledispatch
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nas.analysis.report.pixels import png_uri, tiles, to_uint8
from nas.analysis.topology import topology
from nas.models.dag import DagNet
from nas.models.plan import DEPTHWISE, INPUT, Plan
from nas.models.traced.network import TracedNet

DEPTHWISE_KERNELS, FILTERS = "depthwise kernels", "filters"
MOST = 64  # of one edge
MOST_EDGES = 24


def filter_pictures(net: nn.Module) -> list[dict[str, Any]]:
    """A picture for every layer that reads the input and for every depthwise one, with a title.

    Raises:
        ValueError: no layer has weights that make a picture.
    """
    found = []
    for layer, what, kernels in _kernels(net):
        if len(kernels) and kernels.shape[-1] > 1:
            n, _, height, width = kernels.shape
            more = f", {MOST} of them shown" if n > MOST else ""
            page = tiles(kernels[:MOST].detach().float())
            scale = max(2, 42 // height) if height < 28 else 2
            found.append(
                {
                    "title": f"{layer}: {n} {what}, {height} x {width}{more}",
                    "uri": png_uri(to_uint8(page)),
                    "width": scale * page.shape[1],
                }
            )
    if not found:
        raise ValueError("The first layer has no weights that would make a picture.")
    return found[:MOST_EDGES]


@singledispatch
def _kernels(net: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Layers, what their kernels are, and these: (number, channels, height, width)."""
    assert isinstance(net, DagNet)
    for name, node in net.named_nodes().items():
        for edge, weight in node.weighted_edges():
            if edge.operation == DEPTHWISE:
                yield f"{edge.source} to {name}", DEPTHWISE_KERNELS, weight
            elif edge.source == INPUT and (kernels := as_pictures(weight, net.plan)) is not None:
                yield f"{edge.source} to {name}", FILTERS, kernels


@_kernels.register
def _(net: TracedNet) -> Iterator[tuple[str, str, Tensor]]:
    first = set(topology(net).successors(INPUT))
    for name, module in net.module.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
            yield name, DEPTHWISE_KERNELS, module.weight
        elif isinstance(module, nn.Conv2d) and name in first:
            yield name, FILTERS, module.weight[:, : net.origin.channels]


def as_pictures(weight: Tensor, plan: Plan) -> Tensor | None:
    """Weights (rows, units of the input, k, k) or (rows, units) over the pixels of the picture: (rows, channels, h, w);
    None where the input is no picture."""
    if plan.patch is None or weight.shape[1] != plan.units[INPUT]:
        return None
    kernels = weight[..., None, None] if weight.ndim == 2 else weight
    return F.pixel_shuffle(kernels, plan.patch)
