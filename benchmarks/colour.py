"""Joins grey networks of the zoo to one for colours, which `benchmarks.zoo` then trains.

    python -m benchmarks.colour grey-15k grey-4k --out runs/joined

The first cleans the brightness, the second each of the two differences, as `nas denoise` has grey networks do it. The
result computes the same in one network, whose units may then read each other: the weights between them begin at zero.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nas.cli.shared import sentence
from nas.models import DagNet, Node, Plan
from nas.models.plan import DEPTHWISE, INPUT, OUTPUT
from nas.search.tasks.use import OPPONENT, OPPONENT_NOISE
from nas.search.zoo.shipped import load

COLOURS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colour", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("brightness", help="a grey network that is told the level of the noise")
    parser.add_argument("differences", help="another one of the same search, with at most its blocks")
    parser.add_argument("--out", type=Path, required=True, help="folder for the network")
    options = parser.parse_args(arguments)
    try:
        joined([load(options.brightness), *[load(options.differences)] * 2]).save_pretrained(options.out)
    except (ValueError, OSError) as problem:
        parser.error(sentence(problem))


@torch.no_grad()
def joined(nets: Sequence[DagNet]) -> DagNet:
    """What these make of brightness and two differences (`opponent`), as one network of colours."""
    plan = nets[0].plan
    widths = [_widths(net.plan, plan) for net in nets]
    spans = [
        {name: slice(sum(w[name] for w in widths[:k]), sum(w[name] for w in widths[: k + 1])) for name in widths[0]}
        for k in range(len(nets))
    ]
    units = {name: span.stop for name, span in spans[-1].items()}
    whole = DagNet(replace(plan, channels=COLOURS, nodes=tuple(_widened(node, units, nets) for node in plan.nodes)))
    for name, p in whole.named_parameters():
        p.fill_(name.endswith("gates"))
    to, back = OPPONENT.float(), torch.linalg.inv(OPPONENT.float())
    for k, (net, own) in enumerate(zip(nets, spans, strict=True)):
        _fill(whole, net, own, to[k], back[:, k], OPPONENT_NOISE[k])
    return whole


def _widths(plan: Plan, like: Plan) -> dict[str, int]:
    """How many units a network brings to each node of the larger one; where it lacks a block, those of its trunk."""
    own, trunk = plan.units, plan.nodes[0].units
    return {node.name: own.get(node.name, trunk if _is_depthwise(node) or node.skips else 0) for node in like.nodes}


def _widened(node: Node, units: Mapping[str, int], nets: Sequence[DagNet]) -> Node:
    (edge,) = node.edges
    kernels = [e.kernel or 1 for net in nets for n in net.plan.nodes if n.name == node.name for e in n.edges]
    return replace(node, units=units[node.name], edges=(replace(edge, kernel=max(kernels)),))


def _fill(whole: DagNet, net: DagNet, own: Mapping[str, slice], to: Tensor, back: Tensor, noise: float) -> None:
    """Write one network where its units are; it sees the sum of the colours with the weights ``to``, and the level of
    the noise ``noise`` times, and what it adds to that goes to the colours with the weights ``back``."""
    area, scale = (net.plan.patch or 1) ** 2, 1.0  # of the trunk, whose gates become 1
    nodes = net.named_nodes()
    for node in whole.plan.nodes:
        (target,), rows = whole.named_nodes()[node.name].edges.values(), own[node.name]
        if node.name not in nodes:
            if _is_depthwise(node):  # for the others' units, which may read it: as it is
                target[rows, :, target.shape[-2] // 2, target.shape[-1] // 2] = 1
            continue
        (weight,), bias = nodes[node.name].edges.values(), nodes[node.name].bias
        place = _middle(target, weight.shape[-1])
        if node.edges[0].source == INPUT:
            for c in range(COLOURS):
                place[rows, c * area : (c + 1) * area] = to[c] * weight[:, :area]
            place[rows, COLOURS * area :] = noise * weight[:, area:]
        elif node.name == OUTPUT:
            for c in range(COLOURS):
                place[c * area : (c + 1) * area, own[node.edges[0].source]] = scale * back[c] * weight
                whole.named_nodes()[OUTPUT].bias[c * area : (c + 1) * area] += back[c] * bias
        elif _is_depthwise(node):
            place[rows] = scale * weight
        else:
            scale *= float(nodes[node.name].gates) if node.skips else 1.0
            place[rows, own[node.edges[0].source]] = weight / scale if node.skips else weight
            if bias is not None:
                whole.named_nodes()[node.name].bias[rows] = bias


def _is_depthwise(node: Node) -> bool:
    return node.edges[0].operation == DEPTHWISE


def _middle(weight: Tensor, side: int) -> Tensor:
    """A view of the middle of kernels."""
    first = (weight.shape[-1] - side) // 2
    return weight[..., first : first + side, first : first + side]


if __name__ == "__main__":
    main()
