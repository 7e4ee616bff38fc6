"""The drawing of a network in a terminal: a line for every node."""

from collections.abc import Iterator

import networkx as nx
from rich.text import Text

from nas.analysis.drawing.layout import has_weights, layout, skip_words

BAR = 12  # characters
FULL, EMPTY = "█", "·"
ADDS, SUBTRACTS = "blue", "red"


def draw_text(graph: nx.DiGraph) -> list[Text]:
    """The graph of `nas.analysis.topology` at node level, from the input to the output, in aligned columns.

        t1  ███████····· 19 of 32  born 0-9   <- h1 1x1  + t0 1.00, 80 %

    That is a node, its share of alive units as a bar, and what it reads: operations, then skips with their gates and
    shares of the signal. `rich.console.Console` prints it, in colours where the terminal has them.
    """
    boxes = layout(graph).boxes
    widths = [
        max(map(len, column)) for column in zip(*((box.name, box.count, box.notes) for box in boxes), strict=True)
    ]
    lines = []
    for box in boxes:
        filled = round(BAR * box.filled) or int(box.filled > 0)
        line = Text(f"{box.name:<{widths[0]}}  ")
        line.append(FULL * filled, style=ADDS).append(EMPTY * (BAR - filled), style="dim")
        line.append(f" {box.count:>{widths[1]}}  {box.notes:<{widths[2]}}  ")
        for part in _reads(graph, box.name):
            line.append_text(part)
        line.rstrip()
        lines.append(line)
    return lines


def _reads(graph: nx.DiGraph, name: str) -> Iterator[Text]:
    arcs = list(graph.in_edges(name, data=True))
    for source, _, data in arcs:
        if has_weights(data):
            yield Text(f"<- {source} {data['operation']}".rstrip() + "  ")
    for source, _, data in arcs:
        if data["gate"] != 0:
            words = skip_words(abs(data["gate"]), data.get("share"))
            yield Text(
                f"{'+' if data['gate'] > 0 else '-'} {source} {words}  ", ADDS if data["gate"] > 0 else SUBTRACTS
            )
