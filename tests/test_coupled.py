"""Units found from the graph of any model: zero where their tensors are, asleep while they are, removed exactly."""

import contextlib
import gc
import random
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas import L1, AdaBreg, check_start, coupled_units, describe, param_groups, settle_norms, sparse_start
from nas.analysis import extract
from nas.groups import join_rows, num_units, slices, unit_axes
from nas.models import right_relu
from nas.search.data.vision import import_torchvision


class BasicBlock(nn.Module):
    """As in residual networks for CIFAR: two normalised convolutions and a skip, projected where the width changes."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        project = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.skip = nn.Identity() if inputs == width else project

    def forward(self, x):
        y = self.bn2(self.conv2(F.gelu(self.bn1(self.conv1(x)))))
        y += self.skip(x)
        return right_relu(y)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.GELU())
        self.blocks = nn.Sequential(BasicBlock(6, 6, 1), BasicBlock(6, 8, 2), BasicBlock(8, 8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return F.log_softmax(self.head(self.blocks(self.stem(x)).mean((2, 3))), dim=1)


class Concatenated(nn.Module):
    """As in DenseNets: every layer reads the normalised concatenation of all before."""

    def __init__(self, width=6, growth=4, count=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        sizes = [width + growth * k for k in range(count + 1)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.narrow = nn.ModuleList(nn.Conv2d(size, 5, 1, bias=False) for size in sizes[:-1])
        self.inner = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(count))
        self.wide = nn.ModuleList(nn.Conv2d(5, growth, 3, padding=1) for _ in range(count))
        self.head = nn.Linear(sizes[-1], 3)

    def forward(self, x):
        x = self.stem(x)
        for norm, narrow, inner, wide in zip(self.norms[:-1], self.narrow, self.inner, self.wide, strict=True):
            x = torch.cat([x, wide(F.silu(inner(narrow(F.silu(norm(x))))))], 1)
        return self.head(F.silu(self.norms[-1](x)).mean((2, 3)))


class Separable(nn.Module):
    """As in MobileNets: inverted residuals with a depthwise convolution, and a gate for each channel."""

    def __init__(self, width=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(width, 9, 1, bias=False), nn.BatchNorm2d(9), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(9, 9, 3, padding=1, groups=9), nn.BatchNorm2d(9), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(9, 3, 1), nn.Conv2d(3, 9, 1)
        self.project = nn.Sequential(nn.Conv2d(9, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(width, 3))

    def forward(self, x):
        x = self.stem(x)
        y = self.depth(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.gelu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(x + self.project(y))


class Hourglass(nn.Module):
    """As in U-Nets: halved and doubled by strides, with sums across."""

    def __init__(self, width=6):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)
        self.down = nn.ModuleList([nn.Conv2d(width, 7, 2, 2, bias=False), nn.Conv2d(7, 9, 2, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(9, 7, 2, 2, bias=False), nn.ConvTranspose2d(7, width, 4, 2, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(7), nn.BatchNorm2d(7)])

    def forward(self, x):
        first = self.stem(x)
        second = F.gelu(self.norms[0](self.down[0](first)))
        third = F.gelu(self.down[1](second))
        return self.head(first + self.up[1](second + F.gelu(self.norms[1](self.up[0](third))))).mean((2, 3))


def chain():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.GELU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(28, 9), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 3)),
    )


MODELS = {
    "chain": chain,
    "residual": Residual,
    "concatenated": Concatenated,
    "separable": Separable,
    "hourglass": Hourglass,
}
SHAPE = (3, 8, 8)


def named(model, units):
    names = {id(p): name for name, p in model.named_parameters()}
    return {layer: [names[id(p)] for p in members] for layer, members in units.items()}


def test_a_chain():
    model = chain()
    assert named(model, coupled_units(model, torch.randn(2, *SHAPE))) == {
        "0": ["0.weight", "0.bias", "1.bias"],
        "4": ["4.weight", "5.bias"],
        "9": ["9.weight", "9.bias", "10.bias"],
    }


def test_a_residual_sum_ties_all_its_summands():
    model = Residual()
    assert named(model, coupled_units(model, torch.randn(2, *SHAPE))) == {
        "stem.0": ["stem.0.weight", "stem.1.bias", "blocks.0.conv2.weight", "blocks.0.bn2.bias"],
        "blocks.0.conv1": ["blocks.0.conv1.weight", "blocks.0.bn1.bias"],
        "blocks.1.conv1": ["blocks.1.conv1.weight", "blocks.1.bn1.bias"],
        "blocks.1.conv2": [
            *("blocks.1.conv2.weight", "blocks.1.bn2.bias", "blocks.1.skip.0.weight", "blocks.1.skip.1.bias"),
            *("blocks.2.conv2.weight", "blocks.2.bn2.bias"),
        ],
        "blocks.2.conv1": ["blocks.2.conv1.weight", "blocks.2.bn1.bias"],
    }


def test_a_concatenation_keeps_units_apart_and_its_norms_free():
    model = Concatenated(count=2)
    assert named(model, coupled_units(model, torch.randn(2, *SHAPE))) == {
        "stem": ["stem.weight", "stem.bias", "norms.0.bias"],
        "narrow.0": ["narrow.0.weight", "inner.0.bias"],
        "wide.0": ["wide.0.weight", "wide.0.bias"],
        "narrow.1": ["narrow.1.weight", "inner.1.bias"],
        "wide.1": ["wide.1.weight", "wide.1.bias"],
    }


def test_a_depthwise_convolution_follows_its_input_and_a_gate_its_channel():
    model = Separable()
    assert named(model, coupled_units(model, torch.randn(2, *SHAPE))) == {
        "stem.0": ["stem.0.weight", "stem.0.bias", "stem.1.bias", "project.0.weight", "project.1.bias"],
        "expand.0": [
            *("expand.0.weight", "expand.1.bias", "depth.0.bias", "depth.1.bias"),
            *("excite.weight", "excite.bias"),
        ],
        "squeeze": ["squeeze.weight", "squeeze.bias"],
    }


@torch.no_grad()
def randomise(model, generator):
    """Every tensor is away from zero, the statistics too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.1 if tensor.ndim > 1 else 0.5))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)


@torch.no_grad()
def kill(units, part, generator):
    """Set a random part of the units of every layer to zero, all but one at most; the masks of what is alive."""
    alive = {}
    for layer, members in units.items():
        count = num_units(members[0], unit_axes(members)[0])
        alive[layer] = torch.rand(count, generator=generator) >= part
        alive[layer][torch.randint(count, (1,), generator=generator)] = True
        for p, axis in zip(members, unit_axes(members), strict=True):
            slices(p, axis)[~alive[layer]] = 0
    return alive


def with_dead_units(model, x, share):
    """Give a model random weights and let a share of its units die; returns the units, and masks of those alive."""
    randomise(model, torch.Generator().manual_seed(0))
    units = coupled_units(model, x)
    alive = kill(units, share, torch.Generator().manual_seed(1))
    settle_norms(model, units)
    return units, alive


def outputs(model, x):
    """What every module that holds parameters puts out."""
    found = {}
    holders = [(name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(False))]
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output.clone()}))
        for name, module in holders
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def assert_dead_are_zero(model, units, alive, x):
    seen = outputs(model, x)
    for layer, members in named(model, units).items():
        for name, axis in zip(members, unit_axes(units[layer]), strict=True):
            output = seen[name.rpartition(".")[0]]
            rows = join_rows([output], [(1, *axis[1:]) if isinstance(axis, tuple) else 1])
            assert not rows[~alive[layer]].any(), name


def assert_removed(model, units, alive, x):
    """The compact network computes the same, and has of every layer just the units that are alive."""
    small, certificate = extract(model, [x[0]])
    assert certificate.holds
    assert certificate.max_abs_float64 <= 1e-10 * max(1, certificate.max_output)
    tensors = dict(small.named_parameters())
    for layer, members in named(model, units).items():
        pairs = zip(members, unit_axes(units[layer]), strict=True)
        assert {num_units(tensors[name], axis) for name, axis in pairs} == {int(alive[layer].sum())}, layer


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@given(seed=st.integers(0, 10**6), part=st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=2)
def test_dead_units_are_zero_in_both_modes_and_removed_exactly(make, seed, part):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, x = make(), torch.randn(4, *SHAPE)
    randomise(model, generator)
    units = coupled_units(model, x)
    alive = kill(units, part, generator)
    settle_norms(model, units)
    assert_dead_are_zero(model.eval(), units, alive, x)
    assert_removed(model, units, alive, x)
    assert_dead_are_zero(model.train(), units, alive, x)


class RandomGraph(nn.Module):
    """Convolutions, normalisations, activations, sums, products and concatenations of whatever was there before."""

    def __init__(self, seed, count=8):
        super().__init__()
        choose = random.Random(seed)
        widths, self.recipe, self.layers = [3], [], nn.ModuleList()
        for _ in range(count):
            kind, k = (
                choose.choice(["mix", "mix", "layer", "layer", "sum", "sum", "product", "cat"]),
                choose.randrange(len(widths)),
            )
            equal = [j for j, width in enumerate(widths) if width == widths[k] and j > 0]
            if kind in ("sum", "product") and equal:
                self.recipe.append((kind, k, choose.choice(equal)))
                widths.append(widths[k])
            elif kind == "cat":
                self.recipe.append((kind, k, choose.randrange(len(widths))))
                widths.append(widths[k] + widths[self.recipe[-1][2]])
            else:
                mixes = kind == "mix" or k == 0
                layer, width = (
                    self.mixing(choose, widths[k]) if mixes else (self.follower(choose, widths[k]), widths[k])
                )
                self.recipe.append(("layer", k, len(self.layers)))
                self.layers.append(layer)
                widths.append(width)
        self.head = nn.Linear(sum(widths[1:]), 2)

    def mixing(self, choose, width):
        size, out = choose.choice([1, 3]), choose.choice([4, 6])
        kind = choose.choice([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d])
        return kind(width, out, size, padding=size // 2, bias=choose.random() < 0.5), out

    def follower(self, choose, width):
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=choose.random() < 0.5)
        return choose.choice([nn.BatchNorm2d(width), nn.GELU(), nn.Sigmoid(), nn.AvgPool2d(3, 1, 1), depthwise])

    def forward(self, x):
        found = [x]
        for kind, k, j in self.recipe:
            if kind == "layer":
                found.append(self.layers[j](found[k]))
            elif kind == "cat":
                found.append(torch.cat([found[k], found[j]], 1))
            else:
                found.append(found[k] + found[j] if kind == "sum" else found[k] * found[j])
        return self.head(torch.cat([each.mean((2, 3)) for each in found[1:]], 1))


def test_units_of_transposed_convolutions_lie_along_their_second_axis():
    model = Hourglass()
    units = coupled_units(model, torch.randn(2, *SHAPE))
    assert named(model, units) == {
        "stem": ["stem.weight", "stem.bias", "up.1.weight", "up.1.bias"],
        "down.0": ["down.0.weight", "norms.0.bias", "up.0.weight", "norms.1.bias"],
        "down.1": ["down.1.weight", "down.1.bias"],
    }
    assert units["stem"].axes == [0, 0, 1, 0]
    groups = {group["name"]: group for group in param_groups(model, lam=0.1, lr=0.01, units=units)}
    assert [groups[name]["joint"] for name in ("stem", "down.0", "down.1")] == [(0, 0, 1, 0), (0, 0, 1, 0), True]


def random_killed(make, seed):
    """A random model, its units of which half are dead, which are alive, and inputs; None where it has no unit."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, x = make(seed).double(), torch.randn(4, *SHAPE, dtype=torch.float64)
    try:
        units = coupled_units(model, x, strict=False)
    except ValueError as problem:
        assert "has no layer whose channels can be units" in str(problem)
        return None
    randomise(model, generator)
    alive = kill(units, 0.5, generator)
    settle_norms(model, units)
    return model, units, alive, x


@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_units_of_random_graphs_are_removed_exactly(seed):
    if killed := random_killed(RandomGraph, seed):
        model, *others = killed
        for mode in (True, False):
            assert_dead_are_zero(model.train(mode), *others)
        assert_removed(model, *others)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_units_sleep_exactly_wake_and_are_removed_after_training(make):
    torch.manual_seed(0)
    model, x = make(), torch.randn(32, *SHAPE)
    units = coupled_units(model, x)
    groups = param_groups(model, lam=0.05, lr=0.005, units=units)
    sparse_start(model, 0.3, groups=groups, batch=x)
    optimizer = AdaBreg(groups)
    counts = []
    while len(counts) < 100 and (not counts or counts[-1] < counts[0] + 3):
        x = torch.randn(32, *SHAPE)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x.mean((2, 3)).argmax(dim=1)).backward()
        optimizer.step()
        alive = {layer: join_rows(members, unit_axes(members)).any(dim=1) for layer, members in units.items()}
        assert_dead_are_zero(model, units, alive, x)
        counts.append(sum(int(mask.sum()) for mask in alive.values()))
    assert counts[0] + 3 <= counts[-1] < sum(map(len, alive.values()))
    settle_norms(model, units)
    assert_removed(model, units, alive, x)


def test_a_norm_forgets_a_dead_unit_slowly_in_evaluation():
    """In training a dead channel is 0, in evaluation -scale * mean / sqrt(var + eps), where the mean shrinks by 0.9."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    x, norm = torch.randn(8, *SHAPE, dtype=torch.float64), model[1]
    units = coupled_units(model, x)
    assert named(model, units) == {"0": ["0.weight", "0.bias", "1.bias"]}
    norm(3 * torch.randn(8, 4, 2, 2, dtype=torch.float64) + 5)
    mean = norm.running_mean[1].item()
    with torch.no_grad():
        for p in units["0"]:
            p[1] = 0
    for step in range(1, 4):
        assert not model[:2](x)[:, 1].any()
        assert norm.running_mean[1].item() == pytest.approx(mean * 0.9**step)
    model.eval()
    left = -norm.weight[1] * norm.running_mean[1] / (norm.running_var[1] + norm.eps).sqrt()
    torch.testing.assert_close(model[:2](x)[:, 1], left.expand(8, 6, 6))
    assert extract(model, [x[0]])[0][0].out_channels == 4
    others = [0, 2, 3]
    before = norm.running_mean[others].clone()
    settle_norms(model, units)
    assert not model[:2](x)[:, 1].any()
    assert torch.equal(norm.running_mean[others], before)
    assert extract(model, [x[0]])[0][0].out_channels == 3


def test_an_instance_normalisation_with_running_means_forgets_a_dead_unit_too():
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.GELU(), nn.Conv2d(4, 2, 3, padding=1)), torch.randn(8, *SHAPE)
    units = coupled_units(model, x)
    model(x)
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    settle_norms(model, units)
    assert_removed(model, units, alive, x)


def test_scales_are_free_since_no_gradient_reaches_a_zero_row_behind_a_zero_scale():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Linear(3, 2)), torch.randn(8, 4)
    [members] = coupled_units(model, x).values()
    row, scale = model[0].weight, model[1].weight
    assert not any(p is scale for p in members)
    with torch.no_grad():
        for p in members:
            p[:2] = 0
        scale[0] = 0
    model(x).square().sum().backward()
    assert row.grad.ne(0).any(dim=1).tolist() == [False, True, True]
    assert not scale.grad[:2].any()


def test_a_sleeping_unit_behind_a_rectifier_is_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)), torch.randn(8, 4)
    groups = param_groups(model, lam=0.1, lr=0.1, units=coupled_units(model, x))
    with pytest.raises(ValueError, match="no sleeping unit of 0 can wake"):
        sparse_start(model, 0.3, groups=groups, batch=x)
    model[2] = nn.GELU()
    sparse_start(model, 0.3, groups=groups, batch=x)
    check_start(model, x, groups=groups)


def test_param_groups_takes_units():
    model = Residual()
    units = coupled_units(model, torch.randn(2, *SHAPE))
    groups = param_groups(model, lam=0.1, lr=0.01, units=units)
    assert {group["name"]: [name for name, _ in group["params"]] for group in groups[:-1]} == named(model, units)
    assert sorted(name for group in groups for name, _ in group["params"]) == sorted(dict(model.named_parameters()))
    lines = [line.split() for line in describe(groups).splitlines()]
    assert lines[1][:7] == ["stem.0", "GroupLasso", "on", "units", "6", "x", str(3 * 9 + 1 + 6 * 9 + 1)]
    with pytest.raises(ValueError, match=r"param_groups\(units=...\) needs lam=..., the strength of the penalty"):
        param_groups(model, lr=0.01, units=units, rules={"head.*": L1(0.1)})
    with pytest.raises(ValueError, match="'stem.0' has a tensor that is no parameter of the model"):
        param_groups(Residual(), lam=0.1, lr=0.01, units=units)


def test_a_constant_that_readers_absorb_is_no_hindrance_and_its_norm_stays_free():
    model, x = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)),
        torch.randn(4, *SHAPE),
    )
    units = coupled_units(model, x)
    assert named(model, units) == {"0": ["0.weight", "0.bias"]}
    randomise(model, torch.Generator().manual_seed(0))
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    settle_norms(model, units)
    assert_removed(model, units, alive, x)


class Net(nn.Module):
    """Some layers and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


class Net2(Net):
    def forward(self, x, y=None):
        return self.run(self, x, y)


def conv(inputs, outputs, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, **options)


def tied_weights():
    net = Net(lambda m, x: m.c(m.b(m.a(m.first(x)))), first=conv(3, 4), a=conv(4, 4), b=conv(4, 4), c=conv(4, 2))
    net.b.weight = net.a.weight
    return net


REFUSED = {
    "an unknown function": (
        Net(lambda m, x: m.b(torch.cumsum(m.a(x), 1)), a=conv(3, 4), b=conv(4, 2)),
        "the channels of a meet cumsum, which is not understood",
    ),
    "inside a submodule": (
        Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 4), b=Net(lambda m, x: x.roll(1, 1)), c=conv(4, 2)),
        "the channels of a meet roll in b, which is not understood",
    ),
    "an unknown last layer": (
        Net(
            lambda m, x: torch.einsum("bchw,och->bohw", m.a(x), m.w), a=conv(3, 4), w=nn.Parameter(torch.ones(2, 4, 8))
        ),
        "the channels of a meet einsum, which is not understood",
    ),
    "an unknown first layer": (
        Net(
            lambda m, x: m.c(m.b(torch.einsum("bchw,och->bohw", x, m.w))),
            w=nn.Parameter(torch.ones(6, 3, 8)),
            b=conv(6, 5),
            c=conv(5, 2),
        ),
        "einsum is a layer that is not understood",
    ),
    "a weight that is computed": (
        Net(
            lambda m, x: m.b(F.conv2d(m.a(x), 2 * m.weight)),
            a=conv(3, 4),
            b=conv(4, 2),
            weight=nn.Parameter(torch.ones(4, 4, 1, 1)),
        ),
        "the channels of a meet conv2d, which is not understood",
    ),
    "a stored tensor": (
        Net(lambda m, x: m.b(m.a(x) + m.map), a=conv(3, 4), b=conv(4, 2), map=nn.Parameter(torch.ones(1, 4, 8, 8))),
        "the channels of a are not zero behind add when their weights are, and b sees it",
    ),
    "a sum of a concatenation": (
        Net(
            lambda m, x: m.d(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
            a=conv(3, 4),
            b=conv(3, 2),
            c=conv(3, 6),
            d=conv(6, 2),
        ),
        "the channels of a are tied to other channels at other places by add",
    ),
    "a concatenation with the input": (
        Net(lambda m, x: m.d(torch.cat([m.a(x), x], 1) + m.c(x)), a=conv(3, 3), c=conv(3, 6), d=conv(6, 2)),
        "the channels of a are tied to other channels at other places by add",
    ),
    "a constant before a border": (
        nn.Sequential(conv(3, 4), nn.Sigmoid(), conv(4, 2, 3, padding=1)),
        "the channels of 0 are not zero behind 1 when their weights are, and 2 sees it",
    ),
    "a constant of a concatenation before a border": (
        Net(
            lambda m, x: m.c(m.norm(torch.cat([m.a(x), m.b(x)], 1))),
            a=conv(3, 4),
            b=conv(3, 2),
            norm=nn.BatchNorm2d(6),
            c=conv(6, 2, 3, padding=1),
        ),
        "the channels of a are not zero behind norm when their weights are, and c sees it",
    ),
    "a constant before a sum over channels": (
        Net(
            lambda m, x: torch.einsum("bchw,oc->bohw", m.a(x).sigmoid(), m.matrix),
            a=conv(3, 4),
            matrix=nn.Parameter(torch.ones(2, 4)),
        ),
        "the channels of a are not zero behind sigmoid when their weights are, and einsum sees it",
    ),
    "a sum along positions": (
        Net(
            lambda m, x: m.b(torch.einsum("bchw,hk->bckw", m.a(x), m.matrix)),
            a=conv(3, 4),
            b=conv(4, 2),
            matrix=nn.Parameter(torch.ones(8, 8)),
        ),
        "the channels of a meet einsum, which is not understood",
    ),
    "a matrix that has the same units along both axes": (
        Net(
            lambda m, x: m.b(
                F.gelu(sum(torch.einsum(f"bchw,{axes}->bdhw", m.a(x), m.matrix) for axes in ("cd", "dc")))
            ),
            a=conv(3, 4),
            b=conv(4, 2),
            matrix=nn.Parameter(torch.ones(4, 4)),
        ),
        "the channels of a are not zero behind einsum when their weights are, and b sees it",
    ),
    "rows that channels choose": (
        Net(
            lambda m, x: m.b(F.gelu(m.a(x))) + m.words((m.a(x) > 0).long()).sum(1).permute(0, 3, 1, 2),
            a=conv(3, 4),
            b=conv(4, 2),
            words=nn.Embedding(2, 2),
        ),
        "the channels of a meet words, which is not understood",
    ),
    "a bilinear layer": (
        Net(lambda m, x: m.c(x) + bilinear(m.b, m.a(x)), a=conv(3, 4), b=nn.Bilinear(4, 4, 2), c=conv(3, 2)),
        "the channels of a meet b, which is not understood",
    ),
    "a constant before a padded pool": (
        nn.Sequential(conv(3, 4), nn.Sigmoid(), nn.AvgPool2d(3, 1, 1), conv(4, 2)),
        "the channels of 0 are not zero behind 1 when their weights are, and 3 sees it",
    ),
    "a constant before a padded depthwise convolution": (
        nn.Sequential(conv(3, 4), nn.Softplus(), conv(4, 4, 3, padding=1, groups=4), conv(4, 2)),
        "the channels of 0 are not zero behind 1 when their weights are, and 3 sees it",
    ),
    "a constant in a sum": (
        Net(
            lambda m, x: m.c(m.a(x) + torch.sigmoid(m.b(x))),
            a=conv(3, 4),
            b=conv(3, 4),
            c=conv(4, 2, 3, padding=1),
        ),
        "the channels of a are not zero behind sigmoid when their weights are, and c sees it",
    ),
    "biases of a depthwise convolution of a concatenation": (
        Net(
            lambda m, x: m.c(m.depth(torch.cat([m.a(x), m.b(x)], 1))),
            a=conv(3, 4),
            b=conv(3, 2),
            depth=conv(6, 6, 3, groups=6),
            c=conv(6, 2, 3, padding=1),
        ),
        "the channels of a are not zero behind depth when their weights are, and c sees it",
    ),
    "a dropout that shifts": (
        nn.Sequential(conv(3, 4), nn.AlphaDropout(), conv(4, 2)),
        "the channels of 0 are not zero behind 1 when their weights are, and 2 sees it",
    ),
    "a product with itself": (
        Net(lambda m, x: m.c(squared(m.a(x))), a=conv(3, 4), c=conv(4, 2)),
        "the channels of a are multiplied with each other by mul, so that they could never wake",
    ),
    "a factor that is read elsewhere": (
        Net(lambda m, x: m.c(m.a(x) * m.b(x)) + m.d(m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2), d=conv(4, 2)),
        "the channels of a are not zero behind b when their weights are, and d sees it",
    ),
    "a change in place that a view of it sees": (
        Net(lambda m, x: m.b(changed_view(m.a(x))), a=conv(3, 4), b=conv(4, 2)),
        "a in place is a layer that is not understood",
    ),
    "a scale by its width in front of a normalisation": (
        Net(
            lambda m, x: m.b(m.a(x)) + m.norm(x * len(m.a.weight) ** -0.5).sum(),  # 0 as long as the shift is
            a=conv(3, 4),
            norm=nn.LayerNorm(8),
            b=conv(4, 2),
        ),
        "Net computes something else when channels of a go",
    ),
}


def bilinear(layer, x):
    y = x.mean((2, 3))
    return layer(y, y)[..., None, None]


def squared(x):
    return x * x


def changed_view(x):
    x.flatten(2).relu_()
    return x


def relu_of_itself(x):
    return F.relu(x, inplace=True) + x


ACCEPTED = {
    "a function of each channel": (
        Net(lambda m, x: m.b(torch.cumsum(m.a(x), 2)), a=conv(3, 4), b=conv(4, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "a weight without a module": (
        Net(
            lambda m, x: m.b(F.conv2d(m.a(x), m.weight)),
            a=conv(3, 4),
            b=conv(5, 2),
            weight=nn.Parameter(torch.ones(5, 4, 1, 1)),
        ),
        {"a": ["a.weight", "a.bias"], "weight": ["weight"]},
    ),
    "a module used twice": (
        Net(lambda m, x: m.c(m.b(m.b(m.a(x)))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2)),
        {"a": ["a.weight", "a.bias", "b.weight", "b.bias"]},
    ),
    "tied weights": (
        tied_weights(),
        {"first": ["first.weight", "first.bias", "a.weight", "a.bias", "b.bias"]},
    ),
    "a constant times a gate": (
        Net(
            lambda m, x: m.b(m.a(x).sigmoid() * m.gate[0]),
            a=conv(3, 4),
            b=conv(4, 2),
            gate=nn.Parameter(torch.ones(1)),
        ),
        {"a": ["a.weight", "a.bias"]},
    ),
    "a change in place": (
        Net(lambda m, x: m.b(relu_of_itself(m.a(x))), a=conv(3, 4), b=conv(4, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "a normalisation without a shift": (
        nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), nn.GELU(), conv(4, 2)),
        {"0": ["0.weight", "0.bias"]},
    ),
    "an argument that is not given": (
        Net2(lambda m, x, y: m.b(m.a(x) if y is None else m.a(y)), a=conv(3, 4), b=conv(4, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "transposed layers": (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2), conv(4, 5), nn.GELU(), nn.ConvTranspose2d(5, 2, 2)),
        {"0": ["0.weight", "0.bias"], "1": ["1.weight", "1.bias"]},
    ),
    "a transposed last layer": (
        nn.Sequential(conv(3, 4), nn.ConvTranspose2d(4, 2, 2)),
        {"0": ["0.weight", "0.bias"]},
    ),
    "padding": (
        nn.Sequential(conv(3, 4), nn.ReflectionPad2d(1), nn.PReLU(4), nn.ZeroPad2d(1), conv(4, 2, 3)),
        {"0": ["0.weight", "0.bias"]},
    ),
    "squeeze and excitation": (
        Net(
            lambda m, x: m.b(squeezed(m, m.a(x))),
            a=conv(3, 4),
            squeeze=nn.Linear(4, 2),
            excite=nn.Linear(2, 4),
            b=conv(4, 2, 3, padding=1),
        ),
        {"a": ["a.weight", "a.bias", "excite.weight", "excite.bias"], "squeeze": ["squeeze.weight", "squeeze.bias"]},
    ),
}


ACCEPTED |= {
    "a stored matrix, transposed": (
        Net(
            lambda m, x: m.b(m.a(x) @ m.matrix.t()),
            a=nn.Linear(8, 4),
            b=nn.Linear(5, 2),
            matrix=nn.Parameter(torch.ones(5, 4)),
        ),
        {"a": ["a.weight", "a.bias"], "matrix": ["matrix"]},
    ),
    "a stored matrix and a bias": (
        Net(
            lambda m, x: m.b(torch.addmm(m.bias, m.a(x.flatten(1)), m.matrix.t())),
            a=nn.Linear(192, 4),
            b=nn.Linear(5, 2),
            matrix=nn.Parameter(torch.ones(5, 4)),
            bias=nn.Parameter(torch.ones(5)),
        ),
        {"a": ["a.weight", "a.bias"], "matrix": ["matrix", "bias"]},
    ),
    "a sum over channels": (
        Net(
            lambda m, x: m.b(m.norm(torch.einsum("bchw, oc -> bohw", F.gelu(m.a(x)), m.matrix)) + m.c(x)),
            a=conv(3, 4),
            norm=nn.BatchNorm2d(5),
            b=conv(5, 2, 3, padding=1),
            c=conv(3, 5),
            matrix=nn.Parameter(torch.ones(5, 4)),
        ),
        {"a": ["a.weight", "a.bias"], "matrix": ["matrix", "norm.bias", "c.weight", "c.bias"]},
    ),
    "a sum over the last of any axes": (
        Net(
            lambda m, x: m.b(torch.einsum("...i,oi->...o", m.a(x), m.matrix)),
            a=nn.Linear(8, 4),
            b=nn.Linear(5, 2),
            matrix=nn.Parameter(torch.ones(5, 4)),
        ),
        {"a": ["a.weight", "a.bias"], "matrix": ["matrix"]},
    ),
    "a sum that moves channels": (
        Net(
            lambda m, x: m.b(torch.einsum("cd,bnhc->bdnh", m.matrix, F.gelu(m.a(x)))),
            a=nn.Linear(8, 4),
            b=conv(5, 2, 3, padding=1),
            matrix=nn.Parameter(torch.ones(4, 5)),
        ),
        {"a": ["a.weight", "a.bias"], "matrix": ["matrix"]},
    ),
    "a region of another precision": (
        Net(lambda m, x: m.b(in_single_precision(m.a, x)), a=conv(3, 4), b=conv(4, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "a region without gradients": (
        Net(lambda m, x: m.b(m.a(x)) + without_gradient(m.c, x), a=conv(3, 4), b=conv(4, 2), c=conv(3, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "layers that read stored numbers": (
        Net(
            lambda m, x: m.b(m.a(x)) + m.d(F.gelu(m.c(m.places))).sum(),
            a=conv(3, 4),
            b=conv(4, 2),
            c=nn.Linear(2, 5),
            d=nn.Linear(5, 2),
            places=nn.Parameter(torch.rand(6, 2)),
        ),
        {"a": ["a.weight", "a.bias"], "c": ["c.weight", "c.bias"]},
    ),
    "positions that are chosen": (
        Net(
            lambda m, x: m.b(m.a(x)[:, :, torch.tensor([[3, 1], [0, 2]])].sum(2).index_select(2, torch.tensor([1, 0]))),
            a=conv(3, 4),
            b=conv(4, 2),
        ),
        {"a": ["a.weight", "a.bias"]},
    ),
    "a constant behind a dropout of nothing": (
        nn.Sequential(conv(3, 4), nn.Sigmoid(), nn.Dropout(0.0), conv(4, 2)),
        {"0": ["0.weight", "0.bias"]},
    ),
    "zeros of another size": (
        Net(lambda m, x: m.b(m.a(x)) + m.a(x).new_zeros(len(x), 2, 8, 8), a=conv(3, 4), b=conv(4, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
    "channels that are repeated": (
        Net(lambda m, x: m.b(m.a(x).repeat_interleave(2, 1)), a=conv(3, 4), b=conv(8, 2)),
        {"a": ["a.weight", "a.bias"]},
    ),
}


def in_single_precision(layer, x):
    with torch.autocast("cpu", enabled=False):
        return layer(x) * 2


def without_gradient(layer, x):
    with torch.no_grad():
        return layer(x)


def squeezed(m, x):
    y = F.adaptive_avg_pool2d(x, 1).view(x.size(0), x.size(1))
    return x * m.excite(F.gelu(m.squeeze(y))).sigmoid().view(x.size(0), x.size(1), 1, 1).expand_as(x)


@pytest.mark.parametrize(("model", "units"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_understood(model, units):
    x = torch.randn(2, *SHAPE)
    found = coupled_units(model, x)
    assert named(model, found) == named(model, coupled_units(model, x, strict=False)) == units
    torch.manual_seed(0)
    randomise(model, torch.Generator().manual_seed(0))
    alive = kill(found, 0.5, torch.Generator().manual_seed(0))
    settle_norms(model, found)
    assert_removed(model.eval(), found, alive, x)


DENSE = {
    "a bias that is computed": Net(
        lambda m, x: m.b(F.linear(m.a(x), m.weight, torch.cat([m.bias, torch.zeros(2)]))),
        a=nn.Linear(8, 4),
        b=nn.Linear(5, 2),
        weight=nn.Parameter(torch.ones(5, 4)),
        bias=nn.Parameter(torch.ones(3)),
    ),
    "a bias that is changed": Net(
        lambda m, x: m.b(F.linear(m.a(x), m.weight, changed_part(m.bias[None].clone())[0])),
        a=nn.Linear(8, 4),
        b=nn.Linear(5, 2),
        weight=nn.Parameter(torch.ones(5, 4)),
        bias=nn.Parameter(torch.ones(5)),
    ),
    "attention with stored weights of places": Net(
        lambda m, x: m.b(attended(m.c(m.a(x)), m.places)),
        a=nn.Linear(8, 4),
        c=nn.Linear(4, 12),
        b=nn.Linear(4, 2),
        places=nn.Parameter(torch.rand(8, 8)),
    ),
    "places that are sampled": Net(
        lambda m, x: m.b(F.grid_sample(m.d(m.a(x)), m.c(m.a(x)).permute(0, 2, 3, 1), align_corners=False)),
        a=conv(3, 4),
        d=conv(4, 4),
        c=conv(4, 2),
        b=conv(4, 2),
    ),
    "a change in place of a part": Net(
        lambda m, x: m.b(changed_part(m.c(m.a(x)))), a=conv(3, 4), c=conv(4, 6), b=conv(6, 2)
    ),
}


def attended(x, places):
    q, k, v = x.chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=places)


def changed_part(x):
    x[:, :2] = x[:, :2].sigmoid()
    return x


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_changes_its_own_weights_is_refused(training):
    def forward(m, x):
        if m.training == training:
            m.a.weight.data.clamp_(min=0)
        return m.b(m.a(x))

    with pytest.raises(ValueError, match="^Net changes its own weights while it computes, such as a.weight$"):
        coupled_units(Net(forward, a=conv(3, 4), b=conv(4, 2)), torch.randn(2, *SHAPE))


@pytest.mark.parametrize(("name", "model"), DENSE.items(), ids=DENSE)
def test_what_a_layer_reads_can_go_where_what_it_puts_out_stays(name, model):
    x = torch.randn(2, *SHAPE)
    units = coupled_units(model, x, strict=name != "a change in place of a part")
    assert named(model, units) == {"a": ["a.weight", "a.bias"]}
    randomise(model, torch.Generator().manual_seed(0))
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    assert_removed(model.eval(), units, alive, x)


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_sure_is_refused_by_name(model, message):
    with pytest.raises(ValueError, match=re.escape(f"coupled_units: {message}; strict=False leaves such layers out")):
        coupled_units(model, torch.randn(2, *SHAPE))


@pytest.mark.parametrize("name", REFUSED)
def test_without_strict_only_such_layers_are_left_out(name):
    """In front of and behind each of these nets: an ordinary layer."""
    model, _ = REFUSED[name]
    longer = nn.Sequential(conv(3, 5), nn.BatchNorm2d(5), conv(5, 3), model, conv(2, 6), nn.GELU(), conv(6, 2))
    x = torch.randn(2, *SHAPE)
    units = coupled_units(longer, x, strict=False)
    assert {"0", "4"} <= set(units)
    assert (len(units) == 2) == (name == "a scale by its width in front of a normalisation")  # whose input stays, too
    torch.manual_seed(0)
    randomise(longer, torch.Generator().manual_seed(0))
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    settle_norms(longer, units)
    assert_dead_are_zero(longer, units, alive, x)
    assert_removed(longer.eval(), units, alive, x)


def classic(name):
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=10)
    if name == "vgg11_bn":  # with a classifier of 1 million weights instead of 119 million
        model.classifier = nn.Sequential(
            nn.Linear(512 * 49, 40), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(40, 10)
        )
    return model, torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vgg11_bn"])
def test_the_classics(name):
    """As torchvision builds them: every filter but those of the classifier is of a unit, and dead ones go."""
    model, x = classic(name)
    units = coupled_units(model, x)
    weights = [p for p in model.parameters() if p.ndim > 1 and p.shape[1] > 1]  # not of depthwise convolutions
    assert {id(p) for p in weights[:-1]} == {id(p) for members in units.values() for p in members if p.ndim > 1}
    randomise(model, torch.Generator().manual_seed(0))
    alive = kill(units, 0.7, torch.Generator().manual_seed(0))
    settle_norms(model, units)
    assert_dead_are_zero(model.eval(), units, alive, x)
    assert_removed(model, units, alive, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
def test_layers_go_together_as_torch_pruning_finds_them(name):
    pruning = pytest.importorskip("torch_pruning")
    model, x = classic(name)
    units = named(model, coupled_units(model, x))
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    modules = {module: name for name, module in model.named_modules()}
    for layer, names in units.items():
        first = model.get_submodule(layer)
        group = graph.get_pruning_group(first, graph.get_pruner_of_module(first).prune_out_channels, [0])
        pruned = [each.dep.target.module for each in group if each.dep.handler.__name__ == "prune_out_channels"]
        depthwise = {module for module in pruned if getattr(module, "groups", 1) > 1}  # their kernels are free
        theirs = {modules[module] for module in pruned if module in modules and module not in depthwise}
        assert theirs == {name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(conv(3, 2)), "Sequential has no layer whose channels can be units"),
        (Net(lambda m, x: x + m.a(x), a=conv(3, 3)), "Net has no layer whose channels can be units"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_models_without_a_graph_or_units_are_refused(model, message, strict):
    with pytest.raises(ValueError, match=message):
        coupled_units(model, torch.randn(2, *SHAPE), strict=strict)


def test_the_model_is_left_as_it_is():
    model = Residual()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coupled_units(model, torch.randn(4, *SHAPE))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("model", [Residual(), Net(lambda m, x: m.a(x) if x.mean() > 0 else x, a=conv(3, 3))])
def test_torch_and_the_garbage_collector_are_left_as_they_are(model, collects):
    gc.enable() if collects else gc.disable()
    notes = getattr(torch.fx.config, "do_not_emit_stack_traces", False)
    try:
        with contextlib.suppress(ValueError):  # the second one cannot be traced
            coupled_units(model, torch.randn(4, *SHAPE))
        assert gc.isenabled() == collects
        assert torch.fx.config.do_not_emit_stack_traces == notes
    finally:
        gc.enable()
