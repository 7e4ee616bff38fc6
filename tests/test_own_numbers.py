"""Numbers that modules hold beside their tensors, such as the width of a split, follow the channels that are left."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import coupled_units
from nas.analysis import extract
from nas.models import load_module, network, save_module
from nas.models.traced.network import Origin, TracedNet
from nas.models.traced.store import CONFIG
from tests.test_coupled import assert_removed, with_dead_units

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Blur(nn.Module):
    """The same filter for all channels, as in a BlurPool."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", torch.full((channels, 1, 3, 3), 1 / 9))

    def forward(self, x):
        return F.conv2d(x, self.kernels, padding=1, groups=self.channels)


class Split(nn.Module):
    """Parts of which each reads the one before, as in Res2Net."""

    def __init__(self, width):
        super().__init__()
        self.width, self.first, self.last = width, nn.Conv2d(3, 3 * width, 1), nn.Conv2d(3 * width, 3, 1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        one, two, three = torch.split(F.gelu(self.first(x)), self.width, 1)
        two = self.middle[0](one + two)
        return self.last(torch.cat([one, two, self.middle[1](two + three)], 1))


class Parts(nn.Module):
    """Sizes in a list."""

    def __init__(self, width):
        super().__init__()
        self.sizes, self.both, self.last = [width, width], nn.Conv2d(3, 2 * width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        a, b = self.both(x).split(self.sizes, 1)
        return self.last(a + F.gelu(b))


class Scaled(nn.Module):
    """A number that is a width and a scale: with another one it is another function."""

    def __init__(self, width):
        super().__init__()
        self.width, self.first, self.last = width, nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        y = self.first(x).view(len(x), self.width, -1) * self.width**-0.5
        return self.last(y.view(len(x), self.width, *x.shape[2:]))


def blurred(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 1), Blur(width), nn.Conv2d(width, 3, 1))


def split(width=6):
    return Split(width)


MAKERS = {
    "groups": (blurred, lambda net: [net[1].channels], [6]),
    "a split": (split, lambda net: [net.width], [6]),
    "a list": (lambda: Parts(6), lambda net: net.sizes, [6, 6]),
}


def dead(make):
    """A network with dead units, them, and masks of what is alive."""
    torch.manual_seed(0)
    net = make()
    return net, *with_dead_units(net, X, 0.5)


@pytest.mark.parametrize(("make", "numbers", "before"), MAKERS.values(), ids=MAKERS)
def test_they_are_those_of_the_channels_that_are_left(make, numbers, before):
    net, units, alive = dead(make)
    left = int(next(iter(alive.values())).sum())
    assert left < 6
    assert_removed(net.eval(), units, alive, X)
    small, _ = extract(net, [X[0]])
    assert numbers(net) == before and numbers(small) == [left] * len(before)


def test_a_number_that_means_something_else_keeps_its_layer_dense():
    with pytest.raises(ValueError, match="Scaled computes something else when channels of first go"):
        coupled_units(Scaled(6), X)


def test_they_are_stored_and_come_back(tmp_path):
    net, _, _ = dead(split)
    small, _ = extract(net, [X[0]])
    save_module(small, tmp_path, "tests.test_own_numbers:split", {"width": 6})
    assert json.loads((tmp_path / CONFIG).read_text())["numbers"] == {"": {"width": small.width}}
    assert torch.equal(load_module(tmp_path)(X), small(X))


@pytest.mark.parametrize("numbers", [{"": {"width": "x"}}, {"": {"depth": 3}}, {"blocks": {"width": 3}}, [1]])
def test_damaged_ones_are_refused(numbers, tmp_path):
    save_module(split(), tmp_path, "tests.test_own_numbers:split", {})
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"numbers": numbers}))
    with pytest.raises(ValueError, match="is damaged|makes a module of other parts"):
        load_module(tmp_path)


def test_a_search_stores_them_too(tmp_path):
    net = TracedNet(dead(split)[0], Origin("tests.test_own_numbers:split", {"width": 6}, 3, 0, X)).eval()
    small = network.compacted(net)
    assert small.origin.numbers == {"": {"width": small.module.width}} and small.module.width < 6
    network.save(small, tmp_path)
    for back in (network.load_like(net, tmp_path).module, load_module(tmp_path)):
        assert torch.equal(back(X), small(X))
