"""Coarse steps: those of the whole on what is awake, while what sleeps stands still bit for bit."""

import copy
import math
import weakref
from itertools import islice, pairwise

import pytest
import torch
from torch.nn import Parameter

from nas import (
    L1,
    ROWS,
    WHOLE,
    AdaBreg,
    GroupLasso,
    LinBreg,
    LogSum,
    Nuclear,
    ProxSGD,
    Zero,
    param_groups,
    restriction,
    sparse_start,
)
from nas.models import DagNet, Edge, Node, Plan, Skip, mlp
from nas.models.network import restricted
from nas.parts import alive_entries
from nas.restriction import Restriction
from nas.search import search
from nas.search.training.coarse import CoarseLevel
from nas.steering import active_groups
from tests.nets import SUPERNETS

MAKERS = {
    "linbreg": lambda groups: LinBreg(groups, delta=0.5),
    "momentum": lambda groups: LinBreg(groups, momentum=0.9),
    "entry": AdaBreg,
    "group": lambda groups: AdaBreg(groups, second_moment="group"),
    "tensor": lambda groups: AdaBreg(groups, second_moment="tensor"),
    "decay": lambda groups: AdaBreg(groups, weight_decay=0.5),
}


@pytest.fixture
def lengths_always(monkeypatch):
    """What the network lacks of units is a length, however few its entries."""
    monkeypatch.setattr(restriction, "SMALL", 0)


def step(net, optimizer, x, y):
    optimizer.zero_grad()
    (net(x) - y).square().mean().backward()
    optimizer.step()


def test_multilevel_linbreg_T17():
    target = torch.tensor([2.0, 0.5], dtype=torch.float64)
    weight = Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = LinBreg([weight], lr=0.25, penalty=L1(1.0))

    def move(p, optimizer, target):
        optimizer.zero_grad()
        (p - target).square().sum().div(2).backward()
        optimizer.step()

    for _ in range(3):
        move(weight, optimizer, target)
    part = Parameter(weight.detach()[:1].clone())
    level = Restriction(optimizer, {part: (weight, (torch.tensor([0]),))})
    for _ in range(2):
        move(part, level.optimizer, target[:1])
    level.take_back()
    dual = optimizer.state[weight]["dual"]
    assert dual.tolist() == [2.15625, 0.375] and weight.tolist() == [1.15625, 0]
    move(weight, optimizer, target)
    assert dual.tolist() == [2.3671875, 0.5] and weight.tolist() == [1.3671875, 0]


def on_the_whole(net, optimizer, x, y, steps):
    """Steps in which what sleeps has no gradient and no mean."""
    asleep = {p: ~mask for p, mask in alive_entries(optimizer.param_groups)}
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        for p, mask in asleep.items():
            for tensor in (p.grad, optimizer.state[p].get("exp_avg"), optimizer.state[p].get("momentum_buffer")):
                if tensor is not None:
                    tensor.masked_fill_(mask, 0)
        optimizer.step()


def unbiased(optimizer, p, key):
    """An entry of the state; of a moment its value without bias."""
    state = optimizer.state[p]
    beta = {"exp_avg": 0.9, "exp_avg_sq": 0.999}.get(key, 0.0)
    return state[key] / (1 - beta ** state["step"].item()) if beta else state[key]


CASES = [
    *((name, make) for name in SUPERNETS for make in ("momentum", "entry")),
    *(("chain of convolutions", make) for make in ("linbreg", "group")),
    *(("fully connected", make) for make in ("linbreg", "group")),
]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_coarse_steps_are_those_of_the_whole_on_what_is_awake(name, make):
    check_coarse_steps(name, make)


@pytest.mark.usefixtures("lengths_always")
@pytest.mark.parametrize("make", ["momentum", "entry", "decay"])
@pytest.mark.parametrize("name", ["chain of convolutions", "fully connected", "separable"])
def test_they_are_where_a_length_stands_for_what_the_network_lacks_of_units(name, make):
    check_coarse_steps(name, make)


@pytest.mark.usefixtures("lengths_always")
@pytest.mark.parametrize("make", ["momentum", "entry", "decay"])
def test_they_are_while_means_move_what_read_a_unit_that_has_died(make):
    check_coarse_steps("fully connected", make, dies="n1")


@pytest.mark.parametrize("make", MAKERS)
def test_a_length_or_all_entries_of_the_units_make_no_difference(make, monkeypatch):
    torch.manual_seed(0)
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    net = SUPERNETS["fully connected"]().double()
    sparse_start(net, 0.2)
    optimizer = MAKERS[make](param_groups(net, lam=0.015, lr=0.002))
    for _ in range(20):
        step(net, optimizer, x, x)
    found = []
    for least in (0, math.inf):
        monkeypatch.setattr(restriction, "SMALL", least)
        whole, own = copy.deepcopy((net, optimizer))
        level = CoarseLevel(whole, own)
        for _ in range(3):
            step(level.net, level.optimizer, x, x)
        level.take_back()
        found.append([*whole.parameters(), *(v for s in own.state.values() for v in s.values())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def check_coarse_steps(name, make, dies=None):
    torch.manual_seed(0)
    x, y = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64)
    net = SUPERNETS[name]().double()
    sparse_start(net, 0.2)
    strength, lr = (1.5e-4, 0.1) if make in ("linbreg", "momentum") else (0.015, 0.002)
    optimizer = MAKERS[make](param_groups(net, lam=strength, lr=lr))
    for _ in range(20):
        step(net, optimizer, x, y)
    if dies is not None:
        node = net.nodes[dies]
        unit = node.edges["in"].detach().norm(dim=1).argmax()
        with torch.no_grad():
            node.edges["in"][unit] = node.bias[unit] = 0.0
        step(net, optimizer, x, y)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    masks = dict(alive_entries(optimizer.param_groups))
    dense, whole = copy.deepcopy((net, optimizer))
    on_the_whole(dense, whole, x, y, 3)
    level = CoarseLevel(net, optimizer)
    for _ in range(3):
        step(level.net, level.optimizer, x, y)
    level.take_back()
    members = [p for group in optimizer.param_groups for p in group["params"]]
    others = [p for group in whole.param_groups for p in group["params"]]
    for k, (p, other) in enumerate(zip(members, others, strict=True)):
        torch.testing.assert_close(p, other, rtol=0, atol=1e-12)
        awake = masks.get(p, torch.ones_like(p, dtype=torch.bool))
        for key, value in optimizer.state[p].items():
            if key == "step":
                assert torch.equal(value, before[k][key])
            elif isinstance(value, torch.Tensor) and value.shape == p.shape:
                assert torch.equal(value[~awake], before[k][key][~awake]), key
                ours, theirs = unbiased(optimizer, p, key)[awake], unbiased(whole, other, key)[awake]
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def in_a_search(coarse, on_step=lambda: None, second_moment="tensor"):
    """A search of a fully connected net, and its network; epochs have 8 steps."""
    torch.manual_seed(0)
    net = SUPERNETS["fully connected"]()
    sparse_start(net, 0.2)
    optimizer = AdaBreg(param_groups(net, lam=0.05, lr=0.002), second_moment=second_moment)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)

    def batches(epoch):
        generator = torch.Generator().manual_seed(epoch)
        return (tuple(torch.rand(2, 4, 1, 8, 8, generator=generator)) for _ in range(8))

    growth = search(
        net, batches, optimizer, lambda a, b: (a - b).square().mean(), scheduler=scheduler, on_step=on_step,
        coarse=coarse,
    )  # fmt: skip
    return net, growth


def test_nothing_is_left_of_a_level_after_its_cycle():
    torch.manual_seed(0)
    net = mlp(6, widths=(8,), patch=None)
    sparse_start(net, 0.5)
    optimizer, x = AdaBreg(param_groups(net, lam=0.1, lr=0.01)), torch.rand(4, 6)
    step(net, optimizer, x, x)
    level = CoarseLevel(net, optimizer)
    step(level.net, level.optimizer, x, x)
    level.take_back()
    smaller = weakref.ref(next(level.net.parameters()))
    del level
    assert smaller() is None


def test_what_sleeps_wakes_in_full_steps_alone():
    """Of an epoch of 8 steps 0, 3 and 6 are full, with 2 coarse ones after each; looks are before steps 1 to 7."""
    looks = []

    def look():
        masks = active_groups(growth.loop.optimizer)
        looks.append((growth.loop._level is None, torch.cat(list(masks.values()))))

    net, growth = in_a_search(2, look)
    for _ in islice(growth, 8):
        pass
    births = 0
    for epoch in (looks[k : k + 7] for k in range(0, len(looks), 7)):
        assert [is_full for is_full, _ in epoch] == [False, False, True, False, False, True, False]
        for (is_full, before), (_, after) in pairwise(epoch):
            births += int((after & ~before).sum())
            assert is_full or not (after & ~before).any()
    assert births
    output = growth.loop.optimizer.state[net.named_nodes()["out"].edges["n3"]]
    assert (output["step"], output["coarse"]) == (24, 40)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("second_moment", ["entry", "group", "tensor"])
@pytest.mark.parametrize("stop", [9, 10, 12])  # after a full step, and within coarse ones
def test_a_search_goes_on_bit_for_bit_within_coarse_steps(stop, second_moment, lengths, request):
    if lengths:
        request.getfixturevalue("lengths_always")
    states, count = [], 0

    def keep():
        nonlocal count
        count += 1
        if count == stop:
            states.append(copy.deepcopy(growth.state_dict()))

    net, growth = in_a_search(3, keep, second_moment)
    wanted = list(islice(growth, 4))
    again, growth_again = in_a_search(3, second_moment=second_moment)
    growth_again.load_state_dict(states[0])
    done = states[0]["loop"]["epoch"] - 1
    assert list(islice(growth_again, 4 - done)) == wanted[done:]
    for ours, theirs in zip(again.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (each.loop.optimizer.state_dict()["state"] for each in (growth_again, growth))
    for key, state in theirs.items():
        for name, value in state.items():
            assert torch.equal(*map(torch.as_tensor, (ours[key][name], value))), name


def test_while_nothing_is_awake_all_steps_are_full():
    torch.manual_seed(0)
    net = mlp(4, widths=(3,), patch=None)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    net.nodes["out"].bias.requires_grad_(False)
    optimizer = AdaBreg(param_groups(net, lam=1.0, lr=1e-3))
    x = torch.rand(8, 4)
    growth = search(net, lambda epoch: ((x, x) for _ in range(5)), optimizer, torch.nn.functional.mse_loss, coarse=2)
    next(growth)
    assert {int(state["step"]) for state in optimizer.state.values() if "step" in state} == {5}


def test_a_block_that_is_left_alone_beside_a_skip_is_computed():
    edges = (Edge("in", 1), Edge("in", 1, "pointwise", block=True))
    net = DagNet(Plan(2, (Node("n", 2, edges, (Skip("in"),)), Node("out", 2, (Edge("n", 3),))), patch=1)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p)
    torch.nn.init.zeros_(net.nodes["n"].edges["in"])
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(restricted(net)[0](x), net(x), rtol=0, atol=1e-12)


def test_second_moments_of_what_sleeps_stand_still_along_any_axis_of_a_tensor_that_is_whole():
    torch.manual_seed(0)
    params = [Parameter(torch.randn(6, 4, 3, 3)), Parameter(torch.randn(4, 6, 2, 2))]
    with torch.no_grad():
        params[0][3:] = params[1][:, 3:] = 0
    optimizer = AdaBreg(params, lr=1e-4, penalty=GroupLasso(0.1, ROWS), joint=(0, 1), second_moment="group")
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = [optimizer.state[p]["exp_avg_sq"].flatten().clone() for p in params]
    whole = {Parameter(p.detach().clone()): (p, (None,) * 4) for p in params}
    restriction = Restriction(optimizer, whole)
    sum((p * torch.randn_like(p)).sum() for p in whole).backward()
    restriction.optimizer.step()
    restriction.take_back()
    for p, old in zip(params, before, strict=True):
        assert (optimizer.state[p]["exp_avg_sq"].flatten() == old).tolist() == [False] * 3 + [True] * 3


def test_optimizers_without_exact_restriction_are_refused():
    net = mlp(4, widths=(3,), patch=None)
    optimizer = ProxSGD(param_groups(net, lam=0.1, lr=0.1))
    with pytest.raises(ValueError, match="duals that can stand still"):
        search(net, lambda epoch: iter(()), optimizer, torch.nn.functional.mse_loss, coarse=1)


PENALTIES = {
    "free": (Zero(), False),
    "entries": (L1(0.1), False),
    "rows": (GroupLasso(0.1, ROWS), False),
    "joint rows": (GroupLasso(0.1, ROWS), True),
    "whole": (GroupLasso(0.1, WHOLE), False),
    "low rank": (Nuclear(0.01), False),
    "log-sum": (LogSum(1e-4), False),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", PENALTIES)
def test_under_constant_gradients_coarse_steps_are_full_steps(name, make):
    """Of the part that the network has, while all that sleeps has a gradient too weak to wake it."""
    penalty, joint = PENALTIES[name]
    torch.manual_seed(0)
    gradient = torch.randn(6, 5, dtype=torch.float64).abs()
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 4])
    weight = Parameter(torch.zeros(6, 5, dtype=torch.float64))
    weight.data[rows] = 1 + torch.rand(3, 5, dtype=torch.float64)
    still = torch.ones(6, 5, dtype=torch.bool)
    still[rows[:, None], columns] = False
    gradient[:, [2, 3]] = 0.0  # as behind units that put out nothing
    if name in ("whole", "low rank"):  # all entries are one group, which is awake
        gradient[still] = 0.0

    def optimizer_of(p):
        return MAKERS[make]([{"params": [p], "lr": 1e-3, "penalty": penalty, "joint": joint}])

    def advance(p, optimizer, gradient, steps=4):
        for _ in range(steps):
            optimizer.zero_grad()
            (p * gradient).sum().backward()
            optimizer.step()

    optimizer = optimizer_of(weight)
    advance(weight, optimizer, gradient, 3)
    dense = copy.deepcopy(weight)
    whole = optimizer_of(dense)
    whole.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(dense, whole, gradient)
    before = copy.deepcopy(optimizer.state[weight])
    part = Parameter(weight.detach()[rows][:, columns].clone())
    level = Restriction(optimizer, {part: (weight, (rows, columns))})
    advance(part, level.optimizer, gradient[rows][:, columns])
    level.take_back()
    inside = (rows[:, None], columns)
    torch.testing.assert_close(weight[inside], dense[inside], rtol=1e-9, atol=0)
    torch.testing.assert_close(part, dense[inside], rtol=1e-9, atol=0)
    for key, value in optimizer.state[weight].items():
        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
            assert torch.equal(value[still & weight.eq(0)], before[key][still & weight.eq(0)]), key
