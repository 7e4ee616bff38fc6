"""The drawing of a network in a terminal."""

import io

import pytest
import torch
from rich.console import Console

from nas.analysis import topology
from nas.analysis.drawing.layout import has_weights
from nas.analysis.drawing.text import BAR, EMPTY, FULL, draw_text
from nas.init import sparse_start
from tests.nets import SUPERNETS


def graph_of(name):
    torch.manual_seed(0)
    net = SUPERNETS[name]()
    sparse_start(net, 0.4)
    return topology(net)


@pytest.mark.parametrize("name", SUPERNETS)
def test_a_line_for_every_node_with_all_that_it_reads(name):
    graph = graph_of(name)
    lines = [line.plain for line in draw_text(graph)]
    assert sorted(line.split()[0] for line in lines) == sorted(graph)
    starts = {next(k for k, sign in enumerate(line) if sign in FULL + EMPTY) for line in lines}
    assert len(starts) == 1
    for line in lines:
        node, words = line.split()[0], line.split("of", 1)[1]
        vertex = graph.nodes[node]
        assert line.count(FULL) + line.count(EMPTY) == BAR
        assert (line.count(FULL) == 0) == (vertex["alive"] == 0)
        arcs = [data for *_, data in graph.in_edges(node, data=True)]
        assert words.count("<- ") == sum(map(has_weights, arcs))
        assert words.count("+ ") + words.count(" - ") == sum(data["gate"] != 0 for data in arcs)


@pytest.mark.parametrize(("terminal", "coloured"), [(True, True), (False, False)])
def test_colours_are_for_terminals(terminal, coloured):
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=terminal, color_system="standard" if terminal else None)
    console.print(*draw_text(graph_of(next(iter(SUPERNETS)))), sep="\n")
    assert ("\x1b[" in printed.getvalue()) is coloured
