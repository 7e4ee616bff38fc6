"""Parts leave and enter; what is left computes what it did, where it can."""

import copy

import pytest
import torch
from hypothesis import given, settings

from benchmarks.surgery import LEAST_SQUARES, Part, is_closed, open_skip, parts_of, remove, skips_of
from nas.models import compact, conv_skip_autoencoder, dense_mlp, skip_autoencoder
from nas.models.alive import edge_reads
from tests.nets import random_weights, sparse_nets


def units_of(net):
    return {name: torch.arange(n) for name, n in net.plan.units.items()}


def samples(net, n=2000, seed=1):
    return torch.randn(n, net.plan.inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def same(net, other, x, atol=1e-4):
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=atol)


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


def test_a_skip_is_closed_if_it_is_zero():
    net = skip_autoencoder(2, depth=1, patch=None)
    assert all(is_closed(net, skip) for skip in skips_of(net))
    with torch.no_grad():
        net.nodes["out"].gates[1] = -0.1
    assert [is_closed(net, skip) for skip in skips_of(net)] == [True, True, False]
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


def test_skips_open_a_little():
    net = dense_mlp(3, widths=[2], outputs=1)
    block = open_skip(net, units_of(net), Part("out", source="in"), samples(net).float()).nodes["out"].edges["in"]
    assert 0 < block.abs().max() < 0.5
    net = skip_autoencoder(2, depth=2, width=3, projections=True, patch=None)
    units = units_of(net) | {"n1": torch.tensor([0, 2])}
    matrix = open_skip(net, units, Part("n1", source="in"), samples(net).float()).nodes["n1"].projections["in"]
    assert matrix[[0, 2]].all() and not matrix[1].any()
    opened = open_skip(net, units_of(net), Part("out", source="in"), samples(net).float())
    assert opened.nodes["out"].gates.tolist() == pytest.approx([0.1])


def check(surgery, net, x):
    """The net is left as it is; parts are gone, skips are open, and what comes out is finite."""
    before = copy.deepcopy(net.state_dict())
    small = compact(net, tight=False)
    for part in parts_of(small, units_of(small)):
        without = surgery.remove(small, units_of(small), [part], x)
        assert without(x).isfinite().all()
        assert part not in parts_of(compact(without, tight=False), units_of(small)) or part.unit is not None
        if part.unit is not None:
            node = without.nodes[part.node]
            row = part.unit if node.rows is None else node.plan.rows.index(part.unit)
            reads = [
                edge_reads(edge, w, node.plan.num_rows, small.plan.units[edge.source])
                for edge, w in node.weighted_edges()
            ]
            assert not any(each[row].any() for each in (*reads, node.bias))
    for skip in skips_of(net):
        if not any(node.plan.rows is not None for node in net.named_nodes().values()):
            opened = surgery.open_skip(net, units_of(net), skip, x)
            assert opened(x).isfinite().all() and (
                not surgery.is_closed(opened, skip) or net.plan.units[skip.node] == 0
            )
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@settings(max_examples=60)
@given(sparse_nets(without=["operations", "extra channels"]))
def test_surgery_on_random_nets(case):
    check(LEAST_SQUARES, *case)
