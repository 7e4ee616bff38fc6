"""Removal of dead channels from any module, and what was done."""

import torch
from torch import Tensor, nn

from nas.analysis.extraction.changes import FOLDED, PADDED, UNREAD, ZERO, NodeChanges, indices
from nas.models.traced.channels import Kind
from nas.models.traced.graph import Example, Inputs, called
from nas.models.traced.shrink import Removal, shrunk
from nas.models.traced.values import keeps_constants

UNKNOWN, ACROSS = "unknown operation", "operation that needs all channels"


def shrink(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, tuple[NodeChanges, ...]]:
    """A smaller copy of ``model`` that computes the same function in evaluation mode; ``model`` is left as it is.

    A channel (of a convolution, axis 1) or feature (of a linear layer) goes if nothing reads it, or if it is constant
    and all its readers can take the constant into their biases. Residual sums, concatenations, flatten, depthwise
    convolutions, normalisations, pooling and activations pass channels on, which then go or stay together. A constant
    other than 0 stays in front of a zero-padded convolution, which turns it into a border. Where an operation is
    not known, all channels that it sees stay.

    Args:
        model: any module that `torch.export` can trace, with exact zeros.
        inputs: one batch for it: a tensor, a tuple of arguments, or a mapping of keyword arguments; its shape tells
            how flatten lays out channels.

    Returns:
        The copy, with the same modules but fewer channels in them, and what was done to the channels that each linear,
        convolution and normalisation module puts out; besides them the operations that are not known.

    Raises:
        ValueError: the model cannot be copied, run or traced.
    """
    small, removal, _ = shrunk(model, Example.of(inputs))
    return small, changes_of(removal)


def changes_of(removal: Removal) -> tuple[NodeChanges, ...]:
    """What goes and what stays, and why."""
    channels, padded = removal.channels, _padded(removal)
    found = []
    for layer in removal.layers:
        numbers, constant = channels.roots[layer.node], removal.values.of[layer.node]
        kept = removal.kept[numbers]
        removed = {
            ZERO: ~kept & constant.eq(0),
            FOLDED: ~kept & ~constant.isnan() & constant.ne(0),
            UNREAD: ~kept & constant.isnan(),
        }
        because = {PADDED: kept & ~constant.isnan() & constant.ne(0) & torch.isin(numbers, padded)}
        found.append(NodeChanges(layer.name, len(kept), int(kept.sum()), indices(removed), indices(because), {}, {}))
    for reason, seen in ((UNKNOWN, channels.unknown), (ACROSS, channels.across)):
        for node, numbers in seen.items():
            name = called(node) + (" in place" if node in channels.graph.changed else "")
            found.append(
                NodeChanges(name, len(numbers), len(numbers), {}, {reason: tuple(range(len(numbers)))}, {}, {})
            )
    return tuple(found)


def _padded(removal: Removal) -> Tensor:
    """The numbers of the constant channels that a zero-padded convolution would turn into a border."""
    found = [torch.zeros(0, dtype=torch.long)]
    for layer in removal.layers:
        if layer.kind is Kind.MIX and not keeps_constants(layer) and layer.sources[0] in removal.values.of:
            constant, numbers = removal.values.of[layer.sources[0]], removal.channels.roots[layer.sources[0]]
            reads = removal.reads(layer)
            if len(reads) == len(constant):
                found.append(numbers[removal.kept[numbers] & ~constant.isnan() & constant.ne(0) & reads])
    return torch.cat(found)
