"""The graph says what is alive."""

import math
import tempfile
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given

from nas.analysis import read_graph, topology, write_graph
from nas.analysis.topology import LEVELS
from nas.cli.show import _print_skips
from nas.models import DagNet, Edge, Node, Plan, Skip, find_alive
from nas.models.bypass import bypass
from nas.search import Snapshot
from nas.search.runs.path import Point
from tests.nets import full, sparse_nets


def small_net():
    """in (1) -> n1 (2 of 3 alive) -> n2 (2 of 3) -> out, with a gate of 0.5 from n1 to n2."""
    plan = Plan(
        1,
        (
            Node("n1", 3, full({"in": 1})),
            Node("n2", 3, full({"n1": 1}), (Skip("n1"),)),
            Node("out", 1, full({"n2": 1})),
        ),
        1,
    )
    net = DagNet(plan)
    with torch.no_grad():
        net.nodes["n1"].edges["in"][:, 0, 0, 0] = torch.tensor([3.0, 0, 4])
        net.nodes["n2"].edges["n1"].zero_()
        net.nodes["n2"].edges["n1"][0, 0] = 2
        net.nodes["n2"].gates.fill_(0.5)
        net.nodes["out"].edges["n2"].fill_(1)
    return net


def test_node_graph():
    graph = topology(small_net(), births={"n1": {0: 2, 2: 7}, "n2": {0: 3, 2: 3}}, deaths={"n1": {1: 9}, "n2": {}})
    sizes = {"scale": 0, "alive": 2, "total": 3, "norm": 5.0}
    ages = {"born": 2, "born_last": 7, "num_died": 1, "died": 9}
    assert dict(graph.nodes["n1"]) == {"kind": "hidden", "layer": 1, **sizes, **ages}
    norm = math.sqrt(2)
    assert dict(graph.nodes["out"]) == {
        "kind": "output", "layer": 3, "scale": 0, "alive": 1, "total": 1, "norm": pytest.approx(norm),
    }  # fmt: skip
    assert dict(graph.edges["in", "n1"]) == {"norm": 5.0, "gate": 0.0, "operation": "1x1", "shape": "2x1x1x1"}
    assert dict(graph.edges["n1", "n2"]) == {"norm": 2.0, "gate": 0.5, "operation": "1x1", "shape": "2x2x1x1"}
    assert list(nx.all_simple_paths(graph, "in", "out")) == [["in", "n1", "n2", "out"]]


def test_unit_graph():
    graph = topology(small_net(), "unit", births={"n1": {0: 2, 2: 7}})
    assert set(graph) == {"in.0", "n1.0", "n1.2", "n2.0", "n2.2", "out.0"}
    size = {"alive": 1, "total": 1, "norm": 4.0}
    assert graph.nodes["n1.2"] == {
        "kind": "hidden",
        "layer": 1,
        "scale": 0,
        **size,
        "node": "n1",
        "index": 2,
        "born": 7,
    }
    assert dict(graph.edges["n1.0", "n2.0"]) == {"norm": 2.0, "gate": 0.5, "operation": "1x1", "shape": "1x1"}
    assert dict(graph.edges["n1.2", "n2.2"]) == {"norm": 0.0, "gate": 0.5, "operation": "", "shape": ""}
    assert graph.number_of_edges() == 2 + 2 + 2


def test_operations_and_shapes_of_alive_weights():
    """Two operations on one arc: the middle of the kernels that is not zero, between units that are alive."""
    edges = Edge("in", 7, "depthwise"), Edge("in", 1, "pointwise")
    net = DagNet(Plan(3, (Node("n1", 3, edges), Node("out", 3, full({"n1": 1}))), patch=1))
    depthwise, pointwise = net.nodes["n1"].edges.values()
    with torch.no_grad():
        depthwise.zero_()
        depthwise[:2, 0, 3, 2:5] = torch.tensor([2.0, 1.0, 2.0])
        pointwise.fill_(2.0)
        pointwise[2] = 0
    arc = topology(net).edges["in", "n1"]
    assert arc == {"norm": pytest.approx(math.sqrt(2 * 9 + 6 * 4)), "gate": 0.0, "operation": "3x3 depthwise + 1x1",
                   "shape": "2x1x3x3 + 2x3x1x1"}  # fmt: skip
    arcs = topology(net, "unit").edges
    assert arcs["in.0", "n1.0"]["operation"] == "3x3 depthwise + 1x1"
    assert arcs["in.0", "n1.0"]["shape"] == "3x3 + 1x1"
    assert arcs["in.1", "n1.0"] == {"norm": 2.0, "gate": 0.0, "operation": "1x1", "shape": "1x1"}


@given(sparse_nets())
def test_both_levels_agree(case):
    net, _ = case
    nodes, units = topology(net), topology(net, "unit")
    for name, vertex in nodes.nodes(data=True):
        assert vertex["alive"] == sum(data["node"] == name for _, data in units.nodes(data=True))
    pairs = {(units.nodes[a]["node"], units.nodes[b]["node"]) for a, b in units.edges}
    assert pairs == set(nodes.edges)
    gates = {(a, b): data["gate"] for a, b, data in nodes.edges(data=True) if data["gate"] != 0}
    assert gates == find_alive(*bypass(net)).skips


def attributes_with_types(graph):
    tables = [
        graph.graph,
        *(data for _, data in graph.nodes(data=True)),
        *(data for *_, data in graph.edges(data=True)),
    ]
    return [{name: (type(value), value) for name, value in table.items()} for table in tables]


@pytest.mark.parametrize("suffix", [".json", ".graphml"])
@pytest.mark.parametrize("level", ["node", "unit"])
def test_graphs_round_trip(tmp_path, level, suffix):
    graph = topology(small_net(), level, births={"n1": {0: 2, 2: 7}}, deaths={"n1": {1: 9}})
    write_graph(graph, tmp_path / f"graph{suffix}")
    again = read_graph(tmp_path / f"graph{suffix}")
    assert nx.utils.graphs_equal(again, graph)
    assert attributes_with_types(again) == attributes_with_types(graph)


@given(sparse_nets())
def test_any_graph_round_trips(case):
    for level in LEVELS:
        graph = topology(case[0], level)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in (".json", ".graphml"):
                write_graph(graph, Path(folder) / f"graph{suffix}")
                assert nx.utils.graphs_equal(read_graph(Path(folder) / f"graph{suffix}"), graph)


def test_damaged_graphs_are_named(tmp_path):
    for name, text in (("a.json", "{"), ("b.json", "{}"), ("c.graphml", "<graphml"), ("d.graphml", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"the graph \S*{name} is damaged"):
            read_graph(tmp_path / name)
    with pytest.raises(ValueError, match="the suffix of a graph must be one of .json, .graphml"):
        write_graph(topology(small_net()), tmp_path / "graph.txt")


def test_unknown_level():
    with pytest.raises(ValueError, match=r"topology\(level=...\) must be 'node' or 'unit', got 'layer'"):
        topology(small_net(), "layer")


def test_a_skip_into_a_node_that_is_read_through_is_said_to_be_one(capsys):
    skips = {("n1", "n2"): 0.5, ("n1", "n3"): 2.0}
    point = Point(Snapshot(1, 0.0, {}, skips, {}), {"psnr": 20.0}, 1, 1.0, 1.0)
    _print_skips(point, {("n1", "n2"): 1.0, ("n1", "n3"): 0.25}, nx.DiGraph([("n1", "n3")]))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  n1 -> n2         0.500               100.0%  n2 is read through",
        "  n1 -> n3         2.000                25.0%",
    ]
