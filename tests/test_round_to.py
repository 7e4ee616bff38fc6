"""Widths rounded up for hardware: the same function, in blocks."""

import sys
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.analysis import extract
from nas.analysis.latency import MULTIPLES, fastest_multiple
from nas.models import DagNet, Node, Plan, Skip, compact, conv_skip_autoencoder, mlp
from tests.nets import full, sparse_nets


def same(one, other):
    return one.plan == other.plan and all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


@settings(max_examples=100)
@given(case=sparse_nets(), round_to=st.integers(1, 9))
def test_the_same_function_in_blocks(case, round_to):
    net, x = case
    small, wide = compact(net), compact(net, round_to=round_to)
    torch.testing.assert_close(wide(x), net(x), rtol=1e-12, atol=1e-12)
    hidden = [node for node in wide.plan.nodes if node.name != "out"]
    assert all(node.units % round_to == 0 and node.num_rows % round_to == 0 for node in hidden)
    narrow = small.plan.units
    assert all(node.units < narrow[node.name] + round_to for node in hidden)
    assert wide.plan.nodes[-1].units == small.plan.nodes[-1].units
    assert same(compact(wide), small)  # what was added is dead


@settings(max_examples=15)
@given(case=sparse_nets(), round_to=st.sampled_from([2, 8]))
def test_the_certificate_holds(case, round_to):
    assert extract(compact(case[0], round_to=round_to))[1].holds


def test_unaligned_rows_and_skips():
    """Of five units of n2 three are computed: both numbers become multiples of 4, and the gates keep their units.

    So do the edges and skips of "out", which read n2 through n3, where nothing is computed.
    """
    n2 = Node("n2", 5, full({"n1": 1}), (Skip("n1", (0, 2), (1, 3)), Skip("in", None, (0, 2, 3, 4))), rows=(0, 2, 4))
    n3 = Node("n3", 5, full({}), (Skip("n2"),), rows=())
    torch.manual_seed(0)
    net = DagNet(Plan(1, (Node("n1", 3, full({"in": 3})), n2, n3, Node("out", 4, full({"n3": 3}))), patch=2)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p)
    wide = compact(net, round_to=4)
    _, n2, out = wide.plan.nodes
    assert (n2.units, n2.rows) == (8, (0, 1, 2, 4))
    assert n2.skips == (Skip("n1", (0, 2), (1, 3)), Skip("in", None, (0, 2, 3, 4)))
    assert out.edges == full({"n2": 3})
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(wide(x), net(x))


@pytest.mark.parametrize("round_to", [0, -8, 10**9])
def test_no_size_is_refused(round_to):
    with pytest.raises(ValueError, match=f"round_to must be an integer from 1 to 100000, got {round_to}"):
        compact(conv_skip_autoencoder(depth=1, width=1), round_to=round_to)


@pytest.mark.parametrize(("seconds", "fastest"), [({}, 1), ({8: 0.9}, 8), ({4: 0.9, 16: 0.8}, 16), ({8: 0.98}, 1)])
def test_the_fastest_multiple_is_3_per_cent_faster(monkeypatch, seconds, fastest):
    net, times = conv_skip_autoencoder(depth=2, width=17), {}
    for multiple in MULTIPLES:
        times[compact(net, round_to=multiple).plan] = seconds.get(multiple, 1.0)
    timing = sys.modules[fastest_multiple.__module__]
    monkeypatch.setattr(timing, "seconds_per_call", lambda small, x, **_: times[small.plan])
    assert fastest_multiple(net, side=16) == fastest


def test_what_is_slower_now_and_then_is_not_faster(monkeypatch):
    net, calls = conv_skip_autoencoder(depth=2, width=17), count()
    as_it_is, timing = compact(net).plan, sys.modules[fastest_multiple.__module__]

    def seconds(small, *_, **__):
        return 1.0 if small.plan == as_it_is else 0.8 + 0.3 * (next(calls) % 7 == 0)

    monkeypatch.setattr(timing, "seconds_per_call", seconds)
    assert fastest_multiple(net, side=16) == 1


def test_networks_that_rounding_leaves_alike_are_not_compared(monkeypatch):
    timing, earlier = sys.modules[fastest_multiple.__module__], count()
    monkeypatch.setattr(timing, "seconds_per_call", lambda *_, **__: -next(earlier))
    assert fastest_multiple(mlp(5, widths=(16,), patch=None)) == 1


def test_the_fastest_multiple_is_one_of_several_and_of_supernets_alone():
    assert fastest_multiple(mlp(5, widths=(7,), patch=None), rounds=1) in MULTIPLES
    with pytest.raises(ValueError, match="widths are rounded in a DagNet, Linear is none"):
        fastest_multiple(torch.nn.Linear(2, 2))
