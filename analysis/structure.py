"""Questions to a topology graph, answered in one call: its depth, paths, bottleneck and skips; how alike two are."""

from dataclasses import dataclass

import networkx as nx


@dataclass(frozen=True)
class Structure:
    """What a graph of `nas.analysis.topology` looks like as a whole.

    At node level paths run over nodes, at unit level over units, from any unit of the input to any of the output.

    Attributes:
        depth: arcs on the longest path from input to output; 0 where there is none.
        shortest: arcs on the shortest path; 0 where there is none.
        num_paths: number of different paths from input to output, weights and a skip between the same two counting
            as one arc; 0 for a network that is constant.
        bottleneck: the smallest number of alive units, input and output units included, that together lie on every
            path; 0 where there is none.
        skips: the gates of the active skips (of blocks and projections the norms), by (source, target).
    """

    depth: int
    shortest: int
    num_paths: int
    bottleneck: int
    skips: dict[tuple[str, str], float]


def structure(graph: nx.DiGraph) -> Structure:
    """The structure of a graph at either level; see `Structure`."""
    ends = [name for name, data in graph.nodes(data=True) if data["kind"] == "output"]
    longest: dict[str, int] = {}
    shortest: dict[str, int] = {}
    paths: dict[str, int] = {}
    for name in nx.topological_sort(graph):
        before = [source for source in graph.predecessors(name) if source in paths]
        if graph.nodes[name]["kind"] == "input":
            longest[name], shortest[name], paths[name] = 0, 0, 1
        elif before:
            longest[name] = 1 + max(longest[source] for source in before)
            shortest[name] = 1 + min(shortest[source] for source in before)
            paths[name] = sum(paths[source] for source in before)
    reached = [name for name in ends if name in paths]
    return Structure(
        depth=max((longest[name] for name in reached), default=0),
        shortest=min((shortest[name] for name in reached), default=0),
        num_paths=sum(paths[name] for name in reached),
        bottleneck=_bottleneck(graph),
        skips={(source, target): data["gate"] for source, target, data in graph.edges(data=True) if data["gate"] != 0},
    )


def similarity(a: nx.DiGraph, b: nx.DiGraph) -> float:
    """How alike two architectures are, in [0, 1]; 1 if and only if their alive structure is the same.

    The mean of two Jaccard indices, |A and B| / |A or B|: of the alive units, sum_v min(a_v, b_v) / sum_v max(a_v, b_v)
    over the vertices v with a_v and b_v alive units, and of the arcs (source, target, weights or skip). At unit level
    every unit counts with its index. Norms, gates and births are left out.

    Args:
        a: a graph of `nas.analysis.topology`.
        b: another, at the same level.

    Raises:
        ValueError: graphs at different levels.
    """
    if a.graph["level"] != b.graph["level"]:
        raise ValueError(f"similarity(a, b) needs graphs of one level, got {a.graph['level']} and {b.graph['level']}")
    units = [dict(graph.nodes(data="alive")) for graph in (a, b)]
    pairs = [(units[0].get(name, 0), units[1].get(name, 0)) for name in units[0] | units[1]]
    arcs = [_arcs(graph) for graph in (a, b)]
    return (
        _ratio(sum(map(min, pairs)), sum(map(max, pairs))) + _ratio(len(arcs[0] & arcs[1]), len(arcs[0] | arcs[1]))
    ) / 2


def _ratio(common: int, together: int) -> float:
    return common / together if together else 1.0


def _arcs(graph: nx.DiGraph) -> set[tuple[str, str, str]]:
    arcs = graph.edges(data=True)
    return {(source, target, kind) for source, target, data in arcs for kind in ("norm", "gate") if data[kind] != 0}


def _bottleneck(graph: nx.DiGraph) -> int:
    """The smallest vertex cut, as a maximal flow in which every vertex lets through as much as it has alive units."""
    flow = nx.DiGraph()
    flow.add_nodes_from(["source", "sink"])
    for name, data in graph.nodes(data=True):
        flow.add_edge((name, "in"), (name, "out"), capacity=data["alive"])
        if data["kind"] == "input":
            flow.add_edge("source", (name, "in"))
        if data["kind"] == "output":
            flow.add_edge((name, "out"), "sink")
    flow.add_edges_from(((source, "out"), (target, "in")) for source, target in graph.edges)
    return int(nx.maximum_flow_value(flow, "source", "sink"))
