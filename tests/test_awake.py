"""What is awake in a module of somebody else, trained instead of the whole: the same steps, and nothing is lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import AdaBreg, LinBreg, param_groups, sparse_start
from nas.groups import join_rows
from nas.models import network
from nas.models.network import num_params
from nas.models.traced.network import Origin, TracedNet
from nas.parts import alive_entries
from nas.search import search
from nas.search.training.coarse import CoarseLevel
from tests.test_coarse import on_the_whole, step
from tests.test_own_models import Classifier, Kinds, Squeezed, UNet, traced


class Residual(nn.Module):
    """Depthwise and pointwise layers beside a trunk, normalised, with weights used twice."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.space = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.wide, self.norm = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, x):
        y = self.first(x)
        for _ in range(2):
            y = y + self.narrow(F.gelu(self.norm(self.wide(self.space(y)))))
        return x - self.last(y)


class Dropped(nn.Module):
    """Random numbers are drawn for each of the channels of the second layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(n, m, 3, padding=1) for n, m in ((1, 6), (6, 6), (6, 1)))

    def forward(self, x):
        return self.three(F.dropout(F.gelu(self.two(F.gelu(self.one(x)))), 0.5, self.training))


class Gated(nn.Module):
    """Gates and grouped convolutions: units of several rows, of which some have the rows of one factor."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.both, self.depth = (
            nn.Conv2d(width, 2 * width, 1),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width),
        )
        self.wide, self.groups = nn.Conv2d(width, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=8)
        self.one, self.two = nn.Conv2d(width, width, 1), nn.Conv2d(16, width, 1)

    def forward(self, x):
        y = self.first(x)
        a, b = self.depth(self.both(y)).chunk(2, 1)
        y = y + self.one(a * b)
        return x - self.last(y + self.two(F.gelu(self.groups(F.gelu(self.wide(y))))))


MODULES = {"residual": Residual, "U-Net": UNet, "attention": Squeezed, "gates": Gated, "kinds": Kinds}
SILENT = {
    "gates": {"first", "both", "wide"},
    "residual": {"first", "wide"},
    "U-Net": {"down.0", "down.1", "down.2", "up.0", "up.1"},
    "attention": {"first"},
    "kinds": {"first", "gated", "matrix"},
}


def started(make, maker=AdaBreg):
    """A module and an optimiser after some steps, in which little is alive."""
    torch.manual_seed(0)
    example = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    net = TracedNet(make().double(), Origin("", {}, 1, 0, example)).train()
    sparse_start(net, 0.3)
    lam, lr = (0.02, 0.002) if maker is LinBreg else (0.015, 0.002)
    optimizer = maker(param_groups(net, lam=lam, lr=lr))
    x, y = torch.rand(2, 4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        step(net, optimizer, x, y)
    return net, optimizer, x, y


class Transposed(nn.Module):
    """Units along the second axis of weights, too."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        return x - self.last(F.gelu(self.up(F.gelu(self.down(x)))))


def by_groups(groups):
    return AdaBreg(groups, second_moment="group")


@pytest.mark.parametrize(
    ("name", "maker"),
    [*((name, maker) for name in MODULES for maker in (AdaBreg, LinBreg)), ("transposed", by_groups)],
)
def test_coarse_steps_are_those_of_the_whole_on_what_is_awake(name, maker):
    net, optimizer, x, y = started({**MODULES, "transposed": Transposed}[name], maker)
    dense, whole = copy.deepcopy((net, optimizer))
    on_the_whole(dense, whole, x, y, 3)
    level = CoarseLevel(net, optimizer)
    assert num_params(level.net) < 0.7 * num_params(net)
    for _ in range(3):
        step(level.net, level.optimizer, x, y)
    level.take_back()
    for p, other in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(
            p, other, rtol=0, atol=1e-10
        )  # AdaBreg magnifies the round-off of biases before norms
    network.settle(net), network.settle(dense)
    torch.testing.assert_close(net.eval()(x), dense.eval()(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODULES)
def test_layers_of_which_a_sleeping_unit_is_nothing(name):
    net = started(MODULES[name])[0]
    net.searched.awake(net.module, net.origin.example)
    assert set(net.searched._silent) == SILENT[name]


def test_what_random_numbers_are_drawn_for_stays():
    net, optimizer, x, _ = started(Dropped)
    level = CoarseLevel(net, optimizer)
    assert net.searched._silent == ["one"]
    assert level.net.module.two.out_channels == 6 and level.net.module.one.out_channels < 6
    outputs = []
    for each in (net, level.net):
        torch.manual_seed(3)
        outputs.append(each(x))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_the_inner_network_trained_is_the_whole_trained(name):
    net, _, x, y = started(MODULES[name])
    small, units = network.inner(net)
    assert num_params(small) < 0.7 * num_params(net)
    assert {layer: len(each) for layer, each in units.items()} == network.widths(small)
    before = net(x)
    torch.testing.assert_close(small.train()(x), before, rtol=0, atol=1e-12)
    with torch.no_grad():
        for members in small.unit_parameters().values():
            for p in members:
                p.add_(0.1)
    again = network.within(small, units, net)
    torch.testing.assert_close(again.train()(x), small(x), rtol=0, atol=1e-12)
    assert torch.equal(net(x), before)
    for layer, members in again.unit_parameters().items():
        alive = join_rows(members, members.axes).ne(0).any(dim=1)
        assert alive.nonzero()[:, 0].tolist() == units[layer].tolist()


@pytest.mark.parametrize("stop", [8, 9, 10])  # after a full step, and within coarse ones
def test_a_search_goes_on_bit_for_bit_within_coarse_steps(stop):
    def begun(on_step=lambda: None):
        net, optimizer, *_ = started(Residual)

        def batches(epoch):
            generator = torch.Generator().manual_seed(epoch)
            return (tuple(torch.rand(2, 4, 1, 16, 16, dtype=torch.float64, generator=generator)) for _ in range(8))

        return net, search(net, batches, optimizer, F.mse_loss, on_step=on_step, coarse=3)

    class Enough(Exception):
        pass

    count, states = 0, []

    def counted():
        nonlocal count
        count += 1
        if count == stop:
            states.append(copy.deepcopy(growth.state_dict()))
            raise Enough

    expected, whole = begun()
    next(whole), next(whole)
    _, growth = begun(counted)
    with pytest.raises(Enough):
        next(growth), next(growth)
    resumed, growth = begun()
    growth.load_state_dict(states[0])
    while growth.loop.epoch < 3:
        next(growth)
    for (name, a), (_, b) in zip(expected.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_classifier_takes_coarse_steps():
    torch.manual_seed(0)
    net = traced(Classifier(), side=8).train()
    sparse_start(net, 0.4)
    optimizer = AdaBreg(param_groups(net, lam=0.01, lr=0.001))
    F.cross_entropy(net(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    level = CoarseLevel(net, optimizer)
    assert level.net.module.head.in_features == 16 * level.net.module.conv.out_channels < net.module.head.in_features
    assert all(mask.any() for _, mask in alive_entries(level.optimizer.param_groups))
