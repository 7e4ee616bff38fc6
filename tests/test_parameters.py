"""Parameter groups: every parameter once, what a rule selects, what stays free."""

import re

import pytest
import torch
from torch import nn

from nas import (
    KERNELS,
    L1,
    ROWS,
    AdaBreg,
    GroupLasso,
    LinBreg,
    Nuclear,
    SparseGroup,
    Zero,
    coupled_units,
    describe,
    param_groups,
    sparse_start,
)
from nas.models import conv_skip_autoencoder


def convnet():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Linear(5, 2),
    )


def names(groups):
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


def assert_partition(groups, model):
    named = [pair for group in groups for pair in group["params"]]
    assert dict(named) == dict(model.named_parameters())
    assert len(named) == len(dict(named))


def test_units_are_rows_with_bias_and_the_shift_of_the_norm_behind():
    net = convnet()
    groups = param_groups(net, lam=0.1, lr=0.01)
    assert_partition(groups, net)
    assert names(groups) == {
        "0.0": ["0.0.weight", "0.0.bias", "0.1.bias"],
        "1": ["1.weight"],
        "4": ["4.weight", "4.bias"],
        "free": ["0.1.weight", "5.weight", "5.bias"],
    }
    assert all(group["joint"] and group["penalty"] == GroupLasso(0.1, ROWS) for group in groups[:-1])
    assert groups[-1]["penalty"] == Zero()


def test_rules_by_name_by_kind_of_module_and_by_unit():
    net = convnet()
    groups = param_groups(
        net,
        lr=0.01,
        rules={
            "1.*": Nuclear(0.2),
            nn.Conv2d: GroupLasso(0.1, KERNELS),
            nn.Linear: {"penalty": L1(0.3), "lr": 0.5},
            ("5.weight", "5.bias"): GroupLasso(0.4, ROWS),
        },
    )
    assert_partition(groups, net)
    assert names(groups) == {
        "1.*": ["1.weight"],
        "Conv2d": ["0.0.weight"],
        "Linear": ["4.weight"],  # the last layer is free unless it is named
        "5.weight + 5.bias": ["5.weight", "5.bias"],
        "free": ["0.0.bias", "0.1.weight", "0.1.bias", "4.bias"],
    }
    assert [group["lr"] for group in groups] == [0.01, 0.01, 0.5, 0.01, 0.01]
    assert [group["joint"] for group in groups] == [False, False, False, True, False]
    AdaBreg(groups)


def test_rules_come_before_units():
    groups = param_groups(convnet(), lam=0.1, lr=0.01, rules={"4.*": Zero()})
    assert list(names(groups)) == ["4.*", "0.0", "1", "free"]
    net = conv_skip_autoencoder(depth=2, width=4)
    groups = param_groups(net, lam=0.1, lr=0.01, rules={"nodes.n1.*": Zero()})
    assert_partition(groups, net)
    assert list(names(groups)) == ["nodes.n1.*", "n2", "gates", "free"]


def test_filters_that_a_sum_ties_together_live_and_die_together():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x):
            x = self.first(x).tanh()
            return self.head(x + self.second(x).tanh())

    torch.manual_seed(0)
    net = Residual()
    tied = ("first.weight", "first.bias", "second.weight", "second.bias")
    optimizer = LinBreg(param_groups(net, lr=0.05, rules={tied: GroupLasso(0.02, ROWS)}))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name in tied:
                p[1:] = 0
    x = torch.randn(64, 3)
    counts = set()
    for _ in range(150):
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        alive = [p.flatten(1).ne(0).any(1) if p.ndim > 1 else p.ne(0) for p in optimizer.param_groups[0]["params"]]
        assert all(torch.equal(mask, alive[0]) for mask in alive)
        counts.add(int(alive[0].sum()))
    assert min(counts) < max(counts)


def test_units_along_another_axis():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 5, 2)  # its filters lie along axis 1
    rule = {"penalty": GroupLasso(0.45, ROWS), "joint": (1, 0)}
    optimizer = LinBreg(param_groups(layer, lr=0.1, rules={("weight", "bias"): rule}))
    with torch.no_grad():
        layer.weight[:, :3], layer.bias[:3] = 0, 0
    for _ in range(20):
        layer.weight.grad, layer.bias.grad = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
        optimizer.step()
        alive = layer.weight.ne(0).any(dim=(0, 2, 3))
        assert torch.equal(alive, layer.bias.ne(0))
    assert 0 < alive.sum() < 5
    threshold = 0.45 * 13**0.5
    subgradient = torch.cat(
        [
            (optimizer.state[p]["dual"] - p).movedim(axis, 0).flatten(1)
            if p.ndim > 1
            else (optimizer.state[p]["dual"] - p)[:, None]
            for p, axis in ((layer.weight, 1), (layer.bias, 0))
        ],
        dim=1,
    )
    norms = subgradient.norm(dim=1)
    torch.testing.assert_close(norms[alive], torch.full_like(norms[alive], threshold))
    assert (norms[~alive] <= threshold).all()


def test_a_tied_weight_counts_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    net[1].weight = net[0].weight
    for groups in (param_groups(net, lam=0.1, lr=0.1), param_groups(net, lr=0.1, rules={nn.Linear: L1(0.1)})):
        assert_partition(groups, net)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs lam=... or rules=..."),
        ({"rules": {"7.*": L1(0.1)}}, "the rule '7.*' selects no parameter that is still free"),
        ({"rules": {nn.Conv3d: L1(0.1)}}, "the rule 'Conv3d' selects no parameter"),
        ({"rules": {"*": L1(0.1), nn.Linear: L1(0.1)}}, "the rule 'Linear' selects no parameter that is still free"),
        ({"rules": {("4.weight", "4.bais"): L1(0.1)}}, "Sequential has no parameter '4.bais'"),
        ({"rules": {}}, "needs lam=... or rules=..."),
        ({"rules": {5: L1(0.1)}}, "selects by name, by a class of modules or by a tuple of names, got 5"),
        (
            {"rules": {"*.bias": Zero(), ("4.weight", "4.bias"): GroupLasso(0.1, ROWS)}},
            "a rule before '4.weight + 4.bias' has a part of this unit",
        ),
    ],
)
def test_rules_that_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        param_groups(convnet(), lr=0.1, **options)


def test_the_table_says_what_is_regularised_and_how():
    rules = {nn.Conv2d: GroupLasso(0.1, KERNELS), nn.Linear: L1(0.02), ("5.weight", "5.bias"): GroupLasso(0.4, ROWS)}
    lines = describe(param_groups(convnet(), lr=0.01, rules=rules)).splitlines()
    assert [line.split() for line in lines] == [
        ["name", "penalty", "groups", "x", "entries", "lam", "lr", "entry", "time"],
        ["Conv2d", "GroupLasso", "28", "x", "9", "0.1", "0.01", "10"],
        ["Linear", "L1", "120", "x", "1", "0.02", "0.01", "2"],
        ["5.weight", "+", "5.bias", "GroupLasso", "on", "units", "2", "x", "6", "0.4", "0.01", "40"],
        ["free", "free", "17", "x", "1", "0.01"],
    ]
    optimizer = AdaBreg(param_groups(convnet(), lr=0.01, rules=rules))
    assert describe(optimizer.param_groups).splitlines() == lines


def test_what_rules_leave_of_a_unit_is_still_penalised():
    net = convnet()
    groups = param_groups(net, lam=0.1, lr=0.01, rules={"0.0.bias": Zero()})
    assert_partition(groups, net)
    assert names(groups)["0.0"] == ["0.0.weight", "0.1.bias"]


def test_kinds_of_modules_select_weights_but_no_norms_and_not_the_last_layer():
    net = convnet()
    assert names(param_groups(net, lr=0.1, rules={nn.Module: L1(0.1)}))["Module"] == [
        "0.0.weight",
        "1.weight",
        "4.weight",
    ]
    embedding = nn.Embedding(7, 5)
    head = nn.Linear(5, 7)
    head.weight = embedding.weight
    with pytest.raises(ValueError, match="the rule 'Embedding' selects no parameter"):
        param_groups(nn.Sequential(embedding, head), lr=0.1, rules={nn.Embedding: L1(0.1)})


def test_the_table_knows_entry_times_and_odd_tensors():
    layer = nn.Linear(100, 3)
    table = {
        describe(param_groups(layer, lr=0.01, rules={"weight": penalty})).splitlines()[1].split()[-1]
        for penalty in (GroupLasso(1.0, ROWS, rms=False), SparseGroup(L1(0.05), GroupLasso(0.05, ROWS)))
    }
    assert table == {"10"}
    empty = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(0, 3))})
    assert "0 x 1" in describe(param_groups(empty, lr=0.01, rules={"weight": L1(0.1)}))


def test_what_is_frozen_or_computed_is_free():
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 6), nn.Linear(6, 2))
    net[0].requires_grad_(False)
    nn.utils.parametrizations.weight_norm(net[2])
    untouched = [*net[0].parameters(), *net[2].parameters()]
    before = [p.clone() for p in untouched]
    groups = param_groups(net, lam=0.1, lr=0.1)
    assert [group["name"] for group in groups] == ["4", "free"]
    sparse_start(net, 0.5, groups=groups)
    assert all(torch.equal(p, q) for p, q in zip(before, untouched, strict=True))


@pytest.mark.parametrize("last", ["a head", "a module that is not used"])
def test_what_a_model_puts_out_is_not_guessed_from_the_order_of_its_modules(last):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.first = nn.Linear(5, 2), nn.Linear(3, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, x):
            y = torch.tanh(self.first(x))
            return (self.head(y), self.last(y)) if last == "a head" else self.head(y)

    net = Heads()
    with pytest.raises(
        ValueError, match=r"which layers of Heads put out its results is not .* units=nas.coupled_units"
    ):
        param_groups(net, lam=0.1, lr=0.1)
    groups = param_groups(net, lam=0.1, lr=0.1, units=coupled_units(net, torch.rand(4, 3)))
    assert [group["name"] for group in groups] == ["first", "free"]
