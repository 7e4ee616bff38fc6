"""Where everything of a drawing stands: boxes from top to bottom, skips as arcs at their left, blocks as branches.

in                  A node is a box, filled by its share of alive units. Edges lead down, with their operation
|3x3                beside them; all other arcs bend through the margin at the left.
t0
|---7x7---[d1]--1x1--[h1]      A block, a chain that nothing else reads beside a skip around it, is folded into a
t1 ------1x1----------+        branch beside the line of that skip, so that twenty nodes take nine rows.
|3x3
out
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import networkx as nx

BOX_WIDTH, WIDEST_BOX, BOX_HEIGHT = 112.0, 240.0, 32.0  # boxes are as wide as the longest words in one, within limits
BOX_FONT, NOTES_FONT, PADDING = 11.0, 8.5, 7.0  # of the words in a box, of the notes below them
GAP = 32.0  # between a box and the next one below it
HALF_BLOCK = 46.0  # from the middle of a branch to that of the boxes above and below it
SPINE = 22.0  # of the line through the boxes, from their left
AISLE = 48.0  # between the boxes of a branch
INDENT = 40.0  # by which branches begin further left
MARGIN = 14.0
WIDEST_ARC = 260.0
MAX_BRANCH = 3  # nodes in a folded block
MAX_LABELS = 40  # on skips; the strongest ones
FONT = 10.0
CHARACTER = 0.6  # width of a character, as a part of the size of its font

Point = tuple[float, float]
Branches = dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class Box:
    """A node.

    Attributes:
        name: of the node.
        kind: "input", "hidden" or "output".
        x: left edge.
        y: upper edge; y grows downwards.
        width: of all boxes of a drawing.
        filled: its share of alive units, in [0, 1].
        count: such as "9 of 32".
        notes: the part of the sides of the picture that it works at, and since when its units are alive, such as
            "at 1/2, born 0-31"; "" where it works on the whole picture and nothing is known.
    """

    name: str
    kind: str
    x: float
    y: float
    width: float
    filled: float
    count: str
    notes: str

    @property
    def shown_name(self) -> str:
        """The name, without its middle where there is no room for it beside the count."""
        room = int((self.width - 2 * PADDING) / (BOX_FONT * CHARACTER)) - len(f"  {self.count}")
        if len(self.name) <= room:
            return self.name
        return f"{self.name[: (room - 1) // 2]}…{self.name[-(room // 2) :]}"

    @property
    def lines(self) -> tuple[float, ...]:
        """Base lines of the name with the count, and of the notes."""
        middle = self.y + BOX_HEIGHT / 2
        return (middle - 1.5, middle + 10) if self.notes else (middle + 4,)


@dataclass(frozen=True)
class Label:
    """Words beside an arc: ``at`` is their left, right or middle ("start", "end", "middle") on the base line."""

    text: str
    at: Point
    anchor: str = "start"

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom; estimated."""
        width = FONT * CHARACTER * len(self.text)
        left = self.at[0] - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * width
        return left, self.at[1] - FONT, left + width, self.at[1] + 0.25 * FONT


@dataclass(frozen=True)
class Arc:
    """A line from one node to another.

    Attributes:
        source: a node.
        target: another one.
        kind: "weights" or "skip".
        curve: corners of a polygon, or, if ``bent``, the four control points of a cubic curve.
        bent: whether it is a curve.
        thickness: of the line.
        gate: of a skip, with its sign; 0 for weights.
        label: words beside it.
        title: all that is known about it, in a sentence.
    """

    source: str
    target: str
    kind: str
    curve: tuple[Point, ...]
    bent: bool
    thickness: float
    gate: float
    label: Label | None
    title: str


@dataclass(frozen=True)
class Layout:
    """A drawing; the units are points, y grows downwards from 0."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    arcs: tuple[Arc, ...]


def layout(graph: nx.DiGraph) -> Layout:
    """Places for a graph of `nas.analysis.topology` at node level.

    A skip is as thick as its attribute "share", the part of its node's signal that it brings (`skip_shares`), if that
    is given, else as the size of its gate; edges are as thick as their norm.
    """
    folded = branches(graph)
    width = _box_width(graph)
    places = _rows(graph, folded, width + AISLE)
    arcs = _without_crowded_labels([*_arcs(graph, folded, places, width)])
    boxes = [_box(name, graph.nodes[name], *place, width) for name, place in places.items()]
    left = min([0.0, *(x for arc in arcs for x in _reach(arc))]) - MARGIN
    right = max([box.x + width for box in boxes] + [arc.label.extent[2] for arc in arcs if arc.label]) + MARGIN
    height = max(box.y for box in boxes) + BOX_HEIGHT + MARGIN
    return Layout(
        right - left, height,
        tuple(replace(box, x=box.x - left) for box in boxes), tuple(_moved(arc, -left) for arc in arcs),
    )  # fmt: skip


def has_weights(arc: dict[str, Any]) -> bool:
    """Whether weights are on this arc that are no skip."""
    return arc["norm"] > 0 and not math.isclose(arc["norm"], arc["gate"], rel_tol=1e-6)


def branches(graph: nx.DiGraph) -> Branches:
    """The chains that are folded, by (source, target) of the skip around them."""
    order = _ordered(graph)
    place = {name: k for k, name in enumerate(order)}
    found = {}
    for source, target, arc in graph.edges(data=True):
        between = order[place[source] + 1 : place[target]]
        chain = [source, *between, target]
        is_skip = arc["gate"] != 0 and not arc["norm"]
        alone = all(graph.degree(name) == 2 for name in between)
        arcs = [graph.get_edge_data(*pair) for pair in pairwise(chain)]
        joined = all(arc and has_weights(arc) and not arc["gate"] for arc in arcs)
        if is_skip and 0 < len(between) <= MAX_BRANCH and alone and joined and _fit(arcs):
            found[source, target] = between
    return found


def _fit(arcs: list[dict[str, Any]]) -> bool:
    """Whether there is room for the operations along a branch."""
    room = [BOX_WIDTH + AISLE - INDENT - SPINE, *(AISLE for _ in arcs[1:-1])]
    return all(FONT * CHARACTER * len(arc["operation"]) <= width for arc, width in zip(arcs, room, strict=False))


def _ordered(graph: nx.DiGraph) -> list[str]:
    return sorted(graph, key=lambda name: int(graph.nodes[name]["layer"]))


def _box_width(graph: nx.DiGraph) -> float:
    vertices = graph.nodes(data=True)
    words = max(BOX_FONT * len(f"{name}  {_count(vertex)}") for name, vertex in vertices)
    notes = max(NOTES_FONT * len(_notes(vertex)) for _, vertex in vertices)
    return min(WIDEST_BOX, max(BOX_WIDTH, 2 * PADDING + CHARACTER * max(words, notes)))


def _rows(graph: nx.DiGraph, folded: Branches, column: float) -> dict[str, Point]:
    """Left upper corner of every box; ``column`` is from one box of a branch to the next."""
    inside = {name for chain in folded.values() for name in chain}
    starts = {target: chain for (_, target), chain in folded.items()}
    places: dict[str, Point] = {}
    y = MARGIN
    for name in _ordered(graph):
        if name in inside:
            continue
        if chain := starts.get(name):
            y += HALF_BLOCK - BOX_HEIGHT - GAP
            places |= {each: (column * (k + 1) - INDENT, y) for k, each in enumerate(chain)}
            y += HALF_BLOCK
        places[name] = (0.0, y)
        y += BOX_HEIGHT + GAP
    return places


def _count(vertex: dict[str, Any]) -> str:
    return f"{vertex['alive']} of {vertex['total']}"


def _notes(vertex: dict[str, Any]) -> str:
    side = f"at 1/{2 ** vertex['scale']}" if vertex.get("scale") else ""
    born = f"born {vertex['born']}-{vertex['born_last']}" if "born" in vertex else ""
    return ", ".join(filter(None, (side, born)))


def _box(name: str, vertex: dict[str, Any], x: float, y: float, width: float) -> Box:
    return Box(name, vertex["kind"], x, y, width, vertex["alive"] / vertex["total"], _count(vertex), _notes(vertex))


def _arcs(graph: nx.DiGraph, folded: Branches, places: dict[str, Point], width: float) -> Iterator[Arc]:
    inside = {name for chain in folded.values() for name in chain}
    spine = [name for name in _ordered(graph) if name not in inside]
    neighbours = set(pairwise(spine))
    strongest = max((data["norm"] for *_, data in graph.edges(data=True)), default=0.0) or 1.0
    strongest_gate = max((abs(data["gate"]) for *_, data in graph.edges(data=True)), default=0.0) or 1.0
    for source, target, data in graph.edges(data=True):
        if has_weights(data):
            thickness = 0.8 + 1.6 * data["norm"] / strongest
            words = data["operation"]
            title = f"{source} to {target}: {words}, weights {data['shape']} of norm {data['norm']:.3g}"
            curve, bent, label = _weights_path(source, target, words, places, width, inside, neighbours)
            yield Arc(source, target, "weights", curve, bent, thickness, 0.0, label, title)
        if data["gate"] != 0:
            part = data.get("share")
            thickness = 0.8 + 5 * (abs(data["gate"]) / strongest_gate / 2 if part is None else part)
            words = skip_words(data["gate"], part)
            operation = f" by {data['operation']}" if data["operation"] and not has_weights(data) else ""
            title = f"skip from {source} to {target}{operation}: {words}"
            if (source, target) in folded:
                curve, bent, label = _trunk_path(source, target, words, places)
            else:
                curve, bent, label = _bend(source, target, words, places)
            yield Arc(source, target, "skip", curve, bent, thickness, data["gate"], label, title)


def skip_words(gate: float, share: float | None) -> str:
    """Such as "-0.42, 12 %"; the share is of the signal of its node."""
    return f"{gate:.2f}" + ("" if share is None else f", {100 * share:.0f} %")


Drawn = tuple[tuple[Point, ...], bool, Label | None]


def _weights_path(
    source: str, target: str, words: str, places: dict[str, Point], width: float, inside: set[str],
    neighbours: set[tuple[str, str]],
) -> Drawn:  # fmt: skip
    (x0, y0), (x1, y1) = places[source], places[target]
    low, high = y0 + BOX_HEIGHT / 2, y1 + BOX_HEIGHT / 2
    if source in inside and target in inside:  # along a branch
        return ((x0 + width, low), (x1, high)), False, _above(words, x0 + width, x1, high)
    if target in inside:  # off the line
        return ((SPINE, high), (x1, high)), False, _above(words, SPINE, x1, high)
    if source in inside:  # back to the line
        corner = x0 + width / 2
        points = (corner, y0 + BOX_HEIGHT), (corner, high), (width, high)
        return points, False, _above(words, width, 2 * width + AISLE, high)
    if (source, target) in neighbours:
        label = Label(words, (SPINE + 8, (y0 + BOX_HEIGHT + y1) / 2 + 0.3 * FONT))
        return ((SPINE, y0 + BOX_HEIGHT), (SPINE, y1)), False, label if words else None
    return _bend(source, target, words, places)


def _above(words: str, left: float, right: float, y: float) -> Label | None:
    return Label(words, ((left + right) / 2, y - 5), "middle") if words else None


def _trunk_path(source: str, target: str, words: str, places: dict[str, Point]) -> Drawn:
    top, bottom = places[source][1] + BOX_HEIGHT, places[target][1]
    return ((SPINE, top), (SPINE, bottom)), False, Label(words, (SPINE - 7, bottom - 12), "end")


def _bend(source: str, target: str, words: str, places: dict[str, Point]) -> Drawn:
    """Through the margin at the left, the farther the longer. Its label is at the outermost place: as of any two arcs
    either the middles differ, or one lies within the other, labels stay apart."""
    (x0, y0), (x1, y1) = ((x, y + BOX_HEIGHT / 2) for x, y in (places[source], places[target]))
    span = abs(y1 - y0)
    reach = WIDEST_ARC * span / (span + WIDEST_ARC / 0.45)
    control = min(x0, x1) - 4 / 3 * reach
    label = Label(words, (min(x0, x1) - reach - 4, (y0 + y1) / 2 + 0.3 * FONT), "end") if words else None
    return ((x0, y0 + 5), (control, y0 + 5), (control, y1 - 5), (x1, y1 - 5)), True, label


def _without_crowded_labels(arcs: list[Arc]) -> list[Arc]:
    """The labels of weights all stay; of skips those of the thickest, where there is room."""
    kept = [arc.label.extent for arc in arcs if arc.kind == "weights" and arc.label]
    most = len(kept) + MAX_LABELS
    bare = set()
    for arc in sorted((arc for arc in arcs if arc.kind == "skip" and arc.label), key=lambda arc: -arc.thickness):
        assert arc.label is not None
        extent = arc.label.extent
        if len(kept) < most and not any(overlap(extent, other) for other in kept):
            kept.append(extent)
        else:
            bare.add(id(arc))
    return [replace(arc, label=None) if id(arc) in bare else arc for arc in arcs]


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two rectangles (left, top, right, bottom) have a point in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _reach(arc: Arc) -> Iterator[float]:
    """How far to the left an arc and its label reach."""
    xs = [x for x, _ in arc.curve]
    yield min(xs) if not arc.bent else xs[0] + 0.75 * (min(xs) - xs[0])
    if arc.label is not None:
        yield arc.label.extent[0]


def _moved(arc: Arc, dx: float) -> Arc:
    label = arc.label and replace(arc.label, at=(arc.label.at[0] + dx, arc.label.at[1]))
    return replace(arc, curve=tuple((x + dx, y) for x, y in arc.curve), label=label)
