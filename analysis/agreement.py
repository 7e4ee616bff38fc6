"""What several searches of one supernet agree on, such as those with different seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nas.models.dag import DagNet
from nas.models.network import widths
from nas.search.runs.path import Point

Arc = tuple[str, str]


@dataclass(frozen=True)
class Agreement:
    """What each of several searches chose.

    The units of a node start with random weights and can be exchanged for one another, so that a unit of one search is
    none of another: what can be compared is how many there are.

    Attributes:
        num: number of searches.
        skips: for every skip that is searched, by (source, target): whether each search chose it, 1 or 0.
        kernels: for every operation, by (`nas.models.Edge.key`, target): the side of its kernel in each search (1 for
            a matrix); 0 where it was not chosen.
        units: for every searched node: the number of its units in each search.
        blocks: those of the operations that are blocks, which come and go as a whole.
    """

    num: int
    skips: dict[Arc, tuple[int, ...]]
    kernels: dict[Arc, tuple[int, ...]]
    units: dict[str, tuple[int, ...]]
    blocks: frozenset[Arc]

    def stable(self, fraction: float) -> "Stable":
        """Stability selection: what at least a fraction of the searches chose.

        A skip, an operation or a block is stable if so many searches chose it. Rings of kernels and numbers of units
        are nested: a kernel counts with the largest side that so many searches reached, a node with the largest number
        of units. As in Meinshausen and Buehlmann (2010), but over seeds (of weights, crops and noise) instead of
        subsamples of the data, and over the networks that were recommended instead of over the path, since what has
        grown at the end of a path is more than is useful. So their bound on false choices does not apply.

        Args:
            fraction: of the searches, in (0, 1].

        Raises:
            ValueError: it lies elsewhere.
        """
        check_fraction(fraction)
        place = math.ceil(round(fraction * self.num, 9)) - 1

        def reached(values: Mapping[Arc, Sequence[int]]) -> dict[Arc, int]:
            return {arc: value for arc, each in values.items() if (value := _descending(each)[place])}

        units = {name: _descending(each)[place] for name, each in self.units.items()}
        return Stable(tuple(reached(self.skips)), reached(self.kernels), units)


@dataclass(frozen=True)
class Stable:
    """What `Agreement.stable` selects.

    Attributes:
        skips: by (source, target).
        kernels: the sides of the kernels of the operations, by (`nas.models.Edge.key`, target).
        units: number of units of every searched node.
    """

    skips: tuple[Arc, ...]
    kernels: dict[Arc, int]
    units: dict[str, int]


def agreement(net: nn.Module, points: Sequence[Point]) -> Agreement:
    """What several searches chose.

    Args:
        net: the supernet that all of them searched.
        points: the network that each of them recommends, at least one.
    """
    found = [point.snapshot for point in points]
    nodes = net.plan.nodes if isinstance(net, DagNet) else ()
    skips = [
        (source, node.name)
        for node in nodes
        for source in node.skip_sources
        if source not in {skip.source for skip in node.skips if skip.trunk}
    ]
    edges = [((edge.key, node.name), edge) for node in nodes for edge in node.edges]
    return Agreement(
        len(found),
        {arc: tuple(int(arc in each.skips) for each in found) for arc in skips},
        {arc: tuple(each.kernels.get(arc, 0) for each in found) for arc, _ in edges},
        {name: tuple(len(each.units.get(name, ())) for each in found) for name in widths(net)},
        frozenset(arc for arc, edge in edges if edge.block),
    )


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless there is such a fraction of the searches."""
    if not 0 < fraction <= 1:
        raise ValueError(f"stable must be a fraction of the seeds, above 0 and at most 1, got {fraction:g}")


def _descending(values: Sequence[int]) -> list[int]:
    return sorted(values, reverse=True)
