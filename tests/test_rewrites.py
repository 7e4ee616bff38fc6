"""The rewrites of planted topologies are exact: mirrored neurons spare skips, and neurons take the places of a gate."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from benchmarks.rewrites import REWRITES, is_closed, open_skip, remove
from benchmarks.surgery import LEAST_SQUARES, Part, skips_of
from nas.models import DagNet, Node, Plan, Skip, compact, dense_conv, dense_mlp, skip_autoencoder
from tests.nets import NOT_PLAIN, full, random_weights, sparse_nets
from tests.test_polish import polished
from tests.test_surgery import check, same, samples, units_of


def with_free_places(seed, gate, copied=0.0, live=4, size=9):
    """A net whose neurons stand where its gates ask for, and one of the same function without gates.

    In that the neurons stand elsewhere, some are mirrored, and neurons without a bend stand for the linear functions;
    what the second gate brings to the output stands there as copies of the neurons, which are then not mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    net = random_weights(skip_autoencoder(size, depth=1, patch=None), seed)
    n1, out, read = net.nodes["n1"], net.nodes["out"], slice(live, live + 3)
    with torch.no_grad():
        n1.gates.fill_(gate)
        out.gates.copy_(torch.tensor([-copied * gate, copied], dtype=torch.double))
        for tensor in (n1.edges["in"], n1.bias):
            tensor[live:] = 0
        for tensor in (out.edges["n1"], out.bias):
            tensor[:live], tensor[live + 3 :] = 0, 0
        places = torch.randperm(size, generator=generator)
        mirrored = (torch.rand(live, generator=generator) < 0.5) & (copied == 0)
        sign = 1 - 2 * mirrored.double()
        bent = (out.edges["n1"][:, :live] * mirrored)[read]
        helpers = places[live : live + 3]

        other = copy.deepcopy(net)
        m1, m_out = other.nodes["n1"], other.nodes["out"]
        for tensor in (m1.gates, m_out.gates, m1.edges["in"], m1.bias, m_out.edges["n1"]):
            tensor.zero_()
        m1.edges["in"][places[:live]] = sign[:, None] * n1.edges["in"][:live]
        m1.bias[places[:live]] = sign * n1.bias[:live]
        m1.edges["in"][helpers] = gate * out.edges["n1"][read] + bent @ n1.edges["in"][:live]
        m1.bias[helpers] = 100.0
        m_out.edges["n1"][:, places[:live]] = out.edges["n1"][:, :live]
        m_out.edges["n1"][range(live, live + 3), helpers] = 1
        m_out.edges["n1"][range(live), places[:live]] = copied
        m_out.bias[read] += bent @ n1.bias[:live] - 100.0
    return net, other


def mirror(net, name, row):
    """relu(z) = z + relu(-z): the same function, if the readers of the node read all that it reads."""
    node = net.nodes[name]
    for reader in net.named_nodes().values():
        if name in reader.edges:
            weight = reader.edges[name][:, row].clone()
            for source, own in node.edges.items():
                reader.edges[source] += weight.outer(own[row])
            reader.bias += weight * node.bias[row]
    for tensor in (*node.edges.values(), node.bias):
        tensor[row] *= -1


@pytest.mark.parametrize("widths", [[5, 4], [3, 5, 4], [4, 4, 3]])
@pytest.mark.parametrize("mirrored", list(product((False, True), repeat=3)))
def test_a_skip_that_mirrored_neurons_stand_for_is_spared(widths, mirrored):
    """Between the last two hidden nodes, or before them: then two nodes read what is mirrored."""
    net = random_weights(dense_mlp(6, widths=widths, outputs=3))
    node, reader = ("n1", "n3") if widths == [4, 4, 3] else (f"n{len(widths)}", "out")
    source = list(net.nodes[node].edges)[-1]
    with torch.no_grad():
        net.nodes[reader].edges[source].zero_()
        other = copy.deepcopy(net)
        for row in (row for row in range(3) if mirrored[row]):
            mirror(other, node, row)
    same(other, net, samples(net), atol=1e-9)
    net, other = compact(net), compact(other)
    assert any(mirrored) == (source in other.nodes[reader].edges)
    if any(mirrored):
        without = remove(other, units_of(other), [Part(reader, source=source)], samples(other))
        assert compact(without).plan == net.plan
        same(without, net, samples(net), atol=1e-9)


@pytest.mark.parametrize(("gate", "copied"), [(1.0, 0.0), (-0.7, 0.0), (1.0, 0.6), (-0.7, 0.6)])
@pytest.mark.parametrize("seed", range(4))
def test_a_gate_opens_with_the_neurons_in_their_places(seed, gate, copied):
    net, other = with_free_places(seed, gate, copied)
    x = samples(net)
    same(other, net, x, atol=1e-9)
    opened = open_skip(other, units_of(other), Part("n1", source="in"), x)
    same(opened, net, x)
    assert opened.nodes["n1"].gates.item() == (1 if gate > 0 else -1)
    assert opened.nodes["out"].gates[1].item() == pytest.approx(copied * abs(gate), abs=1e-4)
    assert compact(opened).plan == compact(net).plan


@pytest.mark.parametrize(("value", "closed"), [(0.0, True), (0.4, True), (-0.6, False)])
def test_weak_gates_count_as_closed_where_readers_can_make_up_for_them(value, closed):
    net = skip_autoencoder(2, depth=1, patch=None)
    for node in net.named_nodes().values():
        torch.nn.init.constant_(node.gates, value)
    assert is_closed(net, Part("n1", source="in")) is closed
    assert is_closed(net, Part("out", source="n1")) is (value == 0)


def test_a_gate_opens_without_a_change_where_edges_make_up_for_it():
    """The output reads the node and what the gate brings there."""
    nodes = Node("n1", 4, full({"in": 3}), (Skip("in"),)), Node("out", 4, full({"n1": 3, "in": 3}))
    net = random_weights(DagNet(Plan(4, nodes, patch=1)))
    with torch.no_grad():
        net.nodes["n1"].gates.zero_()
    x, other = torch.randn(2, 8, 4, 9, 9, dtype=torch.double)
    opened = open_skip(net, units_of(net), Part("n1", source="in"), x)
    assert abs(opened.nodes["n1"].gates.item()) == 1
    same(opened, net, other)


def test_a_gate_opens_without_a_change_where_gates_make_up_for_it():
    """Only gates read the node, and the input passes it, too."""
    net = random_weights(skip_autoencoder(4, depth=1, patch=None))
    with torch.no_grad():
        net.nodes["out"].edges["n1"].zero_()
        net.nodes["n1"].gates.zero_()
    opened = open_skip(net, units_of(net), Part("n1", source="in"), samples(net))
    assert abs(opened.nodes["n1"].gates.item()) == 1
    same(opened, net, samples(net), atol=1e-9)


def test_elsewhere_it_is_least_squares():
    torch.manual_seed(0)
    net, x = dense_conv(1, depth=2, growth=4), torch.rand(2, 1, 6, 6)
    for name in ("remove", "open_skip"):
        for skip in skips_of(net):
            given = [skip] if name == "remove" else skip
            rewritten, solved = (
                getattr(each, name)(net, units_of(net), given, x) for each in (REWRITES, LEAST_SQUARES)
            )
            for a, b in zip(rewritten.parameters(), solved.parameters(), strict=True):
                assert torch.equal(a, b)


@settings(max_examples=60)
@given(sparse_nets(without=NOT_PLAIN))
def test_rewrites_on_random_nets(case):
    check(REWRITES, *case)


def test_a_gate_that_spares_neurons_is_opened():
    """The student computes what the teacher does, but without its gate: more neurons stand for linear functions."""
    teacher, student = (net.float() for net in with_free_places(0, 1.0))
    x = torch.randn(2048, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = teacher(x) + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        assert F.mse_loss(student(x), teacher(x)) < 1e-4
    way = polished(student, (x, y), trials=30, steps=100, surgery=REWRITES)
    assert way[-1].net.plan == compact(teacher).plan
    assert way[-1].num_params < way[0].num_params
    assert way[-1].loss < 0.011
