"""Tiles without seams: how far networks see, and pictures of any size in bounded memory."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.models import Edge, Node, Plan, conv_skip_autoencoder, mlp, separable_autoencoder, skip_autoencoder
from nas.models.network import sight
from nas.models.reach import grain, reach
from nas.search.tasks.tiles import restore_in_tiles, tiles
from tests.nets import RANDOM_RECIPES, full, random_weights


def random_restorer(seed):
    """A network of any recipe whose output is a picture, with weights that keep the scale of signals."""
    choose = Random(seed)
    while True:
        net = RANDOM_RECIPES[choose.choice(list(RANDOM_RECIPES))](choose)
        if net.plan.patch is not None and not net.plan.pooled:
            break
    random_weights(net, seed)
    with torch.no_grad():
        for p in net.parameters():
            p.div_(max(1, p.numel() // max(1, len(p))) ** 0.5)
    return net


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 45), width=st.integers(1, 30), side=st.integers(1, 20))
def test_tiles_are_the_whole(seed, height, width, side):
    net = random_restorer(seed)
    picture = torch.rand(net.plan.inputs, height, width, generator=torch.Generator().manual_seed(seed))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        net, x = net.to(dtype), picture.to(dtype)
        with torch.no_grad():
            whole = net(x[None])[0]
        error = (restore_in_tiles(net, x, side) - whole).abs().max()
        assert error <= tolerance * max(1, whole.abs().max())


@given(seed=st.integers(0, 10**6))
def test_reach_is_exact(seed):
    """Positive weights let every way count: what a square depends on ends where `reach` says."""
    net = random_restorer(seed)
    unit, far = grain(net.plan), reach(net.plan)
    with torch.no_grad():
        for p in net.parameters():
            p.abs_().add_(0.1)
    start = -(-far // unit) * unit + 2 * unit
    side = 2 * start + unit
    x = torch.ones(1, net.plan.inputs, side, side, dtype=torch.float64, requires_grad=True)  # no rectifier is shut
    net(x)[..., start : start + unit, start : start + unit].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    first, last = start - far, start + unit - 1 + far
    if len(rows):  # else the output is constant
        assert first <= int(rows[0]) and int(rows[-1]) <= last
        if all(link.take is None is link.put for node in net.plan.nodes for link in (*node.edges, *node.skips)):
            assert (int(rows[0]), int(rows[-1])) == (first, last)


def test_how_far_the_recipes_see():
    assert reach(skip_autoencoder(patch=4).plan) == 0  # one patch at a time
    assert reach(conv_skip_autoencoder(depth=1, width=1, patch=1).plan) == 2
    assert reach(conv_skip_autoencoder(depth=1, width=1, patch=3, kernel=5).plan) == 12
    assert reach(separable_autoencoder(depth=2, width=2, hidden=2, kernel=7, patch=2).plan) == 2 * (1 + 3 + 3 + 1)
    edges = (Edge("in", 3), Edge("in", 7, "depthwise"))
    assert reach(Plan(1, (Node("n1", 1, edges[:1]), Node("out", 1, (Edge("n1", 1), edges[1]))), 1)) == 3
    assert reach(Plan(1, (Node("n1", 1, full({"in": 9})), Node("out", 1, ())), 1)) == 0  # nothing leads to the output


def test_levels_align_what_is_seen():
    net = conv_skip_autoencoder(depth=3, width=2, levels=1, patch=2)
    assert grain(net.plan) == 4
    assert reach(net.plan) == 10  # out and n3 2 each, in cells of n2 these are 4; n2 4 more, n1 2
    for tile in tiles(50, 41, sight(net), 9):
        assert all(part.start % 4 == 0 for part in (*tile.place, *tile.seen))


def test_tiles_fill_a_picture_once():
    net = conv_skip_autoencoder(depth=2, width=2, patch=2)
    for side in (None, 1, 5, 16, 1000):
        filled = torch.zeros(37, 23)
        for tile in tiles(37, 23, sight(net), side):
            filled[tile.place] += 1
            assert filled[tile.seen][tile.inside].shape == filled[tile.place].shape
        assert (filled == 1).all()


def test_a_small_picture_is_one_tile_and_a_large_one_fits_the_memory():
    seen_by = sight(separable_autoencoder())
    assert len(list(tiles(481, 321, seen_by))) == 1
    seen = [tile.seen for tile in tiles(4000, 3000, seen_by)]
    assert len(seen) > 10
    largest = max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in seen)
    assert largest * seen_by.bytes_per_pixel < 2**28


@pytest.mark.parametrize("side", [0, -3, 2.5])
def test_a_bad_tile_is_refused(side):
    with pytest.raises(ValueError, match="the side of a tile must be an integer of at least 1 pixel, got"):
        list(tiles(10, 10, sight(conv_skip_autoencoder(depth=1, width=1)), side))


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (mlp(outputs=10, patch=28), "returns one vector for a whole picture; it cannot restore a picture"),
        (skip_autoencoder(4, patch=None), "works on vectors, not on pictures; it cannot restore a picture"),
    ],
)
def test_networks_that_return_no_pictures_are_refused(net, sentence):
    for function in (reach, grain):
        with pytest.raises(ValueError, match=sentence):
            function(net.plan)
