"""Polishing: superfluous units and skips go, by measurement; what is needed stays."""

import copy

import pytest
import torch
import torch.nn.functional as F

from benchmarks.polish import Polished, polish
from nas.models import compact, dense_mlp
from nas.models.compact import expand, kept_units
from tests.nets import random_net


def num_params(net):
    return sum(p.numel() for p in net.parameters())


def doubled(seed=0):
    """A net of 3 neurons, and one of 6 that computes the same: each neuron is there twice, with half the weight."""
    torch.manual_seed(seed)
    single, double = dense_mlp(4, widths=[3], outputs=2), dense_mlp(4, widths=[6], outputs=2)
    with torch.no_grad():
        single.nodes["n1"].bias.uniform_(-0.5, 0.5)
        for key in ("edges.in", "bias"):
            tensor = single.get_parameter(f"nodes.n1.{key}")
            double.get_parameter(f"nodes.n1.{key}").copy_(torch.cat([tensor, tensor]))
        double.nodes["out"].edges["n1"].copy_(single.nodes["out"].edges["n1"].repeat(1, 2) / 2)
    return single, double


def data_of(net, n=512, seed=0):
    x = torch.randn(n, net.plan.inputs, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, net(x)


def polished(net, pair, **options):
    x, y = pair

    def batches(epoch):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        return iter([(x[part], y[part]) for part in order.split(64)])

    @torch.no_grad()
    def validate(net):
        return F.mse_loss(net(x), y).item()

    return polish(net, batches, F.mse_loss, validate, (x, y), **options)


@pytest.mark.parametrize("seed", range(40))
def test_expand_is_the_inverse_of_compact(seed):
    net, x = random_net(seed)
    if any(node.rows is not None for node in net.plan.nodes):
        return
    small, kept = compact(net, tight=False), kept_units(net, tight=False)
    units = {name: kept[name].nonzero()[:, 0] for name in small.plan.units}
    whole = expand(small, units, net)
    torch.testing.assert_close(whole(x), net(x), rtol=1e-4, atol=1e-5)
    assert compact(whole, tight=False).plan == small.plan


def test_superfluous_neurons_and_skips_go():
    """Each neuron is there three times and all blocks are open, on data of a teacher of 3 neurons without skips."""
    single, _ = doubled(2)
    pair = data_of(single)
    torch.manual_seed(3)
    student = dense_mlp(4, widths=[9], outputs=2)
    with torch.no_grad():
        for key in ("edges.in", "bias"):
            student.get_parameter(f"nodes.n1.{key}").copy_(
                single.get_parameter(f"nodes.n1.{key}").repeat(3, *[1] * (key != "bias"))
            )
        student.nodes["n1"].edges["in"].mul_(1 + 0.1 * torch.randn(9, 1))
        student.nodes["out"].edges["in"].normal_(std=0.1)
    before = copy.deepcopy(student.state_dict())
    seen = []
    way = polished(student, pair, trials=40, steps=150, tolerance=0.5, on_trial=lambda state, good: seen.append(good))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    small = way[-1].net
    assert small.plan.units == {"in": 4, "n1": 3, "out": 2}
    assert set(small.nodes["out"].edges) == {"n1"}
    assert way[-1].loss < 5e-3 * pair[1].var()
    sizes = [state.num_params for state in way]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert len(seen) <= 40 and seen.count(True) >= len(way) - 1
    assert isinstance(way[0], Polished) and len(way[0].units["n1"]) == 9


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_polishing_of_random_nets(seed):
    """The net is left as it is, the result is the smallest on the way, and its units and skips are those of the net."""
    net, x = random_net(seed)
    if any(node.rows is not None for node in net.plan.nodes):
        return
    net, x = net.float(), x.float()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        y = net(x) + 0.1
    way = polish(
        net, lambda epoch: iter([(x, y)] * 3), F.mse_loss, lambda net: F.mse_loss(net(x), y).item(), (x, y),
        trials=15, steps=3, tolerance=0.1,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert way[-1].num_params == min(state.num_params for state in way)
    for state in way:
        whole = expand(state.net, state.units, net)
        torch.testing.assert_close(whole(x), state.net(x), rtol=1e-4, atol=1e-4)


def test_what_is_needed_stays():
    single, _ = doubled(1)
    way = polished(single, data_of(single), trials=10, steps=50)
    assert [state.num_params for state in way] == [num_params(compact(single))]


@pytest.mark.parametrize("options", [{"trials": 0}, {"steps": 0}, {"tolerance": -0.1}, {"tolerance": float("nan")}])
def test_bad_options(options):
    single, _ = doubled()
    with pytest.raises(ValueError, match="polish needs trials and steps >= 1 and tolerance >= 0, got"):
        polished(single, data_of(single), **options)
