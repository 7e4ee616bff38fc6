"""Questions to a topology graph have the answers of closed forms; the similarity is one."""

import math

import networkx as nx
import pytest
from hypothesis import given

from nas.analysis import similarity, structure, topology
from nas.models import conv_skip_autoencoder
from tests.nets import random_net, sparse_nets
from tests.test_topology import small_net


def graph_of(widths, arcs, skips=()):
    """A node graph with these numbers of alive units by name, "in" and "out" among them."""
    graph = nx.DiGraph(level="node")
    for layer, (name, width) in enumerate(widths.items()):
        kind = {"in": "input", "out": "output"}.get(name, "hidden")
        graph.add_node(name, kind=kind, layer=layer, alive=width, total=width)
    graph.add_edges_from(arcs, norm=1.0, gate=0.0)
    graph.add_edges_from(skips, norm=0.0, gate=0.5)
    return graph


def complete(depth, width=3):
    """Every node feeds every later one."""
    names = ["in", *(f"n{k}" for k in range(depth)), "out"]
    arcs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return graph_of(dict.fromkeys(names, width), arcs)


def test_a_chain():
    found = structure(graph_of({"in": 9, "a": 5, "b": 7, "out": 9}, [("in", "a"), ("a", "b"), ("b", "out")]))
    assert (found.depth, found.shortest, found.num_paths, found.bottleneck, found.skips) == (3, 3, 1, 5, {})


@pytest.mark.parametrize("depth", [0, 1, 4, 70])
def test_a_complete_graph_has_two_to_the_depth_paths(depth):
    found = structure(complete(depth))
    assert (found.depth, found.shortest, found.num_paths) == (depth + 1, 1, 2**depth)
    assert found.bottleneck == 3  # the input itself


def test_parallel_branches_add_their_widths():
    arcs = [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")]
    assert structure(graph_of({"in": 9, "a": 2, "b": 3, "out": 9}, arcs)).bottleneck == 5
    assert structure(graph_of({"in": 4, "a": 2, "b": 3, "out": 9}, arcs)).bottleneck == 4


def test_a_bottleneck_across_layers():
    """in -> a -> b -> out beside in -> c -> out: the cut {a, c} of 1 + 2, though no single layer is so narrow."""
    arcs = [("in", "a"), ("a", "b"), ("b", "out"), ("in", "c"), ("c", "out")]
    assert structure(graph_of({"in": 9, "a": 1, "b": 8, "c": 2, "out": 9}, arcs)).bottleneck == 3


def test_a_constant_network_has_no_path():
    found = structure(graph_of({"in": 4, "a": 2, "out": 4}, [("a", "out")]))
    assert (found.depth, found.shortest, found.num_paths, found.bottleneck) == (0, 0, 0, 0)


def test_skips():
    found = structure(topology(small_net()))
    assert found.skips == {("n1", "n2"): 0.5}
    assert (found.depth, found.num_paths, found.bottleneck) == (3, 1, 1)
    units = structure(topology(small_net(), "unit"))
    assert units.skips == {("n1.0", "n2.0"): 0.5, ("n1.2", "n2.2"): 0.5}
    assert (units.depth, units.num_paths, units.bottleneck) == (3, 2, 1)


@given(sparse_nets())
def test_structure_agrees_with_all_paths(case):
    """Counted the slow way, at both levels."""
    for level in ("node", "unit"):
        graph = topology(case[0], level)
        ends = {kind: [v for v, data in graph.nodes(data=True) if data["kind"] == kind] for kind in ("input", "output")}
        if level == "unit" and len(graph) > 16:
            continue
        paths = [p for a in ends["input"] for b in ends["output"] for p in nx.all_simple_paths(graph, a, b)]
        lengths = [len(path) - 1 for path in paths]
        found = structure(graph)
        assert found.num_paths == len(paths)
        assert (found.depth, found.shortest) == (max(lengths, default=0), min(lengths, default=0))
        assert (found.bottleneck == 0) == (not paths)


def test_similarity_of_known_graphs():
    a = graph_of({"in": 2, "a": 4, "out": 2}, [("in", "a"), ("a", "out")])
    narrower = graph_of({"in": 2, "a": 2, "out": 2}, [("in", "a"), ("a", "out")])
    skipping = graph_of({"in": 2, "a": 4, "out": 2}, [("in", "a"), ("a", "out")], [("in", "out")])
    assert similarity(a, a) == 1
    assert math.isclose(similarity(a, narrower), (6 / 8 + 1) / 2)
    assert math.isclose(similarity(a, skipping), (1 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="needs graphs of one level, got node and unit"):
        similarity(a, topology(small_net(), "unit"))


def looks(graph):
    """What a similarity of 1 says is equal."""
    arcs = {(a, b, data["norm"] != 0, data["gate"] != 0) for a, b, data in graph.edges(data=True)}
    return dict(graph.nodes(data="alive")), arcs


def test_similarity_is_symmetric_and_1_for_equal_structures_alone():
    graphs = [topology(random_net(seed)[0], level) for seed in range(12) for level in ("node", "unit")]
    graphs += [topology(conv_skip_autoencoder(depth=2, width=3)) for _ in range(2)]  # other weights
    for a in graphs:
        for b in graphs:
            if a.graph["level"] == b.graph["level"]:
                value = similarity(a, b)
                assert 0 <= value <= 1
                assert value == similarity(b, a)
                assert (value == 1) == (looks(a) == looks(b))
