"""Parts leave and enter; what is left computes what it did, where it can."""

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings

from nas.models import compact, conv_skip_autoencoder, dense_mlp, skip_autoencoder
from nas.search.surgery import Part, is_closed, open_skip, parts_of, remove, skips_of
from tests.nets import random_weights, sparse_nets, with_free_places


def units_of(net):
    return {name: torch.arange(n) for name, n in net.plan.units.items()}


def samples(net, n=2000, seed=1):
    return torch.randn(n, net.plan.channels, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def same(net, other, x, atol=1e-4):
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=atol)


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


def test_the_parts_and_skips_of_a_net():
    net = skip_autoencoder(2, depth=1, patch=None)
    with torch.no_grad():
        net.nodes["n1"].gates.fill_(1)
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n1"].edges["in"][0] = 1
        net.nodes["out"].edges["n1"].fill_(1)
    units = {"in": torch.arange(2), "n1": torch.tensor([4, 5]), "out": torch.arange(2)}
    parts = parts_of(compact(net), units)
    assert parts == [Part("n1", unit=4), Part("n1", source="in"), Part("out", unit=0), Part("out", unit=1)]
    assert skips_of(net) == [Part("n1", source="in"), Part("out", source="in"), Part("out", source="n1")]


@pytest.mark.parametrize(("value", "closed"), [(0.0, True), (0.4, True), (-0.6, False)])
def test_weak_gates_count_as_closed_where_readers_can_make_up_for_them(value, closed):
    net = skip_autoencoder(2, depth=1, patch=None)
    for node in net.named_nodes().values():
        torch.nn.init.constant_(node.gates, value)
    assert is_closed(net, Part("n1", source="in")) is closed
    assert is_closed(net, Part("out", source="n1")) is (value == 0)


def test_a_block_is_closed_if_it_is_zero():
    net = dense_mlp(3, widths=[2], outputs=1)
    assert is_closed(net, Part("out", source="in"))
    torch.nn.init.ones_(net.nodes["out"].edges["in"])
    assert not is_closed(net, Part("out", source="in"))


def test_a_unit_that_doubles_another_is_taken_up():
    net = random_weights(compact(dense_mlp(4, widths=[6], outputs=2)))
    with torch.no_grad():
        for tensor in (net.nodes["n1"].edges["in"], net.nodes["n1"].bias):
            tensor[3:] = 2 * tensor[:3]
    without = remove(net, units_of(net), [Part("n1", unit=4)], samples(net))
    same(without, net, samples(net, seed=2))
    assert without.nodes["n1"].bias[4].item() == 0 and not without.nodes["n1"].edges["in"][4].any()


def test_filters_that_double_others_are_taken_up():
    torch.manual_seed(0)
    net = conv_skip_autoencoder(depth=2, width=6, patch=1).double()
    with torch.no_grad():
        for tensor in (net.nodes["n1"].edges["in"], net.nodes["n1"].bias):
            tensor[3:] = 2 * tensor[:3]
    x = torch.rand(4, 1, 9, 9, dtype=torch.double)
    net = compact(net)
    same(remove(net, units_of(net), [Part("n1", unit=k) for k in (0, 4, 5)], x), net, x)


def test_what_another_source_of_the_readers_says_is_taken_up_from_it():
    """A neuron without a bend is a linear function of the input, which the output reads, too."""
    net = random_weights(dense_mlp(3, widths=[4], outputs=2))
    with torch.no_grad():
        net.nodes["n1"].bias[2] = 50.0
    net, x = compact(net), samples(net)
    same(remove(net, units_of(net), [Part("n1", unit=2)], x), net, x)


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


def test_a_gate_opens_without_a_change_where_gates_make_up_for_it():
    """Only gates read the node, and the input passes it, too."""
    net = random_weights(skip_autoencoder(4, depth=1, patch=None))
    with torch.no_grad():
        net.nodes["out"].edges["n1"].zero_()
        net.nodes["n1"].gates.zero_()
    opened = open_skip(net, units_of(net), Part("n1", source="in"), samples(net))
    assert abs(opened.nodes["n1"].gates.item()) == 1
    same(opened, net, samples(net), atol=1e-9)


def test_blocks_projections_and_gates_to_the_output_open_a_little():
    net = dense_mlp(3, widths=[2], outputs=1)
    block = open_skip(net, units_of(net), Part("out", source="in"), samples(net).float()).nodes["out"].edges["in"]
    assert 0 < block.abs().max() < 0.5
    net = skip_autoencoder(2, depth=2, width=3, projections=True, patch=None)
    units = units_of(net) | {"n1": torch.tensor([0, 2])}
    matrix = open_skip(net, units, Part("n1", source="in"), samples(net).float()).nodes["n1"].projections["in"]
    assert matrix[[0, 2]].all() and not matrix[1].any()
    opened = open_skip(net, units_of(net), Part("out", source="in"), samples(net).float())
    assert opened.nodes["out"].gates.tolist() == pytest.approx([0.1])


@settings(max_examples=60)
@given(sparse_nets())
def test_surgery_on_random_nets(case):
    """The net is left as it is; parts are gone, skips are open, and what comes out is finite."""
    net, x = case
    before = copy.deepcopy(net.state_dict())
    small = compact(net)
    for part in parts_of(small, units_of(small)):
        without = remove(small, units_of(small), [part], x)
        assert without(x).isfinite().all()
        assert part not in parts_of(compact(without), units_of(small)) or part.unit is not None
        if part.unit is not None:
            node = without.nodes[part.node]
            row = part.unit if node.rows is None else node.plan.rows.index(part.unit)
            assert not any(tensor[row].any() for tensor in (*node.edges.values(), node.bias))
    for skip in skips_of(net):
        if not any(node.plan.rows is not None for node in net.named_nodes().values()):
            opened = open_skip(net, units_of(net), skip, x)
            assert opened(x).isfinite().all() and (not is_closed(opened, skip) or net.plan.units[skip.node] == 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
