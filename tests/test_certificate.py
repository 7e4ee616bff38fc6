"""The certificate says how far, what, why and which; verification finds what was changed afterwards."""

import copy
import json

import pytest
import torch
from hypothesis import given

from nas.analysis import certify, changes, describe_changes, extract, fingerprint, latency, verify
from nas.models import DagNet, Node, Plan, Skip, compact, conv_skip_autoencoder, skip_autoencoder
from tests.nets import full, random_net, sparse_nets
from tests.test_compact import chain


def by_node(net):
    return {change.node: change for change in changes(net)}


@given(sparse_nets())
def test_extraction_leaves_its_argument_alone(case):
    net, x = case
    net.train()
    before, plan, flags = copy.deepcopy(net.state_dict()), net.plan, [p.requires_grad for p in net.parameters()]
    identities = [id(p) for p in net.parameters()]
    small, _ = extract(net, list(x))
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)  # nor do the two share memory
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (net.plan, net.training, [p.requires_grad for p in net.parameters()]) == (plan, True, flags)
    assert [id(p) for p in net.parameters()] == identities


@given(sparse_nets())
def test_every_surviving_node_is_compared(case):
    net, x = case
    small, certificate = extract(net, list(x))
    assert list(certificate.nodes) == [node.name for node in small.plan.nodes]
    scale = max([1.0, certificate.max_output, *(node.max_output for node in certificate.nodes.values())])
    for difference in (certificate, *certificate.nodes.values()):
        assert difference.max_abs_float64 <= 1e-10 * scale
        assert difference.max_abs_float32 <= 1e-5 * scale
    json.dumps(certificate.to_dict(), allow_nan=False)


def test_differences_are_found_in_their_node():
    net = conv_skip_autoencoder(depth=3, width=4)
    small = compact(net)
    with torch.no_grad():
        small.nodes["n2"].bias[0] += 1e-3
    certificate = certify(net, small)
    found = {name: node.max_abs_float64 for name, node in certificate.nodes.items()}
    assert found["n1"] == 0
    assert found["n2"] == pytest.approx(1e-3, rel=1e-3)
    assert 0 < certificate.max_abs_float64 < 1e-1
    assert certificate.max_rel_float64 == certificate.max_abs_float64 / certificate.max_output
    assert not certificate.holds


@given(sparse_nets())
def test_changes_account_for_every_unit_edge_and_skip(case):
    net, _ = case
    small = {node.name: node for node in compact(net).plan.nodes}
    for node, change in zip(net.plan.nodes, changes(net), strict=True):
        gone = [unit for units in change.removed.values() for unit in units]
        assert len(set(gone)) == len(gone) == change.total - change.kept
        assert change.total == node.units
        assert change.kept == (small[node.name].units if node.name in small else 0)
        kept_edges = {edge.key for edge in node.edges} - set(change.edges)
        kept_skips = {skip.source for skip in node.skips} - set(change.skips)
        assert kept_edges == ({edge.key for edge in small[node.name].edges} if node.name in small else set())
        assert kept_skips == ({skip.source for skip in small[node.name].skips} if node.name in small else set())
    assert len(describe_changes(changes(net)).splitlines()) == len(net.plan.nodes)


def test_reasons_of_units():
    assert by_node(chain(1, 0.7))["n1"].removed == {"constant, folded into biases": (1,)}
    assert by_node(chain(3, -0.7))["n1"].removed == {"zero": (1,)}
    assert by_node(chain(3, 0.7))["n1"].kept_because == {"constant into a zero-padded convolution": (1,)}
    assert by_node(chain(1, 0.7, gate=0.5))["n1"].kept_because == {"constant carried by a skip": (1,)}
    unread = chain(1, 0.7)
    with torch.no_grad():
        unread.nodes["n2"].edges["n1"][:, 0] = 0
        unread.nodes["n2"].edges["n1"][2] = 0
    assert by_node(unread)["n1"].removed == {"constant, folded into biases": (1,), "read by nobody": (0,)}
    assert by_node(unread)["n2"].removed == {"zero": (2,)}


def test_reasons_of_edges_skips_and_nodes():
    net = conv_skip_autoencoder(depth=3, width=2)
    with torch.no_grad():
        for p in net.unit_parameters()["n2"]:
            p.zero_()
        net.nodes["n3"].gates.copy_(torch.tensor([0.5, 0.5]))  # from n1 and from n2
        net.nodes["n3"].bias[0] = 0.5
    found = by_node(net)
    assert (found["n2"].kept, found["n2"].edges) == (0, {"n1": "node vanished"})
    assert found["n3"].edges == {"n2": "no weight on alive units"}
    assert found["n3"].skips == {"n2": "carries nothing"}
    assert found["n3"].kept_because == {"carried by a skip": (1,)}
    text = describe_changes(changes(net)).splitlines()
    assert text[1] == "n2      vanished; removed: 2 zero"
    assert "without edge from n2 (no weight on alive units); without skip from n2 (carries nothing)" in text[2]


def test_reasons_of_a_node_that_is_read_through():
    """n2 is half of n1, which "out" reads instead, and n3, which computes something, gets by a gate."""
    net = conv_skip_autoencoder(depth=3, width=2)
    with torch.no_grad():
        for p in net.unit_parameters()["n2"]:
            p.zero_()
        net.nodes["n2"].gates.fill_(0.5)
        net.nodes["n3"].gates[1] = 0.5
    found = by_node(net)
    assert (found["n2"].kept, found["n2"].removed) == (0, {"read through": (0, 1)})
    assert found["n2"].skips == {"n1": "node vanished"}
    assert (found["n3"].edges, found["n3"].skips) == ({"n2": "read through"}, {"n2": "read through"})
    small = compact(net)
    assert [node.name for node in small.plan.nodes] == ["n1", "n3", "out"]
    assert small.nodes["n3"].gates.tolist() == [0.25]
    assert torch.equal(small.nodes["n3"].edges["n1"], 0.5 * net.nodes["n3"].edges["n2"])


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_constant_network_is_said_to_be_constant(kernel, bias):
    net = conv_skip_autoencoder(depth=3, width=4, kernel=kernel, residual=False)
    assert not extract(net)[1].constant
    with torch.no_grad():
        for p in net.unit_parameters()["n2"]:
            p.zero_()
        net.nodes["n2"].bias.fill_(bias)  # a whole node without input, and no gate around it
    small, certificate = extract(net)
    assert certificate.constant and certificate.holds
    assert "in" not in {source for node in small.nodes.values() for source in node.edges}
    assert small.plan.units == (
        {"in": 4, "out": 4} if kernel == 1 or bias == 0 else {"in": 4, "n2": 4, "n3": 4, "out": 4}
    )


def test_a_folded_constant_is_rounded_once():
    """In single precision the bias that takes up a constant is rounded, which double precision sees."""
    double, single = chain(1, 0.7), chain(1, 0.7).float()
    assert extract(double)[1].tolerance_float64 == 1e-10
    certificate = extract(single)[1]
    assert certificate.tolerance_float64 == 1e-5
    assert 1e-10 < certificate.max_abs_float64 < 1e-6 and certificate.holds
    assert extract(conv_skip_autoencoder(depth=1, width=2))[1].tolerance_float64 == 1e-10


def test_fingerprints():
    net = skip_autoencoder(3, depth=2, patch=None)
    first = fingerprint(net)
    assert len(first) == 64
    assert fingerprint(copy.deepcopy(net)) == first
    others = [copy.deepcopy(net) for _ in range(3)]
    with torch.no_grad():
        others[0].nodes["n1"].bias[0] = 1e-30
        others[1].double()
    others[2] = DagNet(Plan(3, net.plan.nodes, None, offset=0.5))
    others[2].load_state_dict(net.state_dict())
    assert len({first, *map(fingerprint, others)}) == 4


def test_verification():
    net, x = random_net(16)
    small, certificate = extract(net)
    assert verify(net, small, certificate.hashes, list(x)).holds
    changed = copy.deepcopy(small)
    with torch.no_grad():
        next(p for p in changed.parameters() if p.numel()).view(-1)[0] += 1e-7
    found = verify(net, changed, certificate.hashes)
    assert not found.holds  # too little for the outputs, but not for the hash
    assert found.problems[0].startswith("the compact network is not the recorded one")
    with torch.no_grad():
        next(p for p in changed.parameters() if p.numel()).view(-1)[0] = float("nan")
    found = verify(net, changed, certificate.hashes)
    assert len(found.problems) == 2 and found.certificate.to_dict()["max_abs_float32"] is None


def test_networks_that_do_not_belong_together_are_refused():
    net = conv_skip_autoencoder(depth=2, width=3)
    for other in (conv_skip_autoencoder(depth=1, width=3), conv_skip_autoencoder(depth=2, width=2)):
        with pytest.raises(ValueError, match="has not the nodes and units that are alive in the searched one"):
            certify(net, other)


def test_latency_is_measured_for_every_batch():
    net = DagNet(Plan(3, (Node("n1", 3, full({"in": None}), (Skip("in"),)), Node("out", 3, full({"n1": None})))))
    timings = latency(net, compact(net), batches=(1, 4), seconds=0.01)
    assert [timed.shape for timed in timings] == [(1, 3), (4, 3)]
    for timed in timings:
        assert timed.rounds >= 3
        assert timed.threads == torch.get_num_threads()
        assert 0 < timed.compact.lower_quartile <= timed.compact.median <= timed.compact.upper_quartile
        assert timed.speed_up == timed.supernet.median / timed.compact.median
