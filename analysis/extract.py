"""Extraction with evidence: the compact network, and how far it is from the searched one."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nas.models.compact import compact
from nas.models.dag import DagNet


@dataclass(frozen=True)
class Certificate:
    """Evidence that the compact network computes the same function.

    Attributes:
        max_abs_float32: largest absolute difference of the outputs, computed in single precision.
        max_abs_float64: the same in double precision.
        max_output: largest absolute output of the searched network.
        num_random: random inputs compared.
        num_given: inputs of the caller (held-out pictures) compared.
        tolerance_float32: largest difference at which the certificate holds; relative to ``max_output`` where that
            is above 1, as round-off is.
        tolerance_float64: the same in double precision.
    """

    max_abs_float32: float
    max_abs_float64: float
    max_output: float
    num_random: int
    num_given: int
    tolerance_float32: float = 1e-5
    tolerance_float64: float = 1e-10

    @property
    def holds(self) -> bool:
        scale = max(1.0, self.max_output)
        return (
            self.max_abs_float32 <= self.tolerance_float32 * scale
            and self.max_abs_float64 <= self.tolerance_float64 * scale
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def extract(net: DagNet, inputs: Sequence[Tensor] = (), *, seed: int = 0) -> tuple[DagNet, Certificate]:
    """The compact network inside ``net`` and the evidence that it equals ``net``, which is left as it is.

    Args:
        net: a searched supernet, or any `DagNet` with exact zeros.
        inputs: real inputs to compare on besides random ones, each without the batch axis.
        seed: of the random inputs.

    Returns:
        The compact network and its certificate; look at ``certificate.holds``.
    """
    small = compact(net)
    batches = [*_random_inputs(net, seed), *(each[None] for each in inputs)]
    (single, _), (double, largest) = (_compare(net, small, batches, dtype) for dtype in (torch.float32, torch.float64))
    return small, Certificate(
        single,
        double,
        largest,
        num_random=sum(map(len, batches)) - len(inputs),
        num_given=len(inputs),
    )


def _random_inputs(net: DagNet, seed: int) -> list[Tensor]:
    """Noise and uniform pictures of odd and even sizes (or vectors), around the values that the network sees."""
    generator = torch.Generator().manual_seed(seed)
    sizes: list[tuple[int, ...]] = [(32, 32), (41, 23), (1, 7)] if net.plan.patch is not None else [(), ()]
    shapes = [(4, net.plan.channels, *size) for size in sizes]
    noise = [net.plan.offset + torch.randn(shape, generator=generator) for shape in shapes]
    return noise + [torch.rand(shape, generator=generator) for shape in shapes]


@torch.no_grad()
def _compare(net: DagNet, small: DagNet, batches: Sequence[Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """Largest absolute difference of the two networks, and largest absolute output of the first."""
    full, short = (copy.deepcopy(each).cpu().to(dtype) for each in (net, small))
    outputs = [(full(x.to(dtype)), short(x.to(dtype))) for x in batches]
    return max(float((y - z).abs().max()) for y, z in outputs), max(float(y.abs().max()) for y, _ in outputs)
