"""Units of several rows: groups, chunks, gates and shuffles; and what needs all channels, beside which others go."""

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas import AdaBreg, coupled_units, param_groups, settle_norms, sparse_start
from nas.analysis import describe_changes, extract
from nas.groups import join_rows, slices
from tests.test_coupled import (
    SHAPE,
    Net,
    assert_dead_are_zero,
    assert_removed,
    conv,
    kill,
    named,
    random_killed,
    randomise,
)


class LayerNorm2d(nn.Module):
    """Over the channels of each pixel, written by hand."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * self.weight + self.bias


class NAFBlock(nn.Module):
    """As in NAFNet: gates instead of activations, and an attention to channels."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(width), LayerNorm2d(width)
        self.conv1, self.conv2 = conv(width, 2 * width), conv(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.attend = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(width, width))
        self.conv3, self.conv4, self.conv5 = conv(width, width), conv(width, 2 * width), conv(width, width)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        y = gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.attend(y)) * self.beta
        return x + self.conv5(gate(self.conv4(self.norm2(x))))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depth, self.norm = conv(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x):
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


class Transformer(nn.Module):
    """Patches, a token for the class, attention and hidden layers."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.patches, self.token = conv(3, width, 4, stride=4), nn.Parameter(torch.zeros(1, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(width, 7), nn.Linear(7, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.norms[1](x))))
        return self.head(x[:, 0])


def in_rows(x):
    return x.unflatten(1, (2, -1))


def gate(x):
    a, b = x.chunk(2, 1)
    return a * b


def product_of_three(x):
    a, b, c = x.chunk(3, 1)
    return a * b * c


def other_gate(x):
    a, b = x.chunk(2, 1)
    return b * F.gelu(a)


def glu(x):
    a, b = x.chunk(2, 1)
    return a * b.sigmoid()


def sum_of_halves(x):
    half = x.shape[1] // 2
    return F.gelu(x[:, :half]) + x[:, half:]


def shuffled(x, groups=2):
    n, c, height, width = x.shape
    return x.view(n, groups, c // groups, height, width).transpose(1, 2).reshape(n, c, height, width)


def both(name, axis):
    return [(f"{name}.weight", axis), (f"{name}.bias", axis)]


def squeezed(m, x):
    x = F.gelu(m.group(F.gelu(m.a(x))))
    return m.b(x * m.excite(F.gelu(m.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid())


GROUPED = [conv(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.GELU(), conv(12, 2)]
TRANSPOSED = nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4)
MODELS = {  # with their units: (axis, outer, inner, taken) as of nas.groups.Axis
    "groups": (
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.GELU(), *GROUPED),
        {
            "0": [
                *both("0", (0, 1, 2, 1)),
                *(("1.bias", (0, 1, 2, 1)), ("3.bias", (0, 1, 3, 1)), ("4.bias", (0, 1, 3, 1))),
            ]
        },
    ),
    "a depthwise multiplier": (
        nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 12, 3, groups=4), nn.BatchNorm2d(12), conv(12, 2)),
        {"0": [*both("0", 0), ("2.bias", (0, 1, 3, 1)), ("3.bias", (0, 1, 3, 1))]},
    ),
    "transposed groups": (
        nn.Sequential(conv(3, 8), nn.GELU(), TRANSPOSED, nn.BatchNorm2d(12), nn.GELU(), conv(12, 2, 3, padding=1)),
        {"0": [*both("0", (0, 1, 2, 1)), ("2.bias", (0, 1, 3, 1)), ("3.bias", (0, 1, 3, 1))]},
    ),
    "a depthwise transposed layer in a sum": (
        Net(
            lambda m, x: m.b(m.up(F.gelu(m.a(x))) + m.c(x)),
            a=conv(3, 5, 2, stride=2),
            up=nn.ConvTranspose2d(5, 5, 2, stride=2, groups=5),
            b=conv(5, 2),
            c=conv(3, 5),
        ),
        {"a": [*both("a", 0), ("up.bias", 0), *both("c", 0)]},
    ),
    "groups with a gate": (
        Net(squeezed, a=conv(3, 8), group=conv(8, 8, 3, groups=4), squeeze=conv(8, 3), excite=conv(3, 8), b=conv(8, 2)),
        {
            "a": [
                *both("a", (0, 1, 2, 1)),
                *(("group.bias", (0, 1, 2, 1)), ("excite.weight", (0, 1, 2, 1)), ("excite.bias", (0, 1, 2, 1))),
            ],
            "squeeze": both("squeeze", 0),
        },
    ),
    "a gate behind a sigmoid": (
        Net(lambda m, x: m.b(glu(m.a(x))), a=conv(3, 8), b=conv(4, 2)),
        {"a": both("a", (0, 2, 1, 2))},
    ),
    "a gated linear unit": (
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.GLU(1), conv(4, 2, 3, padding=1)),
        {"0": [*both("0", (0, 2, 1, 2)), ("1.bias", (0, 2, 1, 2))]},
    ),
    "F.glu along the last axis": (
        Net(lambda m, x: m.b(F.glu(m.a(x)) + m.c(x)), a=nn.Linear(8, 10), b=nn.Linear(5, 2), c=nn.Linear(8, 5)),
        {"a": [*both("a", (0, 2, 1, 2)), *both("c", 0)]},
    ),
    "F.glu along positions": (Net(lambda m, x: m.b(F.glu(m.a(x), 2)), a=conv(3, 4), b=conv(4, 2)), {"a": both("a", 0)}),
    "a simple gate": (Net(lambda m, x: m.b(gate(m.a(x))), a=conv(3, 8), b=conv(4, 2)), {"a": both("a", (0, 2, 1, 1))}),
    "the second half times the first": (
        Net(lambda m, x: m.b(other_gate(m.a(x))), a=conv(3, 8), b=conv(4, 2, 3, padding=1)),
        {"a": both("a", (0, 2, 1, 1))},
    ),
    "a product of three parts": (
        Net(lambda m, x: m.b(product_of_three(m.a(x))), a=conv(3, 12), b=conv(4, 2)),
        {"a": both("a", (0, 3, 1, 1))},
    ),
    "a product of layers": (
        Net(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2)),
        {"a": both("a", 0)},
    ),
    "a product of concatenations": (
        Net(
            lambda m, x: m.c(torch.cat([m.a(x), x], 1) * torch.cat([m.b(x), x], 1)),
            a=conv(3, 4),
            b=conv(3, 4),
            c=conv(7, 2),
        ),
        {"a": both("a", 0)},
    ),
    "slices": (
        Net(lambda m, x: m.b(sum_of_halves(m.a(x))), a=conv(3, 8), b=conv(4, 2)),
        {"a": both("a", (0, 2, 1, 2))},
    ),
    "a layer twice in a concatenation": (
        Net(lambda m, x: m.d(torch.cat([m.a(x)] * 2, 1) + m.c(x)), a=conv(3, 3), c=conv(3, 6), d=conv(6, 2)),
        {"a": [*both("a", 0), *both("c", (0, 2, 1, 2))]},
    ),
    "pixel shuffle": (
        nn.Sequential(conv(3, 16), nn.GELU(), nn.PixelShuffle(2), conv(4, 2, 3, padding=1)),
        {"0": both("0", (0, 1, 4, 1))},
    ),
    "pixel unshuffle": (
        nn.Sequential(conv(3, 4), nn.GELU(), nn.PixelUnshuffle(2), nn.BatchNorm2d(16), conv(16, 2, 3, padding=1)),
        {"0": [*both("0", 0), ("3.bias", (0, 1, 4, 1))]},
    ),
    "a channel shuffle": (
        nn.Sequential(conv(3, 8), nn.ChannelShuffle(2), nn.GELU(), conv(8, 2)),
        {"0": both("0", (0, 2, 1, 2))},
    ),
    "a channel shuffle by hand": (
        Net(lambda m, x: m.b(m.depth(shuffled(m.a(x)))), a=conv(3, 8), depth=conv(8, 8, 3, groups=8), b=conv(8, 2)),
        {"a": [*both("a", (0, 2, 1, 2)), ("depth.bias", (0, 1, 2, 1))]},
    ),
    "one constant at several places": (
        Net(lambda m, x: m.b(in_rows(m.a(x.mean((2, 3))).sigmoid())), a=nn.Linear(3, 6), b=nn.Linear(3, 2)),
        {"a": both("a", (0, 2, 1, 2))},
    ),
    "NAFNet": (
        nn.Sequential(conv(3, 4), NAFBlock(4), conv(4, 3)),
        {
            "1.conv1": [*both("1.conv1", (0, 2, 1, 1)), ("1.conv2.bias", (0, 2, 1, 1))],
            "1.conv4": both("1.conv4", (0, 2, 1, 1)),
        },
    ),
    "ConvNeXt": (nn.Sequential(conv(3, 4), ConvNeXtBlock(4), conv(4, 3)), {"1.wide": both("1.wide", 0)}),
    "a transformer": (Transformer(), {"wide": both("wide", 0)}),
}


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_units_of_several_rows_are_zero_when_dead_and_removed_exactly(model, expected, seed):
    x, generator = (
        torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed)),
        torch.Generator().manual_seed(seed),
    )
    units = coupled_units(model, x)
    found = named(model, units)
    assert {layer: list(zip(found[layer], units[layer].axes, strict=True)) for layer in found} == expected
    randomise(model, generator)
    alive = kill(units, 0.5, generator)
    settle_norms(model, units)
    if not any(isinstance(module, nn.Linear) for module in model.modules()):  # whose channels are last
        assert_dead_are_zero(model.train(), units, alive, x)
    assert_removed(model.eval(), units, alive, x)


@pytest.mark.parametrize(
    "name", ["groups", "a simple gate", "the second half times the first", "NAFNet", "pixel shuffle"]
)
def test_dead_units_of_several_rows_can_wake(name):
    """Of a gate one factor is free: if both were zero no gradient would reach either."""
    model, _ = MODELS[name]
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    randomise(model, torch.Generator().manual_seed(0))
    units = coupled_units(model, x)
    alive = kill(units, 0.6, torch.Generator().manual_seed(1))
    model.train().zero_grad()
    model(x).square().sum().backward()
    for layer, members in units.items():
        assert join_rows([p.grad for p in members], members.axes)[~alive[layer]].any(dim=1).all(), layer


@pytest.mark.parametrize(("dims", "groups", "each"), [(1, 4, (2, 1)), (2, 3, (3, 2)), (3, 5, (1, 1))])
def test_groups_of_transposed_layers_go_whole(dims, groups, each):
    """Of groups with so many inputs and outputs all but the second and the last go."""
    Conv = getattr(nn, f"Conv{dims}d")
    up = getattr(nn, f"ConvTranspose{dims}d")(groups * each[0], groups * each[1], 2, groups=groups)
    model = nn.Sequential(Conv(3, groups * each[0], 1), nn.GELU(), up, nn.GELU(), Conv(groups * each[1], 2, 1))
    x = torch.randn(2, 3, *[4] * dims)
    [members] = coupled_units(model, x).values()
    dead = [k for k in range(groups) if k not in (1, groups - 1)]
    for p, axis in zip(members, members.axes, strict=True):
        slices(p.data, axis)[dead] = 0
    kept = up.weight.detach().unflatten(0, (groups, -1))[[1, groups - 1]].flatten(0, 1)
    assert_removed(model, {"0": members}, {"0": torch.tensor([k not in dead for k in range(groups)])}, x)
    small = extract(model, [x[0]])[0][2]
    assert (small.in_channels, small.out_channels, small.groups) == (2 * each[0], 2 * each[1], 2)
    assert torch.equal(small.weight, kept)


def test_a_search_of_gates():
    """Sparse start, growth and removal; what is of no unit is left as it is made."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(1, 6, 3, padding=1), NAFBlock(6), conv(6, 1, 3, padding=1))
    x = torch.randn(16, 1, 8, 8)
    units = coupled_units(model, x)
    groups = param_groups(model, lam=0.05, lr=0.005, units=units)
    free = model[1].conv1.weight.detach()[6:].clone()
    sparse_start(model, 0.3, groups=groups, batch=x)
    assert torch.equal(model[1].conv1.weight[6:], free)
    optimizer = AdaBreg(groups)
    counts = []
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - x.roll(1, 3)).square().mean().backward()
        optimizer.step()
        alive = {layer: join_rows(members, members.axes).any(dim=1) for layer, members in units.items()}
        counts.append(sum(int(mask.sum()) for mask in alive.values()))
    assert counts[0] < counts[-1]
    settle_norms(model, units)
    assert_removed(model, units, alive, x)


def test_what_needs_all_channels_stays_and_is_named():
    for norm in (nn.GroupNorm(2, 4), LayerNorm2d(4)):
        model = nn.Sequential(conv(3, 4), norm, conv(4, 2))
        with pytest.raises(
            ValueError, match="no layer whose channels can be units: the channels of 0 stay, since .* needs"
        ):
            coupled_units(model, torch.randn(2, *SHAPE))
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, 0
    small, certificate = extract(model, [torch.randn(*SHAPE)])
    assert certificate.holds and small[0].out_channels == 4
    assert "operation that needs all channels" in describe_changes(certificate.changes)


def test_channels_that_are_other_constants_at_other_places_stay():
    net = Net(
        lambda m, x: m.b(in_rows(m.a(x.mean((2, 3))) + m.shift)),
        a=nn.Linear(3, 6),
        b=nn.Linear(3, 2),
        shift=nn.Parameter(torch.zeros(6)),
    )
    with pytest.raises(
        ValueError, match="the channels of a are not zero behind add when their weights are, and b sees"
    ):
        coupled_units(net, torch.randn(2, *SHAPE))


def test_parts_of_other_sizes_stay():
    net = Net(
        lambda m, x: m.b(m.a(x)[:, :3]) + m.c(F.gelu(m.d(x))), a=conv(3, 8), b=conv(3, 2), c=conv(5, 2), d=conv(3, 5)
    )
    assert named(net, coupled_units(net, torch.randn(2, *SHAPE))) == {"d": ["d.weight", "d.bias"]}


class Sum(nn.Module):
    """A layer that a forward writes as a sum, beside what it has stored for each place."""

    def __init__(self, width, out):
        super().__init__()
        self.matrix, self.places = nn.Parameter(torch.randn(out, width)), nn.Embedding(8, out)

    def forward(self, x):
        y = torch.einsum("bchw,oc->bhwo", x, self.matrix) + self.places(torch.arange(x.shape[3]))
        return y.permute(0, 3, 1, 2)


class RandomRows(nn.Module):
    """Layers, groups, parts, shuffles, norms, sums, products and concatenations of whatever was there before."""

    OPERATIONS = {
        "gate": (gate, lambda c: c % 2 == 0, lambda c: c // 2),
        "glu": (glu, lambda c: c % 2 == 0, lambda c: c // 2),
        "gated linear unit": (lambda x: F.glu(x, 1), lambda c: c % 2 == 0, lambda c: c // 2),
        "halves": (sum_of_halves, lambda c: c % 2 == 0, lambda c: c // 2),
        "shuffle": (shuffled, lambda c: c % 2 == 0, lambda c: c),
        "channel shuffle": (lambda x: F.channel_shuffle(x, 2), lambda c: c % 2 == 0, lambda c: c),
        "pixel shuffle": (
            lambda x: F.interpolate(F.pixel_shuffle(x, 2), x.shape[-2:]),
            lambda c: c % 4 == 0,
            lambda c: c // 4,
        ),
        "pixel unshuffle": (
            lambda x: F.interpolate(F.pixel_unshuffle(x, 2), x.shape[-2:]),
            lambda c: c < 9,
            lambda c: 4 * c,
        ),
        "repeat": (lambda x: x.repeat(1, 2, 1, 1), lambda c: c < 9, lambda c: 2 * c),
        "a part": (lambda x: x[:, 1:], lambda c: c > 1, lambda c: c - 1),
        "every second": (lambda x: x[:, ::2], lambda c: c % 2 == 0, lambda c: c // 2),
        "centred": (lambda x: x - x.mean(1, keepdim=True), lambda c: True, lambda c: c),
    }

    def __init__(self, seed, count=8):
        super().__init__()
        choose = random.Random(seed)
        widths, self.recipe, self.layers = [3], [], nn.ModuleList()
        while len(self.recipe) < count:
            k = choose.randrange(len(widths))
            kind = (
                "mix"
                if k == 0
                else choose.choice(["mix", "mix", "mix", "groups", "layer", "sum", "product", "cat", *self.OPERATIONS])
            )
            if kind in self.OPERATIONS:
                _, fits, width = self.OPERATIONS[kind]
                if fits(widths[k]):
                    self.recipe.append((kind, k, None))
                    widths.append(width(widths[k]))
            elif kind in ("sum", "product"):
                equal = [j for j, width in enumerate(widths) if width == widths[k] and j > 0]
                self.recipe.append((kind, k, choose.choice(equal)))
                widths.append(widths[k])
            elif kind == "cat":
                self.recipe.append((kind, k, choose.randrange(1, len(widths))))
                widths.append(widths[k] + widths[self.recipe[-1][2]])
            else:
                layer, width = self.layer(choose, kind, widths[k])
                self.recipe.append(("layer", k, len(self.layers)))
                self.layers.append(layer)
                widths.append(width)
        self.head = nn.Linear(sum(widths[1:]), 2)

    def layer(self, choose, kind, width):
        out = choose.choice([4, 8, 12])
        if kind == "mix" and choose.random() < 0.2:
            return Sum(width, out), out
        if kind == "mix":
            return conv(width, out, choose.choice([1, 3]), padding="same", bias=choose.random() < 0.5), out
        if kind == "groups":
            groups = choose.choice([g for g in (width, 4, 2, 1) if width % g == 0])
            make = choose.choice([nn.Conv2d, nn.ConvTranspose2d])
            return make(width, 2 * width, 3, padding=1, groups=groups, bias=choose.random() < 0.5), 2 * width
        return choose.choice([nn.BatchNorm2d(width), nn.GELU(), nn.Sigmoid(), nn.AvgPool2d(3, 1, 1)]), width

    def forward(self, x):
        found = [x]
        for kind, k, j in self.recipe:
            if kind == "layer":
                found.append(self.layers[j](found[k]))
            elif kind == "cat":
                found.append(torch.cat([found[k], found[j]], 1))
            elif kind in self.OPERATIONS:
                found.append(self.OPERATIONS[kind][0](found[k]))
            else:
                found.append(found[k] + found[j] if kind == "sum" else found[k] * found[j])
        return self.head(torch.cat([each.mean((2, 3)) for each in found[1:]], 1))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_units_of_random_graphs_with_parts_are_removed_exactly(seed):
    if killed := random_killed(RandomRows, seed):
        model, *others = killed
        assert_removed(model.eval(), *others)
