"""The classics: the networks that they are said to be, and sparse training of each."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import KERNELS, L1, AdaBreg, GroupLasso, Zero, param_groups, sparse_start
from nas.analysis import extract
from nas.models import CLASSICS, RightReLU, resnet18, right_relu, vgg13, vgg16
from nas.search.data.vision import import_torchvision

GREY = "mnist_mlp", "fashion_convnet"


def small_resnet(n):
    """Weights, normalisations and head of a residual network of 6 n + 2 layers with 16, 32 and 64 filters."""
    kernels = 3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    return 9 * kernels + (16 * 32 + 32 * 64) + 2 * (2 * n + 1) * (16 + 32 + 64) + 650


PARAMETERS = {
    "mnist_mlp": 784 * 200 + 200 + 200 * 80 + 80 + 80 * 10 + 10,
    "fashion_convnet": 64 * (25 + 1) + 64 * (64 * 25 + 1) + 1024 * 128 + 128 + 128 * 10 + 10,
    "vgg13": 9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
    + 2 * 2 * (64 + 128 + 256 + 512 + 512)
    + 5130,
    "vgg16": 9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512 + 5 * 512**2)
    + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
    + 5130,
    "resnet18": 11_173_962,
    "resnet20": small_resnet(3),
    "resnet56": small_resnet(9),
}
QUICK_OR_SLOW = [
    pytest.param(name, marks=pytest.mark.slow if name in ("vgg16", "resnet18", "resnet56") else ()) for name in CLASSICS
]


def batch(name, size=4):
    shape = (1, 28, 28) if name in GREY else (3, 32, 32)
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))


def make(name, **options):
    torch.manual_seed(0)
    return CLASSICS[name](**options)


def sparse_groups(net, kind):
    """Units, or the kernels or entries of all layers but the first and the last; lam is so large that none can wake."""
    if kind == "units":
        return param_groups(net, lr=1e-3, lam=1.0)
    layers = nn.Conv2d if any(isinstance(module, nn.Conv2d) for module in net) else nn.Linear
    penalty = GroupLasso(1.0, KERNELS) if kind == "kernels" else L1(1.0)
    return param_groups(net, lr=1e-3, rules={next(iter(net.state_dict())): Zero(), layers: penalty})


def test_every_classic_is_counted():
    assert set(PARAMETERS) == set(CLASSICS)


@pytest.mark.parametrize("name", CLASSICS)
def test_size_and_shape(name):
    net = make(name, num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert net(batch(name)).shape == (4, 10)


@pytest.mark.parametrize("name", CLASSICS)
def test_logits_are_free_and_evaluation_changes_nothing(name):
    """T29: a class may get a negative logit; in evaluation mode no statistics move."""
    net = make(name)
    net(batch(name))
    net.eval()
    buffers = {key: buffer.clone() for key, buffer in net.named_buffers()}
    assert net(batch(name)).min() < 0 < net(batch(name)).max()
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in net.named_buffers())


@pytest.mark.parametrize(("make_net", "letter"), [(vgg13, "B"), (vgg16, "D")])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_is_torchvisions(make_net, letter, batch_norm):
    vgg = import_torchvision().models.vgg
    net, theirs = make_net(batch_norm=batch_norm).eval(), vgg.make_layers(vgg.cfgs[letter], batch_norm).eval()
    missing = theirs.load_state_dict(net[:-2].state_dict(), strict=False).missing_keys
    for key in missing:  # convolutions in front of a normalisation, which here have no bias
        assert batch_norm and isinstance(theirs[int(key.removesuffix(".bias"))], nn.Conv2d)
        nn.init.zeros_(theirs.get_parameter(key))
    x = batch("vgg16", 2)
    torch.testing.assert_close(net[:-2](x), theirs(x), rtol=0, atol=0)


def test_resnet18_is_torchvisions_with_a_small_stem():
    net, theirs = resnet18(), import_torchvision().models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for p, q in zip(net.parameters(), theirs.parameters(), strict=True):
        q.data.copy_(p.data)
    x = batch("resnet18")
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_right_relu_as_a_module():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    y = RightReLU()(x)
    assert torch.equal(y, right_relu(x)) and torch.equal(y, F.relu(x))
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", CLASSICS)
def test_units_are_filters_with_their_shifts(name):
    """Every weight but the last layer's is penalised together with one vector, its bias or its shift."""
    net = make(name)
    *groups, free = param_groups(net, lam=0.1, lr=1e-3)
    layers = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [group["name"] for group in groups] == layers[:-1]
    for group in groups:
        weight, shift = (p for _, p in group["params"])
        assert weight.ndim > 1 and shift.shape == weight.shape[:1]
    assert {p.ndim for key, p in free["params"] if not key.startswith(layers[-1])} <= {1}


@pytest.mark.parametrize("kind", ["units", "kernels", "entries"])
@pytest.mark.parametrize("name", QUICK_OR_SLOW)
def test_a_sparse_start_is_accepted_and_zeros_stay_exact(name, kind):
    if name == "mnist_mlp" and kind == "kernels":
        pytest.skip("matrices have no kernels")
    net, x = make(name, activation=RightReLU), batch(name, 8)
    groups = sparse_groups(net, kind)
    sparse_start(net, 0.1, groups=groups, batch=x)
    penalised = [p for group in groups[:-1] if not isinstance(group["penalty"], Zero) for _, p in group["params"]]
    weights = [p for p in penalised if p.ndim > 1]
    alive = [p != 0 for p in weights]
    assert 0.05 < torch.cat([mask.flatten() for mask in alive]).double().mean() <= 0.1
    before = [p.clone() for p in weights]
    optimizer = AdaBreg(groups)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(8)).backward()
        optimizer.step()
    for p, mask, start in zip(weights, alive, before, strict=True):
        assert not (p[~mask] != 0).any() and (p - start).abs().max() > 1e-4


@pytest.mark.parametrize("name", QUICK_OR_SLOW)
def test_the_network_inside_a_sparse_one_is_exact(name):
    net = make(name, activation=RightReLU)
    sparse_start(net, 0.1, batch=batch(name, 8))
    net(batch(name, 16))  # statistics of data
    small, certificate = extract(net, inputs=list(batch(name, 2)))
    assert certificate.holds and certificate.max_rel_float64 <= 1e-10
    before, after = (sum(p.numel() for p in model.parameters()) for model in (net, small))
    assert after < 0.15 * before


def connected(masks):
    """Whether kernels lead from an input to an output, given masks of shape (outputs, inputs)."""
    reached = torch.ones(masks[0].shape[1])
    for mask in masks:
        reached = (mask.float() @ reached > 0).float()
    return bool(reached.any())


def kernels_with_replacement(shape, density, generator):
    """As the reference draws them: ceil(density * n) indices, some of them twice."""
    count = math.prod(shape)
    chosen = torch.randint(count, (math.ceil(density * count),), generator=generator)
    return torch.zeros(count).index_fill_(0, chosen, 1).reshape(shape)


def test_vgg16_at_one_percent_is_connected_if_the_first_layer_is_dense_B3():
    """Nearly half of the draws of 1 % of all kernels have no path at all; ours none."""
    with torch.device("meta"):
        shapes = [p.shape[:2] for p in vgg16().parameters() if p.ndim == 4]
    generator = torch.Generator().manual_seed(0)
    draws = [[kernels_with_replacement(shape, 0.01, generator) for shape in shapes] for _ in range(100)]
    assert 0.34 <= sum(not connected(masks) for masks in draws) / 100 <= 0.54
    net = vgg16()
    groups = sparse_groups(net, "kernels")
    for seed in range(3):
        sparse_start(net, 0.01, groups=groups, seed=seed)
        assert connected([p.detach().ne(0).any(3).any(2) for p in net.parameters() if p.ndim == 4])


@pytest.mark.parametrize(("kind", "batch_norm"), [("units", False), ("kernels", False), ("entries", True)])
def test_one_percent_of_vgg16_carries_signals(kind, batch_norm):
    """1 % of the weights with He's variance / density in 13 layers, with and without normalisation."""
    net, x = vgg16(batch_norm=batch_norm, activation=RightReLU), batch("vgg16", 8)
    groups = sparse_groups(net, kind)
    sparse_start(net, 0.01, groups=groups, batch=x)  # raises unless all layers get signals and gradients
    assert (net(x) - net(x)[:1]).abs().max() > 1e-3
