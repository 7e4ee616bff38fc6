"""Recipes with blocks, projections, levels and classes."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from nas import AdaBreg, GroupLasso, SparseGroup, describe, param_groups, sparse_start
from nas.models import (
    DagNet,
    Node,
    Plan,
    Skip,
    compact,
    conv_skip_autoencoder,
    dense_conv,
    dense_mlp,
    find_alive,
    mixed_autoencoder,
    mlp,
    separable_autoencoder,
    skip_autoencoder,
)
from nas.models.dag import ACTIVATIONS
from nas.models.price import total
from tests.nets import full

U_NET = {"depth": 5, "width": [6, 5, 4, 5, 6], "levels": 2, "projections": True, "patch": 1}


def filled(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def test_the_equation_of_a_node_with_levels_and_projections():
    net = filled(conv_skip_autoencoder(**U_NET)).double()
    states = net.states(torch.rand(2, 1, 8, 12, dtype=torch.double))
    assert {name: tuple(x.shape[1:]) for name, x in states.items()} == {
        "in": (1, 8, 12), "n1": (6, 8, 12), "n2": (5, 4, 6), "n3": (4, 2, 3), "n4": (5, 4, 6), "n5": (6, 8, 12),
        "out": (1, 8, 12),
    }  # fmt: skip
    n4 = net.nodes["n4"]
    assert [skip.source for skip in n4.plan.skips] == ["n2"] and list(n4.projections) == ["in", "n1", "n3"]

    def twice(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def half(x):
        return x.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)

    at_n4 = {"in": half(states["in"]), "n1": half(states["n1"]), "n3": twice(states["n3"])}
    expected = F.relu(F.conv2d(at_n4["n3"], n4.edges["n3"], n4.bias, padding=1)) + n4.gates[0] * states["n2"]
    for source, matrix in n4.projections.items():
        expected = expected + torch.einsum("ij,bjhw->bihw", matrix, at_n4[source])
    torch.testing.assert_close(states["n4"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 7, 9), (1, 1, 16, 5)])
def test_a_u_net_takes_pictures_of_any_size(shape):
    net = filled(conv_skip_autoencoder(**U_NET))
    assert net(torch.rand(shape)).shape == shape


@pytest.mark.parametrize(
    "net",
    [dense_mlp(4, outputs=3), dense_conv(1, depth=3, growth=4), conv_skip_autoencoder(**U_NET, residual=False)],
    ids=["dense_mlp", "dense_conv", "u_net"],
)
def test_skips_start_at_zero_and_enter_when_the_loss_asks(net):
    """The target is a skip: its block, gate or projection wakes."""
    x = torch.randn(64, 4) if net.plan.patch is None else torch.rand(8, 1, 8, 8)
    target = x[:, :3] if net.plan.patch is None else x
    groups = param_groups(net, lam=0.03, lr=0.001)
    kinds = {group["name"]: group["penalty"] for group in groups}
    skips = [kind for name, kind in kinds.items() if ".projections." in name or ".edges." in name]
    assert skips and all(isinstance(kind, GroupLasso if net.plan.levels else SparseGroup) for kind in skips)
    assert all(name in describe(groups) for name in kinds)
    sparse_start(net, 0.2, groups=groups, batch=x)
    assert find_alive(net).skips == {}
    optimizer = AdaBreg(groups)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(net(x), target).backward()
        optimizer.step()
    assert find_alive(net).skips


def test_a_shut_projection_beside_an_edge_is_no_skip():
    net = conv_skip_autoencoder(depth=2, width=[3, 4], projections=True, residual=False)
    assert "n1" in net.nodes["n2"].edges and "n1" in net.nodes["n2"].projections
    assert find_alive(net).skips == {}
    with torch.no_grad():
        net.nodes["n2"].projections["n1"][0, 0] = -2.0
    assert find_alive(net).skips == {("n1", "n2"): 2.0}


def test_dense_mlp_is_one_matrix_of_all_that_is_before():
    """What DenseNet concatenates is summed here."""
    net = filled(dense_mlp(4, widths=[3, 5], outputs=2)).double()
    x = torch.randn(7, 4, dtype=torch.double)
    states = [x]
    for node in net.named_nodes().values():
        joined = torch.cat([node.edges[source] for source in ("in", "n1", "n2") if source in node.edges], dim=1)
        y = torch.cat(states, dim=1) @ joined.T + node.bias
        states.append(y if node.plan.name == "out" else y.relu())
    torch.testing.assert_close(net(x), states[-1], rtol=1e-12, atol=1e-12)


def test_classifiers_return_logits_that_can_be_negative():
    pictures = torch.rand(3, 1, 28, 28)
    for net in (mlp(outputs=10), dense_mlp(outputs=10, patch=28), dense_conv(outputs=10, depth=2)):
        logits = filled(net)(pictures)
        assert logits.shape == (3, 10) and (logits < 0).any()
    assert mlp(5, outputs=2, patch=None)(torch.randn(3, 5)).shape == (3, 2)
    assert mlp()(pictures).shape == pictures.shape


def test_the_equation_of_a_block_at_a_scale():
    """It sees means of the trunk over 4 x 4 pixels, and repeats what it adds."""
    net = filled(separable_autoencoder(depth=1, width=3, hidden=4, kernel=3, core=None, scales=2, patch=1)).double()
    x = torch.rand(1, 1, 8, 12, dtype=torch.float64)
    states, nodes = net.states(x), net.nodes
    coarse = F.conv2d(F.avg_pool2d(states["t0"], 4), nodes["d1"].edges["t0_depthwise"], padding=1, groups=3)
    hidden = F.relu(F.conv2d(coarse, nodes["h1"].edges["d1_pointwise"], nodes["h1"].bias))
    repeated = hidden.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    added = F.conv2d(repeated, nodes["t1"].edges["h1_pointwise"])
    torch.testing.assert_close(states["t1"], nodes["t1"].gates[0] * states["t0"] + added, rtol=0, atol=1e-12)
    with FlopCounterMode(display=False) as counted:
        net(x)
    assert counted.get_total_flops() / 2 / 96 == total(net.plan, "flops") == 2 * 27 + (27 + 12 + 12) / 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: separable_autoencoder(scales=[0, -1]),
            r"separable_autoencoder\(scales=...\) must be integers from 0 to 10, got \[0, -1\]",
        ),
        (
            lambda: separable_autoencoder(scales=1, levels=1),
            r"takes levels or scales, not both; got levels 1 and scales \[1\]",
        ),
        (
            lambda: conv_skip_autoencoder(levels=3),
            r"levels=...\) must be an integer from 0 to \(depth - 1\) / 2, got 3",
        ),
        (lambda: conv_skip_autoencoder(width=[3, 4]), r"conv_skip_autoencoder\(width=...\) takes 5 numbers, got 2"),
        (
            lambda: skip_autoencoder(width=0),
            r"skip_autoencoder\(width=...\) must be an integer from 1 to 100000, got 0",
        ),
        (lambda: mlp(widths=[3, -1]), r"mlp\(width=...\) must be an integer from 1 to 100000, got -1"),
        (lambda: mlp(widths=0.5), r"mlp\(width=...\) must be an integer from 1 to 100000, got 0.5"),
        (lambda: separable_autoencoder(scales=None), r"\(scales=...\) must be integers from 0 to 10, got \[None\]"),
        (lambda: skip_autoencoder(depth=None), r"\(depth=...\) must be an integer from 0 to 100000, got None"),
        (lambda: mlp(outputs=0), r"mlp\(outputs=...\) must be an integer from 1 to 100000, got 0"),
        (
            lambda: dense_conv(outputs=2, residual=True),
            "a pooled output is no picture that a residual net could correct",
        ),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def plan(*nodes, **options):
    return Plan(2, (*nodes, Node("out", 2, full({"n1": 3}))), patch=1, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (plan(Node("n1", 2, full({"in": 3}), level=1)), "node 'n1' must have a level from 0 to 0, got 1"),
        (
            plan(Node("n1", 2, full({"in": 3}), (Skip("in"),), level=1), levels=1),
            "joins two resolutions; that takes a proj",
        ),
        (plan(Node("n1", 2, full({"in": 3})), levels=-1), "levels must be an integer from 0 to 10, got -1"),
        (
            plan(Node("n1", 2, full({"in": 3}), (Skip("in"),), projections=("in",))),
            "two skips join the same nodes to 'n1'",
        ),
        (plan(Node("n1", 2, full({"in": 3}), projections=("n9",))), "node 'n1' reads 'n9', which is not before it"),
    ],
)
def test_bad_plans_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        bad.check(ACTIVATIONS)


@pytest.mark.parametrize("recipe", [separable_autoencoder, mixed_autoencoder])
@pytest.mark.parametrize("channels", [1, 3])
def test_another_patch_is_the_recipe_with_that_patch(recipe, channels):
    plans = {patch: recipe(channels, depth=3, width=4, patch=patch).plan for patch in (1, 2, 3)}
    for one in plans.values():
        for patch, other in plans.items():
            assert one.with_patch(patch) == other
    net = filled(recipe(channels, depth=3, width=4))
    with torch.no_grad():
        for p in next(iter(net.unit_parameters().values())):
            p[2:] = 0
    assert DagNet(compact(net).plan.with_patch(1))(torch.rand(1, channels, 5, 7)).shape == (1, channels, 5, 7)


def test_patches_that_skips_join_are_fixed():
    with pytest.raises(ValueError, match="skips from the input or to the output join units of its patches"):
        conv_skip_autoencoder(depth=2, width=4, residual=False).plan.with_patch(1)
    with pytest.raises(ValueError, match="only a network from pictures to pictures has patches"):
        skip_autoencoder(5, patch=None).plan.with_patch(1)
