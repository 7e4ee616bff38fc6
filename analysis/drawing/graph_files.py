"""Topology graphs in files: node-link JSON for programs, GraphML for graph editors."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import ParseError

import networkx as nx

from nas.files import replacing, write_json


def write_graph(graph: nx.DiGraph, path: Path | str) -> None:
    """Write a graph of `nas.analysis.topology`; the suffix, .json or .graphml, names the format.

    Raises:
        ValueError: another suffix.
    """
    _format(path)[0](graph, Path(path))


def read_graph(path: Path | str) -> nx.DiGraph:
    """The graph that `write_graph` wrote, with attributes of the same types.

    Raises:
        ValueError: another suffix, or a damaged file.
        OSError: the file cannot be read.
    """
    read = _format(path)[1]
    try:
        graph = read(Path(path))
    except (ValueError, KeyError, TypeError, nx.NetworkXError, ParseError) as problem:
        raise ValueError(f"the graph {path} is damaged: {problem}") from None
    if not isinstance(graph, nx.DiGraph):
        raise ValueError(f"the graph {path} is damaged: its arcs have no direction")
    return graph


def _write_json(graph: nx.DiGraph, path: Path) -> None:
    write_json(path, nx.node_link_data(graph, edges="edges"))


def _read_json(path: Path) -> nx.Graph:
    return nx.node_link_graph(json.loads(path.read_text(encoding="utf-8")), edges="edges")


def _write_graphml(graph: nx.DiGraph, path: Path) -> None:
    replacing(path, lambda temporary: nx.write_graphml(graph, temporary))


def _read_graphml(path: Path) -> nx.Graph:
    graph = nx.read_graphml(path)
    for default in ("node_default", "edge_default"):  # networkx adds what the format could say beside the attributes
        graph.graph.pop(default)
    return graph


Writer = Callable[[nx.DiGraph, Path], None]
Reader = Callable[[Path], nx.Graph]
FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".json": (_write_json, _read_json),
    ".graphml": (_write_graphml, _read_graphml),
}


def _format(path: Path | str) -> tuple[Writer, Reader]:
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{path}: the suffix of a graph must be one of {', '.join(FORMATS)}")
    return FORMATS[suffix]
