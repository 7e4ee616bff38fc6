"""Every optimiser of the family searches: something grows or shrinks, runs go on bit for bit, bad options are named."""

import json
import math
from dataclasses import replace
from itertools import chain, count, islice

import pytest
import torch

import nas.search.training.optimizers
from nas import AdaBreg, LinBreg, ProxSGD, SplitLBI, param_groups
from nas.cli import main
from nas.models import compact
from nas.models.price import prices
from nas.penalties import strengths
from nas.search import Run, Search, SearchConfig, search
from nas.search.training.optimizers import OPTIMIZERS, PULL, TIE, Start, trial
from nas.steering import check_entry_times, entry_times

FAST = {**dict.fromkeys(("adabreg", "linbreg", "momentum", "splitlbi"), {"entry_time": 20.0}), "xrda": {"lr": 0.01}}


@pytest.fixture
def config(data_root):
    return SearchConfig(
        data="folder", data_root=data_root, model_options={"depth": 2, "width": 8, "hidden": 8, "kernel": 5},
        epochs=3, steps=25, batch=2, crop=16, density=0.2, sigma=50.0, sizes="none", price="none",
    )  # fmt: skip


@pytest.fixture
def start(tmp_path, config):
    """What an optimiser is built from, in a search with LinBreg."""
    engine = Search(Run(tmp_path / "start", replace(config, optimizer="linbreg")))
    pairs = list(islice(chain.from_iterable(map(engine.batches, count(1))), 20))
    groups = param_groups(engine.net, lr=1.0, lam=1.0, prices=prices(engine.net.plan, "params"))
    return Start(engine.net, groups, pairs, engine.task.loss, 0.002, 40.0, "tensor")


def searched(run, **options):
    engine = Search(run, **options)
    list(engine)
    return engine


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_searches_and_goes_on_bit_for_bit(tmp_path, config, name, monkeypatch):
    monkeypatch.setattr(
        nas.search.training.optimizers, "PULL", 2.0 if name == "xrda" else PULL
    )  # so that much dies soon
    config = replace(config, optimizer=name, **FAST.get(name, {}))
    whole = searched(Run(tmp_path / "whole", config))
    params = [point.params for point in whole.points]
    assert all(math.isfinite(point.headline) for point in whole.points)
    assert params[-1] < params[0] if name == "xrda" else max(params[1:]) > params[0]
    broken = Run(tmp_path / "broken", config)
    next(iter(Search(broken)))
    assert [point.params for point in searched(broken, resume=True).points] == params
    assert all(same(broken.supernet(k).state_dict(), whole.run.supernet(k).state_dict()) for k in range(4))
    lines = [json.loads(line) for line in (broken.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["params"] == params[-1]


def test_dense_starts_are_those_of_splitlbi_and_xrda(tmp_path, config):
    for name, kind in OPTIMIZERS.items():
        engine = Search(Run(tmp_path / name, replace(config, optimizer=name)))
        [weight] = engine.net.named_nodes()["h1"].edges.values()
        assert bool(weight.flatten(1).any(dim=1).all()) == kind.dense == (name in ("splitlbi", "xrda"))


def test_the_front_follows_any_of_them(tmp_path, config):
    for name in ("momentum", "xrda", "splitlbi"):
        options = {"optimizer": name, "sizes": "auto", "fit": 2, "refit": 1, **FAST.get(name, {})}
        engine = searched(Run(tmp_path / name, replace(config, **options)))
        front = engine.run.front()
        assert [point.params for point in front] == sorted((p.params for p in front), reverse=True)
        grown = max(point.params for point in engine.points[1:4])
        assert all(each.params <= part * grown for each, part in zip(front, (1, 0.5, 0.25), strict=False))


def test_the_network_of_splitlbi_is_that_of_its_companions(tmp_path, config):
    engine = Search(Run(tmp_path / "run", replace(config, optimizer="splitlbi", entry_time=20.0)))
    assert isinstance(engine.growing.optimizer, SplitLBI)
    assert engine.points[0].snapshot.num_units == 0
    list(engine)
    found, dense = engine.run.supernet(3), dict(engine.net.named_parameters())
    assert compact(found).plan.num_params < compact(engine.net).plan.num_params
    for group in engine.growing.optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            companion = engine.growing.optimizer.state[p].get("companion")
            kept = torch.ones_like(p, dtype=torch.bool) if companion is None else companion.ne(0)
            assert torch.equal(dict(found.named_parameters())[name], dense[name] * kept)


def test_linbreg_wakes_each_kind_after_the_entry_time_times_its_price(start):
    """With gradients as large as those of the trial the dual moves by lr per step, whatever the kind."""
    sizes = trial(start).gradients
    assert max(sizes.values()) > 3 * min(sizes.values())
    optimizer = OPTIMIZERS["linbreg"].build(start)
    assert isinstance(optimizer, LinBreg)
    for group, unit in zip(optimizer.param_groups, start.groups, strict=True):
        assert group["lr"] * sizes[group["name"]] == pytest.approx(0.002 * unit["lr"])
        assert strengths(group["penalty"]) == pytest.approx([40 * 0.002 * lam for lam in strengths(unit["penalty"])])
        for p in group["params"]:
            p.grad = torch.full_like(p, sizes[group["name"]])
    times, dear = entry_times(optimizer), {group["name"]: strengths(group["penalty"]) for group in start.groups}
    for name in ("t0", "d1.edges.t0_depthwise"):
        steps = 40 * dear[name][-1]
        assert times[name].tolist() == pytest.approx([steps] * len(times[name]), rel=1e-4)
    check_entry_times(optimizer, 1000)


def test_proxsgd_wakes_what_is_pulled_at(start):
    optimizer = OPTIMIZERS["proxsgd"].build(start)
    assert isinstance(optimizer, ProxSGD)
    group, unit = optimizer.param_groups[0], start.groups[0]
    size = trial(start).gradients[group["name"]]
    [lam], [price] = strengths(group["penalty"]), strengths(unit["penalty"])
    assert lam == pytest.approx(PULL * size * price)
    asleep = next(p for p in group["params"] if p.ndim > 1)
    for pull, wakes in ((0.9, False), (1.1, True)):
        for p in group["params"]:
            p.data.zero_()
            p.grad = torch.full_like(p, pull * lam)
        optimizer.step()
        assert bool(asleep.any()) == wakes


def test_splitlbi_enters_after_the_entry_time(start):
    optimizer = OPTIMIZERS["splitlbi"].build(start)
    group, unit = optimizer.param_groups[0], start.groups[0]
    assert group["lr"] / group["nu"] == pytest.approx(TIE)
    [lam], [price] = strengths(group["penalty"]), strengths(unit["penalty"])
    assert lam == pytest.approx(40 * TIE * price * trial(start, asleep=False).weights[group["name"]])


def test_a_trial_leaves_the_network_alone(start):
    before = {name: p.clone() for name, p in start.net.state_dict().items()}
    one, other = trial(start), trial(start)
    assert same(before, start.net.state_dict())
    assert all(p.grad is None for p in start.net.parameters())
    assert one.gradients == other.gradients
    assert all(size > 0 for size in one.gradients.values())


def test_a_search_refuses_a_lam_that_wakes_everything_at_once(start):
    groups = param_groups(start.net, lam=1e-9, lr=1.0)
    for optimizer in (LinBreg(groups), AdaBreg(groups)):
        with pytest.raises(ValueError, match="would wake within .* steps, all at once"):
            next(search(start.net, lambda epoch: iter(start.pairs), optimizer, start.loss_fn))


@pytest.mark.parametrize("name", ["linbreg", "momentum"])
def test_calibration(tmp_path, config, name):
    auto = replace(config, optimizer=name, entry_time="auto")
    engine = Search(Run(tmp_path / "auto", auto))
    assert engine.growing.entry_time == pytest.approx(engine.growing.lam / auto.learning_rate)
    assert engine.growing.entry_time not in (40, 200)
    engine.close()
    broken = Run(tmp_path / "auto", auto)
    assert Search(broken, resume=True).growing.lam == engine.growing.lam


def test_defaults():
    assert SearchConfig().learning_rate == SearchConfig(lr=0.002).learning_rate == 0.002
    assert SearchConfig(optimizer="linbreg").learning_rate == OPTIMIZERS["linbreg"].lr
    assert SearchConfig.from_yaml(SearchConfig(optimizer="xrda").to_yaml()) == SearchConfig(optimizer="xrda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--optimizer=sgd"],
            "unknown optimizer 'sgd'; there are: adabreg, linbreg, momentum, proxsgd, splitlbi, xrda",
        ),
        (["--optimizer=proxsgd", "--entry-time=40"], "proxsgd has no duals, so that there is no entry_time; leave it"),
        (["--optimizer=xrda", "--entry-time=auto"], "xrda has no duals, so that there is no entry_time; leave it out"),
        (["--optimizer=splitlbi", "--entry-time=auto"], "splitlbi takes no entry_time auto, only a number of steps"),
        (["--optimizer=linbreg", "--entry-time=10"], "entry_time must be at least 40 steps with price params"),
        (["--optimizer=momentum", "--lr=0"], "lr must be > 0, got 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, message, capsys, tmp_path):
    assert main(["search", *options, f"--out={tmp_path / 'run'}"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", ["proxsgd", "momentum"])
def test_the_command_line_says_what_can_be_said(name, config, capsys, tmp_path):
    words = [f"--{key}={value}" for key, value in (("data", "folder"), ("data_root", config.data_root))]
    words += ["--epochs=1", "--steps=2", "--batch=2", "--crop=16", "--sizes=none", f"--optimizer={name}"]
    options = "--model_options={depth: 1, width: 4, hidden: 4}"
    assert main(["search", *words, options, "--density=0.5", f"--out={tmp_path / 'run'}", "--json"]) == 0
    printed = capsys.readouterr().out
    assert f"by {name} on folder" in printed
    assert ("can wake after" in printed) == (name == "momentum")
