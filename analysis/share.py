"""How much of a node's signal its skips bring: a gate's number alone says little."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.models.dag import DagNet


@torch.no_grad()
def skip_shares(net: nn.Module, inputs: Sequence[Tensor]) -> dict[tuple[str, str], float]:
    """For every gate and projection the part of its node's signal that it brings, in [0, 1].

    A node is a sum of terms: what its rows compute, and what each skip brings. The share of a term is its norm, over
    all inputs, divided by the sum of the norms of all terms.

    Args:
        net: any network; one that is no `DagNet` has no gates.
        inputs: each without the batch axis.

    Returns:
        The shares by (source, target).
    """
    if not isinstance(net, DagNet):
        return {}
    squares: dict[str, dict[str, float]] = {name: {} for name in net.named_nodes()}
    for x in inputs:
        states = net.states(x[None])
        for name, node in net.named_nodes().items():
            for source, term in {name: node.computed(states), **node.brought(states)}.items():
                squares[name][source] = squares[name].get(source, 0.0) + float(term.double().square().sum())
    shares: dict[tuple[str, str], float] = {}
    for name, sums in squares.items():
        norms = {source: value**0.5 for source, value in sums.items()}
        total = sum(norms.values())
        shares |= {(source, name): norm / total if total else 0.0 for source, norm in norms.items() if source != name}
    return shares
