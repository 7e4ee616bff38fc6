"""Where and how a training computes: everything on another device than the CPU, mixed precision, torch.compile."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nas.search.engine.growing
import nas.search.training.optimizers
from nas import AdaBreg, param_groups, sparse_start
from nas.analysis.cost import cost
from nas.analysis.extraction.certificate import certify
from nas.analysis.topology import topology
from nas.cli import main
from nas.models import DagNet, compact, dense_conv, load, separable_autoencoder
from nas.models.compact import alive_plan, kept_units
from nas.models.store import fingerprint
from nas.search import (
    Callback,
    Classify,
    Compute,
    Run,
    Search,
    Stack,
    denoise_pixels,
    evaluate,
    held_out,
    retrain,
    search,
    thin_out,
)
from nas.search.engine.slimming import thinned_from_dense
from nas.search.retraining.compete import Training, compete
from nas.search.retraining.competitors import Competitor, fresh
from nas.search.runs.path import load_sparse, save_sparse
from nas.search.tasks.tiles import restore_in_tiles
from nas.search.training.checkpoints import Checkpoints, Stopped
from nas.search.training.compute import device_of, devices, on_cpu
from nas.search.training.loop import Loop
from nas.search.training.retrain import Retraining, rewound
from tests.far import DEVICE, Far, far_away
from tests.nets import random_net
from tests.searches import quick


@pytest.fixture
def far():
    with far_away():
        yield Compute(DEVICE)


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model_options={"depth": 1, "width": 4, "hidden": 4, "kernel": 5},
        epochs=2,
        steps=4,
        crop=12,
        sizes="100",
        fit=2,
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


class Trials(Callback):
    def __init__(self):
        self.params = []

    def on_trial(self, params):
        self.params.append(params)


def test_a_run_elsewhere(config, tmp_path, monkeypatch):
    """Growth, snapshots, thinning out, refit, checkpoint and resume there lead to the same files as here."""
    monkeypatch.setattr(DagNet, "_where_alive", lambda net, x: {})  # as on other devices than the CPU
    monkeypatch.setattr(AdaBreg, "_moves_entries", False)  # likewise: nothing is joined
    run = Run(tmp_path / "far", config)
    with far_away():
        engine = Search(run, compute=Compute(DEVICE))
        engine.stop()
        with pytest.raises(Stopped):
            list(engine)  # within the first epoch
        assert device_of(engine.net).type == DEVICE
        assert isinstance(engine.growing.optimizer.state[engine.net.nodes["out"].bias]["dual"], Far)
        trials = Trials()
        list(Search(run, resume=True, compute=Compute(DEVICE), callbacks=[trials]))
    assert len(trials.params) > 2  # parts were removed
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


@pytest.mark.parametrize("optimizer", nas.search.training.optimizers.OPTIMIZERS)
def test_every_optimiser_elsewhere(far, config, tmp_path, monkeypatch, optimizer):
    """With its trial, or the one that chooses lam; and with a controller."""
    monkeypatch.setattr(nas.search.training.optimizers, "TRIAL_STEPS", 3)
    monkeypatch.setattr(nas.search.engine.growing, "TRIAL_STEPS", 3)
    monkeypatch.setattr(nas.search.engine.growing, "STEERING", 2)
    entry_time = "auto" if nas.search.training.optimizers.OPTIMIZERS[optimizer].calibrates else None
    changes = {"sizes": "none"} if optimizer == "xrda" else {"sizes": "auto", "target_params": "120"}
    config = replace(config, optimizer=optimizer, lr=None, epochs=1, entry_time=entry_time, **changes)
    engine = Search(Run(tmp_path / "run", config), compute=far)
    assert next(iter(engine)).snapshot.epoch == 1
    engine.close()
    for p, state in engine.growing.optimizer.state.items():
        assert all(isinstance(x, Far) for x in (p, *state.values()) if isinstance(x, torch.Tensor) and x.ndim)


def test_retraining_and_comparisons_elsewhere(far, config, tmp_path):
    run = Run(tmp_path / "run", replace(config, sizes="none"))
    list(Search(run))
    data, (found, early) = run.data(), (run.supernet(2), run.supernet(1))
    task, batches, validation = run.task(data), run.batches(data, 1), run.validation(data)
    net = rewound(far.place(found), far.place(early))
    training = Retraining(
        net, batches, task.loss, epochs=2, steps=4, validate=lambda: evaluate(net, validation, task)["psnr"], every=1
    )
    next(training.loop)
    stored = on_cpu(training.state_dict())
    other = compact(run.supernet(2), weights_of=run.supernet(1))
    resumed = Retraining(other, batches, task.loss, epochs=2, steps=4, compute=far)
    resumed.load_state_dict(stored)
    training.run()
    resumed.run()
    assert fingerprint(net) == fingerprint(other) and device_of(other).type == DEVICE

    rules = Training(
        task, lambda seed: batches, validation, validation, epochs=1, steps=4, rates=(0.01,), seeds=(0,), compute=far
    )
    trained = compete(Competitor("found", fresh(net.plan)), rules)
    assert trained.network is None or device_of(trained.network).type == DEVICE
    assert device_of(thinned_from_dense(run, 5000, task, batches, 0, far)).type == DEVICE


@pytest.mark.parametrize("seed", range(3))
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


def test_classes_elsewhere(far):
    """Labels move, too; the loss of a batch and the scores of single pictures."""
    pixels = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = Stack([f"{k}" for k in range(12)], pixels, torch.arange(12) % 3, 1)
    task = Classify(("a", "b", "c"), (0.5,), (0.3,))
    net = far.place(dense_conv(1, depth=1, growth=4, outputs=3))
    retrain(net, task.batches(pictures, crop=8, batch=4, steps=3), task.loss, epochs=1, steps=3)
    assert evaluate(net, held_out(pictures, task), task)["accuracy"] >= 0


def small_net():
    torch.manual_seed(0)
    return separable_autoencoder(1, depth=2, width=4, hidden=4, kernel=3)


def few(epoch, steps=4):
    for k in range(steps):
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(100 * epoch + k))
        yield x, x / 2


def growing(net, compute, factor=1.0):
    sparse_start(net, 0.5, seed=0)
    optimizer = AdaBreg(param_groups(net, lam=0.1, lr=1e-3))
    return search(net, few, optimizer, lambda y, target: factor * F.mse_loss(y, target), compute=compute)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(precision):
    """Forward and loss alone: about the same losses, and a state in single precision."""
    exact, mixed = growing(small_net(), Compute()), growing(small_net(), Compute(precision=precision))
    seen = []
    mixed.net.nodes["out"].register_forward_hook(lambda node, inputs, output: seen.append(output.dtype))
    losses = [(next(exact).loss, next(mixed).loss) for _ in range(2)]
    assert all(a != b and a == pytest.approx(b, rel=0.02) for a, b in losses)
    assert torch.bfloat16 in seen or torch.float16 in seen
    for p, state in mixed.loop.optimizer.state.items():
        assert {p.dtype, state["dual"].dtype, state["exp_avg"].dtype} == {torch.float32}


def test_the_scale_of_fp16_goes_on_with_the_rest():
    whole, first, second = (growing(small_net(), Compute(precision="fp16")) for _ in range(3))
    for _ in range(2):
        next(whole)
    next(first)
    second.load_state_dict(first.state_dict())
    next(second)
    assert second.state_dict()["loop"]["scaler"] == whole.state_dict()["loop"]["scaler"] != {}
    assert fingerprint(second.net) == fingerprint(whole.net)
    other = growing(small_net(), Compute())
    other.load_state_dict(first.state_dict())  # in another precision
    next(other)
    first.load_state_dict(other.state_dict())
    next(first)


def test_a_step_whose_gradients_overflow_is_left_out():
    """By the schedule, too; the next ones are scaled less."""
    for make in (partial(torch.optim.Adam, lr=1e-2, fused=True), lambda p: AdaBreg(p, lr=1e-2)):
        net = small_net()
        before, optimizer = fingerprint(net), make(net.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        loop = Loop(
            net, partial(few, steps=1), optimizer, lambda y, target: 1e8 * F.mse_loss(y, target), scheduler=scheduler,
            compute=Compute(precision="fp16"),
        )  # fmt: skip
        next(loop)
        assert (fingerprint(net), scheduler.last_epoch) == (before, 0)
        assert loop.state_dict()["scaler"]["scale"] == 2**15
        for _ in range(30):
            next(loop)
        assert fingerprint(net) != before and 0 < scheduler.last_epoch < 31
        assert all(p.isfinite().all() for p in net.parameters())


def test_compiled(monkeypatch):
    """One translation serves all epochs of a growth; it computes densely what is computed where it is alive."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = growing(small_net(), Compute()), growing(small_net(), Compute(compile=True))
    for _ in range(3):
        assert next(compiled).loss == pytest.approx(next(plain).loss, rel=1e-5)
    assert len(graphs) == 1
    torch.compiler.reset()


def test_a_start_elsewhere(far):
    """The same as here, whatever the device."""
    net, x = small_net(), next(few(1))[0]
    there = far.place(copy.deepcopy(net))
    sparse_start(net, 0.3, seed=1, batch=x)
    sparse_start(there, 0.3, seed=1, batch=x.to(DEVICE))
    assert fingerprint(there) == fingerprint(net)


def test_thinning_out_elsewhere(far):
    """The probe moves to the network."""
    net, probe = separable_autoencoder(1, depth=1, width=3, hidden=3, kernel=3), next(few(1))
    options = {"size": 0.97 * net.plan.num_params, "fit": lambda net: None, "loss_fn": F.mse_loss, "probe": probe}
    assert fingerprint(thin_out(far.place(copy.deepcopy(net)), **options)) == fingerprint(thin_out(net, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_by_torch():
    plain, compiled = growing(small_net(), Compute()), growing(small_net(), Compute(compile=True))
    assert next(compiled).loss == pytest.approx(next(plain).loss, rel=1e-4)


def test_a_translation_that_fails_is_one_sentence(config, tmp_path, capsys, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("there is no compiler\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    words = ["search", f"--config={tmp_path / 'config.yaml'}", f"--out={tmp_path / 'run'}", "--compile"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nas search: torch.compile fails on this machine (backend='fail' raised:")
    assert error.endswith("there is no compiler); leave out --compile")
    torch.compiler.reset()


def test_fits_are_not_compiled(config, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or net)
    list(Search(Run(tmp_path / "run", config), compute=Compute(compile=True)))
    assert len(compiled) == 2  # what grows, and the refit


def test_auto(monkeypatch):
    assert Compute("auto").device == devices()[:2][-1]
    monkeypatch.setattr("nas.search.training.compute.devices", lambda: ["cpu", "cuda", "cuda:0", "cuda:1"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert str(Compute("auto", "fp16", True)) == "cuda in fp16, compiled"
    with pytest.raises(ValueError, match=r"^precision must be fp32 or fp16 on cuda:1, got 'bf16'$"):
        Compute("cuda:1", "bf16")
    with pytest.raises(
        ValueError, match=r"^device must be auto, cpu, cuda, cuda:0 or cuda:1 on this machine, got 'tpu'$"
    ):
        Compute("tpu")
    with pytest.raises(ValueError, match=r"^precision must be fp32, bf16 or fp16, got 'fp8'$"):
        Compute(precision="fp8")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--device=cuda:99", "device must be auto"),
        ("--device=", "device must be auto"),
        ("--precision=fp8", "precision must be fp32"),
        ("--precision=", "precision must be fp32"),
    ],
)
def test_what_is_not_there_is_one_sentence(config, tmp_path, capsys, word, sentence):
    run = Run(tmp_path / "run", replace(config, epochs=1, sizes="none"))
    list(Search(run))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    before = {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}
    for words in (
        ["search", f"--config={tmp_path / 'config.yaml'}", f"--out={tmp_path / 'new'}"],
        *(["resume", str(run.folder)], ["retrain", str(run.folder), "--epoch=1"], ["front", str(run.folder)]),
    ):
        assert main([*words, word]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_said_in_print(config, tmp_path, capsys):
    """How it computes, if not as usual; that it was computed otherwise; and the options to go on with."""
    folder = str(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(replace(config, epochs=1, sizes="none").to_yaml())
    assert main(["search", f"--config={tmp_path / 'config.yaml'}", f"--out={folder}", "--precision=bf16"]) == 0
    assert "computing on cpu in bf16\n" in capsys.readouterr().out
    assert main(["resume", folder, "--device=cpu"]) == 0
    assert (
        "so far this was computed on cpu in bf16, now on cpu: it does not go on bit for bit" in capsys.readouterr().out
    )
    assert main(["extract", folder, "--no-latency"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "keep", lambda self, state: self.save(state()) or self.stop() or exit(1))
        with pytest.raises(SystemExit):
            main(["retrain", folder, "--epochs=2"])
    capsys.readouterr()
    assert main(["resume", folder, "--precision=bf16"]) == 0
    assert "so far this was computed on cpu, now on cpu in bf16" in capsys.readouterr().out
