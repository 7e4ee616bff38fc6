"""Where and how a training computes: everything on another device than the CPU, mixed precision, torch.compile."""

import copy
import json
import math
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nas.search.optimizers
import nas.search.run
from nas import AdaBreg, param_groups, sparse_start
from nas.analysis.cost import cost
from nas.analysis.extraction.certificate import certify, fingerprint
from nas.analysis.topology import topology
from nas.cli import main
from nas.models import DagNet, compact, load, separable_autoencoder
from nas.models.compact import alive_plan, kept_units
from nas.search import Compute, Run, Search, SearchConfig, denoise_pixels, evaluate
from nas.search.checkpoints import Checkpoints
from nas.search.compare import Competitor, Training, compete, fresh
from nas.search.compute import device_of, on_cpu
from nas.search.loop import Loop, search
from nas.search.path import load_sparse, save_sparse
from nas.search.retrain import Retraining, rewound
from nas.search.run import thinned_from_dense
from nas.search.tasks.tiles import restore_in_tiles
from tests.far import DEVICE, Far, far_away
from tests.nets import random_net


@pytest.fixture
def far():
    with far_away():
        yield Compute(DEVICE)


@pytest.fixture(scope="module")
def config(data_root):
    return SearchConfig(
        data="folder",
        data_root=data_root,
        model="separable_autoencoder",
        model_options={"depth": 2, "width": 6, "hidden": 6, "kernel": 5},
        epochs=2,
        steps=6,
        batch=2,
        crop=16,
        density=0.5,
        lr=0.01,
        sizes="300",
        fit=3,
        refit=1,
    )


@pytest.mark.parametrize(
    "mix",
    [
        lambda far, near: far + near,
        lambda far, near: near.add_(far),
        lambda far, near: torch.where(near > 0, far, far),
        lambda far, near: torch.cat([far, near]),
        lambda far, near: torch.stack([far[0], near[0].sum()]),
        lambda far, near: near[far > 0],
        lambda far, near: far.index_put_((near > 0,), near[near > 0]),
        lambda far, near: far.index_select(0, near.long()),
        lambda far, near: far.normal_(generator=torch.Generator()),
        lambda far, near: torch.equal(far, near),
    ],
)
def test_the_device_refuses_what_cuda_refuses(far, mix):
    near = torch.ones(3)
    with pytest.raises(RuntimeError):
        mix(near.to(DEVICE), near)


def test_the_device_takes_what_cuda_takes(far):
    near = torch.tensor([1.0, 0.0, 2.0])
    there = near.to(DEVICE)
    assert isinstance(there, Far) and there.device.type == DEVICE
    assert (there[near > 0] * torch.tensor(2.0)).tolist() == [2, 4]
    there[near == 0] = torch.tensor(5.0)
    near.copy_(there)
    assert near.tolist() == [1, 5, 2] and torch.zeros(2, device=there.device).device.type == DEVICE
    with pytest.raises(RuntimeError):
        there.numpy()


def files(folder):
    """What a run wrote, without the times of the clock."""
    weights = {file.name: file.read_bytes() for file in sorted((folder / "path").iterdir())}
    points = json.loads((folder / "path.json").read_text())["points"]
    return weights, [{**point, "seconds": 0} for point in points]


def test_a_run_elsewhere(config, tmp_path, monkeypatch):
    """Growth, snapshots, thinning out, refit, checkpoint and resume there lead to the same files as here."""
    monkeypatch.setattr(DagNet, "_knows_what_lives", lambda net: False)  # as on other devices than the CPU
    run = Run(tmp_path / "far", config)
    with far_away():
        engine = Search(run, compute=Compute(DEVICE))
        next(iter(engine))
        engine.close()
        assert device_of(engine.net).type == DEVICE
        assert isinstance(engine.optimizer.state[engine.net.nodes["out"].bias]["dual"], Far)
        list(Search(run, resume=True, compute=Compute(DEVICE)))
    here = Run(tmp_path / "here", config)
    list(Search(here))
    assert files(run.folder) == files(here.folder)


@pytest.mark.parametrize("resumed", ["cpu", DEVICE])
def test_a_run_moves(config, tmp_path, resumed):
    """What is on disk is on the CPU, so that a run goes on elsewhere, and says so."""
    run = Run(tmp_path / "run", replace(config, sizes="none"))
    begun = "cpu" if resumed == DEVICE else DEVICE
    with far_away():
        engine = Search(run, compute=Compute(begun))
        next(iter(engine))
        engine.close()
    stored = Checkpoints(run.folder / "checkpoints").newest()["growth"]["loop"]
    assert all(type(tensor) is torch.Tensor for tensor in (*stored["net"].values(), stored["losses"]))
    with far_away():
        engine = Search(run, resume=True, compute=Compute(resumed))
        assert (engine.computed, str(engine.compute)) == (begun, resumed)
        assert [point.snapshot.epoch for point in engine] == [2]


@pytest.mark.parametrize("optimizer", nas.search.optimizers.OPTIMIZERS)
def test_every_optimiser_elsewhere(far, config, tmp_path, monkeypatch, optimizer):
    """With its trial, or the one that chooses lam; and with a controller."""
    monkeypatch.setattr(nas.search.optimizers, "TRIAL_STEPS", 3)
    monkeypatch.setattr(nas.search.run, "TRIAL_STEPS", 3)
    monkeypatch.setattr(nas.search.run, "STEERING", 2)
    entry_time = "auto" if nas.search.optimizers.OPTIMIZERS[optimizer].calibrates else None
    changes = {"sizes": "none"} if optimizer == "xrda" else {"sizes": "auto", "target_params": "400"}
    config = replace(config, optimizer=optimizer, lr=None, epochs=1, entry_time=entry_time, **changes)
    engine = Search(Run(tmp_path / "run", config), compute=far)
    assert next(iter(engine)).snapshot.epoch == 1
    engine.close()
    for p, state in engine.optimizer.state.items():
        assert all(isinstance(x, Far) for x in (p, *state.values()) if isinstance(x, torch.Tensor) and x.ndim)


def test_retraining_and_comparisons_elsewhere(far, config, tmp_path):
    run = Run(tmp_path / "run", replace(config, sizes="none"))
    list(Search(run))
    data, (found, early) = run.data(), (run.supernet(2), run.supernet(1))
    task, batches, validation = run.task(data), run.batches(data, 1), run.validation(data)
    net = rewound(far.place(found), far.place(early))
    training = Retraining(
        net, batches, task.loss, epochs=2, steps=6, validate=lambda: evaluate(net, validation, task)["psnr"], every=1
    )
    next(training.loop)
    stored = on_cpu(training.state_dict())
    other = compact(run.supernet(2), weights_of=run.supernet(1))
    resumed = Retraining(other, batches, task.loss, epochs=2, steps=6, compute=far)
    resumed.load_state_dict(stored)
    training.run()
    resumed.run()
    assert fingerprint(net) == fingerprint(other) and device_of(other).type == DEVICE

    rules = Training(
        task, lambda seed: batches, validation, validation, epochs=1, steps=6, rates=(0.01,), seeds=(0,), compute=far
    )
    trained = compete(Competitor("found", fresh(net.plan)), rules)
    assert trained.network is None or device_of(trained.network).type == DEVICE
    assert thinned_from_dense(run, 1000, task, batches, 0, far).plan.num_params <= 1000


@pytest.mark.parametrize("seed", range(8))
def test_extraction_elsewhere(far, tmp_path, seed):
    """Of any network, with and without rounding to blocks; the same as here."""
    net, x = random_net(seed)
    there = far.place(copy.deepcopy(net))
    assert fingerprint(there) == fingerprint(net)
    assert alive_plan(there) == alive_plan(net) and topology(there).edges == topology(net).edges
    for mine, theirs in zip(kept_units(net).values(), kept_units(there).values(), strict=True):
        assert torch.equal(mine, theirs)
    hashes = [save_sparse(each, tmp_path / "net") for each in (net, there)]
    assert hashes[0] == hashes[1]
    load_sparse(there, tmp_path / "net", hashes[0])
    for options in ({}, {"round_to": 4}):
        small = compact(there, **options)
        assert device_of(small).type == DEVICE
        assert fingerprint(small) == fingerprint(compact(net, **options))
    small = compact(there)
    assert certify(there, small).holds
    assert cost(there) == cost(net)
    assert torch.equal(there(x.to(DEVICE)).cpu(), net(x))


def test_use_elsewhere(far, tmp_path):
    torch.manual_seed(0)
    net = separable_autoencoder(1, depth=2, width=4, hidden=4, kernel=3)
    there = far.place(copy.deepcopy(net))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    assert np.array_equal(denoise_pixels(there, pixels), denoise_pixels(net, pixels))
    picture = torch.rand(1, 20, 24)
    assert torch.equal(restore_in_tiles(there, picture, 8), restore_in_tiles(net, picture, 8))
    there.save_pretrained(tmp_path)
    assert fingerprint(load(tmp_path)) == fingerprint(net)
