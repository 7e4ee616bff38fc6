"""Pictures of a topology graph: by graphviz where its ``dot`` program is there, else by matplotlib.

Both show the same: layers from left to right, boxes as tall as their share of alive units, arcs as thick as their
norm, skips in orange with their gate (or the norm of their matrix).
"""

import math
import shutil
from pathlib import Path
from typing import Any

import networkx as nx

from nas.files import replacing

FORMATS = (".svg", ".png", ".pdf")
COLOURS = {"input": "#d5e8d4", "hidden": "#dae8fc", "output": "#d5e8d4"}
WEIGHT, SKIP, INK = "#4a6fa5", "#d9822b", "#222222"
TALLEST = 1.6  # inches


def draw(graph: nx.DiGraph, path: Path | str, *, engine: str | None = None) -> None:
    """Draw a graph of `nas.analysis.topology` into a file.

    Args:
        graph: at node or at unit level.
        path: file to write; its suffix (.svg, .png or .pdf) names the format.
        engine: "dot" or "matplotlib"; by default dot where it is installed.

    Raises:
        ValueError: a suffix or an engine that does not exist.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot draw {path}: the suffix must be one of {', '.join(FORMATS)}")
    if engine is None:
        engine = "dot" if shutil.which("dot") else "matplotlib"
    if engine not in ENGINES:
        raise ValueError(f"draw(engine=...) must be one of {', '.join(ENGINES)}, got {engine!r}")
    replacing(path, lambda temporary: ENGINES[engine](graph, temporary))


def _label(name: str, vertex: dict[str, Any]) -> str:
    """What stands in a box: "n1", "9 of 32", "epochs 0-31"."""
    lines = [name, f"{vertex['alive']} of {vertex['total']}"]
    if "born" in vertex:
        lines.append(f"born {vertex['born']}-{vertex['born_last']}")
    return "\n".join(lines)


def _height(graph: nx.DiGraph, vertex: dict[str, Any]) -> float:
    widest: int = max(data["total"] for _, data in graph.nodes(data=True))
    return 0.55 + (TALLEST - 0.55) * int(vertex["alive"]) / widest


def _thickness(graph: nx.DiGraph, norm: float) -> float:
    strongest = max((data["norm"] for *_, data in graph.edges(data=True)), default=0.0)
    return 0.4 + 3 * norm / strongest if strongest > 0 else 0.4


def _has_edge(arc: dict[str, Any]) -> bool:
    """Whether weights are on this arc that are no skip."""
    return arc["norm"] > 0 and not math.isclose(arc["norm"], arc["gate"], rel_tol=1e-6)


def _operation(graph: nx.DiGraph, arc: dict[str, Any]) -> str:
    """What stands on an arc with weights, such as "7x7 depthwise", in short lines; "" where all arcs do the same."""
    operations = {data["operation"] for *_, data in graph.edges(data=True) if data["operation"]}
    text: str = arc["operation"] if len(operations) > 1 else ""
    return text.replace(" + ", "\n+ ").replace(" depthwise", "\ndepthwise")


def to_dot(graph: nx.DiGraph) -> str:
    """Graphviz source of a drawing, from left to right."""
    import graphviz

    units = graph.graph["level"] == "unit"
    dot = graphviz.Digraph(graph_attr={"rankdir": "LR", "nodesep": "0.15" if units else "0.3", "ranksep": "0.7"})
    dot.attr("node", fontname="Helvetica", fontsize="11", style="filled", color=INK, penwidth="0.8")
    dot.attr("edge", fontname="Helvetica", fontsize="10", arrowsize="0.6")
    if units:
        dot.attr(splines="line", ranksep="1.5")
        dot.attr("node", shape="circle", width="0.12", fixedsize="true", label="")
        dot.attr("edge", arrowhead="none")
    for name, vertex in graph.nodes(data=True):
        look = {"fillcolor": COLOURS[vertex["kind"]]}
        if units:
            dot.node(name, tooltip=name, **look)
        else:
            height = f"{_height(graph, vertex):.2f}"
            dot.node(name, _label(name, vertex), shape="box", width="0.9", height=height, fixedsize="true", **look)
    for source, target, arc in graph.edges(data=True):
        if _has_edge(arc):
            thickness = _thickness(graph, arc["norm"]) * (0.5 if units else 1)
            colour = WEIGHT + "80" if units else WEIGHT  # half transparent
            words = "" if units else _operation(graph, arc)
            label = {"label": words, "fontsize": "8", "fontcolor": WEIGHT} if words else {}
            weight = "1" if units else "20"
            dot.edge(source, target, color=colour, penwidth=f"{thickness:.2f}", weight=weight, **label)
        if arc["gate"] != 0:
            label = {} if units else {"label": f"{arc['gate']:.2f}", "fontcolor": SKIP, "style": "dashed"}
            dot.edge(source, target, color=SKIP, penwidth="0.8" if units else "1.2", **label)
    return str(dot.source)


def _by_dot(graph: nx.DiGraph, path: Path) -> None:
    import graphviz

    path.write_bytes(graphviz.Source(to_dot(graph)).pipe(format=path.suffix[1:]))


def _by_matplotlib(graph: nx.DiGraph, path: Path) -> None:
    from matplotlib.figure import Figure

    places = _places(graph)
    columns = 1 + max(x for x, _ in places.values()) / STEP
    tall = max((abs(y) for _, y in places.values()), default=0.0)
    spans = [places[t][0] - places[s][0] for s, t, arc in graph.edges(data=True) if arc["gate"] != 0]
    above = 0.0 if graph.graph["level"] == "unit" else 0.5 * BEND * max(spans, default=0.0)
    top, bottom = max(TALLEST / 2, tall) + above + 0.3, max(TALLEST / 2, tall) + 0.3
    figure = Figure(figsize=(STEP * columns, top + bottom))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-STEP / 2, STEP * (columns - 0.5)), ylim=(-bottom, top))
    axes.set_axis_off()
    (_paint_units if graph.graph["level"] == "unit" else _paint_nodes)(axes, graph, places)
    figure.savefig(path)


STEP, BEND = 1.6, 0.35  # inches between columns; height of the control point of an arc, as a part of its span


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Centre of every vertex in inches: a column per layer, the vertices of a column spread evenly around 0."""
    layers: dict[int, list[str]] = {}
    for name, vertex in graph.nodes(data=True):
        layers.setdefault(vertex["layer"], []).append(name)
    return {
        name: (STEP * column, 0.22 * ((len(layers[layer]) - 1) / 2 - row))
        for column, layer in enumerate(sorted(layers))
        for row, name in enumerate(layers[layer])
    }


def _paint_nodes(axes: Any, graph: nx.DiGraph, places: dict[str, tuple[float, float]]) -> None:
    from matplotlib.patches import Rectangle

    for name, vertex in graph.nodes(data=True):
        (x, y), height = places[name], _height(graph, vertex)
        axes.add_patch(Rectangle((x - 0.45, y - height / 2), 0.9, height, fc=COLOURS[vertex["kind"]], ec=INK, lw=0.8))
        axes.text(x, y, _label(name, vertex), ha="center", va="center", fontsize=9, color=INK)
    for source, target, arc in graph.edges(data=True):
        (x0, _), (x1, _) = places[source], places[target]
        neighbours = x1 - x0 < 1.5 * STEP
        if _has_edge(arc):
            thickness = _thickness(graph, arc["norm"])
            words = _operation(graph, arc)
            if neighbours:
                _arrow(axes, (x0 + 0.45, 0), (x1 - 0.45, 0), 0.0, WEIGHT, thickness, "solid")
                _write(axes, (x0 + x1) / 2, 0.04 + thickness / 144, words, WEIGHT, 7, "bottom")
            else:
                foot, head = (_height(graph, graph.nodes[name]) / 2 for name in (source, target))
                _arrow(axes, (x0, -foot), (x1, -head), BEND, WEIGHT, thickness, "solid")
                _write(axes, (x0 + x1) / 2, -(foot + head) / 2 - 0.5 * BEND * (x1 - x0), words, WEIGHT, 7, "center")
        if arc["gate"] != 0:
            foot, head = (_height(graph, graph.nodes[name]) / 2 for name in (source, target))
            _arrow(axes, (x0, foot), (x1, head), -BEND, SKIP, 1.2, "dashed")
            apex = (foot + head) / 2 + 0.5 * BEND * (x1 - x0)
            _write(axes, (x0 + x1) / 2, apex, f"{arc['gate']:.2f}", SKIP, 8, "center")


def _write(axes: Any, x: float, y: float, words: str, colour: str, size: int, at: str) -> None:
    """Words with their bottom or centre at this place, on white."""
    ground = {"fc": "white", "ec": "none", "pad": 0.8} if at == "center" else None
    axes.text(x, y, words, ha="center", va=at, fontsize=size, color=colour, linespacing=1.1, bbox=ground)


def _paint_units(axes: Any, graph: nx.DiGraph, places: dict[str, tuple[float, float]]) -> None:
    from matplotlib.collections import LineCollection

    for kind, colour in (("norm", WEIGHT), ("gate", SKIP)):
        arcs = [
            (source, target, arc)
            for source, target, arc in graph.edges(data=True)
            if arc[kind] != 0 and (kind == "gate" or _has_edge(arc))
        ]
        widths = [_thickness(graph, arc["norm"]) / 2 if kind == "norm" else 0.8 for *_, arc in arcs]
        lines = [(places[source], places[target]) for source, target, _ in arcs]
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=widths, alpha=0.5))
    for name, vertex in graph.nodes(data=True):
        axes.plot(*places[name], "o", ms=6, mfc=COLOURS[vertex["kind"]], mec=INK, mew=0.6)


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str, width: float, style: str
) -> None:
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0,
            connectionstyle=f"arc3,rad={bend}", color=colour, lw=width, linestyle=style,
        )
    )  # fmt: skip


ENGINES = {"dot": _by_dot, "matplotlib": _by_matplotlib}
