"""The architecture of a network as plain data: what a configuration file holds and `DagNet` builds."""

import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

INPUT, OUTPUT = "in", "out"


@dataclass(frozen=True)
class Skip:
    """A scalar gate from an earlier node: adds ``gate * x_source[take]`` to the units ``put`` of its node.

    ``None`` stands for all units, in order.
    """

    source: str
    take: tuple[int, ...] | None = None
    put: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One node: x = act(sum of edges + bias) + sum of skips.

    Attributes:
        name: identifier; the last node of a plan is named "out".
        units: number of units (channels, or neurons) of x.
        edges: for each source its kernel size, None for a fully connected edge.
        skips: gates that arrive here.
        rows: the units that the edges compute; the others get their value from skips alone. None: all.
        activation: a key of `nas.models.dag.ACTIVATIONS`.
        searched: whether a search may leave its units out; False for an output of fixed form.
    """

    name: str
    units: int
    edges: Mapping[str, int | None]
    skips: tuple[Skip, ...] = ()
    rows: tuple[int, ...] | None = None
    activation: str = "relu"
    searched: bool = True

    @property
    def num_rows(self) -> int:
        return self.units if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Plan:
    """A network: the input node "in", then ``nodes`` in topological order.

    Attributes:
        channels: channels of a picture, or number of features of a vector.
        nodes: in topological order, the last one named "out".
        patch: side of the square patches whose pixels become units (`torch.nn.functional.pixel_unshuffle`), so that
            "in" has ``channels * patch ** 2`` units. None: the input is a batch of vectors.
        offset: subtracted from the input and added to the output; the middle of the data range.
        residual: the output is a correction that is added to the input, so that an empty network changes nothing.
    """

    channels: int
    nodes: tuple[Node, ...]
    patch: int | None = None
    offset: float = 0.0
    residual: bool = False

    @property
    def units(self) -> dict[str, int]:
        """Number of units of every node, the input first."""
        return {INPUT: self.channels * (self.patch or 1) ** 2} | {node.name: node.units for node in self.nodes}

    @property
    def is_convolutional(self) -> bool:
        return any(kernel is not None for node in self.nodes for kernel in node.edges.values())

    def check(self, activations: Container[str]) -> None:
        """Raise ValueError, in one sentence, unless `DagNet` can build this plan."""
        if not self.nodes or self.nodes[-1].name != OUTPUT:
            raise ValueError(f"the last node of a plan must be named {OUTPUT!r}")
        before = {INPUT: self.units[INPUT]}
        for node in self.nodes:
            sources = [*node.edges, *(skip.source for skip in node.skips)]
            if late := [source for source in sources if source not in before]:
                raise ValueError(f"node {node.name!r} reads {late[0]!r}, which is not before it")
            if node.activation not in activations:
                raise ValueError(f"node {node.name!r} has the unknown activation {node.activation!r}")
            if even := [kernel for kernel in node.edges.values() if kernel is not None and kernel % 2 == 0]:
                raise ValueError(f"node {node.name!r} has the kernel size {even[0]}; it must be odd")
            for skip in node.skips:
                taken = before[skip.source] if skip.take is None else len(skip.take)
                placed = node.units if skip.put is None else len(skip.put)
                if taken != placed:
                    raise ValueError(f"the skip {skip.source!r} -> {node.name!r} joins {taken} units to {placed}")
            before[node.name] = node.units

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: ``data`` is not the plan of a network.
        """
        try:
            nodes = tuple(
                Node(**{**node, "skips": tuple(_skip(skip) for skip in node["skips"]), "rows": _indices(node["rows"])})
                for node in data["nodes"]
            )
            return cls(**{**data, "nodes": nodes})
        except (KeyError, TypeError) as problem:
            raise ValueError(f"this is not the plan of a network: {type(problem).__name__} {problem}") from None


def _skip(data: Mapping[str, Any]) -> Skip:
    return Skip(data["source"], _indices(data["take"]), _indices(data["put"]))


def _indices(data: list[int] | None) -> tuple[int, ...] | None:
    return None if data is None else tuple(data)
