"""The part of a module that is awake, to be trained instead of the whole: what sleeps puts out nothing."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.groups import Axis, slices
from nas.models.traced.channels import Channels
from nas.models.traced.graph import Example, call, copied
from nas.models.traced.shrink import keep_one, narrow, parts_of

SPREAD = 0.3  # of weights that stand for any
ROUND_OFF = 1e-9  # of what is computed in double precision, relative to the largest output


@torch.no_grad()
def silent_layers(
    module: nn.Module,
    channels: Channels,
    units: Mapping[str, Sequence[tuple[str, Axis]]],
    numbers: Mapping[str, Tensor],
    example: Example,
) -> list[str]:
    """The layers of which a sleeping unit is nothing to anybody in training, whatever the other weights are.

    Tried on a copy with weights drawn at random and every second unit asleep: others would notice a unit that goes if
    it put out a constant, or if random numbers are drawn for its place.

    Args:
        module: with all its units; left as it is.
        channels: of the module.
        units: by layer the names of the tensors whose slices are its units, with their axes.
        numbers: by layer the numbers of its units among the channels.
        example: a batch for the module.
    """
    generator = torch.Generator().manual_seed(0)
    trial = copied(module).double().train()
    example = example.map(lambda tensor: tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu())
    for p in trial.parameters():
        p.normal_(0, SPREAD, generator=generator)
    held = dict(trial.named_parameters(remove_duplicate=False))
    for pairs in units.values():
        for name, axis in pairs:
            slices(held[name], axis)[1::2] = 0

    def unnoticed(layers: Iterable[str]) -> bool:
        kept = torch.ones_like(channels.fixed)
        for layer in layers:
            kept[numbers[layer][1::2]] = False
        keep_one(channels, kept)
        small = copy.deepcopy(trial)
        narrow(small, parts_of(channels, kept))
        try:
            return all(map(_equal, _outputs(trial, example), _outputs(small, example)))
        except ValueError:  # it cannot be so narrow, or not so precise
            return False

    return list(units) if unnoticed(units) else [layer for layer in units if unnoticed([layer])]


def _outputs(module: nn.Module, example: Example) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call(copy.deepcopy(module), example)


def _equal(y: Tensor, z: Tensor) -> bool:
    return y.shape == z.shape and bool((y - z).abs().max() <= ROUND_OFF * y.abs().max())
