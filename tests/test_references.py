"""Trajectories of independent implementations, numbers of the reference, and duals that follow outside changes."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from nas import (
    L1,
    XRDA,
    AdaBreg,
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
)
from nas.groups import ENTRIES, FILTERS, KERNELS, ROWS, join_rows
from nas.penalties import groups_of, scaled

pytestmark = pytest.mark.usefixtures("float64")

# --------------------------------------------------------------------------------------------------------------------
# Plain implementations, one tensor, written from the equations of the reference.


def soft(z, threshold):
    return z.sign() * (z.abs() - threshold).clamp(min=0)


def prox_l1(z, step, lam=0.1):
    return soft(z, step * lam)


def prox_filters(z, step, lam=0.1):
    """Each filter shrunk by step * lam * sqrt(its size), in a loop."""
    result = torch.zeros_like(z)
    for i in range(len(z)):
        norm, threshold = math.sqrt((z[i] ** 2).sum()), step * lam * math.sqrt(z[i].numel())
        if norm > threshold:
            result[i] = z[i] * (1 - threshold / norm)
    return result


def plain_linbreg(w, gradients, prox, start, *, lr, delta=1.0, momentum=0.0):
    """Equations (4) and (5): the momentum is of lr * gradient."""
    v, m = w / delta + start, torch.zeros_like(w)
    for gradient in gradients:
        m = momentum * m + (1 - momentum) * lr * gradient(w)
        v = v - m
        w = prox(delta * v, delta)
        yield w


def plain_adabreg(w, gradients, prox, start, *, lr, delta=1.0, betas=(0.9, 0.999), eps=1e-8):
    """Equation (6)."""
    v, m1, m2 = w / delta + start, torch.zeros_like(w), torch.zeros_like(w)
    for k, gradient in enumerate(gradients, start=1):
        g = gradient(w)
        m1, m2 = betas[0] * m1 + (1 - betas[0]) * g, betas[1] * m2 + (1 - betas[1]) * g**2
        v = v - lr * (m1 / (1 - betas[0] ** k)) / ((m2 / (1 - betas[1] ** k)).sqrt() + eps)
        w = prox(delta * v, delta)
        yield w


def plain_split_lbi(w, gradients, prox, *, lr, kappa=1.0, nu=100.0, momentum=0.9, dampening=0.0, weight_decay=0.0):
    """Equation (12): weights and companion after every step."""
    z, gamma, b = torch.zeros_like(w), torch.zeros_like(w), None
    for gradient in gradients:
        g = gradient(w)
        b = g if b is None or momentum == 0 else momentum * b + (1 - dampening) * g
        d = b + weight_decay * w if w.ndim != 1 else b
        w, z = w - kappa * lr * (d + (w - gamma) / nu), z - lr / nu * (gamma - w)
        gamma = kappa * prox(z, 1.0)
        yield torch.stack([w, gamma])


def plain_xrda(
    p, gradients, *, lr, lam, contrast=None, kernels=False, averaging=0.0, time=9.5, weight_time=9.5, wd=0.0
):
    """Equation (13), with the weights of entries or of kernels, or without weights (contrast=None)."""
    q, u, r, b = p.clone(), torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
    keep, keep_r = math.exp(-lr / time), math.exp(-lr / weight_time)
    for gradient in gradients:
        d = gradient(p) + wd * p
        size = p.shape[2] * p.shape[3] if kernels else 1
        rho = p.abs().mean(dim=(2, 3), keepdim=True).expand_as(p) if kernels else p.abs()
        r = keep_r * r + (1 - keep_r) * rho
        weights = torch.ones_like(p)
        if contrast is not None:
            weights = math.sqrt(size) * contrast / (1 + (contrast - 1) * r / r.max()) if r.max() > 0 else 0 * r
        b = averaging * b + lr * weights
        q = averaging * q + (1 - averaging) * p
        u = keep * u + (1 - keep) * d
        q = q - lr * u
        p = soft(q, lam * b)
        yield p


SHAPE = (5, 3, 2, 2)


def problem(steps, seed=0, zero=(0, 1, 3)):
    """A start with zero filters, and the gradients of nonlinear regressions on random minibatches."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    start, truth = draw(SHAPE), draw(SHAPE) * (draw(SHAPE) > 0.8)
    start[list(zero)] = 0

    def minibatch():
        x = draw(16, start.numel()) / 4
        y = torch.tanh(x @ truth.flatten()) + 0.1 * draw(16)

        def gradient(w):
            fitted = torch.tanh(x @ w.flatten())
            return (((fitted - y) * (1 - fitted**2)) @ x).reshape(w.shape)

        return gradient

    return start, [minibatch() for _ in range(steps)]


def trajectory(make, start, gradients, read=lambda optimizer, p: p):
    p = nn.Parameter(start.clone())
    optimizer = make([p])
    for gradient in gradients:
        p.grad = gradient(p.detach())
        optimizer.step()
        yield read(optimizer, p).detach().clone()


def assert_same_path(ours, theirs, some_zeros=True):
    ours, theirs = torch.stack(list(ours)), torch.stack(list(theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    live = ours.ne(0).flatten(1).double().mean(dim=1)
    assert not some_zeros or (live.min() < 1 and live.min() < live.max())  # the support was at stake


@pytest.mark.parametrize("delta", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("penalty", "prox"), [(L1(0.1), prox_l1), (GroupLasso(0.1, FILTERS), prox_filters)])
def test_linbreg_is_equation_5(penalty, prox, momentum, delta):
    start, gradients = problem(200)
    options = {"lr": 0.02 / delta, "delta": delta, "momentum": momentum}
    ours = trajectory(partial(LinBreg, penalty=penalty, **options), start, gradients)
    assert_same_path(ours, plain_linbreg(start, gradients, prox, penalty.subgradient(start), **options))


@pytest.mark.parametrize("delta", [1.0, 3.0])
@pytest.mark.parametrize(("penalty", "prox"), [(L1(0.1), prox_l1), (GroupLasso(0.1, FILTERS), prox_filters)])
def test_adabreg_is_equation_6(penalty, prox, delta):
    start, gradients = problem(200)
    options = {"lr": 0.003, "delta": delta, "betas": (0.8, 0.99)}
    ours = trajectory(partial(AdaBreg, penalty=penalty, **options), start, gradients)
    assert_same_path(ours, plain_adabreg(start, gradients, prox, penalty.subgradient(start), **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0},
        {"kappa": 2.0, "nu": 5.0, "dampening": 0.3},
        {"weight_decay": 0.05},
        {"kappa": 0.5, "nu": 8.0, "momentum": 0.7, "dampening": 0.7, "weight_decay": 0.02},
    ],
)
@pytest.mark.parametrize(
    ("penalty", "prox"),
    [(L1(0.1), prox_l1), (GroupLasso(0.1, FILTERS), prox_filters)],
)
def test_split_lbi_is_equation_12(penalty, prox, options):
    start, gradients = problem(200, zero=())
    options = {"lr": 0.03, "nu": 20.0, **options}

    def read(optimizer, p):
        return torch.stack([p, optimizer.state[p]["companion"]])

    ours = trajectory(partial(SplitLBI, penalty=penalty, **options), start, gradients, read)
    assert_same_path(ours, plain_split_lbi(start, gradients, prox, **options))


def test_split_lbi_decays_matrices_only():
    gradients = [torch.zeros_like] * 5
    for start in (torch.ones(3), torch.ones(3, 1)):
        options = {"lr": 0.1, "weight_decay": 0.5, "nu": 1e9}
        ours = list(trajectory(partial(SplitLBI, penalty=L1(1.0), **options), start, gradients))
        expected = 0.95**5 if start.ndim > 1 else 1.0
        assert ours[-1].flatten().tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("averaging", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("mode", ["plain", "entries", "kernels"])
def test_xrda_is_equation_13(mode, averaging):
    start, gradients = problem(100, zero=())
    lam = {"plain": 0.3, "entries": 0.03, "kernels": 0.02}[mode] * (0.1 if averaging == 1 else 1)
    contrast = None if mode == "plain" else 20.0
    penalty = L1(lam) if mode == "plain" else LogSum(lam, 20.0, ENTRIES if mode == "entries" else KERNELS)
    options = {"lr": 0.05, "averaging": averaging, "time": 0.4, "weight_time": 0.7}
    ours = trajectory(partial(XRDA, penalty=penalty, weight_decay=0.01, **options), start, gradients)
    theirs = plain_xrda(start, gradients, lam=lam, contrast=contrast, kernels=mode == "kernels", wd=0.01, **options)
    assert_same_path(ours, theirs)


def test_xrda_of_zero_weights_has_no_threshold():
    """As in the reference: as long as all magnitudes are zero, so are the weights."""
    start, gradients = torch.zeros(SHAPE), problem(30)[1]
    options = {"lr": 0.05, "averaging": 0.5}
    ours = list(trajectory(partial(XRDA, penalty=LogSum(0.01, 5.0), **options), start, gradients))
    assert ours[0].ne(0).all()
    assert_same_path(ours, plain_xrda(start, gradients, lam=0.01, contrast=5.0, **options), some_zeros=False)


# --------------------------------------------------------------------------------------------------------------------
# The package bregman-learning, where it is installed.


@pytest.fixture
def bregman():
    return pytest.importorskip("bregman")


def mlp_path(make, sparse, steps=200):
    """Weights of an MLP after each of many steps on minibatches; ``sparse`` matrices start with zero rows, entries."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 6, generator=generator)
    y = torch.sin(x[:, :2]) + x[:, 2:3] * x[:, 3:4]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2))
    matrices = [p for p in net.parameters() if p.ndim > 1]
    with torch.no_grad():
        for p in matrices if sparse else []:
            p[::2] = 0
            p[1, ::2] = 0
    optimizer = make(matrices, [p for p in net.parameters() if p.ndim == 1])
    path = []
    for _ in range(steps):
        chosen = torch.randint(128, (16,), generator=generator)
        optimizer.zero_grad()
        (net(x[chosen]) - y[chosen]).square().mean().backward()
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return path


RULES = [("LinBreg", {"lr": 0.05}), ("LinBreg", {"lr": 0.05, "momentum": 0.9}), ("AdaBreg", {"lr": 0.005})]


@pytest.mark.parametrize("delta", [1.0, 2.0])
@pytest.mark.parametrize(("rule", "options"), RULES)
@pytest.mark.parametrize(
    ("penalty", "theirs"),
    [(L1(0.05), "L1"), (GroupLasso(0.05, ROWS), "L12"), (Nuclear(0.2), "Nuclear"), (Zero(), "Null")],
    ids=repr,
)
def test_trajectories_of_bregman_learning(bregman, penalty, theirs, rule, options, delta):
    ours = {"LinBreg": LinBreg, "AdaBreg": AdaBreg}[rule]
    reg = bregman.Null() if theirs == "Null" else getattr(bregman, theirs)(rc=penalty.lam)

    def reference(matrices, free):
        groups = [{"params": matrices, "reg": reg}, {"params": free}]
        return getattr(bregman, rule)(groups, delta=delta, **options)

    def mine(matrices, free):
        return ours([{"params": matrices, "penalty": penalty}, {"params": free}], delta=delta, **options)

    sparse = theirs in ("L1", "L12")  # from matrices without full rank its Nuclear starts with null directions awake
    assert_same_path(mlp_path(mine, sparse), mlp_path(reference, sparse), some_zeros=sparse)


# --------------------------------------------------------------------------------------------------------------------
# Numbers of the reference.


def toy_split_lbi(target, steps):
    w = nn.Parameter(torch.zeros(1))
    optimizer = SplitLBI([w], lr=0.25, penalty=L1(1.0), kappa=1.0, nu=1.0, momentum=0.0)
    path = []
    for _ in range(steps):
        w.grad = (w - target).detach()
        optimizer.step()
        state = optimizer.state[w]
        path.append([w.item(), state["dual"].item(), state["companion"].item()])
    return torch.tensor(path)


def test_split_lbi_scalar_T18():
    weights, duals, companions = toy_split_lbi(2.0, 400).T
    assert weights[:6].tolist() == [0.5, 0.75, 0.875, 0.9375, 0.96875, 0.984375]
    assert duals[:6].tolist() == [0, 0.125, 0.3125, 0.53125, 0.765625, 1.0078125]
    assert companions[:6].tolist() == [0, 0, 0, 0, 0, 0.0078125]
    assert [weights[-1], duals[-1], companions[-1]] == pytest.approx([2, 3, 2])  # the limit has no bias


@pytest.mark.parametrize(("target", "step", "value"), [(2.0, 6, 0.0078125), (1.0, 10, 2.44e-4), (0.5, 18, 4.77e-7)])
def test_split_lbi_entry_and_closed_form_T18(target, step, value):
    weights, duals, companions = toy_split_lbi(target, step).T
    assert not companions[:-1].any()
    assert companions[-1] == pytest.approx(value, rel=2e-3)
    k = torch.arange(1, step)
    torch.testing.assert_close(weights[:-1], target / 2 * (1 - 0.5**k), rtol=0, atol=1e-14)
    torch.testing.assert_close(duals[:-1], target / 8 * (k - 2 + 2.0 ** (1 - k)), rtol=0, atol=1e-14)


def test_filter_prox_T19():
    ones = torch.ones(1, 1, 2, 2)
    assert GroupLasso(1.0, FILTERS, rms=False).prox(ones, 1.0).flatten().tolist() == [0.5] * 4
    assert GroupLasso(0.1, FILTERS).prox(ones, 1.0).flatten().tolist() == pytest.approx([0.9] * 4)


@pytest.mark.parametrize(
    ("averaging", "weights", "thresholds"),
    [
        (0.0, [[0.999, 0.2475], [0.998, 0.244989]], [[0.1, 0.25], [0.1, 0.251131]]),
        (1.0, [None, None, [0.997, 0.242466]], [[0.1, 0.25], [0.2, 0.501131], [0.3, 0.753412]]),
    ],
)
def test_xrda_T20(averaging, weights, thresholds):
    p = nn.Parameter(torch.tensor([1.0, 0.25]))
    optimizer = XRDA([p], lr=0.1, penalty=LogSum(0.01, 5.0), averaging=averaging, weight_time=1e-9)
    for expected, threshold in zip(weights, thresholds, strict=True):
        p.grad = torch.zeros(2)
        optimizer.step()
        assert optimizer.state[p]["threshold"].tolist() == pytest.approx(threshold, abs=1e-6)
        assert expected is None or p.tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_and_momentum_T20():
    assert LogSum(0.01, 5.0).weights(torch.tensor([1.0, 0.25]), 1).tolist() == [1, 2.5]
    p = nn.Parameter(torch.zeros(1))
    optimizer = XRDA([p], lr=1.0)
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == pytest.approx(-(1 - 0.900088), abs=1e-6)


def test_a_new_strength_T15():
    theta = nn.Parameter(torch.tensor([0.7, -0.2, 0.0]))
    optimizer = LinBreg([theta], lr=1.0, penalty=L1(0.3), delta=2.0)
    theta.grad = torch.zeros(3)
    optimizer.step()
    theta.grad = torch.tensor([0, 0, -0.1])
    optimizer.step()
    assert optimizer.state[theta]["dual"].tolist() == pytest.approx([0.65, -0.4, 0.1])
    assert L1(0.5).prox(2 * optimizer.state[theta]["dual"], 2.0).tolist() == pytest.approx([0.3, 0, 0])  # uncorrected
    optimizer.param_groups[0]["penalty"] = L1(0.5)
    optimizer.resync()
    assert optimizer.state[theta]["dual"].tolist() == pytest.approx([0.85, -0.6, 1 / 6])
    assert theta.tolist() == pytest.approx([0.7, -0.2, 0], abs=1e-15)
    theta.grad = torch.zeros(3)
    optimizer.step()
    assert theta.tolist() == pytest.approx([0.7, -0.2, 0], abs=1e-15)


# --------------------------------------------------------------------------------------------------------------------
# Duals follow what was changed from outside.

BLOCKS = Groups(over=(0, 1), block=(2, 3))
CASES = {
    "l1": (L1(0.3), [(4, 6)]),
    "rows": (GroupLasso(0.3, ROWS), [(6, 4)]),
    "kernels": (GroupLasso(0.3, KERNELS), [(3, 2, 2, 2)]),
    "blocks": (GroupLasso(0.3, BLOCKS, rms=False), [(4, 6)]),
    "sparse_group": (SparseGroup(L1(0.15), GroupLasso(0.15, ROWS)), [(6, 4)]),
    "nuclear": (Nuclear(1.0), [(5, 4)]),
    "non_negative": (NonNegativeL1(0.3), [(4, 6)]),
    "units": (GroupLasso(0.3, ROWS), [(6, 3), (6,), (6, 2)]),
    "sparse_units": (SparseGroup(L1(0.15), GroupLasso(0.15, ROWS)), [(6, 3), (6,)]),
    "low_rank_units": (Nuclear(1.0), [(5, 3), (5,)]),
}
case = pytest.mark.parametrize("name", CASES)
seeds = st.integers(0, 10**6)
factors = st.floats(0.1, 10)
few, fewer = settings(max_examples=12), settings(max_examples=4)


def trained(name, seed, delta, kind=LinBreg, steps=8, **options):
    """An optimiser and its parameters after some random steps; about half of the groups sleep."""
    penalty, shapes = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    with torch.no_grad():
        for p in params:
            p.abs_() if isinstance(penalty, NonNegativeL1) else None
            p[::2] = 0
    optimizer = kind(params, lr=0.1, penalty=penalty, delta=delta, joint=len(params) > 1, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return optimizer, params


def joined(tensors):
    """What the penalty sees: a tensor, or one row per unit."""
    tensors = [p.detach().clone() for p in tensors]
    return tensors[0] if len(tensors) == 1 else join_rows(tensors)


def parts(optimizer, params):
    """Weights, dual and subgradient, as the penalty sees them."""
    weights, dual = joined(params), joined([optimizer.state[p]["dual"] for p in params])
    return weights, dual, dual - weights / optimizer.param_groups[0]["delta"]


def still(optimizer, params):
    """One step with zero gradients."""
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()


def assert_stands_for(optimizer, params):
    """The dual stands for the weights: prox(delta * dual, delta) gives them, and p is a subgradient at them."""
    penalty, delta = optimizer.param_groups[0]["penalty"], optimizer.param_groups[0]["delta"]
    weights, dual, p = parts(optimizer, params)
    torch.testing.assert_close(penalty.prox(delta * dual, delta), weights, rtol=0, atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    probes = [torch.zeros_like(p), 2 * weights, weights + p]
    probes += [
        weights + r * torch.randn(p.shape, generator=generator) for r in (1e-3, 0.1, 1.0, 10.0) for _ in range(3)
    ]
    for y in probes:
        assert penalty.value(y) >= penalty.value(weights) + (p * (y - weights)).sum() - 1e-9


def assert_still(optimizer, params):
    """A step with zero gradients does not move the weights."""
    before = joined(params)
    still(optimizer, params)
    torch.testing.assert_close(joined(params), before, rtol=0, atol=1e-12)
    assert_stands_for(optimizer, params)


@case
@few
@given(seed=seeds, delta=st.sampled_from([1.0, 0.5, 3.0]), factor=factors, new_delta=factors)
def test_weights_stay_under_a_new_strength_and_delta(name, seed, delta, factor, new_delta):
    optimizer, params = trained(name, seed, delta)
    weights, _, p = parts(optimizer, params)
    group = optimizer.param_groups[0]
    group["penalty"], group["delta"] = scaled(group["penalty"], factor), new_delta
    optimizer.resync()
    torch.testing.assert_close(joined(params), weights, rtol=0, atol=1e-12)
    assert_stands_for(optimizer, params)
    torch.testing.assert_close(parts(optimizer, params)[2], factor * p, rtol=1e-9, atol=1e-10)  # progress is kept
    assert_still(optimizer, params)


@case
@few
@given(seed=seeds, factor=factors, new_delta=factors, which=st.sampled_from(["penalty", "delta", "both"]))
def test_a_step_follows_without_being_told(name, seed, factor, new_delta, which):
    """The same without a call of resync, as by a callback that changes a parameter group."""
    optimizer, params = trained(name, seed, 2.0)
    group, p = optimizer.param_groups[0], parts(optimizer, params)[2]
    if which != "delta":
        group["penalty"] = scaled(group["penalty"], factor)
        p *= factor
    if which != "penalty":
        group["delta"] = new_delta
    assert_still(optimizer, params)
    torch.testing.assert_close(parts(optimizer, params)[2], p, rtol=1e-9, atol=1e-10)


@case
@few
@given(seed=seeds, delta=st.sampled_from([1.0, 0.5]))
def test_other_weights_are_kept(name, seed, delta):
    """Weights of a checkpoint, loaded into the network after some steps."""
    optimizer, params = trained(name, seed, delta)
    _, others = trained(name, seed + 1, delta)
    net = nn.ParameterList(params)
    assert list(net.parameters())[0] is params[0]
    net.load_state_dict(nn.ParameterList(others).state_dict())
    assert torch.equal(joined(params), joined(others))
    assert_still(optimizer, params)


@case
@few
@given(seed=seeds, delta=st.sampled_from([1.0, 0.5]), detached=st.booleans())
def test_pruned_groups_stay_pruned(name, seed, delta, detached):
    optimizer, params = trained(name, seed, delta)
    before, dual, p = parts(optimizer, params)
    with torch.no_grad():
        for q in params:
            (q.detach() if detached else q)[:2] = 0
    after = joined(params)
    assert_still(optimizer, params)
    _, new_dual, new_p = parts(optimizer, params)

    groups = groups_of(optimizer.param_groups[0]["penalty"])
    touched = groups.spread(groups.active(after != before), before)
    asleep = groups.spread(~groups.active(before), before)
    pruned = touched & groups.spread(~groups.active(after), after)
    assert torch.equal(new_dual[asleep], dual[asleep])
    torch.testing.assert_close(new_p[~touched], p[~touched], rtol=0, atol=1e-12)
    assert not new_p[pruned].any()  # starts afresh
    assert not joined(params)[pruned].any()


def halve_data(params):
    for p in params:
        p.data.mul_(0.5)


def assign_data(params):
    for p in params:
        p.data = p.data * 0.5


def vector(params):
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(params).detach() * 0.5, params)


@pytest.mark.parametrize("name", ["l1", "units", "nuclear"])
@pytest.mark.parametrize("write", [halve_data, assign_data, vector])
def test_resync_sees_what_torch_does_not_count(name, write):
    """Writes into ``p.data`` leave the version of a parameter as it is; a call of resync compares the values."""
    optimizer, params = trained(name, 0, 1.0)
    before = joined(params)
    write(params)
    optimizer.resync()
    torch.testing.assert_close(joined(params), before / 2)
    assert_stands_for(optimizer, params)
    assert_still(optimizer, params)


@pytest.mark.parametrize("name", ["l1", "units", "nuclear"])
@pytest.mark.parametrize("write", [assign_data, vector])
def test_a_step_sees_other_storage(name, write):
    optimizer, params = trained(name, 0, 1.0)
    before = joined(params)
    write(params)
    still(optimizer, params)
    torch.testing.assert_close(joined(params), before / 2)


@case
@few
@given(seed=seeds, delta=st.sampled_from([1.0, 0.3, 3.0]))
def test_nothing_changed_leaves_every_dual_bit_for_bit(name, seed, delta):
    optimizer, params = trained(name, seed, delta)
    weights, dual, _ = parts(optimizer, params)
    optimizer.resync()
    assert torch.equal(parts(optimizer, params)[1], dual)
    write_again(params)
    optimizer.resync()
    assert torch.equal(parts(optimizer, params)[1], dual)
    torch.testing.assert_close(joined(params), weights, rtol=0, atol=1e-12)


@torch.no_grad()
def write_again(params):
    """The values that are there already."""
    for p in params:
        p.copy_(p.clone())


@case
@few
@given(seed=seeds, factor=factors)
def test_the_same_values_again_after_a_new_strength(name, seed, factor):
    """No group starts afresh because prox(dual) is the weights only up to rounding."""
    optimizer, params = trained(name, seed, 2.0)
    group = optimizer.param_groups[0]
    group["penalty"] = scaled(group["penalty"], factor)
    optimizer.resync()
    _, dual, _ = parts(optimizer, params)
    write_again(params)
    optimizer.resync()
    torch.testing.assert_close(parts(optimizer, params)[1], dual, rtol=1e-9, atol=1e-10)


@case
@few
@given(seed=seeds, factor=factors)
def test_a_saved_state_knows_the_strength_of_its_duals(name, seed, factor):
    """A new lam, saved before the next step, and loaded: the progress of what sleeps survives."""
    optimizer, params = trained(name, seed, 2.0)
    p = parts(optimizer, params)[2]
    group = optimizer.param_groups[0]
    group["penalty"] = scaled(group["penalty"], factor)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_still(optimizer, params)
    torch.testing.assert_close(parts(optimizer, params)[2], factor * p, rtol=1e-9, atol=1e-10)


KINDS = [
    L1(0.2),
    GroupLasso(0.2, ROWS),
    GroupLasso(0.1, Groups((0, 1), (2, 2))),
    Nuclear(0.3),
    Zero(),
    LogSum(0.05, 9.0),
    LogSum(0.05, 9.0, ROWS),
]


@pytest.mark.parametrize("old", KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize("new", KINDS, ids=range(len(KINDS)))
@fewer
@given(seed=seeds, delta=st.sampled_from([1.0, 2.0]))
def test_another_kind_of_penalty_moves_nothing(old, new, seed, delta):
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(6, 4, generator=generator))
    with torch.no_grad():
        w[:3] = 0
    optimizer = LinBreg([w], lr=0.1, penalty=old, delta=1.0)
    for _ in range(3):
        w.grad = torch.randn(6, 4, generator=generator)
        optimizer.step()
    optimizer.param_groups[0]["penalty"], optimizer.param_groups[0]["delta"] = new, delta
    before = w.detach().clone()
    still(optimizer, [w])
    torch.testing.assert_close(w.detach(), before, rtol=0, atol=1e-12)
    if isinstance(new, LogSum) and getattr(old, "groups", None) != new.groups:
        torch.testing.assert_close(new.groups.spread(optimizer.state[w]["weights"], w), entry_weights(new, before))


# --------------------------------------------------------------------------------------------------------------------
# SplitLBI.


@pytest.mark.parametrize("name", ["l1", "rows", "kernels", "blocks", "sparse_group", "units", "sparse_units"])
@few
@given(seed=seeds, kappa=st.sampled_from([1.0, 0.5, 2.0]))
def test_dual_of_the_companion_is_a_subgradient(name, seed, kappa):
    penalty, shapes = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    options = {"kappa": kappa, "nu": 2.0, "joint": len(shapes) > 1}
    optimizer = SplitLBI(params, lr=0.1, penalty=penalty, **options)
    awake = 0
    for _ in range(20):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        companion, dual = (joined([optimizer.state[p][key] for p in params]) for key in ("companion", "dual"))
        p = dual - companion / kappa
        awake += int(companion.any())
        for y in [0 * p, 2 * companion, companion + p, companion + torch.randn(p.shape, generator=generator)]:
            assert penalty.value(y) >= penalty.value(companion) + (p * (y - companion)).sum() - 1e-10
        torch.testing.assert_close(penalty.prox(kappa * dual, kappa), companion, rtol=0, atol=1e-14)
    assert awake > 0


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0}, {"momentum": 0.7, "dampening": 0.7}, {"momentum": 0.5, "dampening": 0.1}]
)
def test_split_lbi_without_penalty_is_sgd(options):
    start, gradients = problem(100)
    ours = trajectory(partial(SplitLBI, lr=0.02, **options), start, gradients)
    theirs = trajectory(partial(torch.optim.SGD, lr=0.02, **{"momentum": 0.9, **options}), start, gradients)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def ordered(norms, joint=False):
    """A linear layer whose i-th row has this norm, trained with zero gradients for six epochs of two steps."""
    net = nn.Sequential(nn.Linear(2, len(norms)))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(norms)[:, None] * torch.tensor([0.6, -0.8]))
        net[0].bias.zero_()
    penalty = GroupLasso(1.0, ROWS, rms=False)
    groups = [{"params": list(net.named_parameters())[: 1 + joint], "joint": joint, "penalty": penalty}]
    optimizer = SplitLBI(groups, lr=1.0, nu=10.0, momentum=0.0)
    for epoch in range(6):
        for _ in range(2):
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        optimizer.update_prune_order(epoch)
    return net, optimizer


NORMS = [0.3, 8.0, 3.0, 7.9, 0.4, 2.9, 1.9, 0.2]  # rows enter in epochs never, 0, 1, 0, never, 2, 3 or 4, never


@pytest.mark.parametrize("joint", [False, True])
def test_the_order_of_entry(joint):
    _, optimizer = ordered(NORMS, joint)
    weight = optimizer.param_groups[0]["params"][0]
    first = optimizer.state[weight]["first_epoch"].flatten().tolist()
    assert first[1] == first[3] < first[2] <= first[5] < first[6] < min(first[0], first[4], first[7])
    optimizer.update_prune_order(100)
    optimizer.update_prune_order(0)  # an earlier epoch than some: what is awake now was awake then
    entered = optimizer.state[weight]["first_epoch"].flatten() < 100
    assert entered.tolist() == [norm > 1 for norm in NORMS]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("layer", ["0", "0.weight", ["0"]])
@pytest.mark.parametrize(("percent", "pruned"), [(0, 0), (12.4, 0), (12.5, 1), (30, 2), (50, 4), (80, 6), (100, 8)])
def test_pruning_by_order(percent, pruned, layer, joint):
    net, optimizer = ordered(NORMS, joint)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([9, 0.1, 5, 0.2, 10, 6, 7, 8.0])[:, None] * torch.ones(2))  # other norms now
        net[0].bias.fill_(0.01)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.prune_layer_by_order_by_list(percent, layer)
    # first those that never entered, by norm (8, 9, 10); then by epoch, and the smaller norm of equal epochs
    order = [7, 0, 4, 6, 5, 2, 1, 3]
    dropped = torch.zeros(8, dtype=torch.bool)
    dropped[order[:pruned]] = True
    assert torch.equal(net[0].weight, before[0] * ~dropped[:, None])
    assert torch.equal(net[0].bias, before[1] * ~dropped if joint else before[1])


def test_pruning_several_layers_and_entries():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 3), nn.Linear(3, 1))
    optimizer = SplitLBI([{"params": net.named_parameters(), "penalty": L1(1.0)}])
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.update_prune_order(0)
    before = net[0].weight.detach().abs().clone()
    optimizer.prune_layer_by_order_by_list(50, ["0", "1"])
    assert [int((p == 0).sum()) for p in net.parameters()] == [35, 0, 10, 0, 0, 0]  # rounded down
    dropped = net[0].weight == 0
    assert before[dropped].max() <= before[~dropped].min()  # none has entered: the smallest magnitudes


def test_pruning_says_what_is_wrong():
    net, optimizer = ordered(NORMS)
    with pytest.raises(ValueError, match=r"percent must lie in \[0, 100\], got 101"):
        optimizer.prune_layer_by_order_by_list(101, "0")
    with pytest.raises(ValueError, match=r"percent must lie in \[0, 100\], got -1"):
        optimizer.prune_layer_by_order_by_list(-1, "0")
    with pytest.raises(ValueError, match=r"no companion of 'fc9'; there are: 0.weight"):
        optimizer.prune_layer_by_order_by_list(50, ["0", "fc9"])
    new = SplitLBI([{"params": list(net.named_parameters())[:1], "penalty": L1(1.0)}])
    with pytest.raises(ValueError, match=r"no companion of '0'; there are: none yet"):
        new.prune_layer_by_order_by_list(50, "0")
    new.step()
    with pytest.raises(ValueError, match=r"no order of '0' yet; call update_prune_order\(epoch\) first"):
        new.prune_layer_by_order_by_list(50, "0")


def test_a_refused_list_prunes_nothing():
    net, optimizer = ordered(NORMS)
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match="no companion of 'fc9'"):
        optimizer.prune_layer_by_order_by_list(50, ["0", "fc9"])
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("joint", [False, True])
def test_masks_are_winning_tickets(joint):
    net, optimizer = ordered(NORMS, joint)
    masks = optimizer.masks()
    entered = torch.tensor([norm > 1 for norm in NORMS])
    assert list(masks) == (["0.weight", "0.bias"] if joint else ["0.weight"])
    assert torch.equal(masks["0.weight"], entered[:, None].expand(8, 2))
    for key, mask in masks.items():
        prune.custom_from_mask(net[0], key.removeprefix("0."), mask)
    net(torch.ones(1, 2)).sum().backward()
    assert torch.equal(net[0].weight.ne(0).any(dim=1), entered)
    assert torch.equal(net[0].weight_orig.grad.ne(0).any(dim=1), entered)


# --------------------------------------------------------------------------------------------------------------------
# XRDA and its relatives.


@pytest.mark.parametrize("penalty", [L1(0.3), GroupLasso(0.3, FILTERS), SparseGroup(L1(0.2), GroupLasso(0.1, KERNELS))])
def test_xrda_without_momentum_is_prox_sgd(penalty):
    start, gradients = problem(100)
    ours = trajectory(partial(XRDA, lr=0.02, penalty=penalty, time=1e-9), start, gradients)
    assert_same_path(ours, trajectory(partial(ProxSGD, lr=0.02, penalty=penalty), start, gradients))


@pytest.mark.parametrize("time", [0.05, 0.19])
def test_xrda_without_penalty_is_sgd_with_momentum(time):
    keep = math.exp(-0.02 / time)
    start, gradients = problem(100)

    def sgd(params):
        """The buffer of torch starts at the first gradient; the velocity at zero."""
        optimizer = torch.optim.SGD(params, lr=0.02, momentum=keep, dampening=keep)
        optimizer.state[params[0]]["momentum_buffer"] = torch.zeros_like(params[0])
        return optimizer

    ours = trajectory(partial(XRDA, lr=0.02, time=time), start, gradients)
    assert_same_path(ours, trajectory(sgd, start, gradients), some_zeros=False)
    ours = trajectory(partial(XRDA, lr=0.02, time=time), start, gradients)
    assert_same_path(ours, trajectory(partial(LinBreg, lr=0.02, momentum=keep), start, gradients), some_zeros=False)


def test_full_averaging_without_momentum_is_dual_averaging():
    """p_k = soft(p_0 - lr * sum of gradients, k * lr * lam)."""
    start, gradients = problem(30)
    total, gradient_of = start.clone(), []
    for k, p in enumerate(
        trajectory(partial(XRDA, lr=0.02, penalty=L1(0.1), averaging=1.0, time=1e-9), start, gradients)
    ):
        total -= 0.02 * gradients[k](gradient_of[-1] if gradient_of else start)
        torch.testing.assert_close(p, soft(total, (k + 1) * 0.02 * 0.1), rtol=0, atol=1e-12)
        gradient_of.append(p)


# --------------------------------------------------------------------------------------------------------------------
# LogSum.

LOG_SUMS = [LogSum(0.3, 5.0), LogSum(0.1, 500.0), LogSum(0.3, 9.0, KERNELS), LogSum(0.2, 50.0, FILTERS)]
log_sums = pytest.mark.parametrize("penalty", LOG_SUMS, ids=repr)


def entry_weights(penalty, w):
    """The weight of every entry."""
    groups = penalty.groups
    return groups.spread(penalty.weights(groups.means(w), groups.size(w)), w)


@log_sums
@few
@given(seed=seeds, scale=st.floats(0, 1))
def test_log_sum_is_touched_from_above(penalty, seed, scale):
    """By its weighted l1 norm, at all points whose largest group is no larger (eps falls with it, and J with eps)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(SHAPE, generator=generator) * torch.rand(5, 3, 1, 1, generator=generator) for _ in range(2))
    x[0] = 0
    y *= scale * penalty.groups.means(x).max() / penalty.groups.means(y).max()
    weights = entry_weights(penalty, x)
    for point in (y, x, -x, 0 * x, x * torch.rand(SHAPE, generator=generator)):
        above = penalty.value(x) + penalty.lam * (weights * (point.abs() - x.abs())).sum()
        assert penalty.value(point) <= above + 1e-10


@log_sums
@few
@given(seed=seeds)
def test_slope_of_log_sum_is_the_weight(penalty, seed):
    """Of entries outside the largest group, which sets eps."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    penalty.value(x).backward()
    means = penalty.groups.means(x.detach())
    others = penalty.groups.spread(means < means.max(), x)
    expected = penalty.lam * entry_weights(penalty, x.detach()) * x.detach().sign()
    torch.testing.assert_close(x.grad[others], expected[others], rtol=1e-9, atol=1e-12)
    assert others.sum() < others.numel()


@log_sums
@few
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_range_of_the_weights(penalty, seed, scale):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale
    x[1] = 0
    root = math.sqrt(penalty.groups.size(x))
    weights = entry_weights(penalty, x)
    assert weights.min().item() == pytest.approx(root)
    assert weights[1].flatten().tolist() == pytest.approx([penalty.contrast * root] * 12)
    assert weights.max().item() == pytest.approx(penalty.contrast * root)
    torch.testing.assert_close(weights, entry_weights(penalty, x / scale))  # scale does not matter
    assert (entry_weights(penalty, 0 * x) == penalty.contrast * root).all()
    assert penalty.value(0 * x) == 0


@log_sums
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg, partial(LinBreg, momentum=0.9), ProxSGD])
def test_reweight(penalty, kind):
    start, gradients = problem(20)
    penalty = LogSum(penalty.lam / 20, penalty.contrast, penalty.groups)
    p, moved = nn.Parameter(start.clone()), nn.Parameter(torch.ones(2))
    delta = {} if kind is ProxSGD else {"delta": 2.0}
    optimizer = kind([{"params": [p], "penalty": penalty, **delta}, {"params": [moved]}], lr=0.01)
    for gradient in gradients:
        p.grad = gradient(p.detach())
        optimizer.step()
    state, before, old = optimizer.state[p], p.detach().clone(), optimizer.state[p]["weights"].clone()
    spread = partial(penalty.groups.spread, weight=before)
    torch.testing.assert_close(spread(old), entry_weights(penalty, start))  # those of the start, until asked
    optimizer.reweight()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(spread(state["weights"]), entry_weights(penalty, before))
    assert not torch.equal(state["weights"], old)
    if kind is not ProxSGD:
        given_back = L1(penalty.lam).prox(2 * state["dual"], 2 * spread(state["weights"]))
        torch.testing.assert_close(given_back, before, rtol=0, atol=1e-12)
        threshold = penalty.lam * spread(state["weights"]) * (1 + 1e-12)
        assert ((state["dual"] - before / 2).abs() <= threshold).all()
    if kind is LinBreg:
        assert_still_log_sum(optimizer, p)


def assert_still_log_sum(optimizer, p):
    before = p.detach().clone()
    still(optimizer, [p])
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-12)


@given(seed=seeds, factor=factors, delta=factors)
def test_reweight_after_pruning_and_a_new_strength(seed, factor, delta):
    """Everything at once: pruned by hand, a new lam and delta, new weights."""
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(6, 4, generator=generator))
    optimizer = LinBreg([p], lr=0.05, penalty=LogSum(0.1, 20.0))
    for _ in range(4):
        p.grad = torch.randn(6, 4, generator=generator)
        optimizer.step()
    assume(p.any())
    with torch.no_grad():
        p[:2] = 0
    group = optimizer.param_groups[0]
    group["penalty"], group["delta"] = scaled(group["penalty"], factor), delta
    before = p.detach().clone()
    optimizer.reweight()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-12)
    assert_still_log_sum(optimizer, p)
