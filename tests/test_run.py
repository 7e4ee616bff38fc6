"""A run and its folder: complete after every epoch, repeatable, resumable, and careful with what is there."""

import copy
import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nas import AdaBreg, param_groups, sparse_start
from nas.groups import join_rows
from nas.models import compact, conv_skip_autoencoder
from nas.models.price import total
from nas.search import Denoise, Picture, Run, Search, SearchConfig, births, deaths, random_crops, retrain, search
from nas.search.runs.path import Choice, Point, write_points
from nas.search.training.loop import Loop, Snapshot
from nas.search.training.retrain import Retraining, _SpikeGuard, rewound
from nas.steering import DeadTraining


@pytest.fixture
def config(data_root):
    return SearchConfig(
        data="folder",
        data_root=data_root,
        model_options={"depth": 2, "width": 6},
        epochs=4,
        model="conv_skip_autoencoder",
        second_moment="entry",
        price="none",
        sizes="none",
        steps=40,
        batch=4,
        crop=16,
        density=0.2,
        lr=0.005,
        sigma=50.0,
        entry_time=20,
    )


def weights(run, epoch):
    return run.supernet(epoch).state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_writes_its_folder(tmp_path, config):
    run = Run(tmp_path / "run", config)
    engine = Search(run)
    points = list(engine)
    assert [point.snapshot.epoch for point in points] == [1, 2, 3, 4]
    assert Run.open(tmp_path / "run") == run
    assert run.points() == engine.points
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert set(lines[0]) == {
        "epoch", "loss", "psnr", "ssim", "density", "units", "skips", "params", "flops", "lam", "lr", "seconds",
    }  # fmt: skip
    assert lines[0]["skips"] == 0
    assert lines[0]["units"] == 2
    assert lines[-1]["units"] > 2
    assert lines[-1]["lr"] == pytest.approx(0, abs=1e-12)
    assert same(weights(run, 4), engine.net.state_dict())
    born = births(engine.points)
    assert {name: tuple(units) for name, units in born.items()} == points[-1].snapshot.units
    assert min(epoch for units in born.values() for epoch in units.values()) == 0
    small = compact(run.supernet(4))
    assert sum(p.numel() for p in small.parameters()) == points[-1].params


def test_a_run_ends_with_a_front(tmp_path, config):
    config = replace(config, epochs=3, density=0.5, lr=0.01, sizes="400,200", fit=10, refit=1)
    run = Run(tmp_path / "run", config)
    points = list(Search(run))
    assert [point.snapshot.epoch for point in points] == [1, 2, 3, 4, 5]
    assert [point.snapshot.loss is None for point in points] == [False, False, False, True, True]
    assert points[2].params > 400 >= points[3].params > 200 >= points[4].params
    assert run.front() == points[3:]
    for point in run.front():
        net = compact(run.supernet(point.snapshot.epoch))
        assert net.plan.num_params == point.params
        assert total(net.plan, "flops") == point.flops
    stored = run.points()
    assert {name: tuple(units) for name, units in births(stored).items()} == points[-1].snapshot.units
    died = deaths(stored)
    for name, units in stored[3].snapshot.units.items():
        gone = set(units) - set(points[-1].snapshot.units[name])
        assert {unit for unit, epoch in died[name].items() if epoch > 3} == gone
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(6))

    before = (run.folder / "path.json").read_text()
    assert list(Search(run, resume=True)) == []  # it is complete
    assert (run.folder / "path.json").read_text() == before

    stopped = Run(tmp_path / "stopped", config)
    list(zip(range(4), Search(stopped), strict=False))  # interrupted within the front
    assert len(stopped.points()) == 5
    rest = list(Search(stopped, resume=True))
    assert [point.snapshot for point in rest] == [points[4].snapshot]
    for file in (run.folder / "path").iterdir():
        assert file.read_bytes() == (stopped.folder / "path" / file.name).read_bytes()


def test_sizes_in_multiply_adds(tmp_path, config):
    config = replace(config, epochs=2, density=0.5, entry_time=40, price="flops", sizes="50", fit=5, refit=1)
    *_, last = Search(Run(tmp_path / "run", config))
    assert 40 <= last.flops <= 50


@pytest.mark.parametrize(("name", "target"), [("target_params", 400), ("target_flops", 90)])
def test_lam_steers_to_a_target(tmp_path, config, name, target):
    config = replace(
        config, model="separable_autoencoder", model_options={"depth": 3, "width": 12, "hidden": 12}, lr=0.01,
        epochs=6, steps=30, density=0.5, sizes="auto", entry_time=40, price="params", fit=5, refit=1,
    )  # fmt: skip
    engine = Search(Run(tmp_path / "run", replace(config, **{name: str(target)})))
    *_, last = engine
    cost = last.cost(engine.run.config.sizes_in)
    assert 0.85 * target <= cost <= target  # so small a network has few units, each dear
    assert engine.growing.lam > 1.2 * 40 * config.learning_rate  # growth was held back


@pytest.mark.slow
@pytest.mark.parametrize("target", [1000, 2000, 3000, 4000, 5000])
def test_a_target_is_reached_from_above(tmp_path, target):
    """On real pictures growth is steered to half as much again; the network is at most 5 % below."""
    options = {"depth": 4, "width": 16, "hidden": 24}
    config = SearchConfig(
        epochs=8, steps=64, batch=4, crop=32, fit=30, refit=1, target_params=str(target), model_options=options
    )
    *grown, last = Search(Run(tmp_path / "run", config))
    assert 0.95 * target <= last.params <= target
    assert target <= max(point.params for point in grown) <= 1.8 * target


def test_a_target_that_is_not_reached(tmp_path, config):
    engine = Search(
        Run(tmp_path / "run", replace(config, epochs=1, steps=2, sizes="auto", target_params="700", fit=1, refit=1))
    )
    *_, grown, last = engine
    assert last.params == grown.params < 700


def test_sizes_below_what_can_be_removed(tmp_path, config):
    with pytest.raises(ValueError, match="3 params was asked for, and what a search cannot remove has 4"):
        Search(Run(tmp_path / "run", replace(config, sizes="3")))
    assert not (tmp_path / "run").exists()


def test_sizes_beyond_the_supernet(tmp_path, config):
    for options in ({"sizes": "14k,90"}, {"sizes": "auto", "target_params": "14k"}):
        with pytest.raises(ValueError, match="14,000 params was asked for, and the whole supernet has 773"):
            Search(Run(tmp_path / "run", replace(config, **options)))
    assert not (tmp_path / "run").exists()


def test_sizes_beyond_what_has_grown(tmp_path, config):
    search = Search(Run(tmp_path / "run", replace(config, epochs=1, steps=2, sizes="700")))
    with pytest.raises(ValueError, match="a network of 700 params was asked for, and the largest that"):
        list(search)


def test_births_and_deaths():
    """Unit 0 lives on, 1 dies, 2 dies and comes back, 3 lives between and dies twice, 4 is never alive."""
    alive = [(0, 1, 2), (0, 2, 3), (0,), (0, 2, 3), (0, 2)]
    points = [
        Point(Snapshot(epoch, None, {"n1": units}, {}, {}), {"psnr": 0.0}, 1, 1.0, 0.0)
        for epoch, units in enumerate(alive)
    ]
    assert births(points) == {"n1": {0: 0, 2: 3}}
    assert deaths(points) == {"n1": {1: 1, 3: 4}}
    assert deaths(points[:3]) == {"n1": {1: 1, 2: 2, 3: 2}}
    assert deaths(points[:1]) == {"n1": {}}


def test_the_same_seed_gives_the_same_run(tmp_path, config):
    runs = [Run(tmp_path / name, config) for name in "ab"]
    for run in runs:
        list(Search(run))
    assert all(same(weights(runs[0], epoch), weights(runs[1], epoch)) for epoch in range(5))
    files = [(run.folder / "path" / "0004.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    other = Run(tmp_path / "c", replace(config, seed=1))
    list(Search(other))
    assert not same(weights(runs[0], 4), weights(other, 4))


def test_an_interrupted_run_is_valid_and_goes_on_bit_for_bit(tmp_path, config):
    whole, broken = (Run(tmp_path / name, config) for name in "ab")
    list(Search(whole))
    next(iter(Search(broken)))
    assert [point.snapshot.epoch for point in broken.points()] == [0, 1]
    with (broken.folder / "metrics.jsonl").open("a") as lines:
        lines.write("half a li")  # killed while writing
    rest = list(Search(broken, resume=True))
    assert [point.snapshot.epoch for point in rest] == [2, 3, 4]
    assert same(weights(whole, 4), weights(broken, 4))
    a, b = (
        [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, broken)
    )
    assert [{**line, "seconds": 0} for line in a] == [{**line, "seconds": 0} for line in b]
    assert list(Search(broken, resume=True)) == []  # nothing is left to do


@pytest.mark.parametrize("optimizer", ["adabreg", "linbreg"])
@pytest.mark.parametrize(("price", "coarse", "least"), [("none", 0, 20), ("params", 0, 40), ("flops", 3, 160)])
def test_the_shortest_entry_time_is_accepted(tmp_path, config, optimizer, price, coarse, least):
    """Not refused later on by round-off: a search begins with it."""
    config = replace(config, optimizer=optimizer, lr=None, price=price, coarse=coarse, entry_time=least)
    engine = Search(Run(tmp_path / "run", config))
    assert engine.growing.entry_time == least
    engine.close()
    with pytest.raises(ValueError, match=f"entry_time must be at least {least} steps"):
        replace(config, entry_time=math.nextafter(least, 0))


def test_lam_from_a_trial(tmp_path, config, monkeypatch):
    """The trial leaves the start as it was, and a run with the lam that it chose goes on bit for bit."""
    monkeypatch.setattr("nas.search.engine.growing.TRIAL_STEPS", 80)
    auto = replace(config, entry_time="auto")
    plain, engine = Search(Run(tmp_path / "plain", config)), Search(Run(tmp_path / "run", auto))
    assert same(plain.net.state_dict(), engine.net.state_dict())
    assert engine.growing.lam != plain.growing.lam == 20 * config.lr
    next(iter(engine))
    resumed = Search(Run.open(tmp_path / "run"), resume=True)
    assert resumed.growing.lam == engine.growing.lam
    assert [point.snapshot.epoch for point in resumed] == [2, 3, 4]


def test_a_run_is_not_overwritten_unless_forced(tmp_path, config):
    run = Run(tmp_path / "run", replace(config, epochs=2))
    list(Search(run))
    (run.folder / "mine.txt").write_text("keep me")
    before = {file: file.stat().st_mtime_ns for file in run.folder.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="already holds a run; choose another --out, or --force to replace it"):
        Search(run)
    assert before == {file: file.stat().st_mtime_ns for file in run.folder.rglob("*") if file.is_file()}
    Search(run, force=True)
    assert [point.snapshot.epoch for point in run.points()] == [0]
    assert not (run.folder / "path" / "0002.safetensors").exists()
    assert (run.folder / "mine.txt").read_text() == "keep me"


def test_a_forced_search_that_fails_keeps_the_old_run(tmp_path, config, monkeypatch):
    run = Run(tmp_path / "run", replace(config, epochs=1))
    list(Search(run))
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}

    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr("nas.search.engine.search.evaluate", fail)
    with pytest.raises(ValueError, match="no"):
        Search(run, force=True)
    assert before == {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}


def test_a_folder_in_use_is_refused_even_when_forced(tmp_path, config):
    (tmp_path / "mine.txt").write_text("keep me")
    for force in (False, True):
        with pytest.raises(ValueError, match="is in use and holds no run"):
            Search(Run(tmp_path, config), force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_test_picture_too_small_is_said_before_the_search(tmp_path, config, data_root):
    for file in data_root.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Image.fromarray(np.zeros((5, 40), np.uint8)).save(tmp_path / "9.png")  # the last one is for the test
    with pytest.raises(ValueError, match="the picture 9.png has 40 x 5 pixels, smaller than the 7 x 7 pixels"):
        Search(Run(tmp_path / "run", replace(config, data_root=tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 25}, "28 x 24 pixels, smaller than the crop of 25"),
        ({"model_options": {"wdth": 3}}, "conv_skip_autoencoder has no option 'wdth'; its options are depth, width"),
        ({"model_options": {"width": 0}}, r"conv_skip_autoencoder\(width=...\) must be an integer from 1"),
        ({"model_options": {"width": None}}, r"\(width=...\) must be an integer from 1 to 100000, got None"),
        ({"task_options": {"peak": "text"}}, "denoise does not take {'peak': 'text'}: '<' not supported"),
        ({"sigma": -1.0}, "sigma must lie in"),
        ({"density": 2.0}, r"sparse_start\(density=...\)"),
    ],
)
def test_bad_options_leave_nothing_behind(tmp_path, config, change, message):
    with pytest.raises(ValueError, match=message):
        Search(Run(tmp_path / "run", replace(config, **change)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sing"}, "unknown task 'sing'; there are: classify, deblur, denoise, inpaint, superresolve"),
        (
            {"data": "cats"},
            "unknown data 'cats'; there are: cifar10, class_folder, fashion_mnist, folder, mnist, noisy_pairs, pairs",
        ),
        (
            {"model": "unet"},
            "unknown model 'unet'; there are: conv_skip_autoencoder, dense_conv, dense_mlp, mixed_auto",
        ),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"sigma": None}, "sigma must have a value, got null"),
        ({"entry_time": "soon"}, "entry_time must be a number of steps or auto, got 'soon'"),
        (
            {"entry_time": 10.0},
            r"entry_time must be at least 20 steps with price none \(below, everything wakes at once\), got 10",
        ),
        ({"entry_time": 30.0, "price": "params"}, r"entry_time must be at least 40 steps with price params"),
        (
            {"entry_time": 30.0, "coarse": 3},
            r"entry_time must be at least 80 steps with price none and coarse 3 \(below",
        ),
        ({"coarse": 100}, "coarse must lie between 0 and 99 steps, got 100"),
        (
            {"coarse": 1, "optimizer": "proxsgd", "entry_time": None},
            "proxsgd has no exact restriction to what is alive, and takes no coarse steps",
        ),
        ({"lr": 0.0}, "lr must be > 0, got 0"),
        ({"seed": -1}, "seed must lie between 0 and 4294967295, got -1"),
        ({"gate_scale": -1.0}, "gate_scale must be > 0"),
        ({"sizes": "4k,big"}, "a size must be a positive number such as 13500, 14k or 1.5M, got 'big'"),
        ({"sizes": "0"}, "a size must be a positive number such as 13500, 14k or 1.5M, got '0'"),
        ({"tolerance": -1.0}, "tolerance must be >= 0 dB"),
        (
            {"target_params": "14k"},
            "sizes, target_params and target_flops exclude each other, got target_params and sizes",
        ),
        (
            {"target_params": "14k", "target_flops": "1k", "sizes": "auto"},
            "exclude each other, got target_params and target_flops",
        ),
        ({"target_flops": "many", "sizes": "auto"}, "a size must be a positive number such as 13500"),
    ],
)
def test_bad_options_are_named(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


@pytest.mark.parametrize("content", ["", "a: 1", "[1, 2]", "\t{"])
def test_a_damaged_configuration(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config.yaml is damaged: "):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", 0), ("sigma", "x"), ("model_options", 3), ("batch", 2.5), ("seed", "a"), ("channels", [1])],
        *[("sigma", None), ("sizes", None), ("task_options", None), ("model_options", None)],
    ],
)
def test_a_configuration_with_a_wrong_value(tmp_path, config, name, value):
    data = yaml.safe_load(config.to_yaml()) | {name: value}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=rf"config.yaml is damaged: .*{name}"):
        Run.open(tmp_path)


def test_a_configuration_that_was_changed_is_not_resumed(tmp_path, config):
    run = Run(tmp_path / "run", config)
    next(iter(Search(run)))
    (run.folder / "config.yaml").write_text(replace(config, lr=0.5).to_yaml())
    with pytest.raises(ValueError, match="was begun with lr 0.005, not 0.5"):
        Search(Run.open(run.folder), resume=True)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="holds no run .*; make one with nas search --out"):
        Run.open(tmp_path)


@pytest.mark.parametrize("name", ["path.json", "path/0000.safetensors"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"garbage" * 50])
def test_damaged_files_are_named(tmp_path, config, name, damage):
    run = Run(tmp_path / "run", config)
    Search(run)
    file = run.folder / name
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(ValueError, match=rf"(?s){name.split('.')[-1]} is .*(damaged|empty)"):
        run.supernet(run.choose().snapshot.epoch)


@pytest.mark.parametrize(
    "scores", [None, {}, [1.0], {"psnr": None}, {"psnr": "20"}, {"psnr": float("nan")}, {"ssim": 0.5, "psnr": 20.0}]
)
def test_damaged_scores_are_named(tmp_path, config, scores):
    """No scores, none that are finite numbers, or those of other points in another order."""
    run = Run(tmp_path / "run", config)
    engine = Search(run)
    next(iter(engine))
    start, point = engine.points
    write_points(run.folder / "path.json", [start, replace(point, scores=scores)], config.identity)
    with pytest.raises(ValueError, match=r"path.json is missing or damaged: .*scores|path.json .* finite numbers"):
        run.points()


def test_networks_are_compared_on_some_of_many_pictures(tmp_path, config, monkeypatch):
    monkeypatch.setattr("nas.search.runs.run.MAX_COMPARED", 2)
    run = Run(tmp_path / "run", config)
    data = run.data()
    many = replace(data, test=[replace(data.test[0], name=str(k)) for k in range(5)])
    expected = run.test(many)[::3]
    found = run.inputs(many)
    assert len(found) == len(expected) == 2
    assert all(torch.equal(one, other.observed) for one, other in zip(found, expected, strict=True))
    assert len(run.inputs(data)) == len(data.test) == 1


def test_an_epoch_that_does_not_exist(tmp_path, config):
    run = Run(tmp_path / "run", config)
    Search(run)
    with pytest.raises(ValueError, match="has epochs 0 to 0, not 7"):
        run.choose(Choice(epoch=7))


def waves(k):
    x, y = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    return Picture(f"wave{k}", (0.5 + 0.4 * torch.sin(x / (2 + k)) * torch.cos(y / 5))[None])


def test_search_grows_from_almost_nothing_and_retraining_improves():
    torch.manual_seed(0)
    task = Denoise(40)
    batches = random_crops([waves(k) for k in range(4)], task, crop=16, batch=4, steps=30)
    net = conv_skip_autoencoder(depth=2, width=8)
    sparse_start(net, 0.13, batch=next(batches(0))[0])
    optimizer = AdaBreg(param_groups(net, lam=0.1, lr=0.005))
    snapshots = list(islice(search(net, batches, optimizer, task.loss), 8))
    assert snapshots[0].num_units <= 4 < snapshots[-1].num_units
    assert snapshots[-1].loss < 0.6 * snapshots[0].loss
    small = compact(net)
    losses = []
    retrain(small, batches, task.loss, epochs=6, steps=30, on_epoch=lambda epoch, loss: losses.append(loss))
    assert len(losses) == 6
    assert losses[-1] < snapshots[-1].loss


def test_a_sudden_gradient_does_not_destroy_what_was_learnt():
    """Targets are x, but for one batch of them that is 1e6 times as large."""
    net = torch.nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.zero_()
    x = torch.linspace(-1, 1, 16)[:, None]
    noise = 0.01 * torch.randn(60, 16, 1, generator=torch.Generator().manual_seed(0))

    def batches(epoch):
        return ((x, 1e6 * x if k == 40 else x + e) for k, e in enumerate(noise))

    def trained():
        other = copy.deepcopy(net)
        optimizer = torch.optim.SGD(other.parameters(), 0.1)
        optimizer.register_step_pre_hook(_SpikeGuard(list(other.parameters())))
        for _ in islice(Loop(other, batches, optimizer, torch.nn.functional.mse_loss), 1):
            pass
        return other

    assert torch.allclose(trained()(x), x, atol=0.05)


@pytest.mark.parametrize("worse", [1e3, math.nan])
def test_an_epoch_that_destroys_the_network_is_undone(worse):
    """Targets are x; in the fourth epoch the network is spoilt once, behind the back of the training."""
    net, x, spoilt = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 16)[:, None], []
    losses, rates = [], []

    def batches(epoch):
        if epoch == 4 and not spoilt:
            spoilt.append(epoch)
            torch.nn.init.constant_(net.weight, worse)
        return ((x, x) for _ in range(20))

    def note(epoch, loss):
        losses.append((epoch, loss))
        rates.append(training.loop.optimizer.param_groups[0]["max_lr"])

    training = Retraining(net, batches, torch.nn.functional.mse_loss, epochs=6, steps=20, lr=0.1, on_epoch=note)
    with pytest.warns(UserWarning, match=r"epoch 4 lost what .* from epoch 3 at half the learning rate"):
        training.run()
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 3, 4, 5, 6]
    assert rates == [0.1] * 3 + [0.05] * 4
    assert torch.allclose(net(x), x, atol=0.01)


def test_a_training_that_always_diverges_is_refused():
    net = torch.nn.Linear(1, 1)
    batches = lambda epoch: iter([(torch.ones(1, 1), torch.full((1, 1), math.nan))])  # noqa: E731
    with pytest.warns(UserWarning, match="half the learning rate"), pytest.raises(FloatingPointError, match="diverged"):
        retrain(net, batches, torch.nn.functional.mse_loss, epochs=2, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"lr": -1.0}, "lr must be > 0"),
        ({"patience": 0}, "every and patience must be at least 1, got every=5, patience=0"),
    ],
)
def test_retrain_refuses_bad_options(options, message):
    net = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        retrain(net, lambda epoch: iter(()), torch.nn.functional.mse_loss, **{"epochs": 1, "steps": 1, **options})


@pytest.mark.parametrize("steps", [*range(1, 12), 20])
def test_retraining_takes_any_number_of_steps(steps):
    net = torch.nn.Linear(1, 1)
    losses = []
    batches = lambda epoch: iter([(torch.ones(1, 1), torch.ones(1, 1))] * steps)  # noqa: E731
    retrain(
        net,
        batches,
        torch.nn.functional.mse_loss,
        epochs=1,
        steps=steps,
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    assert len(losses) == 1


def test_retraining_ends_with_its_best_weights_and_stops_early():
    """Scores 1, 3, 2, 2, 2: the weights of the second look are kept, the fifth epoch is the last."""
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    batches = lambda epoch: iter([(torch.ones(4, 2), torch.ones(4, 1))])  # noqa: E731
    scores, seen = iter([1.0, 3.0, 2.0, 2.0, 2.0, 9.0]), []

    def validate():
        seen.append(net.weight.detach().clone())
        return next(scores)

    retrain(net, batches, torch.nn.functional.mse_loss, epochs=9, steps=1, validate=validate, every=1, patience=3)
    assert len(seen) == 5
    assert torch.equal(net.weight, seen[1])


def test_the_last_epoch_is_always_validated():
    epochs = []
    net = torch.nn.Linear(1, 1)
    batches = lambda epoch: iter([(torch.ones(1, 1), torch.ones(1, 1))])  # noqa: E731
    retrain(
        net,
        batches,
        torch.nn.functional.mse_loss,
        epochs=7,
        steps=1,
        on_epoch=lambda epoch, loss: epochs.append(epoch),
        validate=lambda: float(len(epochs)),
        every=5,
    )
    assert epochs == [1, 2, 3, 4, 5, 6, 7]


def test_rewound_weights_are_those_of_the_earlier_epoch():
    """Units that were born have the weights of then, the others new ones; rewound to itself nothing changes."""
    torch.manual_seed(0)
    net = conv_skip_autoencoder(depth=2, width=6)
    sparse_start(net, 0.5)
    early = copy.deepcopy(net)
    with torch.no_grad():
        for weight, bias in net.unit_parameters().values():
            for tensor in (weight, bias):
                tensor += 0.1 * tensor.ne(0)
            if len(bias) == 6:
                weight[-1], bias[-1] = 0.3, 0.1  # born later, if it was not alive already
    later = compact(net)
    back = rewound(net, early)
    assert back.plan == later.plan
    for name, node in back.named_nodes().items():
        rows = join_rows([*net.nodes[name].edges.values(), net.nodes[name].bias]).any(dim=1)
        assert torch.equal(node.bias, early.nodes[name].bias[rows])
        assert all(weight.flatten(1).any(dim=1).all() for weight in node.edges.values())
    itself = rewound(net, net)
    assert all(torch.equal(p, q) for p, q in zip(itself.parameters(), later.parameters(), strict=True))
    with pytest.raises(ValueError, match="needs a network of the same plan"):
        rewound(net, conv_skip_autoencoder(depth=2, width=7))


def test_divergence_is_said():
    net = torch.nn.Linear(1, 1)
    batches = lambda epoch: iter([(torch.full((1, 1), float("inf")), torch.zeros(1, 1))])  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss of epoch 1 is inf: training diverged; use a smaller lr"):
        next(Loop(net, batches, torch.optim.SGD(net.parameters(), 0.1), torch.nn.functional.mse_loss))


def test_a_dead_search_is_stopped():
    """Without any gradient nothing will wake: said after three epochs, not after all."""
    net = conv_skip_autoencoder(depth=2, width=4)
    sparse_start(net, 0.5)
    optimizer = AdaBreg(param_groups(net, lam=0.1, lr=0.001))
    x = torch.rand(2, 1, 8, 8)
    snapshots = search(net, lambda epoch: iter([(x, x)]), optimizer, lambda prediction, y: 0 * prediction.sum())
    with pytest.raises(DeadTraining, match="training is dead: no gradient"):
        for _ in range(10):
            next(snapshots)


def test_a_search_in_which_everything_would_wake_at_once_is_refused():
    net = conv_skip_autoencoder(depth=2, width=4)
    sparse_start(net, 0.5)
    optimizer = AdaBreg(param_groups(net, lam=0.01, lr=0.01))
    with pytest.raises(ValueError, match="'n1': half of its groups would wake within 1 steps, .* lam of at least 0.2"):
        next(search(net, lambda epoch: iter(()), optimizer, torch.nn.functional.mse_loss))
