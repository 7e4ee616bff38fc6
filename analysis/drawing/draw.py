"""Pictures of a topology graph, from a layout of our own; or by graphviz.

All show the same: boxes filled by their share of alive units, operations on the edges, skips as thick as their share
of the signal, blue if they add and vermilion and dashed if they subtract.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import networkx as nx

from nas.analysis.drawing.layout import (
    BOX_HEIGHT,
    FONT,
    MARGIN,
    PADDING,
    Arc,
    Box,
    Layout,
    branches,
    has_weights,
    layout,
    skip_words,
)
from nas.analysis.drawing.svg import ALIVE, GHOST, INK, NEGATIVE, PAPER, POSITIVE, WEIGHT, to_svg
from nas.files import replacing, write_text

FORMATS = (".svg", ".png", ".pdf", ".dot")
BUILTIN, DOT = ENGINES = ("builtin", "dot")
POINTS = 72  # in an inch
STEP = 1.6  # inches between the columns of units


def draw(graph: nx.DiGraph, path: Path | str, *, engine: str = BUILTIN) -> None:
    """Draw a graph of `nas.analysis.topology` into a file.

    Arcs may have the attribute "share", the part of its node's signal that a skip brings (`nas.analysis.skip_shares`).

    Args:
        graph: at node or at unit level.
        path: file to write; its suffix (.svg, .png, .pdf or .dot) names the format.
        engine: "builtin", which draws from top to bottom and folds blocks, or "dot", which needs the program of that
            name. A .dot file is the source of the latter's drawing.

    Raises:
        ValueError: a suffix or an engine that does not exist, or dot is not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot draw {path}: the suffix must be one of {', '.join(FORMATS)}")
    if engine not in ENGINES:
        raise ValueError(f"draw(engine=...) must be one of {', '.join(ENGINES)}, got {engine!r}")
    if path.suffix == ".dot":
        write_text(path, to_dot(graph))
    elif engine == DOT:
        if not shutil.which("dot"):
            raise ValueError("the program dot (graphviz) is not installed; leave out engine to draw without it")
        replacing(path, lambda temporary: _by_dot(graph, temporary))
    elif graph.graph["level"] == "unit":
        replacing(path, lambda temporary: _paint_units(graph, temporary))
    elif path.suffix == ".svg":
        write_text(path, to_svg(layout(graph)))
    else:
        replacing(path, lambda temporary: paint(layout(graph), temporary))


def to_dot(graph: nx.DiGraph) -> str:
    """Graphviz source of a drawing: units from left to right; nodes from top to bottom, folded blocks on one line."""
    import graphviz

    units = graph.graph["level"] == "unit"
    look = {"rankdir": "LR", "nodesep": "0.15", "ranksep": "1.5"} if units else {"nodesep": "0.5", "ranksep": "0.3"}
    dot = graphviz.Digraph(graph_attr=look)
    dot.attr("node", fontname="Helvetica", fontsize="11", style="filled", color=INK, penwidth="0.8")
    dot.attr("edge", fontname="Helvetica", fontsize="9", arrowsize="0.6", color=WEIGHT)
    if units:
        dot.attr(splines="line")
        dot.attr("node", shape="circle", width="0.12", fixedsize="true", label="", fillcolor=ALIVE)
        dot.attr("edge", arrowhead="none")
        for name in graph:
            dot.node(name, tooltip=name)
        for source, target, arc in graph.edges(data=True):
            if has_weights(arc):
                dot.edge(source, target, color=WEIGHT + "80", penwidth="0.8")
            if arc["gate"] != 0:
                dot.edge(source, target, **_skip_look(arc["gate"], 0.8))
        return str(dot.source)
    drawing = layout(graph)
    for box in drawing.boxes:
        share = max(0.001, min(0.999, box.filled))  # dot takes no stripe without width
        fill = f"{ALIVE};{share:.3f}:{PAPER}"
        words = "\n".join(filter(None, (f"{box.name}  {box.count}", box.notes)))
        dot.node(box.name, words, shape="box", style="striped", fillcolor=fill)
    folded = branches(graph)
    for chain in folded.values():
        dot.body.append(f"\t{{rank=same; {' '.join(chain)}}}\n")
    for arc in drawing.arcs:
        if arc.kind == "skip":
            words = skip_words(arc.gate, graph.edges[arc.source, arc.target].get("share"))
            look = _skip_look(arc.gate, arc.thickness)
            straight = {"weight": "200"} if (arc.source, arc.target) in folded else {}
            dot.edge(arc.source, arc.target, label=f" {words}", fontcolor=look["color"], **look, **straight)
        else:
            words = graph.edges[arc.source, arc.target]["operation"].replace(" + ", "\n+ ")
            dot.edge(arc.source, arc.target, label=words, penwidth=f"{arc.thickness:.2f}", weight="20")
    return str(dot.source)


def _skip_look(gate: float, thickness: float) -> dict[str, str]:
    colour, style = (NEGATIVE, "dashed") if gate < 0 else (POSITIVE, "solid")
    return {"color": colour, "style": style, "penwidth": f"{thickness:.2f}"}


def _by_dot(graph: nx.DiGraph, path: Path) -> None:
    import graphviz

    path.write_bytes(graphviz.Source(to_dot(graph)).pipe(format=path.suffix[1:]))


def paint(drawing: Layout, target: Path | IO[bytes], *, caption: str = "", scale: float = 2.0) -> None:
    """A layout by matplotlib, for formats that are no text.

    Args:
        drawing: the layout.
        target: file to write; its suffix names the format. Or an open one, which becomes a PNG.
        caption: a line below the drawing.
        scale: pixels per unit of the layout.
    """
    from matplotlib.figure import Figure

    height = drawing.height + (2 * FONT if caption else 0)
    figure = Figure(figsize=(drawing.width / POINTS, height / POINTS), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, drawing.width), ylim=(height, 0))
    axes.set_axis_off()
    for arc in drawing.arcs:
        _paint_arc(axes, arc)
    for box in drawing.boxes:
        _paint_box(axes, box)
    axes.text(MARGIN, drawing.height + FONT, caption, fontsize=FONT, color=INK)
    figure.savefig(target, dpi=scale * POINTS)


def _paint_arc(axes: Any, arc: Arc) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO, *(len(arc.curve) - 1) * [Curve.CURVE4 if arc.bent else Curve.LINETO]]
    skip = arc.kind == "skip"
    colour = (NEGATIVE if arc.gate < 0 else POSITIVE) if skip else WEIGHT
    style = "-" if skip else "-|>,head_width=2,head_length=4"
    dashes = (0, (5, 3)) if arc.gate < 0 else "solid"
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(arc.curve, codes), arrowstyle=style, lw=arc.thickness, color=colour, linestyle=dashes,
            shrinkA=0, shrinkB=0, fill=False,
        )
    )  # fmt: skip
    if arc.label is not None:
        ground = {"fc": PAPER, "ec": "none", "pad": 0.5, "alpha": 0.8}
        at = {"start": "left", "middle": "center", "end": "right"}[arc.label.anchor]
        axes.text(
            *arc.label.at,
            arc.label.text,
            ha=at,
            va="baseline",
            fontsize=FONT - 1,
            color=colour if skip else INK,
            bbox=ground,
        )


def _paint_box(axes: Any, box: Box) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((box.x, box.y), box.width, BOX_HEIGHT, fc=PAPER, ec="none"))
    axes.add_patch(Rectangle((box.x, box.y), box.width * box.filled, BOX_HEIGHT, fc=ALIVE, ec="none"))
    axes.add_patch(Rectangle((box.x, box.y), box.width, BOX_HEIGHT, fill=False, ec=GHOST, lw=0.8))
    words = f"{box.shown_name}  {box.count}", box.notes
    for line, y, size in zip(words, box.lines, (10, 8), strict=False):
        axes.text(box.x + PADDING, y, line, fontsize=size, color=INK, va="baseline")


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Centre of every unit in inches: a column per layer, its units spread evenly around 0."""
    layers: dict[int, list[str]] = {}
    for name, vertex in graph.nodes(data=True):
        layers.setdefault(vertex["layer"], []).append(name)
    return {
        name: (STEP * column, 0.22 * ((len(layers[layer]) - 1) / 2 - row))
        for column, layer in enumerate(sorted(layers))
        for row, name in enumerate(layers[layer])
    }


def _paint_units(graph: nx.DiGraph, path: Path) -> None:
    """A dot for every unit, a column for every node, by matplotlib."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    places = _places(graph)
    columns = 1 + max(x for x, _ in places.values()) / STEP
    tall = max(abs(y) for _, y in places.values()) + 0.5
    figure = Figure(figsize=(STEP * columns, 2 * tall), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-STEP / 2, STEP * (columns - 0.5)), ylim=(-tall, tall))
    axes.set_axis_off()
    groups: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
        (WEIGHT, has_weights), (POSITIVE, lambda arc: arc["gate"] > 0), (NEGATIVE, lambda arc: arc["gate"] < 0),
    )  # fmt: skip
    for colour, belongs in groups:
        lines = [(places[source], places[target]) for source, target, arc in graph.edges(data=True) if belongs(arc)]
        dashes = (0, (5, 3)) if colour == NEGATIVE else "solid"
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.7, alpha=0.5, linestyles=dashes))
    for name in graph:
        axes.plot(*places[name], "o", ms=6, mfc=ALIVE, mec=INK, mew=0.6)
    for x, words in _titles(graph, places).items():
        axes.text(x, -tall + 0.1, words, fontsize=8, color=INK, ha="center", va="bottom")
    figure.savefig(path)


def _titles(graph: nx.DiGraph, places: Mapping[str, tuple[float, float]]) -> dict[float, str]:
    """The nodes in each column, with their numbers of units, by the place of the column."""
    counts = Counter((places[name][0], data["node"]) for name, data in graph.nodes(data=True))
    titles: dict[float, list[str]] = {}
    for (x, node), count in counts.items():
        titles.setdefault(x, []).append(f"{node}  {count}")
    return {x: ", ".join(words) for x, words in titles.items()}
