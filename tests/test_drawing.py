"""Drawings: both engines say the same; nothing lies over anything else, from 3 to 60 nodes."""

import re
import shutil
import xml.etree.ElementTree as ET
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image

from nas.analysis import draw, topology
from nas.analysis.drawing.draw import _places, _titles, to_dot
from nas.analysis.drawing.layout import (
    BOX_FONT,
    BOX_HEIGHT,
    CHARACTER,
    PADDING,
    WIDEST_BOX,
    branches,
    layout,
    overlap,
)
from nas.models import (
    conv_skip_autoencoder,
    dense_conv,
    dense_mlp,
    mixed_autoencoder,
    mlp,
    separable_autoencoder,
    skip_autoencoder,
)
from tests.test_topology import small_net

RECIPES = {
    "conv_skip_autoencoder": lambda depth: conv_skip_autoencoder(depth=depth, width=3),
    "conv_skip_autoencoder with levels": lambda depth: conv_skip_autoencoder(
        depth=depth, width=[3 + k % 2 for k in range(depth)], levels=(depth - 1) // 2 if depth < 10 else 3,
        projections=True,
    ),
    "skip_autoencoder": lambda depth: skip_autoencoder(depth=depth, patch=2),
    "dense_mlp": lambda depth: dense_mlp(2, widths=[3] * depth, outputs=2),
    "dense_conv": lambda depth: dense_conv(depth=depth, growth=2),
    "mlp": lambda depth: mlp(widths=[4] * depth, patch=2),
    "separable_autoencoder": lambda depth: separable_autoencoder(depth=max(1, depth // 3), width=3, hidden=4),
    "separable_autoencoder with levels": lambda depth: separable_autoencoder(depth=depth, width=3, hidden=4, levels=1),
    "separable_autoencoder with scales": lambda depth: separable_autoencoder(
        depth=max(1, depth // 3), width=3, hidden=4, scales=(0, 1),
    ),
    "mixed_autoencoder": lambda depth: mixed_autoencoder(depth=depth, width=3),
}  # fmt: skip


def awake(net):
    """All groups of a supernet alive, with gates of both signs."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return net


def drawn_text(file):
    return " ".join(" ".join(element.itertext()) for element in ET.parse(file).iter() if element.tag.endswith("text"))


@pytest.mark.parametrize("depth", [3, 8, 58])
@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_lies_over_anything_else(recipe, depth):
    drawing = layout(topology(awake(RECIPES[recipe](depth))))
    boxes = [(box.x, box.y, box.x + box.width, box.y + BOX_HEIGHT) for box in drawing.boxes]
    assert all(words_fit(box) for box in drawing.boxes)
    labels = [arc.label.extent for arc in drawing.arcs if arc.label]
    assert labels
    for k, first in enumerate([*boxes, *labels]):
        assert not any(overlap(first, other) for other in [*boxes, *labels][k + 1 :])
        assert inside(first[:2], drawing) and inside(first[2:], drawing)
    left, top, right, bottom = np.array(boxes).T
    for arc in drawing.arcs:
        x, y = points_on(arc)
        assert inside((x.min(), y.min()), drawing) and inside((x.max(), y.max()), drawing)
        x, y = x[:, None], y[:, None]
        assert not ((left + 0.1 < x) & (x < right - 0.1) & (top + 0.1 < y) & (y < bottom - 0.1)).any(), arc


def words_fit(box):
    return 2 * PADDING + BOX_FONT * CHARACTER * len(f"{box.shown_name}  {box.count}") <= box.width + 0.1


def inside(point, drawing):
    return -0.1 <= point[0] <= drawing.width + 0.1 and -0.1 <= point[1] <= drawing.height + 0.1


def points_on(arc):
    """Many points along an arc: their x and their y."""
    t = np.linspace(0, 1, 41)[:, None]
    corners = np.array(arc.curve)
    if arc.bent:
        a, b, c, d = corners
        return ((1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d).T
    return np.concatenate([start + t * (end - start) for start, end in pairwise(corners)]).T


def test_the_names_of_any_module_stay_in_their_boxes(tmp_path):
    """Boxes are as wide as the longest name; a very long one loses its middle, and a tooltip has all of it."""
    widest = "first_of_all_layers.which_has_a_name.that_goes_on_and_on.conv1"
    net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    graph = topology(net, inputs=torch.randn(1, 3, 8, 8))
    graph = nx.relabel_nodes(graph, dict(zip("012", ("stem", "layer1.0.downsample", widest), strict=True)))
    drawing = layout(graph)
    assert all(words_fit(box) for box in drawing.boxes)
    shown = {box.name: box.shown_name for box in drawing.boxes}
    assert shown["layer1.0.downsample"] == "layer1.0.downsample"
    assert shown[widest].startswith("first_") and shown[widest].endswith("conv1") and "…" in shown[widest]
    assert {box.width for box in drawing.boxes} == {WIDEST_BOX}
    draw(graph, tmp_path / "graph.svg")
    assert f"<title>{widest}</title>" in (tmp_path / "graph.svg").read_text(encoding="utf-8")


def test_blocks_are_folded():
    graph = topology(separable_autoencoder(depth=6, width=3, hidden=4))
    assert list(branches(graph).values()) == [[f"d{k}", f"h{k}"] for k in range(1, 7)]
    drawing = layout(graph)
    assert len(drawing.boxes) == 21 and drawing.height < 750 and drawing.width < 500
    assert not branches(topology(awake(conv_skip_autoencoder(depth=4, width=3))))


def test_skips_are_as_thick_as_their_share_and_negative_ones_are_dashed(tmp_path):
    net = small_net()
    net.nodes["n2"].gates.data.fill_(-0.5)
    graph = topology(net)
    nx.set_edge_attributes(graph, {("n1", "n2"): 0.5}, "share")
    (skip,) = (arc for arc in layout(graph).arcs if arc.kind == "skip")
    nx.set_edge_attributes(graph, {("n1", "n2"): 0.1}, "share")
    (thinner,) = (arc for arc in layout(graph).arcs if arc.kind == "skip")
    assert (skip.gate, skip.label.text, thinner.label.text) == (-0.5, "-0.50, 50 %", "-0.50, 10 %")
    assert thinner.thickness < skip.thickness
    draw(graph, tmp_path / "graph.svg")
    assert 'class="arc skip negative"' in (tmp_path / "graph.svg").read_text()
    assert "-0.50, 10 %" in to_dot(graph) and "style=dashed" in to_dot(graph)


@pytest.mark.parametrize("engine", ["builtin", "dot"])
def test_drawings_show_every_node_operation_and_gate(tmp_path, engine):
    if engine == "dot" and not shutil.which("dot"):
        pytest.skip("the dot program is not installed")
    graph = topology(small_net(), births={"n1": {0: 2, 2: 7}})
    draw(graph, tmp_path / "graph.svg", engine=engine)
    text = drawn_text(tmp_path / "graph.svg")
    for word in ("in", "n1", "n2", "out", "2 of 3", "born 2-7", "1x1", "0.50"):
        assert word in text
    draw(topology(separable_autoencoder(depth=2, width=3, hidden=4, kernel=7, core=5)), tmp_path / "graph.svg")
    text = drawn_text(tmp_path / "graph.svg")
    assert [len(re.findall(word, text)) for word in ("5x5 depthwise", "1x1", "3x3", "1.00")] == [2, 4, 2, 2]
    draw(topology(separable_autoencoder(depth=3, width=3, hidden=4, scales=(0, 1, 2))), tmp_path / "graph.svg")
    assert [drawn_text(tmp_path / "graph.svg").count(word) for word in ("at 1/2", "at 1/4")] == [2, 2]
    for level in ("node", "unit"):
        draw(topology(small_net(), level), tmp_path / "graph.png", engine=engine)
        assert Image.open(tmp_path / "graph.png").getcolors(10_000) is not None
        draw(topology(small_net(), level), tmp_path / "graph.pdf", engine=engine)
        assert (tmp_path / "graph.pdf").read_bytes().startswith(b"%PDF")


def test_units_stand_under_the_name_of_their_node():
    graph = topology(small_net(), "unit")
    places = _places(graph)
    assert [words for _, words in sorted(_titles(graph, places).items())] == ["in  1", "n1  2", "n2  2", "out  1"]


def test_drawing_needs_no_dot(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    draw(topology(conv_skip_autoencoder(depth=2, width=3)), tmp_path / "graph.svg")
    assert ET.parse(tmp_path / "graph.svg").getroot().tag.endswith("svg")
    with pytest.raises(ValueError, match="dot .graphviz. is not installed"):
        draw(topology(small_net()), tmp_path / "other.svg", engine="dot")


def test_dot_source_has_all_arcs(tmp_path):
    draw(topology(small_net()), tmp_path / "graph.dot")
    source = (tmp_path / "graph.dot").read_text()
    assert source.count("->") == 4  # three edges and one gate
    assert "0.50" in source


def test_drawings_are_light_and_dark(tmp_path):
    draw(topology(small_net()), tmp_path / "graph.svg")
    assert "prefers-color-scheme: dark" in (tmp_path / "graph.svg").read_text()


def test_bad_drawings_are_refused(tmp_path):
    graph = topology(small_net())
    with pytest.raises(ValueError, match="the suffix must be one of .svg, .png, .pdf, .dot"):
        draw(graph, tmp_path / "graph.bmp")
    with pytest.raises(ValueError, match="must be one of builtin, dot, got 'paint'"):
        draw(graph, tmp_path / "graph.svg", engine="paint")
    assert not list(tmp_path.iterdir())
