"""AdaBreg with second moments that are shared by tensors, groups or units: its equations, and what wakes first."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas import (
    ENTRIES,
    FILTERS,
    KERNELS,
    L1,
    ROWS,
    WHOLE,
    AdaBreg,
    GroupLasso,
    Groups,
    Rim,
    Zero,
    param_groups,
    sparse_start,
)
from nas.groups import join_rows, split_rows
from nas.steering import active_groups, calibrate, check_entry_times, density, entry_times

pytestmark = pytest.mark.usefixtures("float64")
BETAS, EPS = (0.8, 0.95), 1e-3
SHAPE = (4, 2, 5, 5)


def gradients(shape, steps, seed=0):
    """Ten times as large at the end as in the middle, and a tenth at the start."""
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(seed)) * torch.logspace(
        -1, 1, steps
    ).reshape(-1, *(1,) * len(shape))


def adam(start, grads, mean_of_squares, lr=0.1, weight_decay=0.0):
    """The loop over Adam's equations, with the squares of the gradient averaged by ``mean_of_squares``."""
    theta, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(grads, start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * g
        square = BETAS[1] * square + (1 - BETAS[1]) * mean_of_squares(g.square())
        direction = mean / (1 - BETAS[0] ** t) / ((square / (1 - BETAS[1] ** t)).sqrt() + EPS)
        theta = theta - lr * (direction + weight_decay * theta)
    return theta


def adabreg(starts, grads, **options):
    params = [nn.Parameter(start.clone()) for start in starts]
    optimizer = AdaBreg(params, lr=0.1, betas=BETAS, eps=EPS, **options)
    for each in zip(*grads, strict=True):
        for p, g in zip(params, each, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in params], optimizer


@given(seed=st.integers(0, 10**6), weight_decay=st.sampled_from([0.0, 0.2]))
def test_without_penalty_it_is_adam_with_one_second_moment_per_tensor(seed, weight_decay):
    starts = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in (SHAPE, (3, 5), (4,), ())]
    grads = [gradients(start.shape, 12, seed) for start in starts]
    ours, optimizer = adabreg(starts, grads, second_moment="tensor", weight_decay=weight_decay)
    for p, start, g in zip(ours, starts, grads, strict=True):
        expected = adam(start, g, lambda squares: squares.mean().expand(squares.shape), weight_decay=weight_decay)
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)
    assert all(state["exp_avg_sq"].numel() == 1 for state in optimizer.state.values())


@pytest.mark.parametrize(
    ("groups", "axes"),
    [(FILTERS, (1, 2, 3)), (KERNELS, (2, 3)), (WHOLE, (0, 1, 2, 3)), (Groups(over=(0, 3)), (0, 3)), (ENTRIES, ())],
    ids=repr,
)
def test_the_mean_of_a_group(groups, axes):
    """With lam = 0 the prox is the identity, and the groups of the penalty still share second moments."""

    def mean(squares):
        return squares.mean(dim=axes, keepdim=True).expand(squares.shape) if axes else squares

    start, grads = torch.ones(SHAPE), gradients(SHAPE, 12)
    [p], _ = adabreg([start], [grads], second_moment="group", penalty=GroupLasso(0.0, groups))
    torch.testing.assert_close(p, adam(start, grads, mean), rtol=0, atol=1e-12)


def test_the_mean_of_a_block():
    def mean(squares):
        return squares.unflatten(0, (2, 2)).mean(dim=1, keepdim=True).expand(2, 2, *SHAPE[1:]).reshape(SHAPE)

    start, grads = torch.ones(SHAPE), gradients(SHAPE, 12)
    penalty = GroupLasso(0.0, Groups(over=(0,), block=(2,)))
    [p], _ = adabreg([start], [grads], second_moment="group", penalty=penalty)
    torch.testing.assert_close(p, adam(start, grads, mean), rtol=0, atol=1e-12)


def test_the_mean_of_a_rim_and_the_middle_by_entries():
    middle = nn.functional.pad(torch.ones(4, 2, 3, 3), (1, 1, 1, 1)).bool()

    def mean(squares):
        rim = squares.masked_fill(middle, 0).sum(dim=(1, 2, 3), keepdim=True) / (2 * 16)
        return torch.where(middle, squares, rim)

    start, grads = torch.ones(SHAPE), gradients(SHAPE, 12)
    penalty = GroupLasso(0.0, Rim(3, over=(1, 2, 3)))
    [p], _ = adabreg([start], [grads], second_moment="group", penalty=penalty)
    torch.testing.assert_close(p, adam(start, grads, mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("penalty", [GroupLasso(0.0, ROWS), Zero()], ids=repr)
def test_the_mean_of_a_joint_unit(penalty):
    """Over its rows in all tensors; those of "tensor" are of each tensor by itself."""
    starts = [torch.ones(4, 3), torch.ones(4), torch.ones(2, 4)]
    grads = [gradients(start.shape, 12, seed) for seed, start in enumerate(starts)]
    axes = (0, 0, 1)
    ours, optimizer = adabreg(starts, grads, second_moment="group", penalty=penalty, joint=axes)
    rows = adam(
        join_rows(starts, axes),
        [join_rows(each, axes) for each in zip(*grads, strict=True)],
        lambda squares: squares.mean(dim=1, keepdim=True).expand(squares.shape),
    )
    for p, expected in zip(ours, split_rows(rows, starts, axes), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)
    assert all(state["exp_avg_sq"].numel() == 4 for state in optimizer.state.values())
    ours, _ = adabreg(starts, grads, second_moment="tensor", penalty=penalty, joint=axes)
    for p, start, g in zip(ours, starts, grads, strict=True):
        expected = adam(start, g, lambda squares: squares.mean().expand(squares.shape))
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)


def test_a_unit_of_which_a_part_is_frozen():
    """The mean is over the tensors that have a gradient, and the rest of the unit still lives and dies with them."""
    weight, bias = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3))
    optimizer = AdaBreg([weight, bias], lr=0.1, penalty=GroupLasso(0.1, ROWS), joint=True, second_moment="group")
    weight.grad = torch.tensor([[1.0], [10.0], [0.0]]).expand(3, 4).clone()
    optimizer.step()
    dual = optimizer.state[weight]["dual"]
    torch.testing.assert_close(dual, torch.tensor([[-0.1], [-0.1], [0.0]]).expand(3, 4), rtol=0, atol=1e-8)
    assert not optimizer.state[bias]["dual"].any()
    optimizer.step()
    assert weight.any(dim=1).tolist() == [True, True, False]


def test_each_parameter_group_has_its_own():
    starts, grads = [torch.ones(3, 4)] * 3, [gradients((3, 4), 12)] * 3
    kinds = ["entry", "tensor", "group"]
    params = [nn.Parameter(start.clone()) for start in starts]
    groups = [{"params": [p], "second_moment": kind} for p, kind in zip(params, kinds, strict=True)]
    optimizer = AdaBreg(groups, lr=0.1, betas=BETAS, eps=EPS, penalty=GroupLasso(0.01, ROWS))
    for each in zip(*grads, strict=True):
        for p, g in zip(params, each, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for p, kind in zip(params, kinds, strict=True):
        [alone], _ = adabreg(starts[:1], grads[:1], penalty=GroupLasso(0.01, ROWS), second_moment=kind)
        torch.testing.assert_close(p.detach(), alone, rtol=0, atol=1e-14)
    assert not torch.equal(params[0], params[1])
    assert not torch.equal(params[1], params[2])


@pytest.mark.parametrize("before", ["entry", "group", "tensor"])
@pytest.mark.parametrize("after", ["entry", "group", "tensor"])
def test_it_may_change_on_the_way(before, after):
    """As may the groups: second moments go on from their mean, and under equal gradients nothing is to be seen."""
    theta = nn.Parameter(torch.ones(3, 4, 2, 2))
    optimizer = AdaBreg([theta], lr=0.1, penalty=GroupLasso(0.01, FILTERS), second_moment=before)
    for step in range(6):
        if step == 3:
            optimizer.param_groups[0].update(second_moment=after, penalty=GroupLasso(0.01, KERNELS))
        theta.grad = torch.full_like(theta, 2.0)
        optimizer.step()
    torch.testing.assert_close(theta.detach(), torch.full_like(theta, 0.4), rtol=0, atol=1e-7)


def test_a_state_older_than_the_option_is_adam():
    def make():
        theta = nn.Parameter(torch.ones(3, 4))
        return theta, AdaBreg([theta], lr=0.1, penalty=GroupLasso(0.01, ROWS))

    (theta, optimizer), (other_theta, other) = make(), make()
    theta.grad = gradients((3, 4), 1)[0]
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["second_moment"]
    other_theta.data.copy_(theta.detach())
    other.load_state_dict(state)
    other_theta.grad = theta.grad.clone()
    for each in (optimizer, other):
        each.step()
    assert torch.equal(theta, other_theta)


@pytest.mark.parametrize("second_moment", ["tensor", "group"])
@pytest.mark.parametrize("joint", [False, True])
def test_memory_is_one_mean_and_one_dual(second_moment, joint):
    p = nn.Parameter(torch.randn(512, 512))
    optimizer = AdaBreg([p], penalty=GroupLasso(0.1, ROWS), joint=joint, second_moment=second_moment)
    p.grad = torch.randn(512, 512)
    optimizer.step()
    size = sum(value.numel() for value in optimizer.state[p].values())
    assert size <= 2 * p.numel() + 512 + 1
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    assert max(event.cpu_memory_usage for event in profile.events()) < p.numel() * p.element_size() / 8


@pytest.mark.parametrize("value", ["row", None, 1, ["tensor"]])
def test_an_unknown_value_is_named(value):
    message = r"AdaBreg\(second_moment=...\) must be 'entry', 'group' or 'tensor', got"
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        AdaBreg([p], second_moment=value)
    with pytest.raises(ValueError, match=message):
        AdaBreg([{"params": [p], "second_moment": value}])


# What wakes first


def regression(second_moment, lam=1.0, lr=0.01, seed=0):
    """A layer of 24 units read with weights 1 by the first twelve and 0.1 by the others; all but two are asleep."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 1))
    useful = torch.arange(24) < 12
    with torch.no_grad():
        net[2].weight.copy_(torch.where(useful, 1.0, 0.1))
        for p in net[0].parameters():
            p[torch.arange(24) % 12 > 0] = 0
    groups = param_groups(net, lr=lr, rules={("0.weight", "0.bias"): GroupLasso(lam, ROWS), "2.*": Zero()})
    optimizer = AdaBreg(groups[:1], second_moment=second_moment)
    x = torch.randn(256, 6)
    y = 20 * x[:, :1] + 10 * x[:, 1:2] + 30

    def train_step():
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()

    return net, optimizer, train_step, useful


def wake_steps(optimizer, train_step, steps):
    asleep = ~next(iter(active_groups(optimizer).values()))
    woke = torch.full(asleep.shape, steps + 1)
    for k in range(1, steps + 1):
        train_step()
        awake = next(iter(active_groups(optimizer).values()))
        woke[awake & (woke > steps)] = k
    return woke, asleep


def test_with_one_second_moment_per_tensor_large_gradients_wake_first():
    """lam / lr = 100 steps for all under Adam; with "tensor" units that are read ten times as strongly come first."""
    _, optimizer, train_step, useful = regression("entry")
    woke, asleep = wake_steps(optimizer, train_step, 110)
    assert 95 <= woke[asleep].min() <= woke[asleep].max() <= 110
    _, optimizer, train_step, useful = regression("tensor")
    woke, asleep = wake_steps(optimizer, train_step, 110)
    assert woke[asleep & useful].max() < 100
    assert woke[asleep & ~useful].min() > 110
    _, optimizer, train_step, useful = regression("group")
    woke, asleep = wake_steps(optimizer, train_step, 110)
    assert 95 <= woke[asleep].min() <= woke[asleep].max() <= 110


def test_entry_times_follow_the_gradient_over_its_rms():
    theta = nn.Parameter(torch.zeros(4, 3))
    for kind, expected in (
        ("entry", [100] * 4),
        ("group", [100] * 3 + [math.inf]),
        ("tensor", [100 * math.sqrt(21 / 4) / size for size in (1, 2, 4)] + [math.inf]),
    ):
        optimizer = AdaBreg([theta], lr=0.01, penalty=GroupLasso(1.0, ROWS), second_moment=kind)
        theta.grad = None
        assert entry_times(optimizer)["0"].tolist() == pytest.approx([100] * 4)
        theta.grad = torch.tensor([[1.0], [-2.0], [4.0], [0.0]]).expand(4, 3).clone()
        assert entry_times(optimizer)["0"].tolist() == pytest.approx(expected)
        woke, _ = wake_steps(optimizer, optimizer.step, 240)
        assert woke[:3].tolist() == pytest.approx([steps + 1 for steps in expected[:3]], abs=1)
        assert woke[3] == 241
        theta.data.zero_()


def test_entry_times_of_joint_units():
    weight, bias = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight, bias], "joint": True}]
    optimizer = AdaBreg(groups, lr=0.01, penalty=GroupLasso(1.0, ROWS), second_moment="group")
    weight.grad, bias.grad = torch.tensor([[1.0] * 3, [0.1] * 3]), torch.tensor([3.0, 0.3])
    assert entry_times(optimizer)["0"].tolist() == pytest.approx([100, 100])
    optimizer.param_groups[0]["second_moment"] = "tensor"
    large, small = entry_times(optimizer)["0"].tolist()
    assert small / large == pytest.approx(10)


def test_entry_times_of_blocks_and_rims():
    theta = nn.Parameter(torch.zeros(SHAPE))
    theta.grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for groups in (Groups(over=(0, 1), block=(2, 2)), Rim(3, over=(1, 2, 3))):
        optimizer = AdaBreg([theta], lr=0.01, penalty=GroupLasso(1.0, groups), second_moment="group")
        times = entry_times(optimizer)["0"]
        torch.testing.assert_close(times, torch.full_like(times, 100))


@pytest.mark.parametrize("second_moment", ["tensor", "group"])
def test_entry_times_are_checked(second_moment):
    for lam, message in ((0.01, "all at once; use lam of at least"), (100.0, "use lam below")):
        _, optimizer, train_step, _ = regression(second_moment, lam=lam)
        train_step()
        with pytest.raises(ValueError, match=message):
            check_entry_times(optimizer, steps=1000)
    _, optimizer, train_step, _ = regression(second_moment)
    train_step()
    check_entry_times(optimizer, steps=1000)


@pytest.mark.parametrize("second_moment", ["tensor", "group"])
@pytest.mark.parametrize("lam", [0.001, 10.0])
def test_calibration_lets_the_wanted_part_in(second_moment, lam):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 1))
    sparse_start(net, 0.1)
    optimizer = AdaBreg(param_groups(net, lam=lam, lr=0.01), second_moment=second_moment)
    generator = torch.Generator().manual_seed(0)

    def train_step():
        x = torch.randn(64, 6, generator=generator)
        optimizer.zero_grad()
        (net(x) - (x[:, :1] * x[:, 1:2] + x[:, 2:3].sin())).square().mean().backward()
        optimizer.step()

    calibrate(net, optimizer, train_step, steps=100, fraction=0.3)
    start = density(optimizer)
    for _ in range(100):
        train_step()
    assert 0.1 <= (density(optimizer) - start) / (1 - start) <= 0.6


def test_under_l1_groups_are_entries():
    start, grads = torch.ones(3, 4), gradients((3, 4), 12)
    results = [
        adabreg([start], [grads], second_moment=kind, penalty=L1(0.05))[0][0] for kind in ("entry", "group", "tensor")
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
