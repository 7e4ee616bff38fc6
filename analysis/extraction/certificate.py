"""The certificate: how far a compact network is from the searched one, what was left out, and which two these are."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from nas.analysis.extraction.changes import FOLDED, NodeChanges, changes
from nas.analysis.extraction.shrink import changes_of
from nas.models.alive import find_alive
from nas.models.compact import simplified
from nas.models.dag import DagNet
from nas.models.network import alike, input_shape
from nas.models.plan import INPUT, OUTPUT
from nas.models.store import fingerprint
from nas.models.traced.network import TracedNet

WHOLE = "the whole network"  # beside the names of nodes, which hold no blanks in any plan of ours


@dataclass(frozen=True)
class Difference:
    """How far two tensors are from each other, over all inputs.

    Attributes:
        max_abs_float32: largest absolute difference, computed in single precision.
        max_abs_float64: the same in double precision.
        max_output: largest absolute value in the searched network.
    """

    max_abs_float32: float
    max_abs_float64: float
    max_output: float

    @property
    def max_rel_float32(self) -> float:
        """Largest absolute difference divided by the largest absolute value."""
        return self._relative(self.max_abs_float32)

    @property
    def max_rel_float64(self) -> float:
        return self._relative(self.max_abs_float64)

    def _relative(self, difference: float) -> float:
        return difference / self.max_output if self.max_output > 0 else difference

    def numbers(self) -> dict[str, float | None]:
        """The five numbers by name; None stands for one that is not finite, as in JSON."""
        names = ("max_abs_float32", "max_abs_float64", "max_rel_float32", "max_rel_float64", "max_output")
        numbers = {name: getattr(self, name) for name in names}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


@dataclass(frozen=True)
class Certificate(Difference):
    """Evidence that the compact network computes the same function: the `Difference` of the outputs, and more.

    Attributes:
        num_random: random inputs compared.
        num_given: inputs of the caller (held-out pictures) compared.
        tolerance_float32: largest difference at which the certificate holds; relative to ``max_output`` where that
            is above 1, as round-off is.
        tolerance_float64: the same in double precision; that of single precision where biases and weights that are
            stored in single precision took up constants, and gates of nodes that are read through.
        nodes: the difference of the state of every node that survives, on the units that survive.
        changes: what was removed and kept, by node, and why.
        constant: no path leads from the input to the output.
        hashes: `fingerprint` of the "supernet" and the "compact" network.
    """

    num_random: int
    num_given: int
    tolerance_float32: float = 1e-5
    tolerance_float64: float = 1e-10
    nodes: dict[str, Difference] = field(default_factory=dict, repr=False)
    changes: tuple[NodeChanges, ...] = field(default=(), repr=False)
    constant: bool = False
    hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def holds(self) -> bool:
        scale = max(1.0, self.max_output)
        return (
            self.max_abs_float32 <= self.tolerance_float32 * scale
            and self.max_abs_float64 <= self.tolerance_float64 * scale
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; numbers that are not finite become None."""
        nodes = {name: difference.numbers() for name, difference in self.nodes.items()}
        return {**asdict(self), **self.numbers(), "holds": self.holds, "nodes": nodes}


def certify(net: nn.Module, small: nn.Module, inputs: Sequence[Tensor] = (), *, seed: int = 0) -> Certificate:
    """Compare a network and the compact one taken from it, end to end and node by node; both are left as they are.

    Args:
        net: the searched network.
        small: what `nas.models.network.compacted` made of it.
        inputs: real inputs to compare on besides random ones, each without the batch axis.
        seed: of the random inputs.

    Raises:
        ValueError: ``small`` has other nodes or fewer units than what is alive in ``net``.
    """
    known = _known(net, small)
    batches = [*_random_inputs(net, seed), *(each[None] for each in inputs)]
    single, double = (_compare(net, small, known.kept, batches, dtype) for dtype in (torch.float32, torch.float64))
    found = {name: Difference(single[name][0], *double[name]) for name in double}
    whole = found.pop(WHOLE)
    return Certificate(
        **asdict(whole),
        num_random=sum(map(len, batches)) - len(inputs),
        num_given=len(inputs),
        **({"tolerance_float64": Certificate.tolerance_float32} if known.rounded else {}),
        nodes=found,
        changes=known.changes,
        constant=known.constant,
        hashes={"supernet": fingerprint(net), "compact": fingerprint(small)},
    )


@dataclass(frozen=True)
class _Known:
    """What is known of two networks before they are compared.

    Attributes:
        changes: from one to the other.
        rounded: whether biases and weights that took up constants had to be rounded to the precision of the network.
        kept: by node whose states can be compared which of its units are.
        constant: whether no path leads from the input to the output.
    """

    changes: tuple[NodeChanges, ...]
    rounded: bool
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    constant: bool = False


@singledispatch
def _known(net: nn.Module, small: nn.Module) -> _Known:
    """What is known of a `DagNet`, and of a `TracedNet`, and of what is to be the compact network in it."""
    raise TypeError(f"a certificate is of a DagNet or a TracedNet, not of {type(net).__name__}")


@_known.register
def _(net: DagNet, small: nn.Module) -> _Known:
    cut = simplified(net)
    alive = find_alive(cut).units
    kept = {**alive, OUTPUT: torch.ones_like(alive[OUTPUT])}
    if not isinstance(small, DagNet) or not _fits(net, small, kept):
        raise ValueError("the compact network has not the nodes and units that are alive in the searched one")
    return _Known(changes(net), _rounded(net, cut), kept, not bool(alive[INPUT].any()))


@_known.register
def _(net: TracedNet, small: nn.Module) -> _Known:
    cut, removal = net.cut()
    if not alike(TracedNet(cut, net.origin), small):
        raise ValueError("the compact network has not the channels that are alive in the searched one")
    changed = changes_of(removal)
    return _Known(changed, any(FOLDED in each.removed for each in changed))


def _fits(net: DagNet, small: DagNet, kept: Mapping[str, Tensor]) -> bool:
    """Whether the compact network has the nodes that are ``kept``, with as many units at least."""
    units = small.plan.units
    nodes = [name for name, mask in kept.items() if name in (INPUT, OUTPUT) or mask.any()]
    outside = [dataclasses.replace(plan, nodes=()) for plan in (net.plan, small.plan)]
    return list(units) == nodes and outside[0] == outside[1] and all(units[name] >= kept[name].sum() for name in nodes)


def _rounded(net: DagNet, cut: DagNet) -> bool:
    """Whether what biases and weights took up (`simplified`) had to be rounded to the precision of the network."""
    exact = simplified(copy.deepcopy(net).double()).state_dict()
    return any(
        name not in exact or not torch.equal(t.cpu().double(), exact[name].cpu())
        for name, t in cut.state_dict().items()
    )


def _random_inputs(net: nn.Module, seed: int) -> list[Tensor]:
    """Noise and uniform pictures of odd and even sizes (or vectors), around the values that the network sees."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(net, DagNet):
        sizes: list[tuple[int, ...]] = [(32, 32), (41, 23), (1, 7)] if net.plan.patch is not None else [(), ()]
        shapes, middle = [(4, net.plan.inputs, *size) for size in sizes], net.plan.offset
    else:
        shapes, middle = [input_shape(net, 4, side) for side in (48, 59)], 0.5
    noise = [middle + torch.randn(shape, generator=generator) for shape in shapes]
    return noise + [torch.rand(shape, generator=generator) for shape in shapes]


@torch.no_grad()
def _compare(
    net: nn.Module, small: nn.Module, kept: Mapping[str, Tensor], batches: Sequence[Tensor], dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """For the whole network and every node of the compact one: largest absolute difference, largest absolute value."""
    full, short = (copy.deepcopy(each).cpu().to(dtype).eval() for each in (net, small))
    measured: dict[str, list[Tensor]] = {}
    for x in batches:
        for name, y, z in _pairs(full, short, kept, x.cpu().to(dtype)):
            measured.setdefault(name, []).append(torch.stack([(y - z).abs().max(), y.abs().max()]))
    largest = {name: torch.stack(each).amax(dim=0) for name, each in measured.items()}  # amax keeps a NaN
    return {name: (float(difference), float(value)) for name, (difference, value) in largest.items()}


def _pairs(
    net: nn.Module, small: nn.Module, kept: Mapping[str, Tensor], x: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is to be equal: the outputs, and of a `DagNet` the states of every node on the units that survive."""
    if not (isinstance(net, DagNet) and isinstance(small, DagNet)):
        yield WHOLE, net(x), small(x)
        return
    full, short = net.states(x), small.states(x)
    yield WHOLE, net.output(full, x), small.output(short, x)
    for name in list(short)[1:]:
        whole, part = full[name].movedim(net.unit_axis, -1), short[name].movedim(small.unit_axis, -1)
        yield name, whole[..., kept[name]], part[..., : int(kept[name].sum())]
