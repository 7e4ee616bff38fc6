"""Compaction is exact, minimal and leaves its argument alone."""

import copy
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.analysis import extract, topology
from nas.models import DagNet, Node, Plan, Skip, compact, conv_skip_autoencoder, find_alive
from tests.nets import sparse_nets


def num_params(net):
    return sum(p.numel() for p in net.parameters())


@settings(max_examples=200)
@given(sparse_nets())
def test_compact_computes_the_same_function(case):
    net, x = case
    before = copy.deepcopy(net.state_dict())
    small = compact(net)
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
    assert num_params(small) <= num_params(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@settings(max_examples=100)
@given(sparse_nets())
def test_everything_in_a_compact_net_is_alive(case):
    small = compact(case[0])
    alive = find_alive(small)
    assert all(mask.all() for name, mask in alive.units.items() if name not in ("in", "out"))
    assert len(alive.skips) == sum(len(node.skips) for node in small.plan.nodes)
    assert all(gate.all() for gate in small.gate_parameters().values())
    assert compact(small).plan == small.plan


@settings(max_examples=100)
@given(sparse_nets())
def test_units_found_alive_matter(case):
    """Without an alive unit the graph differs: the mask never keeps a unit that has no way from and to the outside."""
    net, _ = case
    alive = find_alive(net)
    graph = topology(net, "unit")
    hidden = [name for name in graph if graph.nodes[name]["kind"] == "hidden"]
    assert len(hidden) == sum(int(m.sum()) for name, m in alive.units.items() if name not in ("in", "out"))
    assert all(graph.out_degree(name) > 0 for name in hidden)


@settings(max_examples=50)
@given(sparse_nets(), st.integers(0, 100))
def test_certificate_holds(case, seed):
    net, x = case
    small, certificate = extract(net, list(x), seed=seed)
    assert certificate.holds
    assert certificate.max_abs_float64 <= 1e-10 * max(1, certificate.max_output)
    assert certificate.num_given == len(x)
    assert certificate.num_random > 0


def test_the_certificate_sees_a_difference(monkeypatch):
    def wrong(net):
        small = compact(net)
        with torch.no_grad():
            small.nodes["out"].bias[0] += 1e-4
        return small

    net = conv_skip_autoencoder(depth=1, width=2)
    assert extract(net)[1].holds
    monkeypatch.setattr(sys.modules[extract.__module__], "compact", wrong)
    certificate = extract(net)[1]
    assert not certificate.holds
    assert 0.9e-4 < certificate.max_abs_float64 < 1.1e-4


def test_a_vanished_node_and_a_constant_network():
    net = conv_skip_autoencoder(depth=3, width=4)
    with torch.no_grad():
        for p in net.unit_parameters()["n2"]:
            p.zero_()
        net.nodes["n3"].bias.fill_(0.5)
        net.nodes["n3"].edges["n2"].zero_()
    small = compact(net)
    assert [node.name for node in small.plan.nodes] == ["n3", "out"]
    x = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(small(x), net(x))


def test_survivors_of_a_skip_need_not_be_aligned():
    """Units 0 and 2 of n1 reach n2 by the gate, where only unit 1 has a row: three units, one of them computed."""
    plan = Plan(1, (Node("n1", 3, {"in": 1}), Node("n2", 3, {"n1": 1}, (Skip("n1"),)), Node("out", 1, {"n2": 1})), 1)
    net = DagNet(plan)
    with torch.no_grad():
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n2"].edges["n1"][[0, 2]] = 0
        net.nodes["n2"].gates.fill_(2.0)
    small = compact(net)
    _, n2, _ = small.plan.nodes
    assert (n2.units, n2.rows, n2.skips) == (3, (1,), (Skip("n1", None, (0, 2)),))
    x = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(small(x), net(x))
