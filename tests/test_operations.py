"""Edges with operations: what they compute, how they are cropped, and which nodes are read through."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from nas.analysis import changes, extract, topology
from nas.models import DagNet, Edge, Node, Plan, Skip, compact, find_alive, mixed_autoencoder, separable_autoencoder
from nas.models.bypass import bypass
from nas.models.dag import ACTIVATIONS
from nas.models.fold import fold_constants
from nas.models.plan import DEPTHWISE, POINTWISE
from nas.search.training.retrain import rewound
from tests.nets import full, random_weights, sparse_nets


def net_of(*nodes, channels=3, **options):
    return random_weights(DagNet(Plan(channels, nodes, patch=1, **options)))


def pictures(net, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, net.plan.inputs, 7, 6, generator=generator, dtype=torch.double)


def same(net, other):
    x = pictures(net)
    torch.testing.assert_close(net(x), other(x), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_depthwise_edge_is_a_grouped_convolution(kernel):
    net = net_of(Node("out", 3, (Edge("in", kernel, DEPTHWISE),), activation="identity"))
    conv = nn.Conv2d(3, 3, kernel, padding=kernel // 2, groups=3).double()
    conv.load_state_dict({"weight": net.nodes["out"].edges["in_depthwise"], "bias": net.nodes["out"].bias})
    same(net, conv)


def test_several_edges_between_some_units_of_the_same_nodes_add_up():
    edges = (
        Edge("in", 3, take=(0, 2), put=(1,)),
        Edge("in", 1, POINTWISE, put=(0, 1)),
        Edge("in", 5, DEPTHWISE, take=(1, 2), put=(0, 2)),
    )
    net = net_of(Node("n1", 3, edges, bias=False), Node("out", 3, full({"n1": 1})))
    x, n1 = pictures(net), net.nodes["n1"]
    expected = torch.zeros_like(x)
    expected[:, [1]] += F.conv2d(x[:, [0, 2]], n1.edges["in"], padding=1)
    expected[:, [0, 1]] += F.conv2d(x, n1.edges["in_pointwise"])
    expected[:, [0, 2]] += F.conv2d(x[:, [1, 2]], n1.edges["in_depthwise"], padding=2, groups=2)
    torch.testing.assert_close(net.states(x)["n1"], expected.relu())


def test_a_separable_block_is_that_of_torch():
    """x + P2 relu(P1 D x + b), in a trunk between two convolutions."""
    net = random_weights(separable_autoencoder(3, depth=1, width=4, hidden=5, kernel=5, patch=1))
    net.nodes["t1"].gates.data.fill_(1)
    first, last = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 3, 3, padding=1)
    d, p1, p2 = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1, bias=False)
    weights = [("t0", "in"), ("d1", "t0_depthwise"), ("h1", "d1_pointwise"), ("t1", "h1_pointwise"), ("out", "t1")]
    for conv, (name, key) in zip((first, d, p1, p2, last), weights, strict=True):
        conv.weight.data = net.nodes[name].edges[key].data
        if conv.bias is not None:
            conv.bias.data = net.nodes[name].bias.data
    x = pictures(net)
    t = first(x - 0.5)
    torch.testing.assert_close(net(x), x + last(t + p2(p1(d(t)).relu())), rtol=1e-12, atol=1e-12)


def test_recipes_start_with_their_cores_alone():
    net = separable_autoencoder(depth=2, width=3, kernel=7, core=3)
    kernels = net.nodes["d1"].edges["t0_depthwise"]
    assert kernels[..., 2:5, 2:5].all() and kernels.count_nonzero() == 3 * 9
    assert list(net.growing_parameters()) == ["d1.edges.t0_depthwise", "d2.edges.t1_depthwise"]
    assert net.nodes["t1"].gates.tolist() == [1] and not net.gate_parameters()
    assert not any(block.any() for block, _ in mixed_autoencoder(depth=3).block_parameters().values())


@pytest.mark.parametrize("operation", ["full", DEPTHWISE])
@pytest.mark.parametrize(
    ("places", "side"), [([], 1), ([(3, 3)], 1), ([(3, 4), (3, 3)], 3), ([(1, 3)], 5), ([(0, 6)], 7)]
)
def test_kernels_are_cropped_to_what_is_there(operation, places, side):
    """The places of a 7 x 7 kernel at which one of the weights is not zero."""
    net = net_of(Node("n1", 3, (Edge("in", 7, operation), Edge("in", 1, POINTWISE))), Node("out", 3, full({"n1": 1})))
    weight = net.nodes["n1"].edges[next(iter(net.nodes["n1"].edges))]
    with torch.no_grad():
        weight.zero_()
        for k, (row, column) in enumerate(places):
            weight[k, 0, row, column] = 2.0
    small = compact(net)
    same(small, net)
    kernels = {edge.operation: edge.kernel for edge in small.plan.nodes[0].edges}
    assert kernels == {**({operation: side} if places else {}), POINTWISE: 1}
    assert small.plan.num_params == sum(p.numel() for p in small.parameters()) < net.plan.num_params
    label = f"{side}x{side} depthwise" if operation == DEPTHWISE else f"{side}x{side}"
    assert topology(net).edges["in", "n1"]["operation"] == (f"{label} + 1x1" if places else "1x1")


def test_weights_of_dead_units_do_not_keep_a_kernel_large():
    net = net_of(Node("n1", 2, full({"in": 1})), Node("n2", 2, full({"n1": 5})), Node("out", 3, full({"n2": 1})))
    with torch.no_grad():
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n1"].bias[1] = 0
        rim = net.nodes["n2"].edges["n1"][:, 0].clone()
        rim[:, 1:4, 1:4] = 0
        net.nodes["n2"].edges["n1"][:, 0] -= rim
    assert compact(net).plan.nodes[1].edges == full({"n1": 3})
    same(compact(net), net)


SKIP = (Skip("n1"),)


def with_a_copy(*readers, skips=SKIP, gate=-1.5):
    """A net whose node n2, of which no row is alive, is ``gate`` times n1, by whose readers it is read, too."""
    net = net_of(Node("n1", 3, full({"in": 3})), Node("n2", 3, full({"n1": 3}), skips), *readers)
    with torch.no_grad():
        net.nodes["n2"].edges["n1"].zero_()
        net.nodes["n2"].bias.zero_()
        net.nodes["n2"].gates.fill_(gate)
    return net


READERS = {
    "an edge": [Node("out", 3, full({"n2": 3}))],
    "an edge of the same size": [Node("out", 3, full({"n1": 3, "n2": 3}))],
    "an edge of another size": [Node("out", 3, full({"n1": 5, "n2": 3}))],
    "a larger edge, to some rows": [Node("out", 3, (Edge("n1", 1, put=(0, 2)), Edge("n2", 3, take=(1,), put=(1, 2))))],
    "another operation": [Node("out", 3, (Edge("n1", 5, DEPTHWISE), Edge("n2", 3), Edge("n2", 1, POINTWISE)))],
    "a depthwise edge": [Node("out", 3, (Edge("n1", 3), Edge("n2", 5, DEPTHWISE, take=(0, 2), put=(1, 2))))],
    "a gate": [Node("out", 3, full({"n1": 3}), (Skip("n2"),))],
    "a gate beside another": [Node("out", 3, full({"n2": 3}), (Skip("n1"), Skip("n2")))],
    "a projection": [Node("n3", 4, full({"in": 1}), projections=("n2",)), Node("out", 3, full({"n3": 1}))],
    "projections": [Node("n3", 4, full({"in": 1}), projections=("n1", "n2")), Node("out", 3, full({"n3": 1}))],
    "several": [
        Node("n3", 2, full({"n2": 3}), projections=("n2",)),
        Node("n4", 3, full({"n3": 1}), (Skip("n2"),)),
        Node("out", 3, full({"n2": 1, "n4": 3})),
    ],
    "a chain": [Node("n3", 3, (), (Skip("n2"),), rows=()), Node("out", 3, full({"n1": 1, "n2": 1, "n3": 3}))],
}


@pytest.mark.parametrize("name", READERS)
def test_a_node_that_computes_nothing_is_read_through(name):
    net = with_a_copy(*READERS[name])
    before = copy.deepcopy(net.state_dict())
    (changed,) = bypass(net)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    same(changed, net)
    assert not find_alive(changed).units["n2"].any()
    small, certificate = extract(net)
    assert certificate.holds and certificate.tolerance_float64 == 1e-10 and "n2" not in small.nodes
    assert "n2" not in topology(net)
    removed = next(each for each in changes(net) if each.node == "n2").removed
    assert removed.keys() <= {"read through", "read by nobody"} and sum(map(len, removed.values())) == 3


def test_an_edge_that_takes_up_another_is_as_large_as_the_larger_one():
    net = with_a_copy(*READERS["an edge of another size"])
    weight, added = net.nodes["out"].edges["n1"], net.nodes["out"].edges["n2"]
    out = compact(net).nodes["out"]
    assert [edge.kernel for edge in out.plan.edges] == [5]
    assert torch.equal(out.edges["n1"], weight + F.pad(-1.5 * added, (1, 1, 1, 1)))


def test_a_node_that_brings_some_units_elsewhere_is_read_through():
    """Unit 0 and 2 of n2 are units 1 and 2 of n1; unit 1 is nothing."""
    skips = (Skip("n1", (1, 2), (0, 2)),)
    readers = (Node("n3", 3, (Edge("n2", 3, DEPTHWISE),), (Skip("n2"),)), Node("out", 3, full({"n2": 3, "n3": 1})))
    net = with_a_copy(*readers, skips=skips)
    (changed,) = bypass(net)
    same(changed, net)
    n3, out = (changed.nodes[name].plan for name in ("n3", "out"))
    assert n3.edges == (Edge("n1", 3, DEPTHWISE, take=(1, 2), put=(0, 2)),)
    assert n3.skips == skips
    assert out.edges == (Edge("n1", 3, take=(1, 2)), Edge("n3", 1))
    assert "n2" not in compact(net).nodes


STAY = {
    "two skips": {"skips": (Skip("n1"), Skip("in")), "readers": [Node("out", 3, full({"n2": 3}))]},
    "two depthwise edges": {"readers": [Node("out", 3, (Edge("n1", 3, DEPTHWISE), Edge("n2", 3, DEPTHWISE)))]},
    "gates between other units": {"readers": [Node("out", 3, full({"n2": 3}), (Skip("n1", (0,), (1,)), Skip("n2")))]},
    "a gate and a projection": {"readers": [Node("out", 3, full({}), (Skip("n1"),), projections=("n2",))]},
    "a gate and a block": {"readers": [Node("out", 3, (Edge("n2", 3, block=True),), (Skip("n1"),))]},
}


@pytest.mark.parametrize("name", STAY)
def test_a_node_stays_where_its_readers_would_read_another_twice(name):
    options = dict(STAY[name])
    net = with_a_copy(*options.pop("readers"), **options)
    assert bypass(net) == (net,)
    assert "n2" in compact(net).nodes and "n2" in topology(net)
    same(compact(net), net)


def test_what_reads_through_may_have_a_growing_block_alone():
    """n2 is half of n1; n3 reads it through its depthwise block, beside edges that are zero."""
    net = random_weights(mixed_autoencoder(3, depth=3, width=3, kernel=5, core=3, patch=1))
    n2, n3 = net.nodes["n2"], net.nodes["n3"]
    with torch.no_grad():
        for tensor in (*n2.edges.values(), n2.bias, n3.edges["n2"], n3.edges["n2_pointwise"]):
            tensor.zero_()
        n2.gates.fill_(0.5)
    small = compact(net)
    assert small.plan.nodes[1].edges == (Edge("n1", 5, DEPTHWISE),)
    assert torch.equal(small.nodes["n3"].edges["n1_depthwise"], 0.5 * n3.edges["n2_depthwise"])
    same(small, net)


def test_a_node_that_computes_one_unit_stays():
    net = with_a_copy(Node("out", 3, full({"n2": 3})))
    net.nodes["n2"].bias.data[1] = 0.5
    assert bypass(net) == (net,)


def test_a_bias_that_nobody_reads_does_not_keep_a_node():
    net = with_a_copy(Node("out", 3, full({"n2": 3})))
    net.nodes["n2"].bias.data[1] = 0.5
    net.nodes["out"].edges["n2"].data[:, 1] = 0
    assert list(compact(net).nodes) == ["n1", "out"]
    same(compact(net), net)


def test_constants_pass_larger_kernels_through_their_middle():
    """Unit 1 of n1 is a constant, which n2 reads with a 3 x 3 kernel of which but the middle is zero."""
    net = net_of(Node("n1", 2, full({"in": 1})), Node("n2", 2, full({"n1": 3})), Node("out", 3, full({"n2": 1})))
    with torch.no_grad():
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n1"].bias[1] = 0.5
        middle = net.nodes["n2"].edges["n1"][:, 1, 1, 1].clone()
        net.nodes["n2"].edges["n1"][:, 1] = 0
        net.nodes["n2"].edges["n1"][:, 1, 1, 1] = middle
    small = compact(net)
    assert small.plan.units["n1"] == 1
    same(small, net)


def test_a_constant_into_a_node_without_bias_stays():
    net = net_of(Node("n1", 2, full({"in": 1})), Node("out", 3, full({"n1": 1}), bias=False))
    with torch.no_grad():
        net.nodes["n1"].edges["in"][1] = 0
        net.nodes["n1"].bias[1] = 0.5
    assert compact(net).plan.units["n1"] == 2
    same(compact(net), net)
    assert changes(net)[0].kept_because == {"constant into a node without bias": (1,)}


def test_the_units_of_a_trunk_are_one():
    """Channel i is row i of what leads into every node of the trunk; depthwise kernels and blocks are no part of it."""
    net = separable_autoencoder(depth=3, width=[4, 6], hidden=5, levels=1, patch=1)
    names = {id(p): name for name, p in net.named_parameters()}
    found = {key: [names[id(p)].removeprefix("nodes.") for p in ps] for key, ps in net.unit_parameters().items()}
    assert found == {
        "t0": ["t0.edges.in", "t1.edges.h1_pointwise", "up0.edges.t2_pointwise", "t3.edges.h3_pointwise"],
        "h1": ["h1.edges.d1_pointwise", "h1.bias"],
        "down1": ["down1.edges.t1_pointwise", "t2.edges.h2_pointwise"],
        "h2": ["h2.edges.d2_pointwise", "h2.bias"],
        "h3": ["h3.edges.d3_pointwise", "h3.bias"],
    }
    with torch.no_grad():
        for p in net.unit_parameters()["t0"]:
            p.normal_()
            p[1] = 0
    assert compact(net).plan.units["t0"] == compact(net).plan.units["t3"] == 3


def test_a_dead_block_vanishes():
    net = random_weights(separable_autoencoder(depth=3, width=4, hidden=3, patch=1))
    with torch.no_grad():
        for tensor in (net.nodes["h2"].edges["d2_pointwise"], net.nodes["h2"].bias):
            tensor.zero_()
        net.nodes["t2"].gates.fill_(1.0)
    small, certificate = extract(net)
    assert certificate.holds
    assert list(small.nodes) == ["t0", "d1", "h1", "t1", "d3", "h3", "t3", "out"]
    assert list(topology(net)) == ["in", *small.nodes]
    assert {edge.source for edge in small.plan.nodes[4].edges} == {"t1"}
    assert [skip.source for skip in small.plan.nodes[6].skips] == ["t1"]
    found = {each.node: each for each in changes(net)}
    assert found["h2"].removed == {"zero": (0, 1, 2)} and found["d2"].removed == {"read by nobody": (0, 1, 2, 3)}
    assert found["t2"].removed == {"read through": (0, 1, 2, 3)}
    assert found["d3"].edges == {"t2_depthwise": "read through"} and found["t3"].skips == {"t2": "read through"}


@settings(max_examples=40)
@given(sparse_nets())
def test_a_plan_knows_the_number_of_its_parameters(case):
    for net in (case[0], compact(case[0]), compact(case[0], round_to=3)):
        assert net.plan.num_params == sum(p.numel() for p in net.parameters())
        assert net.plan.shapes == {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


@given(sparse_nets())
def test_rewound_nets_have_the_plan_of_the_compact_one(case):
    net, x = case
    early = copy.deepcopy(net)
    with torch.no_grad():
        for p in early.parameters():
            p.mul_(torch.rand_like(p) < 0.5)
    again = rewound(net, early)
    assert again.plan == compact(net).plan
    assert again(x).isfinite().all() and again(x).shape == net(x).shape
    if not any(mask.any() for mask in fold_constants(net)[1].values()):
        assert torch.equal(compact(net, weights_of=net)(x), compact(net)(x))


N1 = Node("n1", 3, full({"in": 3}))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("n2", 3, (Edge("n1", 3, "dilated"),)), "the edge 'n1' -> 'n2' has the unknown operation 'dilated'"),
        (Node("n2", 3, (Edge("n1", 3, POINTWISE),)), "the edge 'n1' -> 'n2' is pointwise and has the kernel size 3"),
        (Node("n2", 3, (Edge("n1", None, DEPTHWISE),)), "'n1' -> 'n2' is depthwise and has the kernel size None"),
        (Node("n2", 4, (Edge("n1", 3, DEPTHWISE),)), "the edge 'n1' -> 'n2' is depthwise and joins 3 to 4"),
        (Node("n2", 3, (Edge("n1", 3, take=(3,)),)), "the edge 'n1' -> 'n2' names units that do not exist"),
        (Node("n2", 3, (Edge("n1", 3, put=(1, 0)),)), "the edge 'n1' -> 'n2' names units that do not exist"),
        (Node("n2", 3, (Edge("n1", 3, put=(1,)),), rows=(2,)), "the edge 'n1' -> 'n2' names units that do not exist"),
        (Node("n2", 3, (Edge("n1", 3), Edge("n1", 1))), "two edges of node 'n2' have the same name"),
        (Node("n2", 3, (Edge("n1", 3, core=3),)), "'n1' -> 'n2' cannot grow from the core 3 to the kernel size 3"),
        (Node("n2", 3, (Edge("n1", 5, core=2),)), "'n1' -> 'n2' cannot grow from the core 2 to the kernel size 5"),
        (Node("n2", 3, (Edge("n1", 5, core=3),)), "a kernel of node 'n2' grows, and is a part of its units"),
        (Node("n2", 3, (Edge("n1", 3, block=1),)), "the edge 'n1' -> 'n2' must have block true or false"),
        (Node("n2", 3, full({"n1": 3}), bias=None), "node 'n2' must have bias true or false"),
        (Node("n2", 3, full({"n1": 3}), tied="n1"), "node 'n2' cannot be tied to 'n1'"),
        (Node("n2", 4, full({"n1": 3}), searched=False, tied="n1"), "node 'n2' cannot be tied to 'n1'"),
        (Node("n2", 3, full({"n1": 3}), searched=False, tied="in"), "node 'n2' cannot be tied to 'in'"),
        (Node("n2", 3, full({"n1": 3}), (Skip("in"), Skip("n1", trunk=True))), "node 'n2' mixes trunks and gates"),
        (Node("n2", 3, (Edge("n1", 3, block=True),), (Skip("n1"),)), "two skips join the same nodes to 'n2'"),
    ],
)
def test_bad_plans_are_refused(node, message):
    plan = Plan(3, (N1, node, Node("out", 3, full({"n2": 3}))), patch=1)
    with pytest.raises(ValueError, match=message):
        plan.check(ACTIVATIONS)
    assert replace(plan, nodes=(N1, Node("n2", 3, full({"n1": 3})), plan.nodes[-1])).check(ACTIVATIONS) is None
