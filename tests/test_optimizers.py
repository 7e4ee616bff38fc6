"""Closed forms (numbered as in the reference of the method), equivalences, and what torch expects of an optimiser."""

import copy
import io
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas import (
    FILTERS,
    KERNELS,
    L1,
    AdaBreg,
    Bregman,
    GroupLasso,
    Groups,
    LinBreg,
    LogSum,
    NonNegativeL1,
    Nuclear,
    ProxSGD,
    SparseGroup,
    SplitLBI,
    Zero,
    param_groups,
    rings,
    sparse_start,
)
from nas.groups import ROWS, WHOLE, join_rows
from nas.models import conv_skip_autoencoder
from tests.test_penalties import PENALTIES, SHAPE, assert_subgradient

pytestmark = pytest.mark.usefixtures("float64")
FAMILY = [LinBreg, AdaBreg, partial(LinBreg, momentum=0.9)]


def path(optimizer, theta, target, steps):
    """Weights and duals of ``steps`` steps on the loss |theta - target|^2 / 2."""
    weights, duals = [], []
    for _ in range(steps):
        theta.grad = (theta - target).detach()
        optimizer.step()
        weights.append(theta.detach().clone())
        duals.append(optimizer.state[theta]["dual"].clone())
    return torch.stack(weights), torch.stack(duals)


def scalar(value=0.0):
    return nn.Parameter(torch.tensor([value]))


def test_linbreg_scalar_T2():
    theta = scalar()
    weights, duals = path(LinBreg([theta], lr=0.5, penalty=L1(1.0)), theta, 2.0, 30)
    assert duals[:4, 0].tolist() == [1, 2, 2.5, 2.75]
    assert weights[:4, 0].tolist() == [0, 1, 1.5, 1.75]
    expected = [2 - 2.0 ** -(k - 2) for k in range(2, 31)]
    assert weights[1:, 0].tolist() == pytest.approx(expected, abs=1e-12)  # the limit is 2: no bias


def test_linbreg_scalar_with_delta_T2():
    theta = scalar()
    weights, duals = path(LinBreg([theta], lr=0.25, penalty=L1(1.0), delta=2.0), theta, 2.0, 5)
    assert duals[:, 0].tolist() == [0.5, 1, 1.5, 1.75, 1.875]
    assert weights[:, 0].tolist() == [0, 0, 1, 1.5, 1.75]


def test_prox_sgd_is_biased_T3():
    theta = scalar()
    optimizer, weights = ProxSGD([theta], lr=0.5, penalty=L1(1.0)), []
    for _ in range(40):
        theta.grad = (theta - 2).detach()
        optimizer.step()
        weights.append(theta.item())
    assert weights[:4] == [0.5, 0.75, 0.875, 0.9375]
    assert weights[-1] == pytest.approx(1, abs=1e-10)  # 2 - lam; Bregman iterations reach 2


def test_linbreg_with_momentum_T5():
    theta = scalar()
    optimizer = LinBreg([theta], lr=0.5, penalty=L1(1.0), momentum=0.9)
    weights, duals = path(optimizer, theta, 2.0, 6)
    assert duals[:, 0].tolist() == pytest.approx([0.1, 0.29, 0.561, 0.9049, 1.31441, 1.767248], abs=1e-6)
    assert weights[4:, 0].tolist() == pytest.approx([0.31441, 0.767248], abs=1e-6)


def test_adabreg_wakes_everything_when_the_entry_time_is_one_T7():
    theta = nn.Parameter(torch.zeros(2))
    optimizer = AdaBreg([theta], lr=0.1, penalty=L1(0.1))
    weights = []
    for _ in range(3):
        theta.grad = torch.tensor([1.0, -1.0])
        optimizer.step()
        weights.append(theta.detach().clone())
    expected = torch.tensor([[0, 0], [-0.1, 0.1], [-0.2, 0.2]])
    torch.testing.assert_close(torch.stack(weights), expected, rtol=0, atol=1e-6)


def test_descent_T14():
    """loss + D_sym / lr + (2 - L delta lr) / (2 delta lr) |step|^2 <= loss before; equal for this quadratic."""
    lr, theta = 0.5, scalar()
    optimizer = LinBreg([theta], lr=lr, penalty=L1(1.0))
    weights, duals = path(optimizer, theta, 2.0, 5)
    weights, duals = torch.cat([torch.zeros(1, 1), weights]), torch.cat([torch.zeros(1, 1), duals])
    losses, steps = (weights - 2).square() / 2, weights.diff(dim=0)
    symmetric = (duals - weights).diff(dim=0) * steps  # <p+ - p, theta+ - theta>
    left = losses[1:] + symmetric / lr + (2 - lr) / (2 * lr) * steps.square()
    assert left[:, 0].tolist() == pytest.approx([2, 2, 0.5, 0.125, 0.03125])
    assert (left <= losses[:-1] + 1e-12).all()


def test_a_constraint_is_kept_T16():
    theta = scalar(1.0)
    weights, _ = path(LinBreg([theta], lr=0.25, penalty=NonNegativeL1(0.0)), theta, -1.0, 60)
    assert (weights >= 0).all()
    assert weights[-1].item() == 0


def test_inverse_scale_order_T4():
    theta = nn.Parameter(torch.zeros(2))
    weights, _ = path(LinBreg([theta], lr=0.25, penalty=L1(1.0)), theta, torch.tensor([2, 0.5]), 12)
    assert [int(column.nonzero()[0]) + 1 for column in weights.T] == [3, 9]
    expected = torch.tensor([[0.5, 0], [1.733032, 0.125], [1.887373, 0.341797]])
    torch.testing.assert_close(weights[[2, 8, 11]], expected, rtol=0, atol=1e-6)


@given(slopes=st.lists(st.floats(0.05, 2), min_size=1, max_size=6), lam=st.floats(0.1, 2))
def test_entry_time_of_linbreg(slopes, lam):
    lr, theta = 0.01, nn.Parameter(torch.zeros(len(slopes)))
    slope = torch.tensor(slopes) * torch.tensor([1.0, -1.0] * 3)[: len(slopes)]
    optimizer = LinBreg([theta], lr=lr, penalty=L1(lam))
    woke = torch.zeros(len(slopes))
    for k in range(1, math.floor(lam / (lr * 0.05)) + 3):
        theta.grad = slope.clone()
        optimizer.step()
        woke += k * ((woke == 0) & (theta.detach() != 0))
    early = torch.tensor([math.floor(lam / (lr * s)) + 1 for s in slopes])
    assert ((woke - early).abs() <= 1).all()  # the sum of k steps is rounded


def test_adabreg_scalar_T6():
    theta = scalar()
    weights, duals = path(AdaBreg([theta], lr=0.3, penalty=L1(1.0)), theta, 2.0, 5)
    assert duals[:, 0].tolist() == pytest.approx([0.3, 0.6, 0.9, 1.2, 1.49841], abs=1e-5)
    assert weights[:, 0].tolist() == pytest.approx([0, 0, 0, 0.2, 0.49841], abs=1e-5)


def test_group_linbreg_T9():
    theta = nn.Parameter(torch.zeros(1, 2))
    target = torch.tensor([[3.0, 4.0]])
    weights, duals = path(LinBreg([theta], lr=0.1, penalty=GroupLasso(0.5, ROWS)), theta, target, 4)
    assert duals.norm(dim=(1, 2)).tolist() == pytest.approx([0.5, 1, 1.470711, 1.894350], abs=1e-6)
    expected = torch.tensor([[0, 0], [0.175736, 0.234315], [0.458162, 0.610883], [0.712346, 0.949795]])
    torch.testing.assert_close(weights[:, 0], expected, rtol=0, atol=1e-6)


def test_dual_start_T10():
    theta = nn.Parameter(torch.tensor([[3.0, 4], [0, 0]]))
    optimizer = LinBreg([theta], lr=0.1, penalty=GroupLasso(0.5, ROWS), delta=2.0)
    theta.grad = torch.zeros_like(theta)
    optimizer.step()
    expected = torch.tensor([[1.924264, 2.565685], [0, 0]])
    torch.testing.assert_close(optimizer.state[theta]["dual"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(theta.detach(), torch.tensor([[3.0, 4], [0, 0]]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", FAMILY)
@given(seed=st.integers(0, 10**6), delta=st.floats(0.2, 5), joint=st.booleans())
def test_dual_stays_in_the_subdifferential_T10(kind, seed, delta, joint):
    """After every step v_g - theta_g / delta is lam sqrt(n) theta_g / |theta_g| on active groups, else shorter."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        nn.Parameter(torch.randn(5, 3, 2, generator=generator)),
        nn.Parameter(torch.randn(5, generator=generator)),
    ]
    tensors = tensors if joint else tensors[:1]
    with torch.no_grad():
        for p in tensors:
            p[:3] = 0
    lam, groups = 0.3, ROWS if joint else Groups(over=(1, 2))
    optimizer = kind(tensors, lr=0.1, penalty=GroupLasso(lam, groups), delta=delta, joint=joint)
    for _ in range(20):
        for p in tensors:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        theta = join_rows([p.detach() for p in tensors])
        p = join_rows([optimizer.state[p]["dual"] for p in tensors]) - theta / delta
        threshold = lam * math.sqrt(theta.shape[1])
        active = theta.ne(0).any(dim=1)
        directions = threshold * theta[active] / theta[active].norm(dim=1, keepdim=True)
        torch.testing.assert_close(p[active], directions, rtol=0, atol=1e-10)
        assert (p[~active].norm(dim=1) <= threshold + 1e-12).all()


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize(
    "kind",
    [
        partial(LinBreg, lr=0.2),
        partial(LinBreg, lr=0.2, momentum=0.8),
        partial(AdaBreg, lr=0.1),
        partial(Bregman, rule=torch.optim.RMSprop, lr=0.05),
    ],
    ids=["LinBreg", "momentum", "AdaBreg", "RMSprop"],
)
def test_every_dual_is_a_subgradient_after_every_step_T10(kind, penalty):
    """v - theta / delta in dJ(theta), for every penalty on every layout of groups and every optimiser."""
    generator = torch.Generator().manual_seed(0)
    theta = nn.Parameter(torch.randn(SHAPE, generator=generator) * torch.rand(SHAPE, generator=generator).gt(0.5))
    with torch.no_grad():
        theta[0] = 0
        theta.copy_(theta.abs() if isinstance(penalty, NonNegativeL1) else theta)
    optimizer = kind([theta], penalty=penalty, delta=2.0)
    for _ in range(6):
        theta.grad = torch.randn(SHAPE, generator=generator)
        optimizer.step()
        assert_subgradient(penalty, optimizer.state[theta]["dual"] - theta.detach() / 2, theta.detach())


@pytest.mark.parametrize(
    ("bregman", "parent"),
    [
        (lambda ps: LinBreg(ps, lr=0.1, delta=2.0), lambda ps: torch.optim.SGD(ps, lr=0.2)),
        (lambda ps: AdaBreg(ps, lr=0.01), lambda ps: torch.optim.Adam(ps, lr=0.01)),
        (lambda ps: ProxSGD(ps, lr=0.2), lambda ps: torch.optim.SGD(ps, lr=0.2)),
    ],
)
def test_without_penalty_it_is_its_parent(bregman, parent):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    theirs = copy.deepcopy(ours)
    optimizers = [bregman(ours.parameters()), parent(theirs.parameters())]
    for _ in range(50):
        x = torch.randn(16, 4)
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_joint_units_live_and_die_together():
    torch.manual_seed(0)
    net = conv_skip_autoencoder(depth=2, width=6)
    sparse_start(net, 0.2)
    optimizer = AdaBreg(param_groups(net, lam=0.05, lr=0.005))
    woke = 0
    for _ in range(80):
        x = torch.rand(4, 1, 12, 12)
        optimizer.zero_grad()
        (net(x + 0.1 * torch.randn_like(x)) - x).square().mean().backward()
        optimizer.step()
        for weight, bias in net.unit_parameters().values():
            alive = join_rows([weight, bias]).ne(0).any(dim=1)
            assert torch.equal(weight.flatten(1).ne(0).all(dim=1), alive)  # a living row has no zero entry by chance
            assert torch.equal(bias.ne(0), alive)
            woke = max(woke, int(alive.sum()))
    assert woke > 1


@pytest.mark.parametrize("penalty", [GroupLasso(0.2, ROWS), SparseGroup(L1(0.1), GroupLasso(0.2, ROWS))], ids=repr)
@pytest.mark.parametrize("kind", [*FAMILY, ProxSGD, SplitLBI])
def test_units_of_several_rows_are_those_of_the_rows_in_order(kind, penalty):
    """Of a tensor with rows of 4 units, in 3 parts of which the last is free: as one with the units alone, and one
    without penalty."""
    torch.manual_seed(0)
    start, grads = torch.randn(24, 3), torch.randn(8, 24, 3)

    def parts(tensor):
        cut = tensor.unflatten(-2, (3, 4, 2))
        units = cut[..., :2, :, :, :].movedim(-3, -4).flatten(-3)
        return units.contiguous(), cut[..., 2, :, :, :].flatten(-2).contiguous()

    p, (units, rest) = nn.Parameter(start.clone()), map(nn.Parameter, parts(start))
    one = kind([p], lr=0.05, penalty=penalty, joint=((0, 3, 2, 2),))
    two = kind([{"params": [units], "penalty": penalty}, {"params": [rest], "penalty": Zero()}], lr=0.05)
    for g in grads:
        p.grad, (units.grad, rest.grad) = g.clone(), parts(g)
        one.step()
        two.step()
    found = parts(p.detach())
    torch.testing.assert_close(found[0], units.detach())
    if kind is not SplitLBI:  # ties what has no penalty only where it stands in a joint group
        torch.testing.assert_close(found[1], rest.detach())
    copied = kind([p], lr=0.05, penalty=penalty, joint=((0, 3, 2, 2),))
    stored = io.BytesIO()
    torch.save(one.state_dict(), stored)
    copied.load_state_dict(torch.load(io.BytesIO(stored.getvalue())))
    assert copied.param_groups[0]["joint"] == ((0, 3, 2, 2),)


@pytest.mark.parametrize("kind", FAMILY)
def test_state_round_trip_continues_bit_for_bit(kind):
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        return net, kind(param_groups(net, lam=0.01, lr=0.02))

    def advance(net, optimizer, seeds):
        for seed in seeds:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            (net(x) - x[:, :2]).square().mean().backward()
            optimizer.step()

    net, optimizer = make()
    advance(net, optimizer, range(10))
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    advance(net, optimizer, range(10, 20))

    file.seek(0)
    weights, state = torch.load(file)  # the default: plain data only
    again, other = make()
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert [group["penalty"] for group in other.param_groups] == [group["penalty"] for group in optimizer.param_groups]
    advance(again, other, range(10, 20))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


def test_a_state_of_another_penalty_is_refused():
    state = LinBreg([scalar()], penalty=L1(1.0)).state_dict()
    with pytest.raises(ValueError, match="the stored penalty is L1, the optimiser was built with Zero"):
        LinBreg([scalar()]).load_state_dict(state)
    with pytest.raises(ValueError, match="of an optimiser without penalty, not of LinBreg"):
        LinBreg([scalar()]).load_state_dict(torch.optim.SGD([scalar()]).state_dict())
    with pytest.raises(ValueError, match="1 parameter groups, the optimiser 2"):
        LinBreg([{"params": [scalar()]}, {"params": [scalar()]}]).load_state_dict(state)


@pytest.mark.parametrize("kind", FAMILY)
def test_steps_are_in_place_and_closures_run(kind):
    theta = scalar(1.0)
    storage = theta.data_ptr()
    optimizer = kind([theta], lr=0.1, penalty=L1(0.1))

    def closure():
        optimizer.zero_grad()
        loss = (theta - 3).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert theta.data_ptr() == storage
    assert theta.item() > 1
    optimizer.zero_grad()
    before = theta.item()
    assert optimizer.step() is None  # no gradient: nothing moves
    assert theta.item() == before


@dataclass(frozen=True)
class PlainGroupLasso:
    """The group lasso as a user would write it: without the shortcut for optimisers."""

    lam: float

    def value(self, weight):
        return GroupLasso(self.lam, ROWS).value(weight)

    def prox(self, z, step):
        return GroupLasso(self.lam, ROWS).prox(z, step)

    def subgradient(self, weight):
        return GroupLasso(self.lam, ROWS).subgradient(weight)


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg, ProxSGD])
@pytest.mark.parametrize("joint", [True, False])
def test_shrinking_in_place_changes_nothing(kind, joint):
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (6, 3)]
    start = [torch.randn(shape, generator=generator) * torch.tensor([[0.0]] * 3 + [[1.0]] * 3) for shape in shapes]
    sets = [[nn.Parameter(p.clone()) for p in start] for _ in range(2)]
    lam = 4.0 if kind is ProxSGD else 0.4  # proximal SGD compares lr * lam with one step, not with a sum of steps
    penalties = [GroupLasso(lam, ROWS), PlainGroupLasso(lam)]
    optimizers = [kind(ps, lr=0.1, penalty=j, joint=joint) for ps, j in zip(sets, penalties, strict=True)]
    zeros = 0
    for _ in range(30):
        for p, q in zip(*sets, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(*sets, strict=True):
            assert torch.equal(p == 0, q == 0)
            torch.testing.assert_close(p, q, rtol=0, atol=1e-14)
        zeros += int((sets[0][0] == 0).sum())
    assert zeros > 0


@pytest.mark.parametrize("kind", FAMILY)
def test_the_layout_in_memory_does_not_matter(kind):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    last = nn.Parameter(weight.to(memory_format=torch.channels_last))
    first = nn.Parameter(weight.clone())
    penalty = GroupLasso(0.1, Groups(over=(1, 2, 3)))
    optimizers = [kind([p], lr=0.1, penalty=penalty) for p in (last, first)]
    for _ in range(5):
        first.grad = torch.randn(4, 3, 3, 3, generator=generator)
        last.grad = first.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(last, first)


def test_a_frozen_parameter_is_not_touched():
    frozen, moving = scalar(0.1), scalar(0.1)
    optimizer = AdaBreg([frozen, moving], lr=0.1, penalty=L1(0.3), delta=3.0)
    for _ in range(3):
        moving.grad = torch.ones(1)
        optimizer.step()
    assert frozen.item() == 0.1
    assert not optimizer.state[frozen]
    frozen.grad = torch.zeros(1)  # thawed: it starts from where it is
    optimizer.step()
    assert frozen.item() == pytest.approx(0.1, abs=1e-15)


def test_schedulers_steer_the_step():
    theta = scalar()
    optimizer = LinBreg([theta], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for expected in (1.0, 1.1, 1.11):
        theta.grad = torch.tensor([-1.0])
        optimizer.step()
        scheduler.step()
        assert theta.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: LinBreg([p], lr=0.0), r"LinBreg\(lr=...\) must be a finite number > 0, got 0.0"),
        (lambda p: AdaBreg([p], delta=-1.0), r"AdaBreg\(delta=...\) must be a finite number > 0, got -1.0"),
        (
            lambda p: AdaBreg([p], betas=(0.9, 1.0)),
            r"AdaBreg\(betas=...\) must be two numbers in \[0, 1\), got",
        ),
        (lambda p: LinBreg([p], momentum=1.0), r"LinBreg\(momentum=...\) must be a number in \[0, 1\), got 1.0"),
        (lambda p: ProxSGD([p], lr=-1.0), r"ProxSGD\(lr=...\) must be a finite number > 0, got -1.0"),
        (lambda p: ProxSGD([{"params": [p], "delta": 1.0}]), r"ProxSGD has no option \['delta'\]"),
        (lambda p: LinBreg([{"params": [p], "penalti": Zero()}]), r"LinBreg has no option \['penalti'\]"),
        (lambda p: LinBreg([p, nn.Parameter(torch.zeros(3))], joint=True), r"got shapes \[\(1,\), \(3,\)\]"),
        (lambda p: LinBreg([p], lr="fast"), r"LinBreg\(lr=...\) must be a finite number > 0, got 'fast'"),
        (
            lambda p: LinBreg([p], penalty=0.1),
            r"LinBreg\(penalty=...\) must be a penalty, .* such as L1\(0.1\), got 0.1",
        ),
        (lambda p: ProxSGD([p], penalty=L1), r"ProxSGD\(penalty=...\) must be a penalty"),
        (lambda p: LinBreg([p], joint=3), r"LinBreg\(joint=...\) must be True, False or one axis per tensor, got 3"),
        (
            lambda p: Bregman([p], "adam", lr=0.1),
            r"Bregman\(rule=...\) must be a class of torch optimisers, got 'adam'",
        ),
        (lambda p: GroupLasso(0.1, (1,)), r"GroupLasso\(groups=...\) must be Groups such as nas.ROWS, got \(1,\)"),
        (lambda p: L1("0.1"), r"L1\(lam=...\) must be a finite number >= 0, got '0.1'"),
        (lambda p: Groups(over=1), r"Groups\(over=...\) must be a tuple of integers, got 1"),
        (
            lambda p: SparseGroup(0.1, 0.2),
            r"SparseGroup\(inner, group\) takes an L1, GroupLasso or SparseGroup and a GroupLasso, got 0.1 and 0.2",
        ),
        (
            lambda p: SparseGroup(GroupLasso(0.1, ROWS), GroupLasso(0.1, Groups(over=(0,)))),
            r"SparseGroup: Groups\(over=\(1,\), block=None\) do not lie in Groups\(over=\(0,\), block=None\)",
        ),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(scalar())


def test_param_groups_are_a_partition():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = param_groups(net, lam=0.1, lr=0.01)
    assert [group["name"] for group in groups] == ["0", "free"]
    assert [name for name, _ in groups[0]["params"]] == [
        "0.weight",
        "0.bias",
        "1.bias",
    ]  # the shift belongs to the unit
    named = [pair for group in groups for pair in group["params"]]
    assert dict(named) == dict(net.named_parameters())
    assert len(named) == len(dict(named))


def test_param_groups_refuse_a_model_without_units():
    with pytest.raises(ValueError, match="Tanh has no linear or convolution layer"):
        param_groups(nn.Tanh(), lam=0.1, lr=0.01)


@pytest.mark.parametrize("kind", [partial(LinBreg, lr=0.1, momentum=0.9), partial(AdaBreg, lr=0.1)])
@pytest.mark.parametrize(
    ("penalty", "joint"), [(L1(0.1), False), (GroupLasso(0.1, ROWS), False), (GroupLasso(0.1, ROWS), True)]
)
def test_memory_is_that_of_the_rule_and_one_dual(kind, penalty, joint):
    """And no step allocates anything of the size of the weights."""
    p = nn.Parameter(torch.randn(512, 512))
    optimizer = kind([p], penalty=penalty, joint=joint)
    p.grad = torch.randn(512, 512)
    optimizer.step()
    q = nn.Parameter(p.detach().clone())
    q.grad = p.grad
    rule = torch.optim.SGD([q], momentum=0.9) if kind.func is LinBreg else torch.optim.Adam([q])
    rule.step()
    sizes = [
        sum(value.numel() for value in each.values() if isinstance(value, torch.Tensor))
        for each in (optimizer.state[p], rule.state[q])
    ]
    assert sizes[0] == sizes[1] + p.numel()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    assert max(event.cpu_memory_usage for event in profile.events()) < p.numel() * p.element_size() / 8


def test_a_strength_set_on_the_way_is_checked_before_anything_moves():
    theta = nn.Parameter(torch.ones(2, 3))
    optimizer = LinBreg([theta], lr=0.1, penalty=L1(0.1))
    theta.grad = torch.ones(2, 3)
    optimizer.step()
    before = theta.detach().clone()
    for change, message in (
        ({"delta": 0.0}, "must be a finite"),
        ({"penalty": GroupLasso(0.1, FILTERS)}, "does not fit"),
    ):
        saved = dict(optimizer.param_groups[0])
        optimizer.param_groups[0].update(change)
        for follow in (optimizer.step, optimizer.resync, optimizer.reread):
            with pytest.raises(ValueError, match=message):
                follow()
        assert torch.equal(theta.detach(), before)
        optimizer.param_groups[0].update(saved)
    optimizer.step()


def test_a_start_outside_the_domain_of_the_penalty_is_refused():
    theta = scalar(-1.0)
    theta.grad = torch.ones(1)
    with pytest.raises(ValueError, match=r"NonNegativeL1\(lam=0.1\) is infinite at the weights of parameter group 0"):
        LinBreg([theta], penalty=NonNegativeL1(0.1)).step()
    assert theta.item() == -1.0


def test_a_number_of_numpy_is_stored_as_a_number():
    theta = scalar()
    theta.grad = torch.ones(1)
    optimizer = LinBreg([theta], penalty=L1(np.float64(0.1)))
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file)["param_groups"][0]["penalty"] == {"name": "L1", "lam": 0.1}


def test_options_of_the_constructor_of_a_rule_count():
    theirs, ours = scalar(), scalar()
    options = {"lr": 0.1, "initial_accumulator_value": 0.5}
    optimizers = [torch.optim.Adagrad([theirs], **options), Bregman([ours], torch.optim.Adagrad, **options)]
    for p, optimizer in zip((theirs, ours), optimizers, strict=True):
        for _ in range(3):
            p.grad = torch.ones(1)
            optimizer.step()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-15)


def test_reread_lets_a_larger_lam_shrink_the_weights():
    theta = nn.Parameter(torch.tensor([1.0, 0.2, 0.0]))
    optimizer = LinBreg([theta], lr=0.1, penalty=L1(0.3))
    theta.grad = torch.zeros(3)
    optimizer.step()
    optimizer.param_groups[0]["penalty"] = L1(0.6)
    optimizer.reread()
    assert theta.tolist() == pytest.approx([0.7, 0.0, 0.0])
    optimizer.step()
    assert theta.tolist() == pytest.approx([0.7, 0.0, 0.0])


def moved_as_alone(kind, groups):
    """Parameter groups in one optimiser move, bit for bit, as each set of joint tensors, and each other tensor, does in
    an optimiser of its own."""
    together = [{**group, "params": [nn.Parameter(start.clone()) for start in group["params"]]} for group in groups]
    sets = [
        {**group, "params": members}
        for group in together
        for members in ([group["params"]] if group.get("joint") else [[p] for p in group["params"]])
    ]
    alone = [{**each, "params": [nn.Parameter(p.detach().clone()) for p in each["params"]]} for each in sets]
    optimizers = [kind(together), *(kind([each]) for each in alone)]
    pairs = [
        pair
        for one, other in zip(sets, alone, strict=True)
        for pair in zip(one["params"], other["params"], strict=True)
    ]
    starts = [p.detach().clone() for p, _ in pairs]
    for step in range(4):
        for k, (p, q) in enumerate(pairs):
            p.grad = q.grad = None if (step + k) % 3 == 0 else torch.randn_like(p)
        for optimizer in optimizers:
            optimizer.step()
        for p, q in pairs:
            assert torch.equal(p, q)
    assert not any(torch.equal(p, start) for (p, _), start in zip(pairs, starts, strict=True) if p.numel())


NESTED = SparseGroup(GroupLasso(0.05, FILTERS), GroupLasso(0.01, WHOLE))
GROWING = SparseGroup(rings(0.05, 5, per="channel"), GroupLasso(0.02, FILTERS))
BLOCKS = GroupLasso(0.05, Groups(over=(0, 2), block=(1, 3)))


@pytest.mark.parametrize(
    "penalty", [L1(0.05), GroupLasso(0.05, KERNELS), NESTED, BLOCKS, Nuclear(0.05), LogSum(0.05), Zero()]
)
@pytest.mark.parametrize(
    "kind",
    [AdaBreg, partial(AdaBreg, second_moment="tensor"), partial(AdaBreg, second_moment="group"), LinBreg, ProxSGD],
)
def test_many_tensors_move_as_each_would_alone(kind, penalty):
    """Small tensors that are alike go through the prox together; large ones, and other shapes, do not."""
    shapes = [(5, 3, 3, 3), (2, 3, 3, 3), (4, 2, 3, 3), (1, 3, 3, 3), (5, 3, 3, 3), (0, 3, 3, 3), (2, 3, 3, 3)]
    shapes += [(70, 27, 3, 3)] * 2
    tensors = [torch.randn(shape) for shape in shapes]
    for parts in ([tensors], [[tensor] for tensor in tensors]):  # one parameter group, or many
        moved_as_alone(kind, [{"params": part, "penalty": penalty, "lr": 0.1} for part in parts])


@pytest.mark.parametrize(
    "kind",
    [AdaBreg, partial(AdaBreg, second_moment="tensor"), partial(AdaBreg, second_moment="group"), LinBreg, SplitLBI],
)
def test_groups_of_units_that_are_alike_move_as_each_would_alone(kind):
    def units(penalty, joint, *shapes, **options):
        return {
            "params": [torch.randn(shape) for shape in shapes],
            "penalty": penalty,
            "joint": joint,
            "lr": 0.1,
            **options,
        }

    rows, nested = GroupLasso(0.05, ROWS), SparseGroup(GroupLasso(0.05, ROWS), GroupLasso(0.02, WHOLE))
    along = [(0, 1), [0, 1], (0, (1, 2, 1, 1)), [0, [1, 2, 1, 1]]]  # lists: from a file
    groups = [
        *(units(penalty, True, (4, 2, 3, 3), (4,)) for penalty in (rows, nested, rows, nested, rows)),
        units(rows, True, (4, 2, 3, 3), (4,), lr=0.3),
        units(GroupLasso(0.2, ROWS), True, (4, 2, 3, 3), (4,)),
        units(rows, True, (4, 0), (4,)),
        *(
            units(penalty, joint, (4, 2), (3, 4 if joint[1] == 1 else 8))
            for penalty in (rows, nested)
            for joint in along
        ),
        *(units(GROWING, False, (3, 1, 5, 5)) for _ in range(3)),
        *(units(L1(0.05), False, ()) for _ in range(3)),
    ]
    moved_as_alone(kind, groups)


def test_a_gradient_is_refused_for_entries_that_are_not_finite_not_for_its_size():
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = AdaBreg([p], penalty=GroupLasso(0.1, ROWS))
    p.grad = torch.full_like(p, 1e30)  # its norm is infinite in single precision
    optimizer.step()
    assert p.isfinite().all()
    p.grad[0, 0] = math.nan
    before = p.detach().clone()
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimizer.step()
    assert torch.equal(p, before)
