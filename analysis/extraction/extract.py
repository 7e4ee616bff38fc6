"""Extraction: the compact network, and the evidence that it computes the same function."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from nas.analysis.extraction.certificate import Certificate, certify
from nas.analysis.extraction.shrink import changes_of
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.network import compacted
from nas.models.store import fingerprint
from nas.models.traced.graph import Example, Inputs, call, copied, unwrap
from nas.models.traced.network import TracedNet
from nas.models.traced.shrink import Pairs, Removal, shrunk
from nas.search.runs.run import Run

Model = TypeVar("Model", bound=nn.Module)


@overload
def extract(
    net: Run, inputs: Sequence[Tensor] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[nn.Module, Certificate]: ...
@overload
def extract(
    net: Model, inputs: Sequence[Inputs] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[Model, Certificate]: ...
def extract(
    net: nn.Module | Run, inputs: Sequence[Any] = (), *, seed: int = 0, round_to: int = 1
) -> tuple[nn.Module, Certificate]:
    """The compact network inside ``net`` and the evidence that it equals ``net``, which is left as it is.

    Args:
        net: a run, whose picked network is compared on its held-out pictures too; a searched supernet or any `DagNet`
            with exact zeros; or any other module with exact zeros that `torch.export` can trace
            (`nas.analysis.extraction.shrink`), compared in evaluation mode.
        inputs: real inputs to compare on besides random ones, each without the batch axis: a tensor, or where a
            module takes several a tuple of arguments or a mapping of keyword arguments. A module that is no `DagNet`
            needs at least one, to know its shape.
        seed: of the random inputs.
        round_to: widen the hidden nodes of a `DagNet` to multiples of this by units that are zero.

    Returns:
        The compact network, of the class of ``net``, and its certificate; look at ``certificate.holds``.

    Raises:
        ValueError: ``round_to`` is no size; a module that is no `DagNet` comes without inputs or with ``round_to``,
            cannot be copied, run or traced, or returns no tensor.

    Examples:
        Two of four hidden units are zero, bias included; the network without them computes the same.

        >>> import torch
        >>> from nas.analysis import extract
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> for p in net[0].parameters():
        ...     _ = p.data[:2].zero_()
        >>> compact, certificate = extract(net, [torch.ones(3)])
        >>> compact[0].out_features, certificate.holds
        (2, True)
    """
    if isinstance(net, Run):
        inputs = [*inputs, *net.inputs(net.data())]
        net = net.supernet(net.choose().snapshot.epoch)
    if isinstance(net, DagNet):
        small = compact(net, round_to=round_to)
        return small, certify(net, small, inputs, seed=seed)
    if round_to != 1:
        raise ValueError(f"extract(round_to=...) is for a DagNet, {type(net).__name__} is none")
    if isinstance(net, TracedNet):
        cut = compacted(net)
        return cut, certify(net, cut, inputs, seed=seed)
    if not inputs:
        raise ValueError(f"extract: {type(net).__name__} is no DagNet; give one input at least, to know its shape")
    return _extract_module(unwrap(net), inputs, seed)


def _extract_module(net: nn.Module, inputs: Sequence[Inputs], seed: int) -> tuple[nn.Module, Certificate]:
    examples = [*(_one_batch(each) for each in inputs), *_random_like(inputs[0], seed)]
    small, removal, pairs = shrunk(net, *examples)
    single = _compared(net, removal, examples)
    precise = all(y.dtype == torch.float64 for y, _ in pairs if y.is_floating_point())
    measured = pairs if precise else single  # its forward computes in single precision: it is compared in that
    certificate = Certificate(
        _difference(single),
        _difference(measured),
        max(_largest(y) for y, _ in measured),
        num_random=sum(len(each.tensors()[0]) for each in examples[len(inputs) :]),
        num_given=len(inputs),
        tolerance_float64=Certificate.tolerance_float64 if precise else Certificate.tolerance_float32,
        changes=changes_of(removal),
        hashes={"supernet": fingerprint(net), "compact": fingerprint(small)},
    )
    for module, before in zip(small.modules(), net.modules(), strict=True):
        module.training = before.training
    return small, certificate


def _one_batch(given: Inputs) -> Example:
    """A batch of one, of inputs without the batch axis."""
    return Example.of(given).map(lambda x: x[None].cpu())


def _random_like(given: Inputs, seed: int) -> list[Example]:
    """Noise and uniform numbers in the shape of the example; none for inputs that are no real numbers."""
    generator = torch.Generator().manual_seed(seed)
    example = _one_batch(given)
    if not all(x.is_floating_point() for x in example.tensors()):
        return []

    def batch(draw: Callable[..., Tensor]) -> Example:
        return example.map(lambda x: draw((2, *x.shape[1:]), generator=generator).to(x.dtype))

    return [batch(torch.randn), batch(torch.rand)]


@torch.no_grad()
def _compared(net: nn.Module, removal: Removal, examples: Sequence[Example]) -> Pairs:
    """What a module and its narrow copy put out in single precision."""
    full = copied(net).eval().float()
    short = removal.applied_to(full)
    pairs: Pairs = []
    for example in examples:
        cast = example.map(lambda x: x.float() if x.is_floating_point() else x)
        pairs += zip(call(full, cast), call(short, cast), strict=True)
    return pairs


def _difference(pairs: Pairs) -> float:
    return max(_largest(y - z) for y, z in pairs)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
