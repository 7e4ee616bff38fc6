"""What networks cost, what their parts save, and networks of chosen sizes."""

from math import prod

import pytest
import torch
import torch.nn.functional as F

from nas import LinBreg, param_groups, sparse_start
from nas.analysis.cost import SIDE, cost
from nas.models import (
    DagNet,
    Edge,
    Node,
    Plan,
    Skip,
    compact,
    conv_skip_autoencoder,
    dense_conv,
    mixed_autoencoder,
    mlp,
    separable_autoencoder,
)
from nas.models.compact import alive_plan
from nas.models.network import inner, within
from nas.models.price import prices, total
from nas.parts import active_parts
from nas.search.engine.thinning import fitted, thin_out

RECIPES = {
    "separable": lambda: separable_autoencoder(depth=3, width=6, hidden=8, kernel=5),
    "levels": lambda: separable_autoencoder(depth=3, width=[6, 8], hidden=8, kernel=5, levels=1),
    "mixed": lambda: mixed_autoencoder(depth=3, width=6, kernel=5),
    "gates": lambda: conv_skip_autoencoder(depth=3, width=6),
    "U-Net": lambda: conv_skip_autoencoder(depth=3, width=[4, 6, 4], levels=1, projections=True),
    "blocks": lambda: dense_conv(depth=2, growth=5, residual=True),
}


def alive(recipe, seed=0):
    """A network in which every group is alive."""
    torch.manual_seed(seed)
    net = RECIPES[recipe]()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape) / max(1, prod(p.shape[1:])) ** 0.5)
    return net


@pytest.fixture
def probe():
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return x + 0.1, x


@pytest.mark.parametrize("recipe", RECIPES)
def test_totals_are_what_is_counted(recipe):
    net = alive(recipe)
    assert total(net.plan, "params") == sum(p.numel() for p in net.parameters())
    assert 2 * total(net.plan, "flops") * SIDE**2 == pytest.approx(cost(net).flops)


def test_multiply_adds_of_vectors():
    assert total(mlp(3, widths=(5,), outputs=2, patch=None).plan, "flops") == 3 * 5 + 5 * 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_of_what_is_alive(recipe):
    """It has what the compact network has, but for gates of nodes that compute nothing."""
    net = alive(recipe)
    for part in list(active_parts(param_groups(net, lam=1.0, lr=1.0)))[::3]:
        with part.removed():
            plan, compacted = alive_plan(net), compact(net).plan
        assert 0 <= plan.num_params - compacted.num_params <= 2
        assert total(plan, "flops") == total(compacted, "flops")
    assert alive_plan(net) == compact(net).plan


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_group_is_a_part(recipe):
    net = alive(recipe)
    groups = param_groups(net, lam=1.0, lr=1.0)
    penalised = [p for group in groups if group["name"] != "free" for _, p in group["params"]]
    for part in active_parts(groups):
        part.remove()
    cores = {id(p): core for p, core in net.growing_parameters().values()}
    for p in penalised:
        assert int(p.count_nonzero()) == (p.shape[0] * cores[id(p)] ** 2 if id(p) in cores else 0)
    assert not list(active_parts(groups))


def test_prices_are_relative_to_the_mean_unit():
    plan = separable_autoencoder(depth=2, width=4, hidden=10, kernel=5).plan
    trunk = 4 * 9 + 2 * (10 + 10 + 25) + 4 * 9  # stem, two blocks with their depthwise kernels, out
    hidden = 4 + 1 + 4
    mean = (4 * trunk + 20 * hidden) / 24
    found = prices(plan, "params")
    assert found["t0"] == pytest.approx(min(2.0, (trunk / mean) ** 0.5))
    assert found["h1"] == pytest.approx(max(0.5, (hidden / mean) ** 0.5))
    assert found["h1.whole"] == pytest.approx((4 * 9 / mean) ** 0.5)
    assert found["d1.edges.t0_depthwise"] == pytest.approx((4 * (25 - 9) / mean) ** 0.5)
    assert found["gates"] == 0.5


def test_the_price_of_a_unit_has_the_depthwise_kernels_that_read_it():
    plan = mixed_autoencoder(depth=3, width=6, kernel=7).plan
    rows, readers = 6 + 6 * 9 + 49, 6 + 6 * 9 + 49  # pointwise, full and depthwise, of n2 and n3 each
    units = {"n1": 4 * 9 + 1 + readers, "n2": rows + 1 + readers, "n3": rows + 1 + 4 * 9}
    found, mean = prices(plan, "params"), sum(units.values()) / 3
    assert {name: found[name] for name in units} == pytest.approx({n: (u / mean) ** 0.5 for n, u in units.items()})


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_inside_is_a_smaller_supernet(recipe, probe):
    net, (x, _) = alive(recipe), probe
    sparse_start(net, 0.5, batch=x)
    small, units = inner(net)
    assert torch.allclose(small(x), net(x), atol=1e-6)
    assert torch.allclose(within(small, units, net)(x), net(x), atol=1e-6)
    names = {group["name"] for group in param_groups(small, lam=1.0, lr=1.0)}
    assert names <= {group["name"] for group in param_groups(net, lam=1.0, lr=1.0)}
    assert small.plan.num_params >= compact(net).plan.num_params


def of_nodes(*nodes):
    """A network of these nodes of 4 units and "out", in which every group is alive."""
    torch.manual_seed(0)
    net = DagNet(Plan(1, (*nodes, Node("out", 4, (Edge(nodes[-1].name, 3),), searched=False)), patch=2))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


ODD = {
    "a depthwise row of a living unit reads a dead one": (
        of_nodes(Node("a", 4, (Edge("in", 3),)), Node("b", 4, (Edge("a", 3, "depthwise"),))),
        lambda nodes: [nodes["a"].edges["in"][1], nodes["a"].bias[1:2]],
    ),
    "the first of tied nodes is dead": (
        of_nodes(
            Node("h", 4, (Edge("in", 3),)),
            Node("a", 4, (Edge("h", 1),), bias=False),
            Node("b", 4, (Edge("in", 3),), (Skip("a", trunk=True),), searched=False, tied="a"),
        ),
        lambda nodes: [nodes["h"].edges["in"], nodes["h"].bias],
    ),
    "blocks and a gate lead where all units sleep": (
        of_nodes(
            Node("a", 4, (Edge("in", 3),)),
            Node("b", 4, (Edge("a", 1, "pointwise"), Edge("a", 3, "depthwise", block=True)), (Skip("a"),)),
        ),
        lambda nodes: [nodes["b"].edges["a_pointwise"], nodes["b"].bias],
    ),
    "edges join some units": (
        of_nodes(
            Node("a", 4, (Edge("in", 3, take=(1, 3)),)),
            Node("b", 4, (Edge("a", 3, put=(0, 2, 3), block=True), Edge("a", 1, "pointwise"))),
        ),
        lambda nodes: [nodes["a"].edges["in"][0], nodes["a"].bias[:1]],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_inside_of_supernets_of_ones_own(case):
    net, dead = ODD[case]
    x = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        for part in dead(net.nodes):
            part.zero_()
        small, units = inner(net)
        LinBreg(param_groups(small, lam=1.0, lr=1.0))  # its groups fit together
        assert small.plan.num_params < net.plan.num_params or "gate" in case
        torch.testing.assert_close(small(x), net(x))
        torch.testing.assert_close(within(small, units, net)(x), net(x))


@pytest.mark.parametrize(("recipe", "currency"), list(zip(RECIPES, ["params", "flops"] * 3, strict=True)))
def test_thinned_networks_have_the_size(recipe, currency, probe):
    net = alive(recipe)
    before, fits = {name: p.clone() for name, p in net.named_parameters()}, []
    size = 0.4 * total(net.plan, currency)
    small = thin_out(
        net, size, lambda inner: fits.append(inner.plan.num_params), F.mse_loss, probe, currency=currency, share=0.25
    )
    assert total(compact(small).plan, currency) <= size
    assert fits == sorted(fits, reverse=True)
    assert len(fits) >= 2
    assert small.plan == net.plan
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("recipe", ["mixed", "blocks"])
def test_what_is_dead_stays_dead_in_a_fit(recipe, probe):
    net, (x, y) = alive(recipe), probe
    for part in list(active_parts(param_groups(net, lam=1.0, lr=1.0)))[::2]:
        part.remove()

    def fit(inner):
        optimizer = torch.optim.Adam(inner.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(inner(x), y).backward()
            optimizer.step()

    trained = fitted(net, fit)
    assert alive_plan(trained) == alive_plan(net)
    assert not torch.equal(trained(x), net(x))


def test_a_size_is_met_within_5_percent(probe):
    torch.manual_seed(0)
    net = separable_autoencoder(depth=3, width=12, hidden=24)
    small = thin_out(net, 1500, lambda inner: None, F.mse_loss, probe)
    assert 0.95 * 1500 <= compact(small).plan.num_params <= 1500


def test_what_is_not_missed_goes_first(probe):
    net, (x, _) = alive("gates"), probe
    with torch.no_grad():
        net.nodes["n2"].edges["n1"][2] *= 1e-6
        net.nodes["n2"].bias[2] = 1e-9
    small = thin_out(net, total(net.plan, "params") - 55, lambda inner: None, F.mse_loss, (x, net(x).detach()))
    assert small.plan == net.plan
    assert F.mse_loss(small(x), net(x)) < 1e-12


def test_the_last_block_can_go(probe):
    """The output reads the input through a block; no unit is left."""
    net = alive("blocks")
    with torch.no_grad():
        for node in (net.nodes["n1"], net.nodes["n2"]):
            for p in (*node.edges.values(), node.bias):
                p.zero_()
    small = thin_out(net, 2, lambda inner: None, F.mse_loss, probe)
    assert compact(small).plan.num_params <= 2


def test_a_constant_unit_can_go(probe):
    """It has a bias alone, which no convolution with zeros beyond the border can take up."""
    net = alive("gates")
    with torch.no_grad():
        for gates in net.gate_parameters().values():
            gates.zero_()
        net.nodes["n3"].edges["n2"].zero_()
        net.nodes["n3"].bias[1:] = 0
        net.nodes["n3"].bias[0] = 1.0
    assert compact(net).plan.num_params == 4 * 9 + 4 + 1
    assert compact(thin_out(net, 4, lambda inner: None, F.mse_loss, probe)).plan.num_params == 4


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_out_of_range(share, probe):
    with pytest.raises(ValueError, match=r"thin_out\(share=...\) must lie in \(0, 1\), got"):
        thin_out(alive("gates"), 100, lambda inner: None, F.mse_loss, probe, share=share)


def test_a_size_that_nothing_has(probe):
    net = alive("gates")
    with pytest.raises(ValueError, match=r"what is left costs 4 \(params\), and none of it can go; 3 is too small"):
        thin_out(net, 3, lambda inner: None, F.mse_loss, probe)


def test_a_pass_that_changes_nothing_is_the_last(probe, monkeypatch):
    """As of units of a module that its forward keeps, whatever is zero."""
    monkeypatch.setattr("nas.search.engine.thinning._remove", lambda *_: None)
    with pytest.raises(ValueError, match=r"the network stays at [\d,]+ \(params\) although groups were removed"):
        thin_out(alive("gates"), 20, lambda inner: None, F.mse_loss, probe)
