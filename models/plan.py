"""The architecture of a network as plain data: what a configuration file holds and `DagNet` builds."""

import dataclasses
import math
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

INPUT, OUTPUT = "in", "out"
FULL, POINTWISE, DEPTHWISE = OPERATIONS = ("full", "pointwise", "depthwise")
MAX_SIZE = 100_000  # far above what is useful; keeps a slip of the pen from filling the memory
MAX_LEVELS = 10


Indices = tuple[int, ...] | None  # None: all, in order


@dataclass(frozen=True)
class Edge:
    """Weights from an earlier node: adds ``A(x_source[take])`` to the rows ``put`` of its node.

    Attributes:
        source: name of the earlier node.
        kernel: side of the kernel, at the resolution of its node; None for a matrix (a fully connected edge).
        operation: "full" (every row reads every unit, with a k x k kernel), "pointwise" (likewise, with a 1 x 1
            kernel), or "depthwise" (row ``put[i]`` reads unit ``take[i]`` alone). Nodes may be joined by one edge of
            each.
        block: a searched unit of its own, which can go as a whole.
        core: side of the kernel's middle, around which a search adds ring after ring; None: the whole kernel is there.
        take: the units that are read. None: all.
        put: the rows that are written. None: all.
    """

    source: str
    kernel: int | None = None
    operation: str = FULL
    block: bool = False
    core: int | None = None
    take: Indices = None
    put: Indices = None

    @property
    def key(self) -> str:
        """Its name among the edges of its node."""
        return self.source if self.operation == FULL else f"{self.source}_{self.operation}"

    def shape(self, rows: int, units: int) -> tuple[int, ...]:
        """The shape of its weights, into a node of ``rows`` rows from one of ``units`` units."""
        read = 1 if self.operation == DEPTHWISE else units if self.take is None else len(self.take)
        return (rows if self.put is None else len(self.put), read, *(2 * (self.kernel,) if self.kernel else ()))

    def check(self, node: str, rows: int, units: int) -> None:
        """Raise ValueError, in one sentence, unless this edge can join ``units`` units to ``rows`` rows of ``node``."""
        name = f"the edge {self.source!r} -> {node!r}"
        _require(self.operation in OPERATIONS, f"{name} has the unknown operation {self.operation!r}")
        odd = self.kernel is None or (_is_size(self.kernel) and self.kernel % 2 == 1)
        _require(odd, f"node {node!r} has the kernel size {self.kernel!r}; it must be odd")
        fits = {FULL: True, POINTWISE: self.kernel == 1, DEPTHWISE: self.kernel is not None}[self.operation]
        _require(fits, f"{name} is {self.operation} and has the kernel size {self.kernel!r}")
        _require(isinstance(self.block, bool), f"{name} must have block true or false")
        grows = self.core is None or (_is_size(self.core) and self.core % 2 == 1 and self.core < (self.kernel or 0))
        _require(grows, f"{name} cannot grow from the core {self.core!r} to the kernel size {self.kernel!r}")
        _require(_fits(self.take, units) and _fits(self.put, rows), f"{name} names units that do not exist")
        read, written = units if self.take is None else len(self.take), rows if self.put is None else len(self.put)
        _require(self.operation != DEPTHWISE or read == written, f"{name} is depthwise and joins {read} to {written}")


@dataclass(frozen=True)
class Skip:
    """A scalar gate from an earlier node: adds ``gate * x_source[take]`` to the units ``put`` of its node.

    A ``trunk`` goes on a residual sum: its gate starts at 1 and is not searched.
    """

    source: str
    take: Indices = None
    put: Indices = None
    trunk: bool = False


@dataclass(frozen=True)
class Node:
    """One node: x = act(sum of edges + bias) + sum of skips + sum of projections.

    Attributes:
        name: identifier; the last node of a plan is named "out".
        units: number of units (channels, or neurons) of x.
        edges: what is summed before the activation.
        skips: gates that arrive here, from nodes of the same level.
        rows: the units that the edges compute; the others get their value from skips alone. None: all.
        activation: a key of `nas.models.dag.ACTIVATIONS`.
        searched: whether a search may leave its units out; False for an output of fixed form.
        tied: an earlier node whose units are these, too, such as the first one of a trunk: unit i of both is searched
            as one.
        bias: whether each row has a bias.
        whole: whether its rows together are a searched unit, too, which wakes as a whole.
        projections: sources of skips that a matrix (1 x 1 convolution) leads to the units of this node.
        level: how often the resolution of the input is halved here.
    """

    name: str
    units: int
    edges: tuple[Edge, ...]
    skips: tuple[Skip, ...] = ()
    rows: Indices = None
    activation: str = "relu"
    searched: bool = True
    tied: str | None = None
    bias: bool = True
    whole: bool = False
    projections: tuple[str, ...] = ()
    level: int = 0

    def __deepcopy__(self, memo: object) -> "Node":
        return self  # it never changes

    @property
    def num_rows(self) -> int:
        return self.units if self.rows is None else len(self.rows)

    @property
    def sources(self) -> list[str]:
        """Where edges, gates and projections lead here from."""
        return [*(edge.source for edge in self.edges), *(skip.source for skip in self.skips), *self.projections]

    @property
    def block_sources(self) -> set[str]:
        """The nodes from which blocks alone lead to this one: skips into the activation."""
        return {edge.source for edge in self.edges} - {edge.source for edge in self.edges if not edge.block}

    @property
    def skip_sources(self) -> list[str]:
        """Where gates, projections, and blocks alone lead here from."""
        return [*(skip.source for skip in self.skips), *self.projections, *sorted(self.block_sources)]

    @property
    def num_skips(self) -> int:
        """Number of gates that are searched, of projections, and of nodes from which blocks alone lead here."""
        return len(self.skip_sources) - sum(skip.trunk for skip in self.skips)

    def check(self, before: Mapping[str, int], activations: Container[str]) -> None:
        """Raise ValueError, in one sentence, unless this node can follow the nodes ``before`` (with their units)."""
        _require(_is_identifier(self.name), f"a node must have an identifier as its name, got {self.name!r}")
        _require(self.name not in before, f"two nodes are named {self.name!r}")
        _require(_is_size(self.units), f"node {self.name!r} must have 1 to {MAX_SIZE} units, got {self.units!r}")
        for source in self.sources:
            _require(source in before, f"node {self.name!r} reads {source!r}, which is not before it")
        for flag in ("searched", "bias", "whole"):
            _require(isinstance(getattr(self, flag), bool), f"node {self.name!r} must have {flag} true or false")
        _require(self.activation in activations, f"node {self.name!r} has the unknown activation {self.activation!r}")
        _require(_fits(self.rows, self.units), f"the rows of node {self.name!r} are not units of it")
        for edge in self.edges:
            edge.check(self.name, self.num_rows, before[edge.source])
        keys = [edge.key for edge in self.edges]
        _require(len(set(keys)) == len(keys), f"two edges of node {self.name!r} have the same name")
        tied = self.tied is None or (before.get(self.tied) == self.units and not self.searched)
        _require(tied, f"node {self.name!r} cannot be tied to {self.tied!r}")
        trunks = {skip.trunk for skip in self.skips}
        _require(trunks <= {True} or trunks <= {False}, f"node {self.name!r} mixes trunks and gates")
        grown = [edge for edge in self.edges if edge.core is not None and not edge.block]
        _require(not (grown and self.searched), f"a kernel of node {self.name!r} grows, and is a part of its units")
        sources = self.skip_sources
        _require(len(set(sources)) == len(sources), f"two skips join the same nodes to {self.name!r}")
        for skip in self.skips:
            name, taken, placed = f"the skip {skip.source!r} -> {self.name!r}", before[skip.source], self.units
            _require(_fits(skip.take, taken) and _fits(skip.put, placed), f"{name} names units that do not exist")
            taken = taken if skip.take is None else len(skip.take)
            placed = placed if skip.put is None else len(skip.put)
            _require(taken == placed, f"{name} joins {taken} units to {placed}")


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
        pooled: the output is not a picture, but the vector of the means of "out" over all positions (the logits of a
            classifier); the offset is not added.
        levels: how often the resolution can be halved: pictures are padded to multiples of ``patch * 2 ** levels``.
        extra: channels of the input behind those of the picture, such as the level of its noise. The offset is not
            subtracted from them, and the output has none.
    """

    channels: int
    nodes: tuple[Node, ...]
    patch: int | None = None
    offset: float = 0.0
    residual: bool = False
    pooled: bool = False
    levels: int = 0
    extra: int = 0

    def __deepcopy__(self, memo: object) -> "Plan":
        return self  # it never changes

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.channels + self.extra

    @property
    def units(self) -> dict[str, int]:
        """Number of units of every node, the input first."""
        return {INPUT: self.inputs * (self.patch or 1) ** 2} | {node.name: node.units for node in self.nodes}

    @property
    def is_convolutional(self) -> bool:
        return self.levels > 0 or any(edge.kernel is not None for node in self.nodes for edge in node.edges)

    @property
    def node_levels(self) -> dict[str, int]:
        """How often the resolution is halved at every node, the input first."""
        return {INPUT: 0} | {node.name: node.level for node in self.nodes}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor in the ``state_dict`` of the network."""
        units = self.units
        shapes: dict[str, tuple[int, ...]] = {}
        for node in self.nodes:
            name = f"nodes.{node.name}"
            shapes |= {f"{name}.edges.{edge.key}": edge.shape(node.num_rows, units[edge.source]) for edge in node.edges}
            shapes |= {f"{name}.projections.{source}": (node.units, units[source]) for source in node.projections}
            shapes |= {f"{name}.gates": (len(node.skips),)} | ({f"{name}.bias": (node.num_rows,)} if node.bias else {})
        return shapes

    @property
    def num_params(self) -> int:
        """Number of parameters of the network."""
        return sum(map(math.prod, self.shapes.values()))

    def check(self, activations: Container[str]) -> None:
        """Raise ValueError, in one sentence, unless `DagNet` can build this plan."""
        size = f"must be an integer from 1 to {MAX_SIZE}, got"
        _require(_is_size(self.channels), f"channels {size} {self.channels!r}")
        _require(self.patch is None or _is_size(self.patch), f"patch {size} {self.patch!r}")
        _require(type(self.extra) is int and 0 <= self.extra <= MAX_SIZE, f"extra must be >= 0, got {self.extra!r}")
        _require(_is_finite(self.offset), f"offset must be a finite number, got {self.offset!r}")
        for name in ("residual", "pooled"):
            _require(
                isinstance(getattr(self, name), bool), f"{name} must be true or false, got {getattr(self, name)!r}"
            )
        _require(not (self.residual and self.pooled), "a pooled output is no picture that a residual net could correct")
        _require(
            type(self.levels) is int and 0 <= self.levels <= MAX_LEVELS,
            f"levels must be an integer from 0 to {MAX_LEVELS}, got {self.levels!r}",
        )
        _require(self.levels == 0 or self.patch is not None, "only pictures have levels")
        _require(
            bool(self.nodes) and self.nodes[-1].name == OUTPUT, f"the last node of a plan must be named {OUTPUT!r}"
        )
        before = {INPUT: self.units[INPUT]}
        for node in self.nodes:
            node.check(before, activations)
            before[node.name] = node.units
        searched = {node.name for node in self.nodes if node.searched}
        for node in self.nodes:
            _require(node.tied is None or node.tied in searched, f"node {node.name!r} cannot be tied to {node.tied!r}")
        self._check_levels()
        picture = self.channels * (self.patch or 1) ** 2
        same = self.pooled or (self.patch is None and not self.residual) or before[OUTPUT] == picture
        _require(same, f"{OUTPUT!r} must have as many units as {INPUT!r}{' has of the picture' if self.extra else ''}")
        kernels = {edge.kernel for node in self.nodes for edge in node.edges}
        _require(None not in kernels or kernels == {None}, "a plan mixes convolutions and fully connected edges")

    def _check_levels(self) -> None:
        levels = self.node_levels
        for node in self.nodes:
            fits = type(node.level) is int and 0 <= node.level <= self.levels
            _require(fits, f"node {node.name!r} must have a level from 0 to {self.levels}, got {node.level!r}")
            for skip in node.skips:
                name = f"the skip {skip.source!r} -> {node.name!r}"
                _require(levels[skip.source] == node.level, f"{name} joins two resolutions; that takes a projection")
        _require(self.pooled or levels[OUTPUT] == 0, f"{OUTPUT!r} must have the resolution of the input")
        kernels = {edge.kernel for node in self.nodes for edge in node.edges}
        _require(self.levels == 0 or None not in kernels, "fully connected edges have no levels")

    def with_extra(self, extra: int) -> "Plan":
        """The same for an input with so many channels behind the picture, which edges read and gates do not."""
        own = tuple(range(self.channels * (self.patch or 1) ** 2))

        def of_picture(skip: Skip) -> Skip:
            return replace(skip, take=own) if skip.source == INPUT and skip.take is None else skip

        nodes = (replace(node, skips=tuple(map(of_picture, node.skips))) for node in self.nodes)
        return replace(self, nodes=tuple(nodes), extra=extra)

    def with_patch(self, patch: int) -> "Plan":
        """The same for squares of this side: nodes are as wide as before, and edges from the input and to the output as
        the new squares need. With single pixels (1) instead of squares of 2 x 2 it sees half as far and computes 4
        times as much, with fewer weights.

        Raises:
            ValueError: it takes no pictures apart, or skips join units of the squares.
        """
        if self.patch is None or self.pooled:
            raise ValueError("only a network from pictures to pictures has patches")
        (*nodes, out) = (replace(node, edges=tuple(map(_of_all_inputs, node.edges))) for node in self.nodes)
        if out.skips or any(INPUT in (*(skip.source for skip in node.skips), *node.projections) for node in self.nodes):
            raise ValueError("skips from the input or to the output join units of its patches; their number is fixed")
        units = self.channels * patch**2
        last = replace(out, units=units, edges=tuple(replace(edge, put=None) for edge in out.edges), rows=None)
        return replace(self, nodes=(*nodes, last), patch=patch)

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
            return cls(
                **{**_complete(cls, {"extra": 0, **data}), "nodes": tuple(_node(node) for node in data["nodes"])}
            )
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(f"this is not the plan of a network: {type(problem).__name__} {problem}") from None


def _of_all_inputs(edge: Edge) -> Edge:
    return replace(edge, take=None) if edge.source == INPUT else edge


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE


def _is_finite(value: Any) -> bool:
    limit = 2**63 - 1 if isinstance(value, int) else sys.float_info.max  # torch takes no larger integer
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limit


def _is_identifier(value: Any) -> bool:
    """Whether it can be a part of a name in Python source, which an export writes."""
    return isinstance(value, str) and value.isascii() and value.isidentifier()


def _fits(indices: Indices, units: int) -> bool:
    """Whether these are increasing indices of ``units`` units."""
    if indices is None:
        return True
    integers = all(type(index) is int and 0 <= index < units for index in indices)
    return integers and all(a < b for a, b in pairwise(indices))


def _complete(kind: type, data: Any) -> dict[str, Any]:
    """``data``, if its keys are the fields of the dataclass ``kind``."""
    fields = {field.name for field in dataclasses.fields(kind)}
    if set(data) != fields:
        raise KeyError(f"{kind.__name__} has the keys {sorted(fields)}, got {sorted(data)}")
    return dict(data)


def _node(data: Mapping[str, Any]) -> Node:
    tuples = {
        "edges": tuple(_link(Edge, edge) for edge in data["edges"]),
        "skips": tuple(_link(Skip, skip) for skip in data["skips"]),
        "rows": _indices(data["rows"]),
        "projections": tuple(data["projections"]),
    }
    return Node(**{**_complete(Node, data), **tuples})


def _link(kind: type, data: Mapping[str, Any]) -> Any:
    return kind(**{**_complete(kind, data), "take": _indices(data["take"]), "put": _indices(data["put"])})


def _indices(data: list[int] | None) -> Indices:
    return None if data is None else tuple(data)
