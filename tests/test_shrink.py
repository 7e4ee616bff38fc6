"""Any module zeroed by anybody: the smaller copy computes the same function, and says what it did."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from nas.analysis import describe_changes, extract
from nas.analysis.extraction.shrink import shrink
from nas.models.traced.graph import Example
from nas.models.traced.shrink import shrunk
from nas.search.data.vision import import_torchvision


class Residual(nn.Module):
    """Two branches summed with an identity skip, then a projection."""

    def __init__(self, width=6, norm=True, padding=1):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=padding)
        self.one = nn.Conv2d(width, width + 2, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(width + 2) if norm else nn.Identity()
        self.two = nn.Conv2d(width + 2, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.two(torch.relu(self.norm(self.one(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads the concatenation of the raw input and all layers before."""

    def __init__(self, widths=(5, 4, 3)):
        super().__init__()
        self.layers = nn.ModuleList()
        total = 6
        for width in widths:
            self.layers.append(nn.Linear(total, width))
            total += width
        self.head = nn.Linear(total, 2)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x).tanh()], dim=1)
        return self.head(x)


class ScalarSkip(nn.Module):
    """Skips with learned scalar gates."""

    def __init__(self, width=7):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.gates = nn.Parameter(torch.tensor([0.5, -0.3]))

    def forward(self, x):
        a = torch.relu(self.one(x))
        b = torch.relu(self.two(a)) + self.gates[0] * a
        return self.head(b + 2.0 * a)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, pooling, a flatten before the classifier."""

    def __init__(self, padding=1):
        super().__init__()
        self.depth = nn.Conv2d(4, 4, 3, padding=padding, groups=4)
        self.point = nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=padding, groups=6, bias=False)
        self.pool = nn.MaxPool2d(2)
        side = (8 - 2 * 2 * (1 - padding)) // 2
        self.head = nn.Sequential(nn.Linear(6 * side * side, 10), nn.LeakyReLU(), nn.Dropout(), nn.Linear(10, 3))

    def forward(self, x):
        x = self.norm(self.point(torch.nn.functional.silu(self.depth(x))))
        x = self.pool(self.again(x.relu()))
        return self.head(x.view(x.size(0), -1))


def vgg(padding=1, norm=True, pool=nn.AvgPool2d):
    layers, width = [], 3
    for out in (6, 8):
        layers += [nn.Conv2d(width, out, 3, padding=padding), nn.BatchNorm2d(out) if norm else nn.Identity()]
        layers += [nn.ReLU(inplace=True), pool(2)]
        width = out
    side = {1: 2, 0: 1}[padding]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * side * side, 9), nn.ReLU(), nn.Linear(9, 4))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.Sigmoid(), nn.Linear(8, 3)), (6,)),
    "vgg": (vgg, (3, 8, 8)),
    "vgg without padding": (lambda: vgg(0), (3, 10, 10)),
    "vgg without norm": (lambda: vgg(1, False, nn.MaxPool2d), (3, 8, 8)),
    "residual": (Residual, (3, 6, 6)),
    "residual without norm": (lambda: Residual(norm=False, padding=0), (3, 6, 6)),
    "dense": (Dense, (6,)),
    "scalar skips": (ScalarSkip, (5,)),
    "separable": (Separable, (4, 8, 8)),
    "separable without padding": (lambda: Separable(0), (4, 8, 8)),
}


@torch.no_grad()
def zero_at_random(model, part, bias, generator):
    """Dead rows, dead columns, dead entries; biases and shifts of dead rows zeroed or left alone."""

    def some(n):
        return torch.rand(n, generator=generator) < part

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            rows = some(len(module.weight))
            module.weight[rows] = 0
            module.weight[:, some(module.weight.shape[1])] = 0
            if module.bias is not None and bias:
                module.bias[rows] = 0
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.copy_(torch.rand(len(tensor), generator=generator) + 0.5)
            module.weight[some(len(module.weight))] = 0
            module.bias[some(len(module.bias))] = 0


def differences(model, shape):
    """Largest relative difference to the smaller copy, in double and in single precision."""
    _, removal, _ = shrunk(model, Example.of(torch.randn(2, *shape)))
    found = []
    for dtype in (torch.float64, torch.float32):
        full = copy.deepcopy(model).eval().to(dtype)
        small = removal.applied_to(full)
        x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            y, z = full(x), small(x)
        found.append(((y - z).abs().max() / max(1, y.abs().max())).item())
    return found


def assert_same_function(model, shape):
    double, single = differences(model, shape)
    assert double <= 1e-10
    assert single <= 1e-5


def widths(found):
    """Channels before and after, of every module that was looked into."""
    return {each.node: (each.total, each.kept) for each in found}


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)
@given(seed=st.integers(0, 10**6), part=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), bias=st.booleans())
@settings(max_examples=3)
def test_the_smaller_copy_computes_the_same(make, shape, seed, part, bias):
    torch.manual_seed(seed)
    model = make()
    zero_at_random(model, part, bias, torch.Generator().manual_seed(seed))
    before = copy.deepcopy(model.state_dict())
    small, found = shrink(model, torch.randn(2, *shape))
    assert_same_function(model, shape)
    assert sum(each.kept for each in found) <= sum(each.total for each in found)
    assert all(each.total == each.kept + sum(map(len, each.removed.values())) for each in found)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.training
    again, _ = shrink(small, torch.randn(2, *shape))
    assert size(again) == size(small)  # nothing is left to remove


def zero(model, name, *channels):
    with torch.no_grad():
        module = model.get_submodule(name)
        module.weight[list(channels)] = 0
        if module.bias is not None:
            module.bias[list(channels)] = 0


def test_a_dead_neuron_goes_with_its_column():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    zero(model, "0", 1, 3)
    small, found = shrink(model, torch.randn(2, 4))
    assert widths(found) == {"0": (5, 3), "2": (2, 2)}
    assert small[0].out_features == small[2].in_features == 3
    assert found[0].removed == {"zero": (1, 3)}


def test_a_free_bias_is_folded_T26():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    values = [[[0.0, 0], [1, -1]], [0.5, 0], [[2.0, 1]], [-1.0]]
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(torch.tensor(value))
    small, found = shrink(model, torch.randn(2, 2))
    assert small(torch.tensor([[0.3, 0.1]])).item() == pytest.approx(0.2)
    assert found[0].removed == {"constant, folded into biases": (0,)}
    assert small[0].weight.tolist() == [[1, -1]]


def test_what_nobody_reads_goes_to_the_fixpoint():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[4].weight[:, 2:] = 0  # four units of the second layer are read by nobody
        model[2].weight[:2, 1:] = 0  # and then four of the first
    small, found = shrink(model, torch.randn(2, 4))
    assert widths(found) == {"0": (5, 1), "2": (6, 2), "4": (2, 2)}
    assert [tuple(small[k].weight.shape) for k in (0, 2, 4)] == [(1, 4), (2, 1), (2, 2)]
    assert found[1].removed == {"read by nobody": (2, 3, 4, 5)}


def test_a_constant_into_a_padded_convolution_stays_and_is_named():
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = 1.0
    small, found = shrink(model, torch.randn(1, 1, 5, 5))
    assert size(small) == size(model)
    assert found[0].kept_because == {"constant into a zero-padded convolution": (0,)}
    model[2].padding = (0, 0)
    small, found = shrink(model, torch.randn(1, 1, 5, 5))
    assert small[0].out_channels == 2
    assert found[0].removed == {"constant, folded into biases": (0,)}


def test_a_sum_keeps_what_any_summand_needs():
    model = Residual(norm=False)
    zero(model, "stem", 0, 1)
    zero(model, "two", 1, 2)
    _, found = shrink(model, torch.randn(1, 3, 6, 6))
    assert widths(found)["stem"] == widths(found)["two"] == (6, 5)  # only channel 1 is dead in both


def test_gates_are_scalars_that_pass_channels_on():
    model = ScalarSkip()
    zero(model, "one", 0, 1, 2)
    zero(model, "two", 0, 1, 5)
    small, found = shrink(model, torch.randn(2, 5))
    assert widths(found)["one"] == widths(found)["two"] == (7, 5)  # 0 and 1 are dead in both summands
    assert_same_function(model, (5,))
    assert small.head.in_features == 5


def test_an_unknown_operation_keeps_what_it_sees_and_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.two(torch.cumsum(self.one(x), dim=1))

    model = Odd()
    zero(model, "one", 1)
    small, found = shrink(model, torch.randn(2, 4))
    assert size(small) == size(model)
    assert found[-1].node == "cumsum"
    assert found[-1].kept_because == {"unknown operation": (0, 1, 2, 3, 4)}
    assert_same_function(model, (4,))


def test_a_layer_that_dies_altogether_keeps_one_channel():
    model = vgg(norm=False)
    zero(model, "4", *range(8))
    _, found = shrink(model, torch.randn(1, 3, 8, 8))
    assert widths(found)["4"] == (8, 1)
    assert_same_function(model, (3, 8, 8))


def test_weights_zeroed_by_torch_pruning():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
    prune.remove(model[0], "weight")
    small, found = shrink(model, torch.randn(2, 6))
    assert small[0].out_features == 4
    assert sum(map(len, found[0].removed.values())) == 4  # their biases are folded where they are positive
    assert_same_function(model, (6,))


def test_reused_modules_and_changes_in_place():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.relu = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.one(self.one(x))
            y = self.relu(x)
            return self.two(y + x)

    model = Twice()
    zero(model, "one", 2)
    with torch.no_grad():
        model.one.bias[2] = -1.0
    assert_same_function(model, (4,))


class Scaled(nn.Module):
    """Scaled by its width, which a normalisation over a batch hides but for its epsilon; its mean over the batch hides
    even that."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.one = nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = F.batch_norm(x * len(self.a.weight) ** -0.5, None, None, self.one, training=True)
        return self.b(self.a(x)).sum((2, 3)) + y.sum((1, 2, 3))[:, None]


def test_what_one_example_hides_others_show():
    torch.manual_seed(0)
    model = Scaled()
    with torch.no_grad():
        model.a.weight[1:], model.a.bias[1:] = 0, 0
    small, certificate = extract(model, [torch.randn(3, 5, 5)])
    assert certificate.holds and small.a.out_channels == 4


def test_a_model_that_cannot_be_traced_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(
        ValueError, match="torch.export cannot trace Branch: Could not guard on data-dependent expression"
    ):
        shrink(Branch(), torch.randn(2, 2))


@pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)
def test_extraction_certifies_any_module(make, shape):
    torch.manual_seed(0)
    model = make()
    zero_at_random(model, 0.4, False, torch.Generator().manual_seed(0))
    small, certificate = extract(model, [torch.randn(shape), torch.randn(shape)])
    assert type(small) is type(model)
    assert certificate.holds
    assert certificate.max_abs_float64 <= 1e-10 * max(1, certificate.max_output)
    assert (certificate.num_random, certificate.num_given) == (4, 2)
    assert certificate.hashes["supernet"] != certificate.hashes["compact"]
    assert "units" in describe_changes(certificate.changes)
    json.dumps(certificate.to_dict())


def test_extraction_of_any_module_needs_an_input():
    with pytest.raises(ValueError, match="Linear is no DagNet; give one input at least, to know its shape"):
        extract(nn.Linear(2, 2))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.conv(x).relu(), 2, divisor_override=3)  # a sum, not a mean
        x = F.dropout(x, 0.5, self.training).flatten(1)
        return self.head(x)


class Upsampling(nn.Module):
    """Sizes of positions are asked for, the number of channels is not."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 3, 1, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        batch, _, height, width = x.shape
        y = F.interpolate(self.down(x).relu(), size=(height, width))
        y = F.interpolate(self.up(y), size=y.shape[-2:])
        return self.head(y).view(batch, -1)


def test_sizes_of_positions_may_be_asked_for():
    torch.manual_seed(0)
    model = Upsampling()
    zero(model, "down", 1, 2)
    zero(model, "up", 0)
    _, found = shrink(model, torch.randn(2, 3, 6, 6))
    assert widths(found) == {"down": (6, 4), "up": (5, 4), "head": (2, 2)}
    assert_same_function(model, (3, 6, 6))


def test_a_change_in_place_of_a_view_is_seen():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Linear(16, 2), nn.Conv2d(4, 2, 2)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.one(x)
            return self.two(self.relu(x.flatten(1))) + self.three(x).flatten(1)  # the convolution sees no negative x

    model = View()
    zero(model, "one", 2)
    with torch.no_grad():
        model.one.bias[2] = -1.0
    _, found = shrink(model, torch.randn(2, 3, 2, 2))
    assert found[-1].node == "flatten in place"
    assert_same_function(model, (3, 2, 2))


def test_a_pool_that_sums_and_a_dropout_that_sleeps():
    torch.manual_seed(0)
    model = Functional()
    with torch.no_grad():
        model.conv.weight[:3] = 0
        model.conv.bias[:3] = torch.tensor([0.5, 0.0, -1.0])
    small, _ = shrink(model, torch.randn(2, 2, 4, 4))
    assert small.conv.out_channels == 3  # the constant 0.5 is summed to 2/3, which the bias of the head takes up
    assert_same_function(model, (2, 4, 4))


def test_weights_that_are_computed_are_left_alone():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight[:, :3] = 0
    nn.utils.parametrizations.weight_norm(model[0])
    small, found = shrink(model, torch.randn(2, 6))
    assert small[0].weight.shape == (8, 6)
    assert set(found[-1].kept_because) == {"unknown operation"}
    prune.ln_structured(model[2], "weight", amount=0.5, n=2, dim=0)  # a mask, not removed yet
    with pytest.raises(ValueError, match="Sequential cannot be copied, .* as torch.nn.utils.prune.remove does"):
        shrink(model, torch.randn(2, 6))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "squeezenet1_0", "efficientnet_b0"])
def test_the_classics(name):
    """As torchvision builds them: residual sums, depthwise convolutions, concatenations, squeeze and excitation."""
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=10)
    zero_at_random(model, 0.3, False, torch.Generator().manual_seed(0))
    small, certificate = extract(model, [torch.rand(3, 64, 64)])
    assert certificate.holds
    assert size(small) < 0.7 * size(model)
