"""Kernels that grow by rings: the groups outside a middle, and the exact penalty of rings that are nested."""

import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas import (
    FILTERS,
    KERNELS,
    L1,
    WHOLE,
    XRDA,
    AdaBreg,
    Bregman,
    GroupLasso,
    LinBreg,
    LogSum,
    ProxSGD,
    Rim,
    SparseGroup,
    SplitLBI,
    param_groups,
    rings,
)
from nas.parameters import describe
from nas.penalties import scaled, strength_ratio, strengths
from nas.steering import active_groups, check_entry_times, entry_times
from tests.test_penalties import assert_subgradient

EDGE, CHANNEL = None, (1, 2, 3)
SHAPE = (4, 2, 7, 7)
PENALTIES = [
    *(GroupLasso(0.3, Rim(inside, over=over)) for inside in (1, 3, 5) for over in (EDGE, CHANNEL, (2, 3))),
    GroupLasso(0.3, Rim(3), rms=False),
    *(rings(0.2, 7, smallest=smallest, per=per) for smallest in (1, 3) for per in ("edge", "channel")),
    SparseGroup(GroupLasso(0.3, Rim(5, over=CHANNEL)), GroupLasso(0.1, Rim(3))),
    SparseGroup(rings(0.1, 7, per="channel"), GroupLasso(0.05, FILTERS)),
    SparseGroup(SparseGroup(L1(0.1), GroupLasso(0.2, KERNELS)), GroupLasso(0.05, WHOLE)),
    SparseGroup(SparseGroup(L1(0.1), GroupLasso(0.2, Rim(5))), GroupLasso(0.1, Rim(3))),
]

pytestmark = pytest.mark.usefixtures("float64")
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
per_what = pytest.mark.parametrize("per", ["edge", "channel"])


def random_weight(seed, scale=1.0):
    """Kernels that grow smaller from the middle to the border."""
    distance = (torch.arange(7) - 3).abs()
    decay = 2.0 ** -torch.maximum(distance[:, None], distance)
    return scale * decay * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ring(weight, size):
    """The entries of the ring from size - 2 to size, for every index of the first axis."""
    distance = (torch.arange(7) - 3).abs()
    return weight[..., torch.maximum(distance[:, None], distance) == size // 2].flatten(1)


def test_the_rim_of_a_kernel():
    weight = torch.arange(25.0).reshape(1, 1, 5, 5)
    middle = weight[..., 1:4, 1:4]
    rim = Rim(3)
    assert rim.size(weight) == 16
    assert rim.norms(weight).item() == pytest.approx(math.sqrt(weight.square().sum() - middle.square().sum()))
    assert rim.means(weight).item() == pytest.approx((weight.sum() - middle.sum()).item() / 16)
    inside = torch.zeros(1, 1, 5, 5)
    inside[..., 1:4, 1:4] = 1
    assert not rim.active(inside).any()
    assert torch.equal(rim.spread(torch.tensor(2.0), weight, rest=0.5), 2 - 1.5 * inside)
    assert torch.equal(rim.spread(torch.tensor(False), weight, rest=weight.gt(12)), inside.bool() & weight.gt(12))


def test_the_prox_shrinks_the_rim_and_leaves_the_middle():
    z = torch.zeros(1, 1, 5, 5)
    z[0, 0, 0, :2], z[0, 0, 2, 2] = torch.tensor([3.0, 4.0]), 7.0
    p = GroupLasso(0.5, Rim(3)).prox(z, 1.0)  # the threshold is 0.5 * 4
    torch.testing.assert_close(p[0, 0, 0, :2], torch.tensor([1.8, 2.4]))
    assert p[0, 0, 2, 2] == 7
    assert GroupLasso(0.5, Rim(3)).value(z).item() == pytest.approx(10)
    subgradient = GroupLasso(0.5, Rim(3)).subgradient(z)
    torch.testing.assert_close(subgradient[0, 0, 0, :2], torch.tensor([1.2, 1.6]))
    assert subgradient.count_nonzero() == 2


@per_what
def test_rings_are_nested_rims(per):
    rims = [Rim(inside, over=EDGE if per == "edge" else CHANNEL) for inside in (3, 5, 7)]
    five, seven, nine = (GroupLasso(0.1, rim) for rim in rims)
    assert rings(0.1, 5, per=per) == five
    assert rings(0.1, 7, per=per) == SparseGroup(seven, five)
    assert rings(0.1, 9, per=per) == SparseGroup(SparseGroup(nine, seven), five)
    assert rings(0.1, 9, smallest=7, per=per) == nine


@every_penalty
@given(seed=st.integers(0, 10**6), step=st.floats(1e-2, 5), scale=st.floats(1e-2, 20))
def test_prox_residual_is_a_subgradient(penalty, seed, step, scale):
    z = random_weight(seed, scale)
    p = penalty.prox(z, step)
    assert_subgradient(penalty, (z - p) / step, p)
    assert_subgradient(penalty, penalty.subgradient(p), p)
    torch.testing.assert_close(penalty.prox(p + step * penalty.subgradient(p), step), p, rtol=0, atol=1e-12)
    assert torch.equal(penalty.prox(z, step, out=z), p)


@per_what
@given(seed=st.integers(0, 10**6), step=st.floats(0.1, 2))
def test_the_prox_is_the_minimiser(per, seed, step):
    """Of J(w) + |w - z|^2 / (2 step), found by minimising the dual: w = z - step * the sum of one ball per rim."""
    lam, z = 0.2, random_weight(seed, 4.0)
    over = EDGE if per == "edge" else CHANNEL
    rims = [Rim(3, over=over), Rim(5, over=over)]
    duals = [torch.zeros(SHAPE) for _ in rims]
    for _ in range(200):  # block coordinate descent: project the residual onto the ball of each rim
        for k, rim in enumerate(rims):
            free = z / step - duals[1 - k]
            rim_only = free * rim.spread(torch.tensor(1.0), z, rest=0.0)
            factor = (lam * math.sqrt(rim.size(z)) / rim.norms(free)).clamp(max=1)
            duals[k] = rim_only * rim.spread(factor, z)
    torch.testing.assert_close(rings(lam, 7, per=per).prox(z, step), z - step * sum(duals), rtol=0, atol=1e-6)


@per_what
def test_outer_rings_vanish_first(per):
    penalty, sizes = rings(0.1, 7, smallest=1, per=per), []
    for step in torch.linspace(0, 6, 40).tolist():
        p = penalty.prox(random_weight(1, 2.0), step)
        p = p.flatten(0, 1)[None] if per == "edge" else p
        alive = torch.stack([ring(p, size).any(dim=1) for size in (1, 3, 5, 7)])
        assert bool((alive[:-1] >= alive[1:]).all())
        sizes.append(2 * alive.sum(dim=0) - 1)
    steps = torch.stack(sizes)
    assert bool((steps.diff(dim=0) <= 0).all())
    assert {1, 3, 5, 7} >= set(steps.flatten().tolist()) >= {1, 7}


@every_penalty
def test_a_group_wakes_when_its_gauge_exceeds_one(penalty):
    for seed in range(5):
        p = random_weight(seed)
        gauge, groups = penalty.gauge(p), penalty.groups
        for factor, awake in ((1 - 1e-9, False), (1 + 1e-9, True)):
            z = p * groups.spread(factor / gauge, p, rest=0.0)
            assert bool((groups.active(penalty.prox(z, 1.0)) == awake).all())


@pytest.mark.parametrize(
    "kind",
    [
        partial(LinBreg, lr=0.2),
        partial(AdaBreg, lr=0.05),
        partial(Bregman, rule=torch.optim.RMSprop, lr=0.02),
    ],
    ids=["LinBreg", "AdaBreg", "RMSprop"],
)
@every_penalty
def test_every_dual_is_a_subgradient_after_every_step(kind, penalty):
    theta = nn.Parameter(penalty.prox(random_weight(0, 2.0), 1.0))
    optimizer = kind([theta], penalty=penalty, delta=2.0)
    for seed in range(6):
        theta.grad = random_weight(seed)
        optimizer.step()
        assert_subgradient(penalty, optimizer.state[theta]["dual"] - theta.detach() / 2, theta.detach())


def test_a_kernel_grows_to_the_size_that_it_needs():
    """The middle learns from the first step on; the ring that is needed wakes, the one outside it never does."""
    torch.manual_seed(0)
    true, layer = (
        nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False),
        nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=False),
    )
    nn.init.zeros_(layer.weight)
    nn.init.constant_(true.weight, 0.1)
    penalty = SparseGroup(GroupLasso(0.3, Rim(5, over=CHANNEL)), GroupLasso(0.1, Rim(3, over=CHANNEL)))
    optimizer = LinBreg([layer.weight], lr=0.2, penalty=penalty)
    middle_awake = ring_awake = None
    for step in range(400):
        x = torch.randn(8, 3, 16, 16)
        optimizer.zero_grad()
        (layer(x) - true(x).detach()).square().mean().backward()
        optimizer.step()
        middle_awake = step if middle_awake is None and layer.weight[..., 2:5, 2:5].all() else middle_awake
        ring_awake = step if ring_awake is None and ring(layer.weight, 5).any() else ring_awake
        assert not ring(layer.weight, 7).any()
    assert middle_awake == 0 < ring_awake
    assert bool(ring(layer.weight, 5).all())
    torch.testing.assert_close(layer.weight[..., 1:6, 1:6].detach(), true.weight.detach(), rtol=0, atol=0.02)


@per_what
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg, ProxSGD, SplitLBI, XRDA])
def test_every_optimiser_steps_and_continues_from_plain_data(kind, per):
    def make():
        theta = nn.Parameter(random_weight(0).float())
        return theta, kind([theta], lr=0.05, penalty=rings(0.02, 7, per=per))

    def advance(theta, optimizer, seeds):
        for seed in seeds:
            theta.grad = random_weight(seed).float()
            optimizer.step()

    theta, optimizer = make()
    advance(theta, optimizer, range(5))
    optimizer.param_groups[0]["penalty"] = scaled(optimizer.param_groups[0]["penalty"], 1.5)
    file = io.BytesIO()
    torch.save([theta.detach(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file)
    other_theta, other = make()
    other_theta.data.copy_(weights)
    other.load_state_dict(state)
    assert other.param_groups[0]["penalty"] == rings(0.03, 7, per=per)
    for pair in [(theta, optimizer), (other_theta, other)]:
        advance(*pair, range(5, 10))
    assert torch.equal(theta, other_theta)


def test_a_state_of_other_groups_is_refused():
    theta = nn.Parameter(random_weight(0))
    penalties = [GroupLasso(0.1, FILTERS), GroupLasso(0.1, Rim(3)), rings(0.1, 7), rings(0.1, 7, smallest=1)]
    for stored in penalties:
        state = LinBreg([theta], penalty=stored).state_dict()
        for built in penalties:
            if built != stored:
                with pytest.raises(ValueError, match="the stored penalty"):
                    LinBreg([theta], penalty=built).load_state_dict(state)


def test_a_change_from_outside_is_followed_in_the_middle_too():
    theta = nn.Parameter(rings(0.1, 7).prox(random_weight(0), 1.0))
    optimizer = AdaBreg(
        [theta], penalty=SparseGroup(SparseGroup(L1(0.1), GroupLasso(0.2, Rim(5))), GroupLasso(0.1, Rim(3)))
    )
    for seed in range(5):
        theta.grad = random_weight(seed)
        optimizer.step()
    dual = optimizer.state[theta]["dual"].clone()
    with torch.no_grad():
        theta[0, 0, 3, 3] = 5.0
    expected = theta.detach().clone()
    optimizer.resync()
    changed = (optimizer.state[theta]["dual"] - dual).abs() > 1e-12
    torch.testing.assert_close(theta.detach(), expected, rtol=0, atol=1e-14)
    assert changed.nonzero().tolist() == [[0, 0, 3, 3]]
    assert optimizer.state[theta]["dual"][0, 0, 3, 3].item() == pytest.approx(5.1)


def test_strengths_entry_times_and_table():
    penalty = rings(0.1, 9)
    assert strengths(penalty) == [0.1] * 3
    assert strength_ratio(penalty, scaled(penalty, 2.0)) == pytest.approx(2)
    layer = nn.Conv2d(6, 6, 5, groups=6)
    nn.init.zeros_(layer.weight)
    groups = param_groups(layer, lr=0.001, rules={"weight": rings(0.1, 5, per="channel")})
    assert describe(groups).splitlines()[1].split() == ["weight", "GroupLasso", "6", "x", "16", "0.1", "0.001", "100"]
    optimizer = AdaBreg(groups)
    assert entry_times(optimizer)["weight"].tolist() == pytest.approx([100] * 6)
    check_entry_times(optimizer, 1000)
    with torch.no_grad():
        layer.weight[:2, :, 1:4, 1:4] = 1.0
        layer.weight[2, :, 0, 0] = 1.0
    assert active_groups(optimizer)["weight"].tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rim(0), r"Rim\(inside=...\) must be an integer >= 1, got 0"),
        (lambda: Rim(3.0), r"Rim\(inside=...\) must be an integer >= 1, got 3.0"),
        (lambda: Rim(3, over=(2, 2)), "must name each axis once"),
        (lambda: Rim(3, block=(1,)), r"Rim\(block=...\) must be None"),
        (lambda: Rim(3).norms(torch.zeros(7, 7)), r"Rim\(3, over=None\) does not fit a tensor of shape \(7, 7\)"),
        (lambda: Rim(3).norms(torch.zeros(2, 1, 3, 3)), "larger than 3 by an even number"),
        (lambda: Rim(3).norms(torch.zeros(2, 1, 6, 6)), "larger than 3 by an even number"),
        (lambda: Rim(3).norms(torch.zeros(2, 1, 7, 1)), "larger than 3 by an even number"),
        (lambda: Rim(3, over=(1, 2)).norms(torch.zeros(2, 1, 7, 7)), "two last axes that are in over"),
        (lambda: Rim(3, over=(1, 2, 3)).norms(torch.zeros(2, 7, 7)), "does not fit a tensor of shape"),
        (lambda: rings(0.1, 6), "rings need an odd kernel .* got kernel=6 and smallest=3"),
        (lambda: rings(0.1, 3), "got kernel=3 and smallest=3"),
        (lambda: rings(0.1, 7, smallest=4), "got kernel=7 and smallest=4"),
        (lambda: rings(0.1, 7, smallest=-1), "got kernel=7 and smallest=-1"),
        (lambda: rings(0.1, 7.0), "got kernel=7.0"),
        (lambda: rings(0.1, 7, per="unit"), r"rings\(per=...\) must be 'edge' or 'channel', got 'unit'"),
        (lambda: rings(-0.1, 7), r"GroupLasso\(lam=...\) must be a finite number >= 0, got -0.1"),
        (lambda: LogSum(0.1, groups=Rim(3)), r"LogSum\(groups=...\) takes no rims"),
        (lambda: SparseGroup(GroupLasso(0.1, Rim(3)), GroupLasso(0.1, Rim(5))), "do not lie in"),
        (lambda: SparseGroup(GroupLasso(0.1, Rim(5)), GroupLasso(0.1, Rim(3, over=CHANNEL))), "do not lie in"),
        (lambda: SparseGroup(GroupLasso(0.1, KERNELS), GroupLasso(0.1, Rim(3))), "do not lie in"),
        (lambda: SparseGroup(GroupLasso(0.1, WHOLE), rings(0.1, 7)), "takes an L1, GroupLasso or SparseGroup and a"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
