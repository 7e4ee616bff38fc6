"""Choosing lam by entry times or a trial, steering it towards a target, noticing a dead training."""

import copy
import math

import pytest
import torch
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
    LinBreg,
    LogSum,
    NonNegativeL1,
    Nuclear,
    ProxSGD,
    SparseGroup,
    param_groups,
    sparse_start,
)
from nas.penalties import strengths
from nas.steering import LamController, Watchdog, active_groups, calibrate, check_entry_times, density, entry_times

pytestmark = pytest.mark.usefixtures("float64")


def student(lam=0.1, lr=0.01, kind=AdaBreg, seed=0):
    """A sparsely started net, its optimiser and one training step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 1))
    sparse_start(net, 0.1, seed=seed)
    optimizer = kind(param_groups(net, lam=lam, lr=lr))
    generator = torch.Generator().manual_seed(seed)

    def train_step():
        x = torch.randn(64, 6, generator=generator)
        optimizer.zero_grad()
        loss = (net(x) - (x[:, :1] * x[:, 1:2] + x[:, 2:3].sin())).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return net, optimizer, train_step


@pytest.mark.parametrize(
    "penalty",
    [L1(0.3), GroupLasso(0.3, ROWS), GroupLasso(0.3, KERNELS, rms=False), Nuclear(0.3), NonNegativeL1(0.3),
     SparseGroup(L1(0.1), GroupLasso(0.2, KERNELS)), GroupLasso(0.3, Groups(over=(0, 1), block=(2, 3))),
     SparseGroup(GroupLasso(0.1, FILTERS), GroupLasso(0.2, WHOLE))],
    ids=repr,
)  # fmt: skip
def test_a_group_wakes_when_its_gauge_exceeds_one(penalty):
    shape = (4, 6) if isinstance(penalty, Nuclear) or getattr(penalty, "groups", None) == ROWS else (4, 6, 2, 2)
    for seed in range(5):
        p = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        p = p.abs() if isinstance(penalty, NonNegativeL1) else p
        gauge, groups = penalty.gauge(p), penalty.groups
        for factor, awake in ((1 - 1e-9, False), (1 + 1e-9, True)):
            z = groups.cut(p) * factor / gauge
            assert bool((groups.active(penalty.prox(z.reshape(p.shape), 1.0)) == awake).all())


def test_entry_times_under_adabreg_are_lam_over_lr():
    net, optimizer, _ = student(lam=0.5, lr=0.01)
    times = entry_times(optimizer)
    assert {name: len(steps) for name, steps in times.items()} == {"0": 36, "2": 36}
    assert all(steps.allclose(torch.tensor(50.0)) for steps in times.values())
    woke = torch.zeros(40, dtype=torch.long)
    asleep = ~active_groups(optimizer)["0"]
    for k in range(1, 60):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        woke += k * ((woke == 0) & active_groups(optimizer)["0"])
    assert set(woke[asleep].tolist()) <= {50, 51}


def test_entry_times_of_linbreg_follow_the_gradient():
    theta = nn.Parameter(torch.zeros(3))
    optimizer = LinBreg([theta], lr=0.1, penalty=L1(1.0))
    theta.grad = torch.tensor([1.0, -0.5, 0.0])
    assert entry_times(optimizer)["0"].tolist() == [10, 20, math.inf]
    for _ in range(4):
        optimizer.step()
    assert entry_times(optimizer)["0"].tolist() == pytest.approx([6, 16, math.inf])


def test_entry_times_are_checked_before_a_run():
    for lam in (0.01, 100.0):
        _, optimizer, _ = student(lam=lam, lr=0.01)
        with pytest.raises(ValueError, match="parameter group '0'.* use lam"):
            check_entry_times(optimizer, steps=1000)
    _, optimizer, _ = student(lam=1.0, lr=0.01)
    check_entry_times(optimizer, steps=1000)
    theta = nn.Parameter(torch.zeros(8))
    theta.grad = torch.ones(8)
    with pytest.raises(ValueError, match="'0': half of its groups would wake within 1 steps, .* at least 0.3 instead"):
        check_entry_times(LinBreg([theta], lr=0.1, penalty=L1(0.1)), steps=100)
    check_entry_times(LinBreg([theta], lr=0.1, penalty=L1(0.3 * (1 - 1e-6))), steps=100)  # as rounding makes it
    with pytest.raises(ValueError, match="would sleep for 200 steps, and the run has 100; use lam below 10"):
        check_entry_times(LinBreg([theta], lr=0.1, penalty=L1(20.0)), steps=100)
    theta.grad = torch.zeros(8)
    with pytest.raises(ValueError, match="'0': no gradient reaches its sleeping groups"):
        check_entry_times(LinBreg([theta], lr=0.1, penalty=L1(20.0)), steps=100)


@pytest.mark.parametrize(("kind", "lr", "lam"), [(AdaBreg, 0.01, 0.001), (AdaBreg, 0.01, 10.0), (LinBreg, 0.05, 0.02)])
@pytest.mark.parametrize("steps_before", [0, 40])
def test_calibration_lets_the_wanted_part_in(kind, lr, lam, steps_before):
    """Before the first step, and with duals that are on their way already."""
    net, optimizer, train_step = student(lam=lam if not steps_before else 1.0, lr=lr, kind=kind)
    for _ in range(steps_before):
        train_step()
    before, lam = copy.deepcopy(net.state_dict()), optimizer.param_groups[0]["penalty"].lam
    factor = calibrate(net, optimizer, train_step, steps=100, fraction=0.3)
    for name, p in net.state_dict().items():
        torch.testing.assert_close(p, before[name], rtol=0, atol=1e-12)
    assert bool(optimizer.state) == bool(steps_before)
    assert strengths(optimizer.param_groups[0]["penalty"]) == pytest.approx([factor * lam])
    start = density(optimizer)
    for _ in range(100):
        train_step()
    entered = (density(optimizer) - start) / (1 - start)
    assert 0.1 <= entered <= 0.6


def test_a_trial_that_fails_changes_nothing():
    net, optimizer, train_step = student()
    train_step()
    before, dual = copy.deepcopy(net.state_dict()), optimizer.state[net[0].weight]["dual"].clone()

    calls = iter(range(5))

    def fails_at_last():
        if next(calls) == 4:
            raise KeyboardInterrupt
        train_step()

    with pytest.raises(KeyboardInterrupt):
        calibrate(net, optimizer, fails_at_last, steps=10)
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert torch.equal(optimizer.state[net[0].weight]["dual"], dual)


def test_calibration_refuses_what_it_cannot_measure():
    net, optimizer, train_step = student()
    with pytest.raises(ValueError, match="0 < fraction < 1, got steps=200, fraction=1.5"):
        calibrate(net, optimizer, train_step, fraction=1.5)
    with pytest.raises(ValueError, match="no gradient reaches"):
        calibrate(net, optimizer, lambda: None, steps=3)
    layer = nn.Linear(3, 3)
    for optimizer, message in (
        (LinBreg(layer.parameters(), penalty=L1(0.1)), "no group is asleep"),
        (LinBreg(layer.parameters(), penalty=L1(0.0)), "parameter group '0': with lam = 0 nothing sleeps"),
        (LinBreg(layer.parameters(), penalty=LogSum(0.1)), "parameter group '0': LogSum has no gauge"),
        (ProxSGD(layer.parameters(), penalty=L1(0.1)), "ProxSGD has no duals"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(layer, optimizer, lambda: None)
    with pytest.raises(ValueError, match="no parameter group of the optimiser has a penalty"):
        density(LinBreg(layer.parameters()))


def test_controller_T24():
    theta = nn.Parameter(torch.zeros(3))
    optimizer = LinBreg([theta], penalty=L1(0.01))
    densities = iter([0.01, 0.05, 0.12])
    controller = LamController(optimizer, 0.1, lambda: next(densities), every=1)
    lams = []
    for _ in range(3):
        controller.step()
        lams.append(optimizer.param_groups[0]["penalty"].lam)
    assert lams == pytest.approx([0.00917431, 0.00873744, 0.00891219], abs=1e-8)


@pytest.mark.parametrize(("kind", "lr"), [(LinBreg, 0.05), (AdaBreg, 0.003)])
@pytest.mark.parametrize("seed", range(3))
def test_controller_reaches_its_target_from_both_sides(kind, lr, seed):
    net, optimizer, train_step = student(lam=1.0, lr=lr, kind=kind, seed=seed)
    controller = LamController(optimizer, 0.5, every=20, alpha=1.0, shrink=True)
    densities = []
    for _ in range(1000):
        train_step()
        controller.step()
        densities.append(density(optimizer))
    assert densities[0] == pytest.approx(0.1)
    assert abs(sum(densities[-200:]) / 200 - 0.5) <= 0.1


def test_controller_moves_no_weight():
    net, optimizer, train_step = student(lam=1.0, lr=0.05, kind=LinBreg)
    controller = LamController(optimizer, 0.4, every=5, alpha=4.0)
    lams = set()
    for _ in range(300):
        train_step()
        before = copy.deepcopy(net.state_dict())
        controller.step()
        lams.add(optimizer.param_groups[0]["penalty"].lam)
        for name, p in net.state_dict().items():
            assert torch.equal(p != 0, before[name] != 0)
            torch.testing.assert_close(p, before[name], rtol=0, atol=1e-12)
    assert min(lams) < 1.0 < max(lams) or len(lams) > 20
    assert density(optimizer) > 0.3


def test_controller_counts_units_keeps_ratios_and_bounds():
    net = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1))
    optimizer = AdaBreg(param_groups(net, lr=0.1, rules={"0.weight": L1(0.1), "2.weight": L1(0.4)}))
    controller = LamController(optimizer, 8, lambda: 0, total=32, every=1, lam_min=0.07)
    for expected in (0.1 / 1.25, 0.07, 0.07):
        controller.step()
        lams = [group["penalty"].lam for group in optimizer.param_groups[:2]]
        assert lams == pytest.approx([expected, 4 * expected])


def test_controller_continues_from_its_state():
    def make():
        theta = nn.Parameter(torch.zeros(3))
        optimizer = LinBreg([theta], penalty=L1(0.01))
        return optimizer, LamController(optimizer, 0.5, every=2)

    one, first = make()
    for _ in range(3):
        first.step()
    two, second = make()
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.step()
    assert one.param_groups[0]["penalty"] == two.param_groups[0]["penalty"] != L1(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.5}, r"LamController\(target=...\) must lie in \[0, total=1.0\], got 1.5"),
        ({"target": 0.5, "every": 0}, "every >= 1"),
        ({"target": 0.5, "alpha": 0.0}, "alpha > 0"),
        ({"target": 0.5, "lam_min": 2.0, "lam_max": 1.0}, "lam_min <= lam_max"),
    ],
)
def test_controller_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        LamController(LinBreg([nn.Parameter(torch.zeros(2))], penalty=L1(0.1)), **options)


def test_watchdog_barks_at_an_exploding_adabreg_only():
    """lam / lr = 1 wakes everything in two steps and the rectifiers die; lam / lr = 100 trains."""

    def train(lam, lr):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 5), nn.ReLU())
        optimizer = AdaBreg(param_groups(net, lr=lr, rules={"*.weight": GroupLasso(lam, ENTRIES)}))
        watchdog = Watchdog(optimizer, patience=15, chance=math.log(5))
        x = torch.rand(200, 20)
        y = (5 * x[:, 0]).long()
        for _ in range(40):
            for _ in range(5):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
            watchdog.step(loss.item())

    with pytest.raises(RuntimeError, match="training is dead: .* larger density or a smaller lr"):
        train(1.0, 1.0)
    train(0.2, 0.002)


def test_watchdog_knows_a_loss_of_guessing():
    theta = nn.Parameter(torch.tensor([0.0, 1.0]))
    watchdog = Watchdog(LinBreg([theta], penalty=L1(0.1)), patience=2, chance=2.0)
    theta.grad = torch.ones(2)
    for loss in (2.01, 2.0, 2.01):  # nothing has woken yet: the duals are on their way
        watchdog.step(loss)
    theta.data[0] = 1.0
    for loss in (2.01, 1.0, 2.0):
        watchdog.step(loss)
    with pytest.raises(RuntimeError, match="the loss 1.99 is that of guessing"):
        watchdog.step(1.99)
    with pytest.raises(ValueError, match=r"Watchdog\(patience=...\) must be at least 1, got 0"):
        Watchdog(LinBreg([theta]), patience=0)
