"""When a search stops growing: patience, and a budget of time."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nas.analysis import outcome
from nas.cli import main
from nas.search import Run, Search, SearchConfig
from nas.search.engine.stopping import growth_is_over
from nas.search.training.checkpoints import Checkpoints, Stopped
from nas.search.training.loop import Loop
from tests.searches import quick


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model="conv_skip_autoencoder",
        model_options={"depth": 2, "width": 6},
        epochs=12,
        steps=5,
        sizes="200,100",
        fit=4,
        refit=3,
    )


def test_a_search_without_a_new_best_goes_on_to_its_front(tmp_path, config, monkeypatch):
    scores = itertools.chain([20.0, 21.0, 22.0, 22.0, 21.9], itertools.repeat(25.0))
    monkeypatch.setattr("nas.search.engine.search.evaluate", lambda *_: {"psnr": next(scores), "ssim": 0.5})
    run = Run(tmp_path / "run", replace(config, patience=2))
    *grown, first, second = Search(run)
    assert [point.headline for point in grown] == [21.0, 22.0, 22.0, 21.9]
    assert run.front() == [first, second] and first.snapshot.epoch == 5
    assert outcome(run).finished
    assert list(Search(run, resume=True)) == []
    points = run.points()
    assert [growth_is_over(points[:k], run.config) for k in (3, 4, 5, 6)] == [False, False, True, True]


def test_patience_that_is_not_given_is_no_part_of_a_run(config):
    text = config.to_yaml()
    assert SearchConfig.from_yaml(text.replace("patience: null\n", "")) == config
    assert "patience" not in config.identity and "patience" in replace(config, patience=3).identity
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        replace(config, patience=0)


@pytest.fixture
def clock(monkeypatch):
    """Time goes on by a second with every step, whatever it is a step of."""
    now = [0.0]

    def step(self, x, y):
        now[0] += 1
        return train(self, x, y)

    train = Loop._step
    monkeypatch.setattr(Loop, "_step", step)
    for module in ("engine.search", "engine.slimming"):
        monkeypatch.setattr(f"nas.search.{module}.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.mark.parametrize(("seconds", "epochs", "networks"), [(1000, 12, 2), (90, 9, 2), (60, 6, 2), (12, 1, 1)])
def test_a_budget_is_kept(tmp_path, config, clock, seconds, epochs, networks):
    run = Run(tmp_path / "run", config)
    *_, last = Search(run, hours=seconds / 3600)
    assert clock[0] <= seconds
    assert last.snapshot.in_front and run.choose().snapshot.in_front
    grown = len(run.points()) - 1 - len(run.front())
    assert (grown, len(run.front())) == (epochs, networks)


def test_time_that_an_earlier_process_has_taken_counts(tmp_path, config, clock, monkeypatch):
    run = Run(tmp_path / "run", config)
    keep, calls = Checkpoints.keep, itertools.count(1)

    def keep_or_stop(checkpoints, state):
        if next(calls) % 15 == 0:
            checkpoints.stop()
        keep(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "keep", keep_or_stop)
    processes = 1
    while True:
        try:
            list(Search(run, resume=processes > 1, hours=60 / 3600))
            break
        except Stopped:
            processes += 1
            clock[0] += 1000  # between two processes
    assert processes > 3
    assert run.front() and 50 < run.points()[-1].seconds <= 60


def test_a_budget_without_time_is_refused(tmp_path, config, capsys):
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    words = ["search", f"--config={tmp_path / 'c.yaml'}", f"--out={tmp_path / 'run'}"]
    assert main([*words, "--hours=0"]) == 2
    assert "hours must be > 0, got 0.0" in capsys.readouterr().err
    assert main([*words, "--hours=1e-9"]) == 0  # an epoch, and a network
    assert [point.snapshot.in_front for point in Run.open(tmp_path / "run").points()] == [False, False, True]
