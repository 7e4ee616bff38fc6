"""Compaction is exact, minimal and leaves its argument alone."""

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.analysis import extract, topology
from nas.models import RECIPES, DagNet, Node, Plan, Skip, compact, conv_skip_autoencoder, find_alive
from nas.models.bypass import bypass
from tests.nets import RANDOM_RECIPES, full, random_net, sparse_nets


def num_params(net):
    return sum(p.numel() for p in net.parameters())


@settings(max_examples=120)
@given(sparse_nets())
def test_compact_computes_the_same_function(case):
    net, x = case
    before = copy.deepcopy(net.state_dict())
    small = compact(net)
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
    assert num_params(small) <= num_params(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@settings(max_examples=80)
@given(sparse_nets())
def test_compact_has_the_same_gradient(case):
    net, x = case
    direction = torch.randn(net(x).shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    gradients = []
    for each in (net, compact(net)):
        seen = x.clone().requires_grad_()
        y = (each(seen) * direction).sum()
        if y.requires_grad:  # a constant network may have no parameter
            y.backward()
        gradients.append(torch.zeros_like(x) if seen.grad is None else seen.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@settings(max_examples=60)
@given(sparse_nets())
def test_everything_in_a_compact_net_is_alive(case):
    small = compact(case[0])
    alive = find_alive(small)
    assert all(mask.all() for name, mask in alive.units.items() if name not in ("in", "out"))
    assert len(alive.skips) == sum(len(node.skips) + len(node.projections) for node in small.plan.nodes)
    assert all(gate.all() for gate in small.gate_parameters().values())
    assert compact(small).plan == small.plan


@settings(max_examples=60)
@given(sparse_nets())
def test_units_found_alive_matter(case):
    """Without an alive unit the graph differs: the mask never keeps a unit that has no way from and to the outside."""
    net, _ = case
    alive = find_alive(*bypass(net))
    graph = topology(net, "unit")
    hidden = [name for name in graph if graph.nodes[name]["kind"] == "hidden"]
    assert len(hidden) == sum(int(m.sum()) for name, m in alive.units.items() if name not in ("in", "out"))
    assert all(graph.out_degree(name) > 0 for name in hidden)


@settings(max_examples=30)
@given(sparse_nets(), st.integers(0, 100))
def test_certificate_holds(case, seed):
    net, x = case
    small, certificate = extract(net, list(x), seed=seed)
    assert certificate.holds
    assert certificate.max_abs_float64 <= 1e-10 * max(1, certificate.max_output)
    assert certificate.num_given == len(x)
    assert certificate.num_random > 0


def test_the_certificate_sees_a_difference(monkeypatch):
    def wrong(net, **options):
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
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n2"].edges["n1"][[0, 2]] = 0
        net.nodes["n2"].gates.fill_(2.0)
    small = compact(net)
    _, n2, _ = small.plan.nodes
    assert (n2.units, n2.rows, n2.skips) == (3, (1,), (Skip("n1", None, (0, 2)),))
    x = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(small(x), net(x))


def differences(net, x):
    """Largest difference of a network and its compact one in double and in single precision, relative above 1."""
    exact = copy.deepcopy(net).double()
    pairs = [(exact(x.double()), compact(exact)(x.double())), (net(x), compact(net)(x))]
    return [float((y - z).abs().max()) / max(1.0, float(y.abs().max())) for y, z in pairs]


def worst_difference(seeds):
    """Component by component; every network must be accepted."""
    with torch.no_grad():
        return [max(column) for column in zip(*(differences(*random_net(seed)) for seed in seeds), strict=True)]


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_random_models_are_compacted_exactly(start):
    double, single = worst_difference(range(start, start + 20))
    assert double <= 1e-10
    assert single <= 1e-5


@pytest.mark.slow
def test_500_random_models_are_compacted_exactly():
    double, single = worst_difference(range(1000, 1500))
    assert double <= 1e-10
    assert single <= 1e-5


def test_random_models_cover_every_recipe():
    assert set(RANDOM_RECIPES) >= set(RECIPES)


@torch.no_grad()
def chain(kernel, bias, gate=0.0, activation="relu"):
    """in (2) -> n1 (3), of which unit 1 reads nothing but has a bias -> n2 (3), with a gate from n1 -> out."""
    nodes = (
        Node("n1", 3, full({"in": kernel}), activation=activation),
        Node("n2", 3, full({"n1": kernel}), (Skip("n1"),)),
        Node("out", 2, full({"n2": kernel}), activation="identity"),
    )
    net = DagNet(Plan(2, nodes, patch=1)).double()
    net.nodes["n1"].edges["in"][1] = 0
    net.nodes["n1"].bias[1] = bias
    net.nodes["n2"].gates.fill_(gate)
    return net


@pytest.mark.parametrize(
    ("kernel", "bias", "gate", "kept"),
    [
        (1, 0.7, 0.0, 2),  # folded into the biases of n2
        (3, 0.7, 0.0, 3),  # not constant beyond the border
        (3, -0.7, 0.0, 2),  # relu puts out zero
        (1, 0.7, 0.5, 3),  # the skip carries it
        (1, -0.7, 0.5, 2),
    ],
)
def test_what_a_dead_unit_emits_is_folded_where_that_is_exact(kernel, bias, gate, kept):
    net = chain(kernel, bias, gate)
    small = compact(net)
    assert small.plan.units["n1"] == kept
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(small(x), net(x), rtol=1e-13, atol=1e-13)


def test_a_constant_that_is_not_folded_can_be_seen():
    """The wrong answer that a fold through zero padding would give differs at the border."""
    net = chain(3, 0.7)
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        weight = wrong.nodes["n2"].edges["n1"]
        wrong.nodes["n2"].bias += 0.7 * weight[:, 1].sum(dim=(1, 2))
        weight[:, 1] = 0
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    assert (wrong(x) - net(x)).abs().max() > 1e-3


def test_constants_cascade():
    """A node that reads only constants is one itself, through any depth."""
    net = conv_skip_autoencoder(depth=3, width=4, kernel=1)
    with torch.no_grad():
        net.nodes["n1"].edges["in"].zero_()
        for name in ("n1", "n2", "n3", "out"):
            net.nodes[name].bias.uniform_(0.1, 1)
    small = compact(net)
    assert [node.name for node in small.plan.nodes] == ["out"]
    x = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(small(x), net(x))


def mlp(skips=(), dense=False):
    """5 inputs, two hidden layers of 8; with the edges of a dense MLP, each layer also reads the raw input."""
    edges = [full({"in": None}), full({"n1": None}), full({"n2": None})]
    if dense:
        edges = [full(dict.fromkeys(["in", "n1", "n2"][:count])) for count in (1, 2, 3)]
    nodes = (Node("n1", 8, edges[0]), Node("n2", 8, edges[1], skips), Node("out", 5, edges[2], activation="identity"))
    return DagNet(Plan(5, nodes)).double()


@pytest.mark.parametrize(
    ("net", "units"),
    [
        (mlp(), {"in": 5, "n1": 4, "n2": 8, "out": 5}),
        (mlp(dense=True), {"in": 5, "n1": 4, "n2": 8, "out": 5}),
        (mlp((Skip("n1"),)), {"in": 5, "n1": 8, "n2": 8, "out": 5}),  # constants that the skip carries
    ],
    ids=["bias left", "dense, raw input beside hidden units", "scalar skip"],
)
def test_cases_on_which_other_pruners_fail(net, units):
    """Every second row of n1 is zero, its bias is not."""
    with torch.no_grad():
        for node in net.named_nodes().values():
            node.bias.uniform_(0.1, 1)
            node.gates.fill_(0.5)
        net.nodes["n1"].edges["in"][::2] = 0
    small = compact(net)
    assert small.plan.units == units
    x = torch.randn(64, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), net(x), rtol=1e-13, atol=1e-13)
