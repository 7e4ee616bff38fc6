"""Kinds of models that people have, each with the right answer: what is a unit, what stays, what is refused by name."""

import copy
import runpy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.graphs import check
from nas import coupled_units, settle_norms
from nas.analysis import export, extract, topology
from nas.models import load_module, save_module
from nas.models.traced.graph import Example, call
from nas.models.traced.units import find_units
from tests.test_coupled import Net, Net2, assert_removed, conv, kill, named, randomise

X = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


class Remembers(nn.Module):
    """Its forward sets attributes, one of them a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 2)
        self.mean, self.last = torch.rand(1, 3, 1, 1), None

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        self.last = self.a(x - self.mean)
        return self.b(F.gelu(self.last))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.decode.weight = self.code.weight

    def forward(self, x):
        return self.decode(self.b(F.gelu(self.a(self.code(x)))))


def added(m, x):
    y = m.a(x)
    torch.add(y, 1, out=y)
    return m.b(y)


def of_a_slice(m, x):
    y = m.a(x)
    y[:, :2].mul_(3)
    return m.b(y)


def of_what_is_detached(m, x):
    y = m.a(x)
    y.detach().add_(1)
    return m.b(y)


def of_its_input(m, x):
    x.mul_(2)
    return m.b(F.gelu(m.a(x)))


def hooked(register, hook):
    net = nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 2))
    getattr(net[0], register)(hook)
    return net


def frozen():
    net = nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 5), nn.GELU(), conv(5, 2))
    net[0].requires_grad_(False)
    return net


class DropsPaths(nn.Module):
    """Stochastic depth: in training whole examples are left out of a branch."""

    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8).div_(0.8)


@dataclass
class Answer:
    """As models of transformers return it."""

    score: Tensor
    hidden: list[Any] = field(default_factory=list)
    unset: Tensor = field(init=False)


class Standardised(nn.Conv2d):
    """As in Big Transfer."""

    def forward(self, x):
        weight = self.weight
        deviation = weight.std((1, 2, 3), keepdim=True) + 1e-5
        return self._conv_forward(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / deviation, self.bias)


class Normalised(nn.Conv2d):
    """As in timm."""

    def forward(self, x):
        rows = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Residual(nn.Module):
    """A block of residual networks, with another kind of convolution."""

    def __init__(self, kind, width=4):
        super().__init__()
        self.conv1, self.conv2 = kind(width, width, 3, padding=1), kind(width, width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.gelu(x + self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x))))))


def around(model):
    """Ordinary layers in front of a block and behind it, and one that has to fit it."""
    return nn.Sequential(conv(3, 5), nn.GELU(), conv(5, 4), model, conv(4, 6), nn.GELU(), conv(6, 2))


def where(m, x):
    y = m.a(x)
    return m.b(torch.where(y > 0, y, 0.1 * y).masked_fill(y == 0, 0))


def with_zeros(m, y):
    return m.b(y + torch.zeros_like(y))


def standardised(m, x):
    """As in NFNets: a layer whose weight is computed, with a gain for each of its outputs."""
    weight = m.weight.flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) * m.gain.view(-1)[:, None]
    return m.b(m.a(F.conv2d(x, weight.view_as(m.weight))))


A = {"a": ["a.weight", "a.bias"]}
FIRST = {"0": ["0.weight", "0.bias"]}
HEADS = {"first": conv(4, 2), "a": conv(3, 4), "second": conv(4, 3), "unused": conv(2, 2)}
BOTH = {"a": ["a.weight", "a.bias", "c.weight", "c.bias"]}
ADDED = {"a": conv(3, 4), "b": conv(4, 2), "c": conv(3, 4)}
MODELS = {  # the model, its input without the batch axis, its units
    "attributes set in forward": (Remembers(), X, A),
    "torch.relu_": (Net(lambda m, x: m.b(torch.relu_(m.a(x))), a=conv(3, 4), b=conv(4, 2)), X, A),
    "F.leaky_relu_": (Net(lambda m, x: m.b(F.leaky_relu_(m.a(x))), a=conv(3, 4), b=conv(4, 2)), X, A),
    "in place into its input": (Net(of_its_input, a=conv(3, 4), b=conv(4, 2)), X, A),
    "a constant made in forward": (
        Net(lambda m, x: m.b(m.a(x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))), a=conv(3, 4), b=conv(4, 2)),
        X,
        A,
    ),
    "a forward hook": (hooked("register_forward_hook", lambda module, inputs, output: 2 * output), X, FIRST),
    "a hook before": (hooked("register_forward_pre_hook", lambda module, inputs: (inputs[0] + 1,)), X, FIRST),
    "tied weights": (Tied(), torch.rand(8), A),
    "frozen weights": (frozen(), X, {"2": ["2.weight", "2.bias"]}),
    "statistics over all batches": (
        nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, momentum=None), nn.GELU(), conv(4, 2)),
        X,
        {"0": ["0.weight", "0.bias", "1.bias"]},
    ),
    "two heads": (
        Net(lambda m, x: (m.first(F.gelu(m.a(x))), m.second(F.gelu(m.a(x)))), **HEADS),
        X,
        A,
    ),
    "two inputs, and outputs in a dict": (
        Net2(lambda m, x, y: (m.b(F.gelu(m.a(x) + m.c(y))), {"again": m.b(m.c(y))}), **ADDED),
        (X, X.flip(0)),
        BOTH,
    ),
    "keyword inputs, and outputs in a list": (
        Net2(lambda m, x, y: [m.b(F.gelu(m.a(x) + m.c(y)))], **ADDED),
        {"x": X, "y": X.flip(0)},
        BOTH,
    ),
    "a dataclass": (
        Net(lambda m, x: Answer(m.b(F.gelu(m.a(x))), [Answer(m.b(m.a(x)))]), a=conv(3, 4), b=conv(4, 2)),
        X,
        A,
    ),
    "stochastic depth": (
        Net(lambda m, x: m.b(m.drop(m.a(x)) + m.c(x)), drop=DropsPaths(), **ADDED),
        X,
        {"a": ["a.weight", "a.bias", "c.weight", "c.bias"]},
    ),
    "zeros like another tensor": (
        Net(lambda m, x: with_zeros(m, m.a(x)), a=conv(3, 4), b=conv(4, 2)),
        X,
        A,
    ),
    "conditions": (Net(where, a=conv(3, 4), b=conv(4, 2)), X, A),
    "a cast to single precision": (Net(lambda m, x: m.b(F.gelu(m.a(x.float()))), a=conv(3, 4), b=conv(4, 2)), X, A),
}
STAY = {  # what is said, where all layers stay
    "out=": (Net(added, a=conv(3, 4), b=conv(4, 2)), X, None),
    "in place on a slice": (Net(of_a_slice, a=conv(3, 4), b=conv(4, 2)), X, "a in place is a layer that is not"),
    "in place on what is detached": (
        Net(of_what_is_detached, a=conv(3, 4), b=conv(4, 2)),
        X,
        "a in place is a layer that is not understood",
    ),
    "pooling along features": (
        nn.Sequential(nn.Linear(5, 6), nn.MaxPool1d(3, 1, 1), nn.Linear(6, 2)),
        torch.rand(5),
        "the channels of 0 meet 1, which is not understood",
    ),
    "a layer's own size": (
        Net(lambda m, x: m.b(m.a(x) * m.a.out_channels**-0.5), a=conv(3, 4), b=conv(4, 2)),
        X,
        "Net computes something else when channels of a go",
    ),
    "a layer's own size, though it hardly matters": (
        Net(lambda m, x: m.b(m.a(x) * (1 + 1e-4 * m.a.out_channels)), a=conv(3, 4), b=conv(4, 2)),
        X,
        "Net computes something else when channels of a go",
    ),
    "a weight that is computed without a module": (
        Net(
            standardised,
            a=conv(4, 4),
            b=conv(4, 2),
            weight=nn.Parameter(torch.ones(4, 3, 1, 1)),
            gain=nn.Parameter(torch.ones(4, 1, 1, 1)),
        ),
        X,
        None,
    ),
    "sizes in stock": (
        Net(lambda m, x: m.b(m.a(x).view(-1, 4, 64).mul(2).view(-1, 4, 8, 8)), a=conv(3, 4), b=conv(4, 2)),
        X,
        "Net computes something else when channels of a go",
    ),
    "sizes in stock behind a transposed layer without a bias": (
        Net(
            lambda m, x: m.b(m.a(x).view(-1, 4, 64).mul(2).view(-1, 4, 8, 8)),
            a=nn.ConvTranspose2d(3, 4, 1, bias=False),
            b=conv(4, 2),
        ),
        X,
        "Net computes something else when channels of a go",
    ),
    "a vector for a matrix": (
        Net(lambda m, x: m.b(m.a(x) * F.linear(m.a(x), m.w)[..., None]), a=conv(3, 4), b=conv(4, 2), w=conv(1, 8).bias),
        X,
        "the channels of a meet linear, which is not understood",
    ),
    "a layer's own vector": (
        Net(lambda m, x: m.b(m.a(x) + m.a.bias.mean()), a=conv(3, 4), b=conv(4, 2)),
        X,
        "the channels of a meet mean, which is not understood",
    ),
    "a normalisation without a shift before a border": (
        nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), nn.GELU(), conv(4, 2, 3, padding=1)),
        X,
        "the channels of 0 are not zero behind 1 when their weights are, and 3 sees it",
    ),
    "a constant before a matrix without a bias": (
        Net(lambda m, x: m.b(x) + F.conv2d(m.a(x).sigmoid(), m.w), a=conv(3, 4), b=conv(3, 2), w=conv(4, 2).weight),
        X,
        "the channels of a are not zero behind sigmoid when their weights are, and conv2d sees it",
    ),
    "a constant before a bias that is read elsewhere": (
        Net(lambda m, x: m.b(m.a(x).sigmoid()) * m.b.bias.sum(), a=conv(3, 4), b=conv(4, 2)),
        X,
        "the channels of a are not zero behind sigmoid when their weights are, and b sees it",
    ),
    "a normalisation without a shift before a layer that is used twice": (
        Net(
            lambda m, x: m.c(m.b(m.norm(m.b(m.norm(m.a(x)))))),
            a=conv(3, 4),
            norm=nn.BatchNorm2d(4, affine=False),
            b=nn.Conv2d(4, 4, 1, bias=False),
            c=conv(4, 2),
        ),
        X,
        "the channels of a are not zero behind norm when their weights are, and b sees it",
    ),
    "weights that are standardised": (
        around(Residual(Standardised)),
        X,
        "conv2d in 3.conv1 is a layer whose weight is computed from another one, 3.conv1.weight",
    ),
    "weights that are normalised": (
        around(Residual(Normalised)),
        X,
        "conv2d in 3.conv1 is a layer whose weight is computed from another one, 3.conv1.weight",
    ),
    "a weight that is computed": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 4)), nn.GELU(), conv(4, 2)),
        X,
        "0 is a layer whose weight is computed from another one, 0.parametrizations.weight.original1",
    ),
}


def batch_of(given):
    if isinstance(given, dict):
        return {name: batch_of(x) for name, x in given.items()}
    return tuple(map(batch_of, given)) if isinstance(given, tuple) else torch.stack([given, given / 2])


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("model", "given", "units"), MODELS.values(), ids=MODELS)
def test_units_of_this_kind_are_found_and_removed(model, given, units):
    randomise(model, torch.Generator().manual_seed(0))
    before = copy.deepcopy(given)
    found = coupled_units(model, batch_of(given))
    assert named(model, found) == units
    alive = kill(found, 0.7, torch.Generator().manual_seed(0))
    settle_norms(model, found)
    small, certificate = extract(model, [given])
    assert certificate.holds
    held = dict(small.named_parameters(remove_duplicate=False))
    for layer, members in units.items():
        assert {len(held[name]) for name in members} == {int(alive[layer].sum())} != {len(found[layer][0])}
    assert str(given) == str(before)
    assert all(not isinstance(value, torch.fx.Proxy) for value in vars(small).values())


@pytest.mark.parametrize(("model", "given", "message"), STAY.values(), ids=STAY)
def test_layers_of_this_kind_stay_and_the_function_is_the_same(model, given, message):
    randomise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[:4] = 0
    if message is not None:
        with pytest.raises(ValueError, match=message):
            coupled_units(model, batch_of(given))
    small, certificate = extract(model, [given])
    assert certificate.holds
    assert size(small) <= size(model)


@pytest.mark.parametrize("kind", [Standardised, Normalised])
def test_beside_layers_whose_weights_are_computed_others_are_searched(kind):
    model = around(Residual(kind))
    units = coupled_units(model, batch_of(X), strict=False)
    assert named(model, units) == {"0": ["0.weight", "0.bias"], "4": ["4.weight", "4.bias"]}
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    assert_removed(model, units, alive, batch_of(X))


def test_frozen_layers_are_named():
    model = nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 5), nn.BatchNorm2d(5), nn.GELU(), conv(5, 2))
    model[0].weight.requires_grad_(False)
    assert named(model, coupled_units(model, batch_of(X))) == {"2": ["2.weight", "2.bias", "3.bias"]}
    _, problems, dense = find_units(model, Example.of(batch_of(X)))
    assert (problems, dense) == ([], ["the channels of 0 stay, since 0.weight is frozen"])
    model[2].bias.requires_grad_(False)
    for strict in (True, False):
        with pytest.raises(ValueError, match="has no layer .*: the channels of 0 stay, since 0.weight is frozen"):
            coupled_units(model, batch_of(X), strict=strict)


class Text(nn.Module):
    """Words and their places, embedded in a trunk; scores of words by the same matrix."""

    def __init__(self, words=11, width=8):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width, padding_idx=0), nn.Embedding(5, width)
        self.wide, self.narrow = nn.Linear(width, 7), nn.Linear(7, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(x + self.narrow(F.gelu(self.wide(x))))


@pytest.mark.parametrize("strict", [True, False])
def test_columns_of_embeddings_are_units(strict, tmp_path):
    torch.manual_seed(0)
    model, tokens = Text(), torch.tensor([[1, 4, 0, 10, 3], [2, 2, 7, 0, 0]])
    units = coupled_units(model, tokens, strict=strict)
    assert named(model, units) == {
        "words": ["words.weight", "places.weight", "narrow.weight", "narrow.bias"],
        "wide": ["wide.weight", "wide.bias"],
    }
    assert units["words"].axes == [1, 1, 0, 0]
    kill(units, 0.5, torch.Generator().manual_seed(0))
    small, certificate = extract(model, list(tokens))
    width = small.wide.in_features
    assert certificate.holds and certificate.max_abs_float64 < 1e-12 and width < 8
    assert small.head.weight is small.words.weight and small.words.weight.shape == (11, width)
    assert (small.words.num_embeddings, small.words.embedding_dim, small.places.embedding_dim) == (11, width, width)
    save_module(small, tmp_path, "tests.test_kinds:Text")
    assert torch.equal(load_module(tmp_path)(tokens), small(tokens))


def test_rows_of_embeddings_stay_also_where_they_are_zero_and_no_example_has_them():
    words = nn.Embedding(6, 4)
    model, tokens = nn.Sequential(words, nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)), torch.tensor([[1, 2], [3, 0]])
    with torch.no_grad():
        words.weight[:, 1] = words.weight[5] = 0
    small, certificate = extract(model, list(tokens))
    assert certificate.holds and small[0].weight.shape == (6, 3)


def test_an_embedding_that_keeps_its_norms_stays():
    model = nn.Sequential(nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
    tokens = torch.tensor([[1, 4], [2, 0]])
    with pytest.raises(ValueError, match="the channels of 0 meet 0 in place, which is not understood"):
        coupled_units(model, tokens)
    for refuse in (lambda: coupled_units(model, tokens, strict=False), lambda: extract(model, list(tokens))):
        with pytest.raises(ValueError, match="Sequential changes its own weights while it computes, such as 0.weight"):
            refuse()
    model(tokens)
    units = coupled_units(model, tokens, strict=False)
    assert named(model, units) == {"1": ["1.weight", "1.bias"]}
    alive = kill(units, 0.5, torch.Generator().manual_seed(0))
    assert_removed(model, units, alive, tokens)


class Late(nn.Module):
    """Its forward makes what it lacks."""

    def __init__(self, lacks):
        super().__init__()
        self.a, self.b, self.lacks = conv(3, 4), conv(4, 2), lacks

    def forward(self, x):
        y = self.a(x)
        if self.lacks == "scale" and not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
        if self.lacks == "layer" and not hasattr(self, "layer"):
            self.layer = conv(4, 4)
        return self.b(y * self.scale if self.lacks == "scale" else self.layer(y))


@pytest.mark.parametrize(("lacks", "name"), [("scale", "scale"), ("layer", "layer.weight")])
def test_a_module_whose_first_forward_makes_parameters_has_to_run_before(lacks, name):
    model = Late(lacks)
    message = f"^Late makes parameters in its first forward, such as {name}; run one batch first$"
    for attempt in (coupled_units, lambda net, x: extract(net, [x[0]]), lambda net, x: topology(net, inputs=x)):
        with pytest.raises(ValueError, match=message):
            attempt(model, batch_of(X))
    model(batch_of(X))
    assert "a" in coupled_units(model, batch_of(X))


def test_weights_that_are_not_finite_are_no_changed_ones():
    model = Net(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 2))
    model.a.weight.data[0] = torch.nan
    assert "a" in coupled_units(model, batch_of(X))


def test_dataclasses_are_compared_and_exported(tmp_path):
    model, x = Net(lambda m, x: Answer(m.b(m.a(x)), [m.c(x)]), a=conv(3, 4), b=conv(4, 2), c=conv(3, 2)), batch_of(X)
    assert [y.shape for y in call(model, Example.of(x))] == [(2, 2, 8, 8)] * 2
    export(model, tmp_path / "net.py", "python", inputs=x)
    y = runpy.run_path(str(tmp_path / "net.py"))["load"](tmp_path / "net.safetensors")(x)
    torch.testing.assert_close(y, (model(x).score, *model(x).hidden))


def test_a_layer_that_is_not_used_stays_as_it_is():
    net = Net(lambda m, x: m.b(m.a(x) * m.unused.out_channels), a=conv(3, 4), b=conv(4, 2), unused=conv(2, 5))
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, 0
    small, certificate = extract(net, [X])
    assert certificate.holds and small.a.out_channels == 3
    assert torch.equal(small.unused.weight, net.unused.weight)


class Auxiliary(nn.Module):
    """A second head, for training alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 2)
        self.head = nn.Sequential(conv(4, 5), nn.BatchNorm2d(5), nn.GELU(), conv(5, 2))
        self.c, self.d = conv(3, 4), conv(4, 2)

    def forward(self, x):
        y, z = F.gelu(self.a(x)), F.gelu(self.c(x))
        result = self.b(y) + self.d(z)
        return (result, self.head(y + z)) if self.training else result


def test_layers_for_training_alone_follow_what_they_read():
    torch.manual_seed(0)
    net = Auxiliary().double()
    units = coupled_units(net, torch.stack([X, X.flip(0)]).double())
    for p in units["a"]:
        p.data[:3] = 0
    small, certificate = extract(net, [X.double()])
    assert certificate.holds and small.a.out_channels == small.c.out_channels == small.head[0].in_channels == 1
    x = torch.rand(4, *X.shape, dtype=torch.float64)
    for y, z in zip(net.train()(x), small.train()(x), strict=True):
        torch.testing.assert_close(z, y)


@pytest.mark.parametrize("factor", [1j, 2.0 + 1j])
def test_a_complex_number_is_not_taken_for_its_real_part(factor):
    number = nn.Parameter(torch.tensor([factor]))
    net = Net(lambda m, x: m.b((m.a(x) * m.number).imag), a=conv(3, 4), b=conv(4, 2), number=number)
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, 0
    small, certificate = extract(net, [X])
    assert certificate.holds
    torch.testing.assert_close(small(X[None]), net(X[None]))


def test_of_layers_whose_sizes_a_forward_reads_the_others_still_lose_channels():
    layers = {name: conv(3, 4) for name in "abcdef"}

    def added(m, x):
        y = torch.cat([F.gelu(getattr(m, name)(x)) for name in "abcdef"], 1)
        return m.last(m.narrow(y) * (m.b.out_channels + 1e-3 * m.e.out_channels))

    net = Net(lambda m, x: added(m, x), narrow=conv(24, 4), last=conv(4, 2), **layers)
    with torch.no_grad():
        for name in "abcdef":
            getattr(net, name).weight[:2], getattr(net, name).bias[:2] = 0, 0
    small, certificate = extract(net, [X])
    assert certificate.holds
    assert [getattr(small, name).out_channels for name in "abcdef"] == [2, 4, 2, 2, 4, 2]


@pytest.mark.filterwarnings("ignore")
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_extraction_of_random_graphs_is_exact_or_refused(seed):
    assert check(seed) in ("units", "no unit", "not finite", "untraceable")


def test_ties_memory_format_and_training_mode_are_kept():
    small, _ = extract(Tied().train(), [torch.rand(8)])
    assert small.decode.weight is small.code.weight and small.training
    net = nn.Sequential(conv(3, 4, 3), nn.Dropout().eval(), conv(4, 2, 3)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 0
    small, _ = extract(net, [X])
    assert small[0].out_channels == 3 and small[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert small[0].training and not small[1].training


def test_a_cast_is_certified_in_the_precision_it_has():
    _, certificate = extract(Net(lambda m, x: m.b(m.a(x.float())), a=conv(3, 4), b=conv(4, 2)), [X])
    assert certificate.holds and certificate.tolerance_float64 == 1e-5


def test_wrappers_are_taken_off():
    net = nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 2))
    for wrapped in (torch.compile(net, backend="eager"), nn.DataParallel(net)):
        assert [p is q for p, q in zip(coupled_units(wrapped, X[None])["0"], net[0].parameters(), strict=True)]
        assert type(extract(wrapped, [X])[0]) is nn.Sequential


@pytest.mark.parametrize("inputs", [X.numpy(), "text", 3])
def test_what_is_no_batch_is_named(inputs):
    with pytest.raises(ValueError, match=f"inputs must be a tensor, .*, got {type(inputs).__name__}"):
        coupled_units(nn.Sequential(conv(3, 4), nn.GELU(), conv(4, 2)), inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_cannot_be_traced():
    for attempt in (lambda net: coupled_units(net, X[None]), lambda net: extract(net, [X])):
        with pytest.raises(ValueError, match="torch.export cannot trace RecursiveScriptModule: Exporting a Script"):
            attempt(torch.jit.script(nn.Linear(8, 2)))


LAZY = nn.Sequential(nn.LazyConv2d(4, 1), nn.GELU(), conv(4, 2))


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (LAZY, X, "Sequential has parameters without a shape; run one batch first"),
        (nn.Sequential(conv(3, 4), conv(4, 2)), X[0], r"Sequential cannot compute inputs of float32 \(1, 8, 8\)"),
        (nn.Linear(3, 2), torch.zeros(3, dtype=torch.long), r"Linear cannot compute inputs of int64 \(1, 3\)"),
        (Net(lambda m, x: "text", a=conv(3, 4)), X, "Net returns no tensor, but str"),
        (Net(lambda m, x: x if x.sum() > 0 else -x), X, "torch.export cannot trace Net: Could not guard on data-dep"),
        (
            Net(lambda m, x: (y := m.a(x))[y > 0], a=conv(3, 4)),
            X,
            "Net makes tensors whose sizes depend on the numbers that it is given",
        ),
    ],
)
def test_what_cannot_be_run_or_traced_is_refused_in_one_line(model, x, message, capfd):
    for attempt in (lambda: extract(model, [x]), lambda: coupled_units(model, x[None])):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
