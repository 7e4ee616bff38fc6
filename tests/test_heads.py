"""Heads of attention are units: what weighs positions is free, and whole heads are removed exactly."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas import AdaBreg, coupled_units, param_groups, sparse_start
from nas.analysis import extract
from nas.groups import join_rows, slices
from nas.models import load_module, network, save_module
from nas.models.traced.graph import Example
from nas.models.traced.network import Origin, TracedNet
from nas.models.traced.units import find_units
from tests.test_coupled import assert_removed, conv, kill, named, randomise, with_dead_units

WIDTH, TOKENS = 6, 5
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def explicit(q, k, v):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def with_einsum(q, k, v):
    return torch.einsum("bhij, bhjd -> bhid", torch.einsum("bhid, bhjd -> bhij", q, k).softmax(-1), v)


def with_dots(q, k, v):
    return torch.einsum("...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q, k).softmax(-1), v)


def masked(q, k, v):
    causal = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril()
    return F.dropout((q @ k.mT).masked_fill(~causal, -torch.inf).softmax(-1), 0.1, training=False) @ v


def linear(q, k, v):
    """Without a softmax over positions."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def merged(q, k, v):
    """Examples and heads along one axis, as in `torch.nn.MultiheadAttention`."""
    examples = len(q)
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).unflatten(0, (examples, -1))


def turned(q, k, v):
    """With rotary embeddings of places."""
    angles = torch.arange(q.shape[-2])[:, None] / (1 + torch.arange(q.shape[-1]))

    def turn(x):
        first, second = F.pad(x, (0, x.shape[-1] % 2)).chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1)[..., : x.shape[-1]] * angles.sin()

    return F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)


def over_channels(q, k, v):
    """As in Restormer: entries of a head look at each other, wherever they are."""
    q, k, v = (each.mT for each in (q, k, v))
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1).matmul(v).mT


PRODUCTS = {
    "fused": F.scaled_dot_product_attention,
    "explicit": explicit,
    "einsum": with_einsum,
    "einsum with dots": with_dots,
    "masked": masked,
    "linear": linear,
    "merged": merged,
    "turned": turned,
    "over channels": over_channels,
}


class Layers(nn.Module):
    """Queries, keys and values of several heads, of shape (examples, heads, positions, size of a head)."""

    def __init__(self, heads, size, parts):
        super().__init__()
        self.heads, self.size = heads, size
        self.layers = nn.ModuleList(nn.Linear(WIDTH, count * heads * size) for count in parts)

    def forward(self, x):
        return [part for layer in self.layers for part in self.parts(layer(x))]


class Apart(Layers):
    def parts(self, y):
        return [y.view(*y.shape[:2], self.heads, self.size).transpose(1, 2)]


class Inferred(Layers):
    def parts(self, y):
        return [y.unflatten(-1, (-1, self.size)).transpose(1, 2)]


class Together(Layers):
    def parts(self, y):
        count = y.shape[-1] // (self.heads * self.size)
        return y.reshape(*y.shape[:2], count, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)


class Chunks(Layers):
    def parts(self, y):
        parts = y.chunk(y.shape[-1] // (self.heads * self.size), -1)
        return [part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in parts]


LAYERS = {
    "q, k, v": lambda heads, size: Apart(heads, size, (1, 1, 1)),
    "as many as there are": lambda heads, size: Inferred(heads, size, (1, 1, 1)),
    "qkv": lambda heads, size: Together(heads, size, (3,)),
    "q, kv": lambda heads, size: Together(heads, size, (1, 2)),
    "chunks": lambda heads, size: Chunks(heads, size, (3,)),
}
ROWS = {  # of the layer that has the values, as in nas.groups.Axis
    "q, k, v": ("a.layers.2", (0, 1, 1)),
    "as many as there are": ("a.layers.2", (0, 1, 1)),
    "qkv": ("a.layers.0", (0, 3, -1)),
    "q, kv": ("a.layers.1", (0, 2, -1)),
    "chunks": ("a.layers.0", (0, 3, -1)),
}


class Net(nn.Module):
    """One block of a transformer."""

    def __init__(self, layers="q, k, v", product="fused", heads=3, size=4):
        super().__init__()
        self.a, self.product = LAYERS[layers](heads, size), PRODUCTS[product]
        self.norm, self.out, self.joined = nn.LayerNorm(WIDTH), nn.Linear(heads * size, WIDTH), heads * size
        self.wide, self.narrow = nn.Linear(WIDTH, 7), nn.Linear(7, 2)

    def forward(self, x):
        y = self.product(*self.a(self.norm(x))).transpose(1, 2)
        x = x + self.out(y.reshape(*y.shape[:2], self.joined))
        return self.narrow(F.gelu(self.wide(x)))


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_heads_are_units_of_their_values(layers, product):
    model = Net(layers, product)
    units = coupled_units(model, X)
    name, (axis, outer, taken) = ROWS[layers]
    assert named(model, units) == {
        name: [f"{name}.weight", f"{name}.bias"],
        "wide": ["wide.weight", "wide.bias"],
    }
    assert units[name].axes == [(axis, outer, 4, taken)] * 2


@given(
    layers=st.sampled_from(sorted(LAYERS)),
    product=st.sampled_from(sorted(PRODUCTS)),
    heads=st.integers(2, 5),
    size=st.integers(1, 6),
    dead=st.sets(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_whole_heads_are_removed_exactly(layers, product, heads, size, dead, seed):
    """With all that queries, keys, values and the layer behind have of them."""
    size += size == heads  # or nobody knows which of two numbers is that of the heads
    model = Net(layers, product, heads, size)
    randomise(model, torch.Generator().manual_seed(seed))
    before, dead = num_parameters(model), [head for head in dead if head < heads]
    units = coupled_units(model, X)[ROWS[layers][0]]
    for p, axis in zip(units, units.axes, strict=True):
        slices(p.data, axis)[dead] = 0
    small, certificate = extract(model, list(X))
    assert certificate.holds and certificate.max_abs_float64 <= 1e-12
    gone = min(len(dead), heads - 1)
    assert before - num_parameters(small) == gone * size * (3 * (WIDTH + 1) + WIDTH)
    assert small.a.heads == heads - gone or layers == "as many as there are"  # whose forward doesn't ask
    assert small.a.size == size and small.joined == small.out.in_features == (heads - gone) * size


def test_what_nobody_reads_of_a_head_goes_and_heads_with_a_constant_value_stay():
    model = Net("qkv")
    with torch.no_grad():
        model.out.weight[:, :4] = 0  # of the first head
        model.a.layers[0].weight[24 + 8 :] = 0  # the last values, but for their bias
    small, certificate = extract(model, list(X))
    assert certificate.holds and small.a.heads == 2


def test_dead_heads_can_wake():
    model = Net("qkv")
    units, alive = with_dead_units(model, X, 0.7)
    assert not alive["a.layers.0"].all()
    model(X).square().sum().backward()
    members = units["a.layers.0"]
    grads = join_rows([p.grad for p in members], members.axes)
    assert grads[~alive["a.layers.0"]].any(dim=1).all()


def test_a_search_starts_with_heads_asleep_and_wakes_them():
    torch.manual_seed(0)
    model = Net("qkv", heads=6, size=2)
    units = coupled_units(model, X)
    groups = param_groups(model, lam=0.02, lr=0.01, units=units)
    weighing = model.a.layers[0].weight.detach()[:24].clone()
    sparse_start(model, 0.2, groups=groups, batch=X)
    assert torch.equal(model.a.layers[0].weight[:24], weighing)  # free
    members, counts = units["a.layers.0"], []
    optimizer = AdaBreg(groups)
    for _ in range(60):
        optimizer.zero_grad()
        (model(X) - X[..., :2].roll(1, 1)).square().mean().backward()
        optimizer.step()
        counts.append(int(join_rows(members, members.axes).any(dim=1).sum()))
    assert counts[0] < counts[-1]
    alive = {layer: join_rows(m, m.axes).any(dim=1) for layer, m in units.items()}
    assert_removed(model, units, alive, X)


class GroupedQueries(nn.Module):
    """Several heads of queries share keys and values; normalised, each for itself."""

    def __init__(self, heads=6, size=4, shared=2):
        super().__init__()
        self.heads, self.size, self.shared = heads, size, shared
        self.q, self.out = nn.Linear(WIDTH, heads * size), nn.Linear(heads * size, 2)
        self.k, self.v = nn.Linear(WIDTH, shared * size), nn.Linear(WIDTH, shared * size)
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.RMSNorm(size)])

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (each.repeat_interleave(3, 1) for each in (self.norms[1](k), v))
        return self.out(F.scaled_dot_product_attention(self.norms[0](q), k, v).transpose(1, 2).flatten(2))


class Distances(nn.Module):
    """A bias of each head for each distance, as in T5."""

    def __init__(self, heads=4, size=3):
        super().__init__()
        self.a, self.out, self.distances = Apart(heads, size, (1, 1, 1)), nn.Linear(12, 2), nn.Embedding(TOKENS, heads)

    def forward(self, x):
        q, k, v = self.a(x)
        places = torch.arange(TOKENS)
        biases = self.distances((places[:, None] - places).abs()).permute(2, 0, 1)
        return self.out(((q @ k.mT + biases).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Twice(nn.Module):
    """One block, used twice, as in ALBERT."""

    def __init__(self):
        super().__init__()
        self.norm, self.a, self.out = nn.LayerNorm(WIDTH), Together(3, 4, (3,)), nn.Linear(12, WIDTH)

    def forward(self, x):
        for _ in range(2):
            x = x + self.out(F.scaled_dot_product_attention(*self.a(self.norm(x))).transpose(1, 2).flatten(2))
        return x


class Restormer(nn.Module):
    """Attention of channels to each other, with a temperature for each head, behind depthwise convolutions."""

    def __init__(self, heads=3, width=12):
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.out = conv(3, 3 * width), conv(width, 2)
        self.depth = conv(3 * width, 3 * width, 3, padding=1, groups=3 * width)

    def forward(self, x):
        y = self.depth(self.qkv(x))
        q, k, v = (each.unflatten(1, (self.heads, -1)).flatten(3) for each in y.chunk(3, 1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.mT * self.temperature).softmax(-1) @ v
        return self.out(y.view(len(x), -1, *x.shape[2:]))


OTHERS = {
    "a block that is used twice": (
        Twice,
        X,
        {"a.layers.0": [("a.layers.0.weight", (0, 3, 4, -1)), ("a.layers.0.bias", (0, 3, 4, -1))]},
    ),
    "embedded distances": (
        Distances,
        X,
        {"a.layers.2": [("a.layers.2.weight", (0, 1, 3, 1)), ("a.layers.2.bias", (0, 1, 3, 1))]},
    ),
    "grouped queries": (GroupedQueries, X, {"v": [("v.weight", (0, 1, 4, 1)), ("v.bias", (0, 1, 4, 1))]}),
    "Restormer": (
        Restormer,
        torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
        {
            "qkv": [
                *(("qkv.weight", (0, 3, 4, -1)), ("qkv.bias", (0, 3, 4, -1))),
                ("depth.bias", (0, 3, 4, -1)),
            ]
        },
    ),
}


@pytest.mark.parametrize(("make", "x", "expected"), OTHERS.values(), ids=OTHERS)
def test_heads_of_other_kinds(make, x, expected):
    torch.manual_seed(0)
    model = make()
    units, alive = with_dead_units(model, x, 0.5)
    found = named(model, units)
    assert {layer: list(zip(found[layer], units[layer].axes, strict=True)) for layer in found} == expected
    assert_removed(model.eval(), units, alive, x)


class Whole(Net):
    """Its forward returns to the width that it is given."""

    def forward(self, x):
        y = self.product(*self.a(self.norm(x))).transpose(1, 2).reshape(x.shape)
        return self.narrow(F.gelu(self.wide(x + self.out(y))))


class Biased(Net):
    """A bias for each place and head, as in Swin transformers."""

    def __init__(self, *args):
        super().__init__("qkv", *args)
        self.bias = nn.Parameter(torch.randn(TOKENS * TOKENS, 3))

    def forward(self, x):
        q, k, v = self.a(x)
        bias = self.bias[torch.arange(TOKENS * TOKENS)].view(TOKENS, TOKENS, 3).permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(x), -1, -1, -1))
        return self.narrow(F.gelu(self.wide(x + self.out(y.transpose(1, 2).flatten(2)))))


class Interleaved(Layers):
    """Query, key and value of each head lie side by side."""

    def parts(self, y):
        return y.unflatten(-1, (self.heads, 3 * self.size)).transpose(1, 2).chunk(3, -1)


def interleaved():
    model = Net()
    model.a = Interleaved(3, 4, (3,))
    return model


def encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, 3, 7, batch_first=True)
    return nn.Sequential(layer, nn.Linear(WIDTH, 2))


class TwoAttentions(nn.Module):
    """Two attentions of one class, whose forward holds one number of heads for both, and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 12) for _ in range(6))
        self.outs = nn.ModuleList(nn.Linear(12, WIDTH) for _ in range(2))
        self.wide, self.narrow = nn.Linear(WIDTH, 7), nn.Linear(7, 2)

    def forward(self, x):
        for k, out in enumerate(self.outs):
            q, k, v = (f(x).unflatten(-1, (self.heads, 3)).transpose(1, 2) for f in self.layers[3 * k : 3 * k + 3])
            x = x + out(explicit(q, k, v).transpose(1, 2).flatten(2))
        return self.narrow(self.wide(x).relu())


DENSE = {
    "two attentions with one number": (
        TwoAttentions,
        "TwoAttentions computes something else when heads of layers.5 go",
    ),
    "a forward that knows the width": (lambda: Whole("qkv", "fused", 3, 2), "Whole computes something else when heads"),
    "a bias for each head": (Biased, "the channels of a.layers.0 stay, since .* needs all of them"),
    "values that lie between queries": (interleaved, "the heads of a.layers.0 have values beside what"),
    "an encoder of torch": (encoder, "the channels of 0.self_attn.in_proj_weight stay, since 0.self_attn needs all"),
    "as many heads as a head has entries": (
        lambda: Net("qkv", "fused", 3, 3),
        "Net computes something else when heads of a.layers.0 go",
    ),
    "one head": (lambda: Net("qkv", "fused", 1, 4), "the channels of a.layers.0 stay, since .* needs all of them"),
}


@pytest.mark.parametrize(("make", "reason"), DENSE.values(), ids=DENSE)
def test_heads_that_cannot_go_stay_and_the_rest_is_searched(make, reason):
    model = make()
    units, problems, dense = find_units(model, Example.of(X))
    assert len(units) == 1 and not problems
    assert any(re.search(reason, each) for each in dense), dense
    randomise(model, torch.Generator().manual_seed(0))
    alive = kill(coupled_units(model, X), 0.5, torch.Generator().manual_seed(0))
    assert_removed(model.eval(), units, alive, X)


def block(**options):
    torch.manual_seed(0)
    return Net("qkv", **options)


def test_a_smaller_one_is_stored_and_comes_back(tmp_path):
    model = block(heads=4, size=3)
    with_dead_units(model, X, 0.5)
    small, _ = extract(model, list(X))
    assert small.a.heads < 4
    save_module(small, tmp_path, "tests.test_heads:block", {"heads": 4, "size": 3})
    assert torch.equal(load_module(tmp_path)(X), small(X))


def test_a_network_that_a_search_trains_has_prices_and_becomes_smaller():
    net = TracedNet(block(), Origin("tests.test_heads:block", {}, WIDTH, 0, X))
    assert network.widths(net) == {"a.layers.0": 3, "wide": 7}
    members = net.unit_parameters()["a.layers.0"]
    for p, axis in zip(members, members.axes, strict=True):
        slices(p.data, axis)[1] = 0
    small = network.compacted(net)
    assert network.cost(small, "params") == network.alive_cost(net, "params") == num_parameters(small.module)
    torch.testing.assert_close(small(X), net(X))


def test_a_network_that_lost_its_units_is_one_all_the_same():
    """As many heads as a head has entries are left, which nobody can tell apart."""
    net = TracedNet(block(heads=4, size=3), Origin("tests.test_heads:block", {"heads": 4, "size": 3}, WIDTH, 0, X))
    members = net.unit_parameters()["a.layers.0"]
    for p, axis in zip(members, members.axes, strict=True):
        slices(p.data, axis)[1] = 0
    small = network.compacted(net)
    assert network.widths(small) == {"wide": 7}
    assert network.cost(small, "params") == num_parameters(small.module)
