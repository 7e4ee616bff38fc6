"""The weights that can be looked at: what the first layer reads from the input, and depthwise kernels."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nas.analysis.report.pixels import png_uri, tiles, to_uint8
from nas.models.dag import DagNet
from nas.models.plan import DEPTHWISE, INPUT, Plan

MOST = 64  # of one edge
MOST_EDGES = 24


def filter_pictures(net: DagNet) -> list[dict[str, Any]]:
    """A picture for every edge from the input and for every depthwise edge, with a title.

    Raises:
        ValueError: no edge has weights that make a picture.
    """
    found = []
    for name, node in net.named_nodes().items():
        for edge, weight in node.weighted_edges():
            depthwise = edge.operation == DEPTHWISE
            kernels = weight if depthwise else as_pictures(weight, net.plan) if edge.source == INPUT else None
            if kernels is not None and len(kernels) and kernels.shape[-1] > 1:
                n, _, height, width = kernels.shape
                what = "depthwise kernels" if depthwise else "filters"
                more = f", {MOST} of them shown" if n > MOST else ""
                title = f"{edge.source} to {name}: {n} {what}, {height} x {width}{more}"
                page = tiles(kernels[:MOST].detach().float())
                scale = max(2, 42 // height) if height < 28 else 2
                found.append({"title": title, "uri": png_uri(to_uint8(page)), "width": scale * page.shape[1]})
    if not found:
        raise ValueError("The first layer has no weights that would make a picture.")
    return found[:MOST_EDGES]


def as_pictures(weight: Tensor, plan: Plan) -> Tensor | None:
    """Weights (rows, units of the input, k, k) or (rows, units) over the pixels of the picture: (rows, channels, h, w);
    None where the input is no picture."""
    if plan.patch is None or weight.shape[1] != plan.units[INPUT]:
        return None
    kernels = weight[..., None, None] if weight.ndim == 2 else weight
    return F.pixel_shuffle(kernels, plan.patch)
