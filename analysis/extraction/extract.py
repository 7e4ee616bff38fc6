"""Extraction: the compact network, and the evidence that it computes the same function."""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from nas.analysis.extraction.certificate import Certificate, Difference, certify
from nas.analysis.extraction.shrink import shrink
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.store import fingerprint
from nas.search.run import Run

Model = TypeVar("Model", bound=nn.Module)


@overload
def extract(
    net: Run, inputs: Sequence[Tensor] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[DagNet, Certificate]: ...
@overload
def extract(
    net: Model, inputs: Sequence[Tensor] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[Model, Certificate]: ...
def extract(
    net: nn.Module | Run, inputs: Sequence[Tensor] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[nn.Module, Certificate]:
    """The compact network inside ``net`` and the evidence that it equals ``net``, which is left as it is.

    Args:
        net: a run, whose picked network is compared on its held-out pictures too; a searched supernet or any `DagNet`
            with exact zeros; or any other module with exact zeros that `torch.fx` can trace
            (`nas.analysis.extraction.shrink`), compared in evaluation mode.
        inputs: real inputs to compare on besides random ones, each without the batch axis. A module that is no
            `DagNet` needs at least one, to know its shape.
        seed: of the random inputs.
        round_to: widen the hidden nodes of a `DagNet` to multiples of this by units that are zero.

    Returns:
        The compact network, of the class of ``net``, and its certificate; look at ``certificate.holds``.

    Raises:
        ValueError: ``round_to`` is no size; a module that is no `DagNet` comes without inputs or with ``round_to``,
            cannot be traced or returns no tensor.
    """
    if isinstance(net, Run):
        inputs = [*inputs, *net.inputs(net.data())]
        net = net.supernet(net.choose().snapshot.epoch)
    if isinstance(net, DagNet):
        small = compact(net, round_to=round_to)
        return small, certify(net, small, inputs, seed=seed)
    if round_to != 1:
        raise ValueError(f"extract(round_to=...) is for a DagNet, {type(net).__name__} is none")
    if not inputs:
        raise ValueError(f"extract: {type(net).__name__} is no DagNet; give one input at least, to know its shape")
    batches = [*(each[None] for each in inputs), *_random_like(inputs[0], seed)]
    shrunk, found = shrink(net, batches[0])
    single, double = (_compare(net, batches, dtype) for dtype in (torch.float32, torch.float64))
    certificate = Certificate(
        **asdict(Difference(single[0], *double)),
        num_random=sum(map(len, batches)) - len(inputs),
        num_given=len(inputs),
        changes=found,
        hashes={"supernet": fingerprint(net), "compact": fingerprint(shrunk)},
    )
    return shrunk, certificate


def _random_like(example: Tensor, seed: int) -> list[Tensor]:
    """Noise and uniform numbers in the shape of the example; none for inputs that are no real numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, *example.shape)
    draws = (torch.randn, torch.rand) if example.is_floating_point() else ()
    return [draw(shape, generator=generator) for draw in draws]


@torch.no_grad()
def _compare(net: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """Largest absolute difference of ``net`` and its smaller copy, and largest absolute output, in this precision."""

    def to_dtype(x: Tensor) -> Tensor:
        return x.cpu().to(dtype) if x.is_floating_point() else x.cpu()

    full = copy.deepcopy(net).cpu().to(dtype).eval()
    short, _ = shrink(full, to_dtype(batches[0]))
    outputs = [(full(to_dtype(x)), short(to_dtype(x))) for x in batches]
    if not all(isinstance(y, Tensor) for y, _ in outputs):
        raise ValueError(f"extract: {type(net).__name__} must return one tensor to be compared")
    return max(float((y - z).abs().max()) for y, z in outputs), max(float(y.abs().max()) for y, _ in outputs)
