"""What torch expects of any optimiser, for all of ours: storage, groups, gradients, schedulers, copies, files."""

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import (
    LBFGS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RMSprop,
    SparseAdam,
    lr_scheduler,
    swa_utils,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nas import (
    ENTRIES,
    FILTERS,
    L1,
    ROWS,
    XRDA,
    AdaBreg,
    Bregman,
    GroupLasso,
    LinBreg,
    LogSum,
    ProxSGD,
    SparseGroup,
    SplitLBI,
    Zero,
)
from nas.penalties import scaled


class Lion(Optimizer):
    """The sign of an interpolated mean, as a user would write it: a rule that torch lacks."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(mean.lerp(p.grad, 1 - group["betas"][0]).sign(), alpha=group["lr"])
                mean.lerp_(p.grad, 1 - group["betas"][1])


class Prepared(Optimizer):
    """Momentum whose buffers exist as soon as it is built, as those of `torch.optim.Adagrad` do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["buffer"].mul_(0.9).add_(p.grad), alpha=group["lr"])


RULES: dict[str, Any] = {
    "Muon": partial(Bregman, rule=Muon, lr=0.02),
    "AdamW": partial(Bregman, rule=AdamW, lr=0.01),
    "RMSprop": partial(Bregman, rule=RMSprop, lr=0.001, momentum=0.9),
    "NAdam": partial(Bregman, rule=NAdam, lr=0.01),
    "Adagrad": partial(Bregman, rule=Adagrad, lr=0.1),
    "Lion": partial(Bregman, rule=Lion, lr=0.01),
}
OTHERS: dict[str, Any] = {
    **RULES,
    "ProxSGD": partial(ProxSGD, lr=0.1),
    "XRDA": partial(XRDA, lr=0.1),
    "SplitLBI": partial(SplitLBI, lr=0.1, nu=20.0),
}
KINDS: dict[str, Any] = {
    "LinBreg": partial(LinBreg, lr=0.1),
    "LinBreg with momentum": partial(LinBreg, lr=0.1, momentum=0.9),
    "AdaBreg": partial(AdaBreg, lr=0.01),
    "AdaBreg by tensors": partial(AdaBreg, lr=0.01, second_moment="tensor"),
    "AdaBreg by groups": partial(AdaBreg, lr=0.01, second_moment="group"),
    **OTHERS,
}
PARENTS = {  # what an optimiser is without penalty
    "LinBreg": partial(SGD, lr=0.1),
    "AdaBreg": partial(Adam, lr=0.01),
    **{name: partial(kind.keywords["rule"], lr=kind.keywords["lr"]) for name, kind in RULES.items()},
    "RMSprop": partial(RMSprop, lr=0.001, momentum=0.9),
    "ProxSGD": partial(SGD, lr=0.1),
    "SplitLBI": partial(SGD, lr=0.1, momentum=0.9),
}
COUSINS = {
    "LinBreg with momentum": partial(SGD, lr=0.1, momentum=0.9),
    "AdaBreg by tensors": partial(Adam, lr=0.01),
    "AdaBreg by groups": partial(Adam, lr=0.01),
    "XRDA": partial(SGD, lr=0.1),
}
PENALTY = GroupLasso(0.01, ROWS)
LOG_SUM = LogSum(1e-5, groups=ROWS)

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
in_doubles = pytest.mark.usefixtures("float64")


def make(kind, *, dtype=None, named=False, **options):
    """A network of two matrices, half of the rows of the first asleep, and its optimiser."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).to(dtype)
    with torch.no_grad():
        net[0].weight[::2] = 0
    params = net.named_parameters() if named else net.parameters()
    return net, kind(params, **{"penalty": PENALTY, **options})


def batches(steps, seed=0):
    return torch.randn(steps, 16, 4, generator=torch.Generator().manual_seed(seed))


def loss_of(net, x):
    return (net(x)[:, :3] - x[:, :3]).square().mean()


def train_step(net, optimizer, x):
    optimizer.zero_grad()
    loss_of(net, x).backward()
    optimizer.step()


def advance(net, optimizer, steps=10, seed=0):
    for x in batches(steps, seed):
        train_step(net, optimizer, x.to(net[0].weight.dtype))


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def numbers(optimizer):
    """Copies of all weights and of all tensors in the state, by name."""
    found = {f"parameter {i}": p.detach().clone() for i, p in enumerate(params_of(optimizer))}
    for i, entries in optimizer.state_dict()["state"].items():
        found |= {f"{key} {i}": value.clone() for key, value in entries.items() if isinstance(value, torch.Tensor)}
    return found


def assert_same(left, right):
    """Equal numbers, bit for bit."""
    assert left.keys() == right.keys()
    changed = [key for key in left if left[key].dtype != right[key].dtype or not torch.equal(left[key], right[key])]
    assert changed == []


def assert_differ(left, right):
    assert any(not torch.equal(left[key], right[key]) for key in left)


# Storage


@every_kind
def test_parameters_keep_their_storage(kind):
    net, optimizer = make(kind)
    before = [(p, p.data_ptr(), p.detach().clone()) for p in net.parameters()]
    advance(net, optimizer)
    for (p, pointer, old), new in zip(before, net.parameters(), strict=True):
        assert new is p
        assert new.data_ptr() == pointer
        assert not torch.equal(new, old)


@every_kind
def test_views_into_a_flat_buffer_stay_aliased(kind):
    net, _ = make(kind)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    net[0].weight, net[2].weight = nn.Parameter(flat[:32].view(8, 4)), nn.Parameter(flat[32:].view(3, 8))
    start = flat.clone()
    advance(net, kind(net.parameters(), penalty=PENALTY))
    assert torch.equal(flat, torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert not torch.equal(flat, start)


@every_kind
def test_tied_weights_stay_tied(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    start = net[0].weight.detach().clone()
    alone = nn.Parameter(start.clone())
    ours, theirs = kind(net.parameters(), penalty=PENALTY), kind([alone], penalty=PENALTY)
    for x in batches(10):
        train_step(net, ours, x)
        theirs.zero_grad()
        loss_of(lambda x: (x @ alone.T).tanh() @ alone.T, x).backward()
        theirs.step()
    assert net[2].weight is net[0].weight
    assert not torch.equal(alone, start)
    torch.testing.assert_close(net[0].weight, alone)


@every_kind
def test_gradients_are_only_read(kind):
    net, optimizer = make(kind)
    advance(net, optimizer)
    before = [(p.grad, p.grad.clone()) for p in net.parameters()]
    optimizer.step()
    for p, (grad, values) in zip(net.parameters(), before, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, values)


# Parameter groups


@every_kind
def test_a_group_added_later_has_options_of_its_own(kind):
    (net, optimizer), (same_net, undisturbed) = make(kind), make(kind)
    advance(net, optimizer)
    advance(same_net, undisturbed)
    added, alone = (nn.Parameter(torch.linspace(-1, 1, 15).reshape(3, 5)) for _ in range(2))
    options = {"lr": 0.03, "penalty": L1(0.02)}
    optimizer.add_param_group({"params": [added], **options})
    by_itself = kind([alone], **options)
    assert [group["lr"] for group in optimizer.param_groups] == [undisturbed.param_groups[0]["lr"], 0.03]
    assert [group["penalty"] for group in optimizer.param_groups] == [PENALTY, L1(0.02)]
    for seed in range(3):
        added.grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        alone.grad = added.grad.clone()
        for p, q in zip(net.parameters(), same_net.parameters(), strict=True):
            p.grad = q.grad = torch.full_like(p, 0.1)
        for each in (optimizer, undisturbed, by_itself):
            each.step()
    assert torch.equal(added, alone)
    assert not torch.equal(added.detach(), torch.linspace(-1, 1, 15).reshape(3, 5))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), same_net.parameters(), strict=True))


@every_kind
@pytest.mark.parametrize(
    "bad",
    [
        lambda net: {"params": [nn.Parameter(torch.ones(2, 2))], "lr": -1.0},
        lambda net: {"params": [nn.Parameter(torch.ones(2, 2))], "penalti": Zero()},
        lambda net: {"params": [nn.Parameter(torch.ones(2, 2))], "penalty": GroupLasso(0.1, FILTERS)},
        lambda net: {"params": [nn.Parameter(torch.ones(2, 2)), net[0].weight]},
        lambda net: {"params": [torch.ones(2, 2, dtype=torch.int64)]},
        lambda net: {"params": [torch.ones(2, 2, requires_grad=True) * 2]},
        lambda net: {"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 2))], "joint": True},
    ],
    ids=["lr", "unknown option", "groups", "duplicate", "integers", "not a leaf", "units"],
)
def test_a_bad_group_is_refused_and_changes_nothing(kind, bad):
    (net, optimizer), (same_net, undisturbed) = make(kind), make(kind)
    advance(net, optimizer)
    advance(same_net, undisturbed)
    with pytest.raises(ValueError):
        optimizer.add_param_group(bad(net))
    assert len(optimizer.param_groups) == 1
    good = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [good], "penalty": Zero()})
    good.grad = torch.ones(2, 2)
    advance(net, optimizer, seed=1)
    advance(same_net, undisturbed, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), same_net.parameters(), strict=True))


def test_a_group_that_the_rule_refuses_is_not_kept():
    net, optimizer = make(KINDS["Muon"])
    advance(net, optimizer)
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "penalty": Zero()})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))], "penalty": Zero()})
    advance(net, optimizer)


@every_kind
def test_hooks_run_once_per_step(kind):
    net, optimizer = make(kind)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))
    advance(net, optimizer, 2)
    assert calls == ["before", "after"] * 2


@every_kind
def test_hooks_of_all_optimisers_run_once_per_step(kind):
    net, optimizer = make(kind)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *args: calls.append(args[0])),
        register_optimizer_step_post_hook(lambda *args: calls.append(args[0])),
    ]
    try:
        advance(net, optimizer, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert [each is optimizer for each in calls] == [True, True]


@every_kind
def test_keys_of_others_are_kept(kind):
    net, _ = make(kind)
    optimizer = kind([{"params": list(net.parameters()), "lr_scale": 0.5, "layer": "first"}], penalty=PENALTY)
    advance(net, optimizer, 1)
    for group in (optimizer.param_groups[0], optimizer.state_dict()["param_groups"][0]):
        assert (group["lr_scale"], group["layer"]) == (0.5, "first")


@pytest.mark.parametrize(
    "options", [{"second_moment": "entry"}, {"second_moment": "tensor"}, {"momentum": 0.5}], ids=str
)
def test_to_maximize_is_to_minimise_the_negative(options):
    kind = LinBreg if "momentum" in options else AdaBreg
    found = []
    for sign in (1, -1):
        net, optimizer = make(kind, maximize=sign < 0, **options)
        for x in batches(5):
            optimizer.zero_grad()
            (sign * loss_of(net, x)).backward()
            optimizer.step()
        found.append(numbers(optimizer))
    assert all(torch.equal(value.abs(), found[1][key].abs()) for key, value in found[0].items())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items() if key.startswith("parameter"))


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_ways_to_compute_give_the_same(kind):
    results = []
    for options in ({"foreach": True}, {"fused": False, "foreach": False}, {}):
        net, optimizer = make(kind, dtype=torch.float64, **options)
        advance(net, optimizer)
        results.append(net[0].weight.detach())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


@every_kind
def test_a_model_may_be_moved_to_double_precision(kind):
    net, optimizer = make(kind)
    advance(net, optimizer, 2)
    advance(net.double(), optimizer, 2)
    assert all(p.dtype == torch.float64 and p.isfinite().all() for p in net.parameters())


FAMILY = [AdaBreg, LinBreg, ProxSGD, SplitLBI, XRDA]


@pytest.mark.parametrize("stored", FAMILY)
@pytest.mark.parametrize("kind", FAMILY)
def test_a_file_of_another_optimiser_is_refused(kind, stored):
    net, optimizer = make(stored)
    advance(net, optimizer, 1)
    if kind is not stored:
        with pytest.raises(ValueError, match=f"is of another optimiser, not of {kind.__name__}: they differ in"):
            make(kind)[1].load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("kind", [AdaBreg, LinBreg, SplitLBI, XRDA])
def test_a_file_of_other_shapes_is_refused(kind):
    net, optimizer = make(kind, named=True)
    advance(net, optimizer, 1)
    wide = nn.Sequential(nn.Linear(4, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, bias=False))
    message = r"state of parameter 0.weight has shape \(8, 4\), the parameter has \(9, 4\)"
    with pytest.raises(ValueError, match=message):
        kind(wide.named_parameters(), penalty=PENALTY).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("rule", [LBFGS, SparseAdam])
def test_rules_that_cannot_step_a_dual_are_refused(rule):
    with pytest.raises(ValueError, match=f"without a closure, which {rule.__name__} does not"):
        make(partial(Bregman, rule=rule))


@every_kind
def test_names_are_kept(kind):
    (net, optimizer), (same_net, unnamed) = make(kind, named=True), make(kind)
    for groups in (optimizer.param_groups, optimizer.state_dict()["param_groups"]):
        assert [group["param_names"] for group in groups] == [["0.weight", "2.weight"]]
    advance(net, optimizer)
    advance(same_net, unnamed)
    assert_same(numbers(optimizer), numbers(unnamed))


# Gradients


@every_kind
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(kind, value, steps):
    net, optimizer = make(kind, named=True)
    advance(net, optimizer, steps)
    before = numbers(optimizer)
    loss_of(net, batches(1)[0]).backward()
    net[2].weight.grad[-1, -1] = value
    with pytest.raises(FloatingPointError, match=r"the gradient of parameter 2\.weight has NaN or infinite entries"):
        optimizer.step()
    assert_same(numbers(optimizer), before)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_whose_sum_overflows_is_accepted(kind, dtype):
    net, optimizer = make(kind, dtype=dtype)
    for p in net.parameters():
        p.grad = torch.full_like(p, 3e38)
        assert p.grad.isfinite().all()
        assert not p.grad.sum().isfinite()
    optimizer.step()
    assert not any(p.isnan().any() for p in net.parameters())


@every_kind
def test_sparse_gradients_are_dense_ones_with_zeros_left_out(kind):
    def train(sparse):
        torch.manual_seed(0)
        table = nn.Embedding(6, 4, sparse=sparse)
        optimizer = kind(table.parameters(), penalty=PENALTY)
        for seed in range(5):
            words = torch.randint(5, (8,), generator=torch.Generator().manual_seed(seed))  # with repetitions
            optimizer.zero_grad()
            (table(words) - 1).square().sum().backward()
            assert table.weight.grad.is_sparse == sparse
            optimizer.step()
        return numbers(optimizer)

    sparse, dense = train(True), train(False)
    assert sparse.keys() == dense.keys()
    for key in sparse:
        torch.testing.assert_close(sparse[key], dense[key])


@every_kind
def test_a_sparse_gradient_that_is_not_finite_is_refused(kind):
    table = nn.Embedding(6, 4, sparse=True)
    optimizer = kind(table.named_parameters(), penalty=PENALTY)
    (table(torch.tensor([1])) * torch.nan).sum().backward()
    before = numbers(optimizer)
    with pytest.raises(FloatingPointError, match="the gradient of parameter weight has"):
        optimizer.step()
    assert_same(numbers(optimizer), before)


@every_kind
def test_parameters_without_gradient_are_untouched(kind):
    net, optimizer = make(kind)
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    advance(net, optimizer)
    assert torch.equal(net[0].weight, before)
    assert not optimizer.state[net[0].weight]
    assert optimizer.step() is None
    optimizer.zero_grad()
    before = numbers(optimizer)
    optimizer.step()
    assert_same(numbers(optimizer), before)


@every_kind
def test_clipped_gradients_are_those_of_a_scaled_loss(kind):
    (net, optimizer), (same_net, other) = make(kind), make(kind)
    for x in batches(5):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        assert norm > 0.01
        optimizer.step()
        other.zero_grad()
        (loss_of(same_net, x) * (0.01 / norm)).backward()
        other.step()
    for p, q in zip(net.parameters(), same_net.parameters(), strict=True):
        # A clipped norm is short by 1e-6, and Muon calculates in half precision.
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_step_of_linbreg_is_as_long_as_the_clipped_gradient():
    net, optimizer = make(LinBreg, lr=0.5)
    advance(net, optimizer, 2)
    loss_of(net, batches(1)[0]).backward()
    before = numbers(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)
    optimizer.step()
    after = numbers(optimizer)
    moved = torch.cat([(after[key] - before[key]).flatten() for key in before if key.startswith("dual")])
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


@every_kind
def test_a_gradient_scaler_changes_nothing_and_skips_overflows(kind):
    (net, optimizer), (same_net, other) = make(kind), make(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i, x in enumerate(batches(8)):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, x)).backward()
        if i in (0, 4):
            net[2].weight.grad[0, 0] = torch.inf
        before = numbers(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if i in (0, 4):
            assert_same(numbers(optimizer), before)
        else:
            train_step(same_net, other, x)
            assert_same(numbers(optimizer), numbers(other))
    assert scaler.get_scale() == 2.0**8


@every_kind
def test_parameters_of_several_types_step_as_each_alone(kind):
    def train(*dtypes):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.ones(3, 3, dtype=dtype)) for dtype in dtypes]
        optimizer = kind(params, penalty=PENALTY)
        for seed in range(3):
            grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
            for p in params:
                p.grad = grad.to(p.dtype)
            optimizer.step()
        return [p.detach() for p in params]

    dtypes = [torch.bfloat16, torch.float32, torch.float64]
    for together, dtype in zip(train(*dtypes), dtypes, strict=True):
        [alone] = train(dtype)
        assert together.dtype == dtype
        assert torch.equal(together, alone)


def test_betas_may_be_a_list():
    """As read from a file."""
    (net, optimizer), (same_net, other) = [make(AdaBreg, betas=betas) for betas in ([0.8, 0.9], (0.8, 0.9))]
    for pair in [(net, optimizer), (same_net, other)]:
        advance(*pair)
    assert_same(numbers(optimizer), numbers(other))


# Schedulers


def cycles(optimizer):
    return {"cycle_momentum": optimizer.defaults.get("momentum", 0) > 0 or "betas" in optimizer.defaults}


def decays(optimizer):
    return [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: epoch / 4),  # lr=0 at first
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=8, **cycles(o)),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.05, step_size_up=2, **cycles(o)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, decays(o), [2]),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(decays(o), o),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.02, anneal_epochs=3),
}


@in_doubles
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", KINDS)
def test_schedulers_steer_as_they_steer_torch(name, scheduler):
    """The same lr, momentum and betas; and the same weights, where torch has the optimiser without penalty."""
    (net, ours), (same_net, theirs) = (
        make(KINDS[name], penalty=Zero()),
        make(lambda params, penalty: {**PARENTS, **COUSINS}[name](params)),
    )
    schedulers, lrs = [scheduler(ours), scheduler(theirs)], set()
    for x in batches(6):
        train_step(net, ours, x)
        train_step(same_net, theirs, x)
        for each in schedulers:
            each.step(*[1.0] * isinstance(each, lr_scheduler.ReduceLROnPlateau))
        [group], [expected] = ours.param_groups, theirs.param_groups
        for option in {"lr", "momentum", "betas"} & group.keys() & expected.keys():
            assert group[option] == expected[option]
        lrs.add(group["lr"])
    assert len(lrs) > 1
    if name in PARENTS:
        for p, q in zip(net.parameters(), same_net.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@every_kind
def test_a_scheduled_lr_sets_the_length_of_the_step(kind):
    """With lr=0 nothing moves; afterwards something does."""
    net, optimizer = make(kind)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch)
    start = [p.detach().clone() for p in net.parameters()]
    advance(net, optimizer, 1)
    for p, old in zip(net.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), old)
    scheduler.step()
    advance(net, optimizer)
    assert all(not torch.allclose(p, old) for p, old in zip(net.parameters(), start, strict=True))


# Half precision


@every_kind
def test_half_precision_has_a_state_in_single_precision(kind):
    net, optimizer = make(kind, dtype=torch.bfloat16)
    advance(net, optimizer)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    states = [value for entries in optimizer.state.values() for value in entries.values()]
    assert {value.dtype for value in states if isinstance(value, torch.Tensor)} <= {torch.float32}


HAVE_DUALS: dict[str, Any] = {**KINDS, "XRDA": partial(KINDS["XRDA"], averaging=1.0, time=1e-6)}
del HAVE_DUALS["ProxSGD"]


@pytest.mark.parametrize("kind", HAVE_DUALS.values(), ids=HAVE_DUALS)
def test_tiny_steps_add_up_in_the_dual_of_half_precision(kind):
    """bfloat16 has no number between 1 and 0.996, to which 100 steps of 1e-5 don't lead one by one."""

    def dual(dtype):
        theta = nn.Parameter(torch.ones(2, 2, dtype=dtype))
        optimizer = kind([theta], lr=1e-5, penalty=L1(0.1))
        duals = []
        for _ in range(100):
            theta.grad = torch.eye(2, dtype=dtype)
            optimizer.step()
            duals.append(optimizer.state[theta]["dual"].clone())
        return duals[-1] - duals[0]

    expected = dual(torch.float32)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(dual(torch.bfloat16), expected, rtol=1e-2, atol=1e-6)


def test_tiny_steps_of_linbreg_in_half_precision():
    theta = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = LinBreg([theta], lr=1e-5, penalty=L1(0.1))
    for _ in range(1000):
        theta.grad = torch.ones_like(theta)
        optimizer.step()
    expected = torch.full((2, 2), 1 + 0.1 - 1000 * 1e-5)
    torch.testing.assert_close(optimizer.state[theta]["dual"], expected, rtol=0, atol=1e-4)
    assert torch.equal(theta.detach(), torch.full((2, 2), 0.99).bfloat16())


def round_trip(net, optimizer):
    """What a file keeps, read as plain data only (the default of torch)."""
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file)


def assert_continues_from_a_file(kind, change=lambda optimizer: None, **options):
    """Train, apply ``change`` to the optimiser, write and read a file, train on."""
    net, optimizer = make(kind, **options)
    advance(net, optimizer)
    change(optimizer)
    weights, state = round_trip(net, optimizer)
    again, other = make(kind, **options)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    before = numbers(optimizer)
    assert_same(numbers(other), before)
    for pair in [(net, optimizer), (again, other)]:
        advance(*pair, seed=1)
    assert_differ(numbers(other), before)
    assert_same(numbers(other), numbers(optimizer))


@every_kind
def test_a_file_of_half_precision_continues_bit_for_bit(kind):
    assert_continues_from_a_file(kind, dtype=torch.bfloat16)


# Files and copies


@pytest.mark.parametrize("kind", OTHERS.values(), ids=OTHERS)
def test_a_file_continues_bit_for_bit(kind):
    assert_continues_from_a_file(kind)


@every_kind
def test_a_file_with_log_sum_continues_bit_for_bit(kind):
    assert_continues_from_a_file(kind, penalty=LOG_SUM)


@every_kind
@pytest.mark.parametrize("groups", [ENTRIES, ROWS], ids=["entries", "rows"])
def test_a_file_between_new_weights_and_the_next_step_continues_bit_for_bit(kind, groups):
    """Rounding must not look like a change from outside, for which duals would start afresh."""
    assert_continues_from_a_file(kind, lambda o: o.reweight(), penalty=LogSum(1e-4, groups=groups))


def strengthen(optimizer):
    for group in optimizer.param_groups:
        group["penalty"] = scaled(group["penalty"], 1.5)


pending = pytest.mark.parametrize(
    "penalty", [PENALTY, L1(0.02), SparseGroup(L1(0.02), PENALTY)], ids=["group", "l1", "both"]
)


@every_kind
@pending
def test_a_file_between_a_new_strength_and_the_next_step_continues_bit_for_bit(kind, penalty):
    assert_continues_from_a_file(kind, strengthen, penalty=penalty)


@every_kind
@pending
def test_a_copy_between_a_new_strength_and_the_next_step_continues_bit_for_bit(kind, penalty):
    net, optimizer = make(kind, penalty=penalty)
    advance(net, optimizer)
    strengthen(optimizer)
    copied = copy.deepcopy((net, optimizer))
    for pair in [(net, optimizer), copied]:
        advance(*pair, seed=1)
    assert_same(numbers(copied[1]), numbers(optimizer))


@every_kind
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("penalty", [PENALTY, LOG_SUM], ids=["group lasso", "log sum"])
def test_copies_continue_bit_for_bit_and_by_themselves(kind, duplicate, penalty):
    net, optimizer = make(kind, penalty=penalty)
    advance(net, optimizer)
    other_net, other = duplicate((net, optimizer))
    assert all(p is q for p, q in zip(other_net.parameters(), params_of(other), strict=True))
    before = numbers(optimizer)
    assert_same(numbers(other), before)
    advance(other_net, other, seed=1)
    assert_same(numbers(optimizer), before)
    assert_differ(numbers(other), before)
    advance(net, optimizer, seed=1)
    assert_same(numbers(other), numbers(optimizer))


@every_kind
def test_a_copy_accepts_another_group(kind):
    net, optimizer = copy.deepcopy(make(kind))
    added = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [added], "penalty": Zero()})
    advance(net, optimizer, 1)
    added.grad = torch.eye(2)
    optimizer.step()
    assert not torch.equal(added.detach(), torch.ones(2, 2))


# Weight decay


@in_doubles
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (partial(LinBreg, lr=0.1), partial(SGD, lr=0.1)),
        (partial(AdaBreg, lr=0.01), partial(AdamW, lr=0.01)),
        (partial(Bregman, rule=SGD, lr=0.1), partial(SGD, lr=0.1)),
        (partial(Bregman, rule=Adam, lr=0.01), partial(AdamW, lr=0.01)),
        (partial(Bregman, rule=Muon, lr=0.02), partial(Muon, lr=0.02)),
        (partial(SplitLBI, lr=0.1, momentum=0.0), partial(SGD, lr=0.1)),
    ],
    ids=["LinBreg", "AdaBreg", "around SGD", "around Adam", "around Muon", "SplitLBI"],
)
def test_weight_decay_without_penalty_is_that_of_torch(ours, theirs):
    nets = []
    for kind in (ours, lambda params, penalty, weight_decay: theirs(params, weight_decay=weight_decay)):
        net, optimizer = make(kind, penalty=Zero(), weight_decay=0.2)
        advance(net, optimizer, 30)
        nets.append(net)
    for p, q in zip(*[net.parameters() for net in nets], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [torch.optim.Rprop, Lion])
def test_weight_decay_is_there_whatever_the_rule(rule):
    theta = nn.Parameter(torch.ones(2, 2))
    optimizer = Bregman([theta], rule, lr=0.1, weight_decay=0.5)
    theta.grad = torch.zeros_like(theta)
    optimizer.step()
    torch.testing.assert_close(theta.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


def test_a_rule_may_prepare_its_state_when_it_is_built():
    nets = []
    for kind in (partial(Bregman, rule=Prepared, penalty=Zero()), Prepared):
        net, optimizer = make(lambda params, penalty, kind=kind: kind(params))
        advance(net, optimizer)
        nets.append(net)
    for p, q in zip(*[net.parameters() for net in nets], strict=True):
        torch.testing.assert_close(p, q)


BREGMAN: dict[str, Any] = {name: kind for name, kind in KINDS.items() if issubclass(kind.func, Bregman)}


@pytest.mark.parametrize("kind", BREGMAN.values(), ids=BREGMAN)
def test_weight_decay_leaves_sleeping_groups_alone(kind):
    def train(weight_decay):
        theta = nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [-1.0, 1.0]]))
        optimizer = kind([{"params": [theta], "weight_decay": weight_decay}], penalty=GroupLasso(10.0, ROWS))
        for seed in range(5):
            theta.grad = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        assert torch.equal(theta[::2].detach(), torch.zeros(2, 2))
        return optimizer.state[theta]["dual"]

    plain, decayed = train(0.0), train(0.1)
    assert torch.equal(plain[::2], decayed[::2])
    assert plain[::2].ne(0).all()
    assert (decayed[1::2].norm(dim=1) < plain[1::2].norm(dim=1)).all()


# Compiled and distributed


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, "eager") for kind in KINDS.values()), (KINDS["LinBreg"], "aot_eager"), (KINDS["ProxSGD"], "aot_eager")],
    ids=[*KINDS, "LinBreg ahead of time", "ProxSGD ahead of time"],
)
def test_a_compiled_training_step_is_the_same(kind, backend):
    (net, optimizer), (same_net, other) = make(kind), make(kind)
    torch._dynamo.reset()
    compiled = torch.compile(train_step, backend=backend)
    for x in batches(4):
        compiled(net, optimizer, x)
        train_step(same_net, other, x)
    assert_differ(numbers(optimizer), numbers(make(kind)[1]))
    for key, expected in numbers(other).items():
        torch.testing.assert_close(numbers(optimizer)[key], expected)


@pytest.fixture
def process_group(tmp_path):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_kind
def test_data_parallel_training_of_one_process_is_the_same(kind, process_group):
    (net, optimizer), (same_net, other) = make(kind), make(kind)
    parallel = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    for x in batches(5):
        train_step(parallel, optimizer, x)
        train_step(same_net, other, x)
    assert_same(numbers(optimizer), numbers(other))


# Refusals


def matrix(*shape, dtype=torch.float32):
    return nn.Parameter(torch.ones(shape or (8, 4), dtype=dtype), requires_grad=dtype.is_floating_point)


TWICE = matrix()
REFUSALS = {
    "twice in a group": (
        lambda kind: kind([matrix(), TWICE, TWICE]),
        "{name}: parameter 2 of its group is given twice",
    ),
    "twice by name": (
        lambda kind: kind([("a", TWICE), ("b", TWICE)]),
        "{name}: parameter b is given twice",
    ),
    "in two groups": (
        lambda kind: kind([{"params": [TWICE]}, {"params": [matrix(), TWICE]}]),
        "{name}: parameter 1 of its group is given twice",
    ),
    "integers": (
        lambda kind: kind([matrix(), matrix(dtype=torch.int64)]),
        "{name}: parameter 1 of its group must be of real floating-point numbers, got torch.int64",
    ),
    "complex": (
        lambda kind: kind([("phase", matrix(dtype=torch.complex64))]),
        "{name}: parameter phase must be of real floating-point numbers, got torch.complex64",
    ),
    "unknown option": (
        lambda kind: kind([{"params": [matrix()], "penalti": Zero()}]),
        r"{name} has no option \['penalti'\]; its options are \[.*'penalty'.*\]",
    ),
    "filters of a matrix": (
        lambda kind: kind([("one", matrix(2, 2, 3, 3)), ("two", matrix())], penalty=GroupLasso(0.1, FILTERS)),
        r"(?=.*{name})(?=.*parameter two)(?=.*over=\(1, 2, 3\))(?=.*shape \(8, 4\))",
    ),
    "filters of joint rows": (
        lambda kind: kind([matrix(), matrix()], penalty=GroupLasso(0.1, FILTERS), joint=True),
        r"(?=.*{name})(?=.*joint)(?=.*over=\(1, 2, 3\))",
    ),
    "joint units of other numbers": (
        lambda kind: kind([matrix(), matrix(3, 4)], joint=True),
        r"{name}: joint tensors need as many units along axes \(0, 0\), got shapes \[\(8, 4\), \(3, 4\)\]",
    ),
    "joint axes of other numbers": (
        lambda kind: kind([matrix(), matrix(3, 4)], joint=(1, 0)),
        r"{name}: joint tensors need as many units along axes \(1, 0\), got shapes \[\(8, 4\), \(3, 4\)\]",
    ),
    "too few joint axes": (
        lambda kind: kind([matrix(), matrix()], joint=(0,)),
        r"{name}: joint tensors need as many units along axes \(0,\), got shapes",
    ),
    "joint axis missing": (
        lambda kind: kind([matrix(), matrix()], joint=(0, 2)),
        r"{name}: joint tensors need as many units along axes \(0, 2\), got shapes",
    ),
    "joint axis negative": (
        lambda kind: kind([matrix(4, 4), matrix(4, 4)], joint=(0, -1)),
        r"{name}: joint tensors need .* axes \(0, -1\)",
    ),
    "joint log sum": (
        lambda kind: kind([matrix(), matrix()], joint=True, penalty=LogSum(0.1)),
        "{name}: LogSum weighs entries, and takes no joint units",
    ),
    "lr": (lambda kind: kind([matrix()], lr=torch.nan), r"{name}\(lr=...\) must be a finite number > 0, got nan"),
}


@pytest.mark.parametrize("kind", {kind.func: kind for kind in KINDS.values()}.values(), ids=lambda k: k.func.__name__)
@pytest.mark.parametrize(("refused", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_optimiser_argument_and_value(kind, refused, message):
    name = kind.func.__name__
    with pytest.raises(ValueError, match=message.replace("{name}", name)) as caught:
        refused(kind)
    assert "\n" not in str(caught.value)
