"""The DAG network: the equation of a node, the recipes, plans as data."""

import json
from dataclasses import replace

import pytest
import torch

from nas import check_start, sparse_start
from nas.groups import join_rows
from nas.models import (
    DagNet,
    Node,
    Plan,
    Skip,
    conv_skip_autoencoder,
    find_alive,
    load,
    separable_autoencoder,
    skip_autoencoder,
)
from nas.models.dag import _picture_of, _squares, right_relu
from tests.nets import full


def test_skip_block_T28():
    net = skip_autoencoder(2, depth=1, patch=None)
    n1, out = net.nodes["n1"], net.nodes["out"]
    with torch.no_grad():
        n1.edges["in"].zero_()
        n1.bias.copy_(torch.tensor([0.5, -1]))
        n1.gates.copy_(torch.tensor([0.25]))
        out.edges["n1"].copy_(torch.eye(2))
        out.gates.copy_(torch.tensor([-1.0, 2.0]))
    x0 = torch.tensor([[1.0, 2.0]])
    assert n1({"in": x0}).tolist() == [[0.75, 0.5]]
    assert net(x0).tolist() == [[1.25, -0.5]]


def test_a_closed_gate_learns_T28():
    net = skip_autoencoder(2, depth=0, patch=None)
    out = net.nodes["out"]
    with torch.no_grad():
        out.edges["in"].zero_()
        out.bias.copy_(torch.tensor([0.5, -1]))
    (net(torch.tensor([[1.0, 2.0]])).square().sum() / 2).backward()
    assert out.gates.grad.tolist() == [0.5]


def test_seven_slots_have_21_gates_and_a_skip_keeps_units_alive_T28():
    net = skip_autoencoder(4, depth=5, patch=None)
    assert sum(gates.numel() for gates in net.gate_parameters().values()) == 21
    with torch.no_grad():
        net.nodes["n1"].edges["in"].zero_()
        net.nodes["n1"].gates.fill_(0.5)
    assert int(find_alive(net).units["n1"].sum()) == 4


def test_right_relu_is_relu_with_derivative_one_at_zero():
    x = torch.tensor([-2.0, 0, 3], requires_grad=True)
    y = right_relu(x)
    y.sum().backward()
    assert y.tolist() == torch.relu(x).tolist()
    assert x.grad.tolist() == [0, 1, 1]


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (17, 9)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_pictures_of_any_size(patch, size):
    net = conv_skip_autoencoder(3, depth=2, width=4, patch=patch)
    assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    assert skip_autoencoder(3, depth=1, patch=patch)(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2])
def test_convolutions_run_channels_last(patch, channels):
    """Torch takes the layout of a picture of one channel for either, and goes on with the slower one."""
    net = separable_autoencoder(channels, depth=3, width=4, hidden=4, kernel=5, patch=patch, scales=[0, 1, 2])
    states = net.states(torch.rand(2, channels, 32, 32))
    assert all(state.stride(1) == 1 for state in states.values() if state.shape[1] > 1)
    states = net.double().states(torch.rand(2, channels, 32, 32, dtype=torch.float64))  # whose kernels are slow at it
    assert all(state.is_contiguous() for state in states.values())


def test_patches_are_flattened_pictures():
    """With one patch as large as the picture, the network is a network on the flattened picture."""
    torch.manual_seed(0)
    net = skip_autoencoder(1, depth=1, patch=4)
    flat = DagNet(replace(net.plan, channels=16, patch=None))
    flat.load_state_dict(net.state_dict())
    x = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(net(x).flatten(1), flat(x.flatten(1)))


def test_an_empty_residual_network_returns_the_picture():
    net = conv_skip_autoencoder(depth=2, width=4)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    x = torch.rand(1, 1, 7, 6)
    assert torch.equal(net(x), x)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [lambda: conv_skip_autoencoder(depth=4, width=10), lambda: skip_autoencoder(patch=8)])
def test_sparse_start_is_small_alive_and_seeded(make, seed):
    net, again = make(), make()
    again.load_state_dict(net.state_dict())
    x = torch.rand(4, 1, 8, 8)
    sparse_start(net, 0.1, seed=seed, batch=x)
    sparse_start(again, 0.1, seed=seed, batch=x)
    for weight, bias in net.unit_parameters().values():
        assert int(join_rows([weight, bias]).any(dim=1).sum()) == max(1, len(bias) // 10)
    assert not find_alive(net).skips
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    check_start(net, x)
    assert all(p.grad is None for p in net.parameters())


def test_sparse_start_keeps_the_scale_of_the_weights_T22():
    net = skip_autoencoder(500, depth=4, patch=None)
    for density in (1.0, 0.1):
        sparse_start(net, density)
        weights = torch.cat([node.edges[source].flatten() for node in net.nodes.values() for source in node.edges])
        assert 500 * weights.square().mean().item() == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_sparse_start_refuses_a_bad_density(density):
    with pytest.raises(ValueError, match=r"sparse_start\(density=...\) must lie in \(0, 1\], got"):
        sparse_start(conv_skip_autoencoder(depth=1, width=2), density)


def test_a_start_behind_an_ordinary_relu_is_refused():
    """Its slope at 0 is 0: units whose weights and bias are zero would never wake."""
    layers = [torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)]
    x = torch.randn(64, 10)
    with pytest.raises(ValueError, match="no sleeping unit of 0, 2 can wake: its activation needs a slope at 0"):
        sparse_start(torch.nn.Sequential(*layers), 0.5, batch=x)
    layers[1], layers[3] = torch.nn.GELU(), torch.nn.GELU()
    sparse_start(torch.nn.Sequential(*layers), 0.5, batch=x)


def test_a_dead_start_is_refused_and_named():
    net = conv_skip_autoencoder(depth=3, width=4)
    sparse_start(net, 0.5)
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        net.nodes["n2"].edges["n1"].zero_()
    with pytest.raises(ValueError, match="the start is dead: no gradient reaches n1"):
        check_start(net, x)
    with pytest.raises(ValueError, match="the output does not depend on the input"):
        check_start(net, torch.zeros_like(x))
    with torch.no_grad():
        net.nodes["out"].bias[0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        check_start(net, x)


def test_plans_round_trip_as_json():
    plan = Plan(
        3,
        (
            Node("n1", 5, full({"in": 3}), (Skip("in", (0, 2), (1, 4)),), (0, 1), "relu"),
            Node("out", 3, full({"n1": 1})),
        ),
        1,
    )
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_networks_round_trip_in_a_folder(tmp_path):
    net = conv_skip_autoencoder(depth=2, width=3)
    net.save_pretrained(tmp_path)
    again = load(tmp_path)
    x = torch.rand(1, 1, 6, 6)
    assert again.plan == net.plan
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[1, 2", b"\x00" * 100])
def test_damaged_networks_are_refused_in_one_sentence(tmp_path, name, damage):
    conv_skip_autoencoder(depth=2, width=3).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ValueError, match=r"^the network in .* is damaged: [^\n]*$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "the last node of a plan must be named 'out'"),
        ((Node("out", 1, full({"n1": 3})),), "node 'out' reads 'n1', which is not before it"),
        ((Node("out", 1, full({"in": 2})),), "node 'out' has the kernel size 2; it must be odd"),
        ((Node("out", 1, full({"in": 3}), activation="tanh"),), "unknown activation 'tanh'"),
        ((Node("out", 2, full({"in": 3}), (Skip("in"),)),), "the skip 'in' -> 'out' joins 1 units to 2"),
        ((Node("out", 1, full({"in": 3}), (Skip("in"), Skip("in"))),), "two skips join the same nodes to 'out'"),
        ((Node("out", 1, full({"in": 3}), (Skip("in", (7,), (0,)),)),), "names units that do not exist"),
        ((Node("out", 1, full({"in": 3}), rows=(1,)),), "the rows of node 'out' are not units of it"),
        (
            (Node("n1", 2, full({})), Node("n1", 2, full({})), Node("out", 1, full({"n1": 3}))),
            "two nodes are named 'n1'",
        ),
        ((Node("out", 2, full({"in": 3})),), "'out' must have as many units as 'in'"),
        ((Node("out", 0, full({"in": 3})),), "must have 1 to 100000 units, got 0"),
        (
            (Node("n1", 1, full({"in": None})), Node("out", 1, full({"n1": 3}))),
            "mixes convolutions and fully connected",
        ),
    ],
)
def test_bad_plans_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        DagNet(Plan(1, nodes, patch=1))


def test_bad_sizes_of_a_recipe_are_refused():
    with pytest.raises(
        ValueError, match=r"conv_skip_autoencoder\(width=...\) must be an integer from 1 to 100000, got 0"
    ):
        conv_skip_autoencoder(width=0)


@pytest.mark.parametrize(
    ("shape", "side"), [((2, 3, 8, 12), 4), ((2, 1, 28, 28), 28), ((1, 2, 6, 6), 2), ((1, 1, 3, 5), 1)]
)
def test_squares_are_those_of_pixel_unshuffle(shape, side):
    x = torch.rand(shape)
    squares = _squares(x, side)
    assert torch.equal(squares.permute(0, 3, 1, 2), torch.nn.functional.pixel_unshuffle(x, side))
    assert torch.equal(_picture_of(squares, side), x)
