"""What a search tells on its way, and who logs it."""

import importlib.machinery
import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from nas import __version__
from nas.cli import main
from nas.search import Callback, Run, Search, births, deaths
from nas.search.callbacks.surroundings import read_surroundings
from nas.search.training.checkpoints import Stopped
from tests.searches import quick


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model="conv_skip_autoencoder",
        model_options={"depth": 2, "width": 6},
        epochs=3,
        steps=30,
        entry_time=20,
        price="none",
        second_moment="entry",
        density=0.3,
        sizes="200,100",
        fit=6,
        refit=1,
    )


class Recorder(Callback):
    def __init__(self):
        self.alive, self.born, self.died, self.told, self.lines, self.trials = {}, {}, {}, [], [], []

    def on_start(self, search):
        self.told.append(("start", len(search.points)))

    def on_birth(self, epoch, node, units):
        self.born |= {(node, unit): epoch for unit in units}

    def on_death(self, epoch, node, units):
        self.died |= {(node, unit): epoch for unit in units}

    def on_epoch(self, point, line):
        self.told.append(("epoch", point.snapshot.epoch))
        self.lines.append(line)

    def on_trial(self, params):
        self.trials.append(params)

    def on_network(self, point, line):
        self.told.append(("network", point.params))
        self.lines.append(line)

    def on_end(self, search, problem):
        self.told.append(("end", type(problem)))


def test_a_callback_is_told_what_is_in_the_folder(tmp_path, config):
    recorder, run = Recorder(), Run(tmp_path / "run", config)
    list(Search(run, callbacks=[recorder]))
    points, grown = run.points(), run.points()[:4]
    networks = [("network", point.params) for point in points[4:]]
    assert recorder.told == [("start", 1), *(("epoch", k) for k in (1, 2, 3)), *networks, ("end", type(None))]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert recorder.lines == lines[1:]
    assert len(recorder.trials) > 2 and recorder.trials == sorted(recorder.trials, reverse=True)
    last = {(node, unit): epoch for node, units in births(grown).items() for unit, epoch in units.items() if epoch}
    assert last and {key: epoch for key, epoch in recorder.born.items() if key in last} == last
    gone = {(node, unit): epoch for node, units in deaths(grown).items() for unit, epoch in units.items()}
    assert {key: epoch for key, epoch in recorder.died.items() if key in gone} == gone


def test_a_callback_is_told_what_ends_a_search_and_where_it_goes_on(tmp_path, config):
    first, second, run = Recorder(), Recorder(), Run(tmp_path / "run", config)
    engine = Search(run, callbacks=[first])
    points = iter(engine)
    next(points)
    engine.stop()
    with pytest.raises(Stopped):
        next(points)
    assert first.told == [("start", 1), ("epoch", 1), ("end", Stopped)]
    engine = Search(run, resume=True, callbacks=[second])
    engine.close()
    assert second.told == [("start", 2), ("end", type(None))]


def test_a_callback_that_raises_keeps_the_end_from_no_other(tmp_path, config):
    class Raising(Callback):
        def on_end(self, search, problem):
            raise KeyError("mine")

    last = Recorder()
    with pytest.raises(KeyError, match="mine"):
        Search(Run(tmp_path / "run", config), callbacks=[Raising(), last]).close()
    assert last.told[-1] == ("end", type(None))


class FakeWandb(ModuleType):
    """As much of W&B as is called, with what it was told."""

    Error = RuntimeError

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.runs, self.logged, self.ended = [], [], []

    def init(self, *, id, name, dir, config, resume):
        if self.runs is None:
            raise self.Error("no key")
        assert (name, resume, config["fit"]) == ("run", "allow", 6)
        self.runs.append(id)
        return SimpleNamespace(
            define_metric=lambda name, step_metric: None,
            log=self.logged.append,
            finish=lambda exit_code: self.ended.append(exit_code),
        )


class FakeMlflow(ModuleType):
    """The same of MLflow."""

    exceptions = SimpleNamespace(MlflowException=RuntimeError)

    def __init__(self):
        super().__init__("mlflow")
        self.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
        self.runs, self.logged, self.ended = [], [], []

    def start_run(self, run_id=None, run_name=None):
        assert (run_id is None) == (run_name == "run")
        if self.runs is None:
            raise RuntimeError("no key")
        self.runs.append(run_id or "one")
        return SimpleNamespace(info=SimpleNamespace(run_id="one"))

    def log_params(self, params):
        assert params["fit"] == 6

    def log_metrics(self, metrics, step):
        self.logged.append({"epoch": step, **metrics})

    def end_run(self, status):
        self.ended.append({"FINISHED": 0, "FAILED": 1}[status])


@pytest.fixture(params=[FakeWandb, FakeMlflow])
def service(request, monkeypatch):
    fake = request.param()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


def words(config, folder, *more):
    folder.mkdir()
    (folder / "c.yaml").write_text(config.to_yaml())
    return ["search", f"--config={folder / 'c.yaml'}", f"--out={folder / 'run'}", *more]


def test_lines_are_logged_and_a_search_goes_on_where_it_was(tmp_path, config, service, monkeypatch):
    command = words(config, tmp_path / "a", f"--logger={service.__name__}")
    with monkeypatch.context() as patch:
        patch.setattr("nas.search.engine.search.Slimming", lambda *_, **__: pytest.fail("here the process is ended"))
        with pytest.raises(pytest.fail.Exception):
            main(command)
    assert (len(service.runs), len(service.logged), service.ended) == (1, 3, [1])
    assert main([*command, "--resume"]) == 0
    assert service.runs[0] == service.runs[1] and service.ended == [1, 0]
    lines = [json.loads(line) for line in (tmp_path / "a" / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    assert service.logged == [{name: x for name, x in line.items() if x is not None} for line in lines]
    assert main([*command, "--force"]) == 0
    assert len({*service.runs}) == (2 if service.__name__ == "wandb" else 1) and service.ended == [1, 0, 0]


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": 3, "mlflow": 3}', "[" * 100_000])
def test_damaged_names_are_one_sentence(tmp_path, config, service, capsys, text):
    command = words(replace(config, sizes="none", epochs=1), tmp_path / "a", f"--logger={service.__name__}")
    run = tmp_path / "a" / "run"
    assert main(command) == 0
    (run / "loggers.json").write_text(text)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("loggers.json is damaged; remove it, and what follows is logged as a new run")


def test_a_service_that_refuses_is_one_sentence(tmp_path, config, service, capsys):
    service.runs = None
    assert main(words(config, tmp_path / "a", f"--logger={service.__name__}")) == 2
    assert "no key" in capsys.readouterr().err


def test_surroundings_are_recorded_and_a_change_of_them(config, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", config)
    for resume in (False, True):
        with monkeypatch.context() as patch:
            if resume:
                patch.setattr("nas.search.callbacks.surroundings.__version__", "99.0")
            engine = Search(run, resume=resume, checkpoint_every=1e-9)
            next(iter(engine))
            engine.close()
    engine = Search(run, resume=True)
    engine.close()
    lines = read_surroundings(run)
    assert [(line["epoch"], line["nas"]) for line in lines] == [(0, __version__), (1, "99.0"), (2, __version__)]
    again = Search(run, resume=True)
    again.close()
    assert read_surroundings(run) == lines
    assert all(line["computed on"] == "cpu" and "threads" in line["machine"] for line in lines)
