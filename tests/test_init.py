"""Sparse starts of any model: the density of each kind of group, variances, biases, and starts that cannot learn."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nas import (
    ENTRIES,
    KERNELS,
    L1,
    ROWS,
    GroupLasso,
    NonNegativeL1,
    ProxSGD,
    check_start,
    coupled_units,
    param_groups,
    rings,
    sparse_start,
)
from nas.models import conv_skip_autoencoder
from nas.steering import active_groups


def deep_convnet(depth=8, width=24, activation=nn.ReLU):
    layers = [nn.Conv2d(1, width, 3, padding=1)]
    for _ in range(depth - 1):
        layers += [activation(), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, activation(), nn.Flatten(), nn.Linear(64 * width, 3))


def num_active(groups):
    return {name: int(active.sum()) for name, active in active_groups(ProxSGD(groups)).items()}


def kernel_groups(net):
    return param_groups(net, lr=0.1, rules={"0.weight": GroupLasso(0.1, KERNELS), nn.Conv2d: GroupLasso(0.1, KERNELS)})


@pytest.mark.parametrize("seed", range(4))
def test_a_deep_net_of_few_kernels_is_alive_from_end_to_end(seed):
    """3 % of the kernels in 8 layers: many draws have no path at all, and without scaling the signals vanish."""
    torch.manual_seed(seed)
    net, x = deep_convnet(), torch.randn(16, 1, 8, 8)
    groups = kernel_groups(net)
    free = {name: p.clone() for name, p in groups[-1]["params"]}
    sparse_start(net, {"0.weight": 0.5, "*": 0.03}, groups=groups, seed=seed, batch=x)
    assert num_active(groups) == {"0.weight": 12, "Conv2d": 7 * int(0.03 * 24 * 24)}
    assert all(torch.equal(p, free[name]) for name, p in groups[-1]["params"])
    check_start(net, x, groups=groups)
    assert all(p.grad is None for p in net.parameters())
    assert (net(x) - net(x)[:1]).abs().max() > 1e-3


@pytest.mark.parametrize(("variance", "expected"), [("he", 2 / 400), ("xavier", 2 / (400 + 300))])
@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.parametrize("rule", [GroupLasso(0.1, ROWS), L1(0.1), GroupLasso(0.1, ENTRIES)], ids=repr)
def test_variance_of_a_layer_T22(variance, expected, density, rule):
    """n Var(W) is that of the dense start, whatever the density and the groups (JMLR 23(192), section 4.1)."""
    layer = nn.Linear(400, 300)
    sparse_start(layer, density, groups=param_groups(layer, lr=0.1, rules={"weight": rule}), variance=variance)
    assert layer.weight.ne(0).double().mean().item() == pytest.approx(density)
    assert layer.weight.square().mean().item() == pytest.approx(expected, rel=0.03)


def test_units_have_the_variance_of_their_fan_in():
    net = nn.Sequential(nn.Linear(400, 300), nn.GELU(), nn.Linear(300, 2))
    for variance, expected in (("he", 2 / 400), ("xavier", 2 / 700)):
        sparse_start(net, 0.2, variance=variance)
        assert net[0].weight.square().mean().item() == pytest.approx(expected, rel=0.03)


def test_biases_keep_sleeping_units_apart():
    """Free biases, drawn positive: units whose rows are zero differ, and ordinary rectifiers are open."""
    net = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))
    groups = param_groups(net, lr=0.1, rules={nn.Linear: GroupLasso(0.1, ROWS)})
    sparse_start(net, 0.1, groups=groups, bias=2.0, batch=torch.randn(32, 10))
    for layer, fan_in in ((net[0], 10), (net[2], 30)):
        assert layer.bias.min() > 0
        assert layer.bias.max() <= 2 / math.sqrt(fan_in)
        assert len(layer.bias.unique()) == len(layer.bias)
    joint = nn.Sequential(nn.Linear(10, 30), nn.GELU(), nn.Linear(30, 2))
    sparse_start(joint, 0.1, bias=1.0)
    assert torch.equal(joint[0].bias > 0, joint[0].weight.ne(0).any(dim=1))


def test_densities_by_kind():
    net = conv_skip_autoencoder(depth=3, width=10)
    sparse_start(net, {"n1": 0.5, "gates": 1.0, "*": 0.2})
    groups = param_groups(net, lam=0.1, lr=0.1)
    active = num_active(groups)
    assert active["n1"] == 5
    assert active["n2"] == active["n3"] == 2
    assert active["gates"] == sum(p.numel() for _, p in next(g for g in groups if g["name"] == "gates")["params"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": {"nosuch": 0.1}}, "'nosuch' names no parameter group; there are: n1, n2, gates, free"),
        ({"density": {"*": 1.5}}, r"must lie in \[0, 1\], got 1.5"),
        ({"variance": "lecun"}, "must be 'he' or 'xavier', got 'lecun'"),
        ({"bias": -1.0}, r"sparse_start\(bias=...\) must be a finite number >= 0, got -1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sparse_start(conv_skip_autoencoder(depth=2, width=4), **options)


def test_signals_out_of_scale_are_refused():
    """A layer that multiplies by 1e-3 behind the draw, as a start without the 1 / sqrt(density) would."""

    class Damped(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1e-3 if not self.weight.all() else 1.0)

    net = nn.Sequential(nn.Linear(10, 30), nn.GELU(), Damped(30, 20), nn.GELU(), nn.Linear(20, 2))
    with pytest.raises(ValueError, match="the signals of 2 are .* times those of the dense start"):
        sparse_start(net, 0.3, batch=torch.randn(32, 10))


def test_scales_of_norms_are_kept_where_they_live():
    """The unit filter + bias + scale + shift of a normalised layer: a scale of 0 would let nothing through."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    unit = ("0.weight", "0.bias", "1.weight", "1.bias")
    groups = param_groups(net, lr=0.1, rules={unit: GroupLasso(0.1, ROWS)})
    sparse_start(net, 0.25, groups=groups)
    alive = net[0].weight.flatten(1).any(dim=1)
    assert int(alive.sum()) == 2
    assert torch.equal(net[1].weight, alive.float())
    slimming = param_groups(net, lr=0.1, rules={"1.weight": L1(0.1)})
    nn.init.constant_(net[1].weight, 0.7)
    sparse_start(net, 0.5, groups=slimming)
    assert sorted(net[1].weight.tolist()) == pytest.approx([0] * 4 + [0.7] * 4)


@pytest.mark.parametrize("per", ["edge", "channel"])
def test_the_middle_of_kernels_that_grow_by_rings_stays_as_it_is(per):
    layer = nn.Conv2d(8, 8, 7, groups=8)
    groups, before = param_groups(layer, lr=0.1, rules={"weight": rings(0.1, 7, per=per)}), layer.weight.clone()
    sparse_start(layer, {"weight": 0}, groups=groups)
    assert torch.equal(layer.weight, nn.functional.pad(before[..., 2:5, 2:5], (2, 2, 2, 2)))
    sparse_start(layer, {"weight": 0.5}, groups=groups)
    alive = layer.weight.ne(0).flatten(1).sum(dim=1)
    assert sorted(alive.tolist()) == ([49] * 8 if per == "edge" else [9] * 4 + [49] * 4)
    assert torch.equal(layer.weight[..., 2:5, 2:5], before[..., 2:5, 2:5])


def test_running_statistics_are_not_touched_by_a_trial():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    x = torch.randn(16, 1, 8, 8)
    for mode in (True, False):
        net.train(mode)
        sparse_start(net, 0.25, batch=x)
        check_start(net, x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_weights_that_may_not_be_negative_are_drawn_so():
    layer = nn.Linear(20, 10)
    groups = param_groups(layer, lr=0.1, rules={"weight": NonNegativeL1(0.1)})
    sparse_start(layer, 0.3, groups=groups)
    assert (layer.weight >= 0).all()
    assert layer.weight.count_nonzero() == 60


def test_units_along_columns_have_the_variance_of_their_layer():
    first, second = nn.Linear(100, 300), nn.Linear(300, 200)
    net = nn.Sequential(first, nn.GELU(), second)
    rule = {"penalty": GroupLasso(0.1, ROWS), "joint": (0, 0, 1)}
    groups = param_groups(net, lr=0.1, rules={("0.weight", "0.bias", "2.weight"): rule})
    sparse_start(net, 0.2, groups=groups)
    assert 100 * first.weight.square().mean().item() == pytest.approx(2, rel=0.05)
    assert 300 * second.weight.square().mean().item() == pytest.approx(2, rel=0.05)
    assert torch.equal(first.weight.any(dim=1), second.weight.any(dim=0))


class Called(nn.Linear):
    """What it returns is computed by a function of itself and its inputs."""

    def __init__(self, function):
        super().__init__(3, 3)
        self.function = function

    def forward(self, x, y=None):
        return self.function(self.weight, x, y)


def test_a_model_that_returns_no_numbers_is_named():
    net = Called(lambda weight, x, y: (x.argmax(1), "x"))
    with pytest.raises(ValueError, match="Called must return tensors of floating-point numbers"):
        check_start(net, torch.randn(3, 3), groups=[])


@pytest.mark.parametrize(
    "batch", [(torch.randn(4, 3), torch.randn(4, 3)), {"x": torch.randn(4, 3), "y": torch.ones(1)}]
)
@pytest.mark.parametrize("outputs", [lambda z: (z.sum(), z), lambda z: {"z": z, "places": z.argmax(1)}])
def test_a_start_is_checked_with_several_inputs_and_outputs(batch, outputs):
    before = copy.deepcopy(batch)
    net = Called(lambda weight, x, y: outputs(x.mul_(2) @ weight.T + y))
    groups = param_groups(net, lr=0.1, rules={"weight": GroupLasso(0.1, ROWS)})
    sparse_start(net, 1.0, groups=groups, batch=batch)
    check_start(net, batch, groups=groups)
    assert all(map(torch.equal, tree_leaves(batch), tree_leaves(before)))
    dead = Called(lambda weight, x, y: outputs(0 * x @ weight.T))
    with pytest.raises(ValueError, match="the output does not depend on the input"):
        check_start(dead, batch, groups=[])


def test_a_batch_of_one_is_refused_as_such():
    with pytest.raises(ValueError, match="a batch of at least two different samples, got one"):
        check_start(nn.Linear(2, 2), torch.randn(1, 2), groups=[])
    with pytest.raises(ValueError, match="a batch of at least two different samples, got one"):  # without a warning
        sparse_start(conv_skip_autoencoder(depth=2, width=8), 0.5, batch=torch.rand(1, 1, 8, 8))


def test_gradients_that_grow_behind_sleeping_channels_are_refused():
    """The normalisation of a channel that is 0 multiplies its gradient by 1 / sqrt(eps) = 316; 20 of them overflow."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.BatchNorm2d(4)) for _ in range(20)]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Conv2d(4, 2, 1))
    for layer in layers:
        nn.init.ones_(layer[0].weight)
    x = torch.randn(8, 3, 5, 5)
    groups = param_groups(net, lam=0.1, lr=0.1, units=coupled_units(net, x))
    with pytest.raises(ValueError, match="the gradient of 0.weight is not finite, as behind many normalisations"):
        sparse_start(net, 0.5, groups=groups, batch=x)
