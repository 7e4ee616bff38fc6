"""Runs, networks, topologies and certificates show themselves in a notebook that imports ``nas``."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import networkx as nx

from nas.analysis.drawing.layout import layout
from nas.analysis.drawing.svg import STYLE, to_svg
from nas.analysis.extraction.certificate import Certificate
from nas.analysis.topology import topology
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.search.runs.path import Point, births, deaths
from nas.search.runs.run import Run


def load_ipython_extension(ipython: Any) -> None:
    """What IPython calls when ``nas`` is imported in it, or for ``%load_ext nas.analysis.notebook``."""
    html = ipython.display_formatter.formatters["text/html"]
    for kind, show in SHOWN.items():
        html.for_type(kind, show)


def topology_html(graph: nx.DiGraph) -> str | None:
    """The drawing of a graph of `nas.analysis.topology` at node level; None for any other graph."""
    if graph.graph.get("level") != "node":
        return None
    style = f"<style>{STYLE}.net {{ background: var(--paper); max-width: 100%; height: auto; }}</style>"
    return style + to_svg(layout(graph), standalone=False)


def network_html(net: DagNet) -> str:
    """What is alive, counted and drawn."""
    alive, total = (sum(p.numel() for p in each.parameters()) for each in (compact(net), net))
    return f"<p>{alive:,} of {total:,} parameters are alive</p>{topology_html(topology(net))}"


def certificate_html(certificate: Certificate) -> str:
    """Whether it holds, and how large the differences are."""
    verdict = "holds" if certificate.holds else "does <b>not</b> hold"
    inputs = f"{certificate.num_random} random and {certificate.num_given} given inputs"
    differences = [
        ("single precision", certificate.max_abs_float32, certificate.tolerance_float32),
        ("double precision", certificate.max_abs_float64, certificate.tolerance_float64),
    ]
    rows = [(name, f"{largest:.1e}", f"{tolerance:.0e}") for name, largest, tolerance in differences]
    table = _table(("", "largest difference", "tolerance"), rows)
    return f"<p>The certificate {verdict}: compared on {inputs}.</p>{table}"


def run_html(run: Run) -> str:
    """The networks that a search ends with, and the recommended one drawn; or how far it is."""
    title = f"<p><b>{escape(str(run.folder))}</b>: {escape(run.config.task)} with {escape(run.config.model)}"
    if not Run.is_in(run.folder):
        return f"{title}, not begun</p>"
    points, metric = run.points(), run.config.headline
    last = points[-1].snapshot.epoch
    if last < run.config.epochs:
        title += f", epoch {last} of {run.config.epochs}"
    chosen = run.choose()
    graph = _graph(run, points, chosen)
    shown = sorted(run.front(), key=lambda point: point.params) or [chosen]
    rows = [
        (
            str(point.snapshot.epoch),
            f"{point.params:,}",
            f"{point.flops:,.0f}",
            metric.text(point.headline),
            "recommended" if point == chosen else "",
        )
        for point in shown
    ]
    return f"{title}</p>{_table(('epoch', 'parameters', 'MACs/pixel', 'validation', ''), rows)}{topology_html(graph)}"


def _graph(run: Run, points: Sequence[Point], chosen: Point) -> nx.DiGraph:
    history = points[: chosen.snapshot.epoch + 1]
    return topology(run.supernet(chosen.snapshot.epoch), births=births(history), deaths=deaths(history))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _line(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


SHOWN: dict[type, Callable[[Any], str | None]] = {
    Run: run_html,
    DagNet: network_html,
    nx.DiGraph: topology_html,
    Certificate: certificate_html,
}
