"""Sweeps: ranges, studies, several processes, what is given up, and the command line."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import nas.search.sweep.trials as trials
from nas.cli import main
from nas.search import Run, Search
from nas.search.sweep.ranges import Range, filled, ranges_in
from nas.search.sweep.sweep import Sweep, dominates, hopeless
from nas.search.sweep.trials import Sweeping
from nas.search.training.checkpoints import Checkpoints
from nas.search.training.loop import Loop
from nas.steering import DeadTraining

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def options(data_root):
    """What the file of a sweep says."""
    return {
        "search": {
            "data": "folder",
            "data_root": str(data_root),
            "model_options": {"depth": 1, "width": {"low": 4, "high": 8}, "hidden": 6, "kernel": 3, "core": None},
            "epochs": 3,
            "steps": 4,
            "batch": 2,
            "crop": 16,
            "density": 0.5,
            "lr": {"low": 0.001, "high": 0.02, "log": True},
            "second_moment": {"choices": ["tensor", "group"]},
            "sizes": "none",
        },
        "trials": 3,
    }


@pytest.fixture(scope="module")
def sweep(options):
    return Sweep(**options)


@pytest.fixture(scope="module")
def optuna():
    return pytest.importorskip("optuna", reason="nas sweep needs the extra sweep")


@pytest.fixture
def call(options, tmp_path, capsys):
    """Runs ``nas sweep`` with these options changed; returns its exit code, what it printed, and the last line."""
    file = tmp_path / "sweep.yaml"

    def call(*words, **changed):
        file.write_text(yaml.safe_dump({**options, **changed}, sort_keys=False))
        code = main(["sweep", str(file), f"--out={tmp_path / 'out'}", "--json", *map(str, words)])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err.replace("\r", "\n").strip().splitlines()[-1:]

    return call


@pytest.fixture(scope="module")
def whole(sweep, optuna, tmp_path_factory):
    """The folder of a sweep that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    work(Sweeping(sweep, folder))
    return folder


def work(sweeping):
    """All its trials; those that this process has worked on."""
    worked = []
    for trial in sweeping:
        list(trial)
        worked.append(trial)
    return worked


def weights(folder):
    files = sorted(folder.glob("trial-*/path/*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# Ranges


def test_ranges_are_found_and_filled():
    options = {
        "lr": {"low": 0.1, "high": 1},
        "model_options": {"depth": 2, "width": {"low": 4, "high": 8, "step": 2}, "kernels": {"choices": [[3, 5], 3]}},
        "task_options": {},
        "sigma": 25,
    }
    found = ranges_in(options)
    assert found["lr"] == Range(0.1, 1)
    assert found["model_options.width"] == Range(4, 8, step=2)
    assert found["model_options.kernels"].values == {"[3, 5]": [3, 5], 3: 3}
    assert list(found) == ["lr", "model_options.width", "model_options.kernels"]
    values = {"lr": 0.5, "model_options.width": 6, "model_options.kernels": [3, 5]}
    assert filled(options, values) == {
        "lr": 0.5,
        "model_options": {"depth": 2, "width": 6, "kernels": [3, 5]},
        "task_options": {},
        "sigma": 25,
    }
    assert ranges_in(filled(options, values)) == {}


@pytest.mark.parametrize(("low", "high", "whole"), [(1, 4, True), (1.0, 4, False), (1, 4.0, False), (0.5, 4.5, False)])
def test_whole_numbers_are_drawn_between_whole_numbers(low, high, whole):
    assert Range(low, high).whole == whole


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"low": 2, "high": 1}, "low must be below high, got 2 and 1"),
        ({"low": 1, "high": 1}, "low must be below high, got 1 and 1"),
        ({"low": 1}, "a range has low and high .* got low"),
        ({"low": 1, "high": 2, "size": 3}, "a range has low and high .* got low, high, size"),
        ({"low": 1, "high": 2, "choices": [1]}, "a range has low and high"),
        ({"low": 1, "high": "2"}, "low, high and step must be finite numbers, got 1, '2'"),
        ({"low": 1, "high": math.inf}, "low, high and step must be finite numbers"),
        ({"low": 0, "high": 1.5, "log": True}, "a range with log needs low > 0 and no step"),
        ({"low": 1, "high": 3, "log": True, "step": 1}, "a range with log needs low > 0 and no step"),
        ({"low": 1, "high": 3, "log": 1}, "log must be true or false, got 1"),
        ({"low": 1, "high": 4, "step": 2}, "step must divide high - low, got 2"),
        ({"low": 1, "high": 4, "step": -1}, "step must divide high - low, got -1"),
        ({"low": 1, "high": 4, "step": 1.5}, "step must be whole where low and high are, got 1.5"),
        ({"choices": []}, "choices must be a list of values"),
        ({"choices": "ab"}, "choices must be a list of values, got 'ab'"),
        ({"choices": [1, 2, 1]}, "choices must differ"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(written, message):
    with pytest.raises(ValueError, match=f"^model_options.width: {message}"):
        ranges_in({"model_options": {"width": written}})


# What a sweep varies


def test_a_sweep_from_a_file(options, sweep):
    assert Sweep.from_yaml(yaml.safe_dump(options)) == sweep
    assert Sweep.from_yaml("search: {lr: {low: 1e-3, high: 1e-2}}").ranges == {"lr": Range(1e-3, 1e-2)}
    config = sweep.config({"model_options.width": 5, "lr": 0.003, "second_moment": "group"})
    assert (config.model_options["width"], config.lr, config.second_moment, config.epochs) == (5, 0.003, "group", 3)
    assert sweep.objectives == ["score", "params"]
    sizes = Sweep.from_yaml('search: {sizes: "300", lr: {low: 1e-3, high: 1e-2}}')
    assert sizes.example.front_sizes == [300]
    sizes = Sweep.from_yaml("search: {sizes: {low: 300, high: 500}}")
    assert sizes.config({"sizes": 400}).front_sizes == [400]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {lrr: {low: 1, high: 2}}", "nas search has no option 'lrr'; its options are task, "),
        ("search: {lr: {low: 2, high: 1}}", "lr: low must be below high, got 2 and 1"),
        ("search: {lr: {low: -1, high: 1}}", "lr must be > 0, got -1.0"),
        ("search: {batch: {low: 1, high: 2.5}}", "batch 2.5: .*batch"),
        ("search: {lr: 0.1}", "no option of the search is a range"),
        ("search: {sigma: {low: 10, high: 50}}", "sigma says what is to be learnt and cannot vary"),
        ("search: {task: {choices: [deblur, denoise]}}", "task says what is to be learnt and cannot vary"),
        ("search: {task_options: {blur: {low: 1, high: 2}}}", "task_options.blur says what is to be learnt"),
        ("search: {optimizer: {choices: [adabreg, sgd]}}", "optimizer sgd: .*unknown optimizer 'sgd'"),
        ("search: {model_options: {widht: {low: 3, high: 5}}}", "separable_autoencoder has no option 'widht'"),
        ("search: {lr: {low: 1, high: 2}}\ntrials: 0", "trials must be at least 1, got 0"),
        ("search: {lr: {low: 1, high: 2}}\nseed: -1", "seed must lie between"),
        ("search: {lr: {low: 1, high: 2}}\nobjectives: []", "objectives must be one or more of score, params, flops, "),
        ("search: {lr: {low: 1, high: 2}}\nobjectives: [score, score]", "objectives must be .* each once"),
        ("search: {lr: {low: 1, high: 2}}\nobjectives: [beauty]", "no sweep: .*beauty"),
        ("search: {lr: {low: 1, high: 2}}\nobjektives: [score]", "no sweep: Option 'objektives' is not accepted"),
        ("objectives: [score]", "no sweep: .*search"),
        ("search: [1", "no sweep: "),
        ("hello", "no sweep: "),
        ("", "no sweep: "),
    ],
)
def test_bad_sweeps_are_one_sentence(text, message, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(text)
    assert main(["sweep", str(tmp_path / "sweep.yaml"), f"--out={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)
    assert line.startswith(f"nas sweep: {tmp_path / 'sweep.yaml'}: ")
    assert not (tmp_path / "out").exists()


LOSSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(LOSSES)
def test_what_nothing_dominates_is_not_hopeless(losses):
    for each in losses:
        if not any(dominates(other, each) for other in losses):
            assert not hopeless(each, losses)
    assert not any(dominates(each, each) for each in losses)


@given(st.lists(st.integers(0, 100), min_size=5, max_size=9), st.integers(0, 100))
def test_with_one_objective_it_is_the_median_rule(others, mine):
    assert hopeless([mine], [[each] for each in others]) == (sum(each < mine for each in others) >= len(others) / 2)


def test_few_others_make_nothing_hopeless():
    assert not hopeless([9.0], [[1.0]] * 4)
    assert hopeless([9.0], [[1.0]] * 5)


# The work


def test_each_trial_is_a_search_with_what_was_drawn(sweep, whole, tmp_path):
    sweeping = Sweeping(sweep, whole)
    assert work(sweeping) == []
    assert sweeping.counts() == {"complete": 3, "pruned": 0, "failed": 0, "running": 0}
    stored = sweeping.study.trials()
    for trial in stored:
        run = Run.open(whole / f"trial-{trial.number:04}")
        assert 4 <= run.config.model_options["width"] <= 8
        assert run.config.lr == trial.params["lr"]
        assert trial.values == [run.choose().headline, run.choose().params]
    assert len({trial.params["lr"] for trial in stored}) == 3
    alone = Run(tmp_path / "alone", run.config)
    list(Search(alone))
    assert (alone.folder / "path" / "0003.safetensors").read_bytes() == (
        run.folder / "path" / "0003.safetensors"
    ).read_bytes()


def test_its_front_is_what_nothing_dominates(sweep, whole):
    sweeping = Sweeping(sweep, whole)
    losses = {trial.number: (-trial.values[0], trial.values[1]) for trial in sweeping.study.trials()}
    expected = {n for n, each in losses.items() if not any(dominates(other, each) for other in losses.values())}
    found = sweeping.front()
    assert {each.number for each in found} == expected
    assert [each.values["score"] for each in found] == sorted((each.values["score"] for each in found), reverse=True)
    assert all(each.folder == whole / f"trial-{each.number:04}" for each in found)


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_sweep_may_be_moved(sweep, whole, tmp_path, has_folder):
    shutil.copytree(whole, moved := tmp_path / "moved")
    sweeping = Sweeping(sweep, moved)
    assert all(each.folder == moved / f"trial-{each.number:04}" for each in sweeping.front())
    trial = sweeping.study.begin(sweep)
    trial.set_user_attr("folder", str(whole / "trial-0003"))
    if has_folder:
        (moved / "trial-0003").mkdir()  # begun where the sweep was before
    gone_on = next(iter(sweeping))
    assert (gone_on.number, gone_on.resumed) == (3, True)


def test_a_sweep_is_stopped_and_gone_on_with(whole, optuna, call, tmp_path, monkeypatch):
    """By a signal within the second trial, then by a kill within the third one; nothing is different in the end."""
    out, step, sent = tmp_path / "out", Loop._step, []

    def send(self, x, y):
        if (out / "trial-0001" / "path" / "0001.safetensors").exists() and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return step(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", send)
        code, _, err = call()
    assert (code, err) == (143, ["nas sweep: stopped after writing a checkpoint; go on with the same command"])
    assert not (out / "trial-0002").exists()

    class Killed(BaseException):
        pass

    def dies(self, state):
        save(self, state)
        if (out / "trial-0002" / "path" / "0002.safetensors").exists():
            raise Killed

    save = Checkpoints.save
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dies)
        call()
    code, printed, _ = call()
    assert code == 0
    assert "trial 2, gone on with: " in printed
    assert weights(out) == weights(whole)
    assert json.loads(printed.splitlines()[-1])["trials"] == {"complete": 3, "pruned": 0, "failed": 0, "running": 0}


def test_a_trial_that_ends_while_another_process_looks_is_not_gone_on_with(sweep, whole, monkeypatch):
    """What was read before its lock was free is out of date."""
    sweeping = Sweeping(sweep, whole)
    before = [copy(trial) for trial in sweeping.study.trials()]
    for trial in before:
        trial.state = type(trial.state).RUNNING
    now, looks = sweeping.study.trials(), iter([before])
    monkeypatch.setattr(type(sweeping.study), "trials", lambda study: next(looks, now))
    assert work(sweeping) == []


def sweep_twice(options, place, storage, folders):
    """What two processes print that work on one study at the same time."""
    (place / "sweep.yaml").write_text(yaml.safe_dump(options))  # keys sorted: their order does not matter
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "nas", "sweep", "sweep.yaml", f"--storage={storage}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, f"--out={folder}"], cwd=place, env=environment, **pipes) for folder in folders]
    printed = [process.communicate(timeout=300) for process in both]
    assert 0 in [process.returncode for process in both], printed
    for process, (_, err) in zip(both, printed, strict=True):
        assert process.returncode == 0 or err.endswith("no trial of the study 'nas' has come to its end yet\n"), err
    return [out for out, _ in printed]


def begun_in(printed):
    return sorted(line.split(":")[0] for out in printed for line in out.splitlines() if line.startswith("trial "))


def test_two_processes_share_a_study(options, whole, optuna, tmp_path):
    """On one SQLite file; each trial is worked on once, and is what one process alone makes of it."""
    printed = sweep_twice(options, tmp_path, f"sqlite:///{tmp_path}/s.db", ["out", "out"])
    assert begun_in(printed) == [f"trial {k}" for k in range(3)]
    assert weights(tmp_path / "out") == weights(whole)


@pytest.fixture
def postgresql():
    """The URL of a server of this test's own, that listens on a socket only."""
    pytest.importorskip("psycopg", reason="needs psycopg")
    if not (found := sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))):
        pytest.skip("needs PostgreSQL, such as Debian's package postgresql")
    place = Path(tempfile.mkdtemp())
    user = "postgres" if os.getuid() == 0 else None  # it does not run as root
    if user is not None:
        shutil.chown(place, user)

    def run(program, *words):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([found[-1].with_name(program), "-D", place / "data", *words], user=user, check=True, **quiet)

    run("initdb", "-U", "nas", "--auth=trust")
    run("pg_ctl", "-w", "-l", place / "log", "-o", f"-k {place} -c listen_addresses=''", "start")
    try:
        yield f"postgresql+psycopg://nas@/postgres?host={place}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(place)


@pytest.mark.slow
def test_two_machines_share_a_study(options, optuna, postgresql, tmp_path, call):
    """On PostgreSQL, each with a folder of its own: together they make each trial once, and both show one front."""
    printed = sweep_twice({**options, "trials": 6}, tmp_path, postgresql, ["here", "there"])
    assert begun_in(printed) == [f"trial {k}" for k in range(6)]
    folders = sorted(path.name for name in ("here", "there") for path in (tmp_path / name).glob("trial-*"))
    assert folders == [f"trial-{k:04}" for k in range(6)]
    assert call(f"--storage={postgresql}", "--trials=6")[0] == 0  # a third one, which has nothing to do
    assert list((tmp_path / "out").glob("trial-*")) == []
    code, _, (err,) = call(f"--storage={postgresql.replace('/postgres?', '/nowhere?')}")
    assert code == 2
    assert "cannot be used: connection failed: " in err and 'database "nowhere" does not exist' in err


def test_a_hopeless_trial_is_given_up(sweep, optuna, tmp_path, monkeypatch):
    asked = []

    def decide(losses, others):
        asked.append((losses, others))
        return len(asked) == 3

    monkeypatch.setattr(trials, "hopeless", decide)
    sweeping = Sweeping(replace(sweep, trials=2), tmp_path)
    first, second = work(sweeping)
    assert (first.pruned, second.pruned) == (False, True)
    assert sweeping.counts() == {"complete": 1, "pruned": 1, "failed": 0, "running": 0}
    points = [Run.open(tmp_path / f"trial-{k:04}").points() for k in range(2)]
    assert [len(each) for each in points] == [4, 2]
    assert [others for _, others in asked] == [[], [], [sweep.losses(points[0][1])]]
    assert asked[2][0] == sweep.losses(points[1][1]) == [-points[1][1].headline, points[1][1].params]
    assert [each.number for each in sweeping.front()] == [0]
    with_none = Sweeping(replace(sweep, trials=3, prune=False), tmp_path)
    assert [trial.pruned for trial in work(with_none)] == [False]
    assert len(asked) == 3


def test_trials_that_fail_do_not_stop_the_others(options, optuna, call):
    search = {**options["search"], "crop": {"choices": [16, 1000]}, "sizes": {"choices": ["none", "1M"]}}
    code, printed, _ = call("--trials=5", search=search)
    found = json.loads(printed.splitlines()[-1])
    assert code == 0
    assert found["trials"]["failed"] + found["trials"]["complete"] == 5
    assert found["trials"]["failed"] >= 2
    assert all((each["options"]["crop"], each["options"]["sizes"]) == (16, "none") for each in found["front"])


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (FloatingPointError("training diverged"), "training diverged"),
        (DeadTraining("nothing wakes"), "nothing wakes"),
        (MemoryError(), "the memory of this machine does not suffice"),
        (RuntimeError("CUDA out of memory. Tried"), "the memory of this machine does not suffice"),
        (RuntimeError("a mistake of ours"), None),
    ],
)
def test_what_a_trial_may_fail_of(sweep, optuna, tmp_path, monkeypatch, problem, said):
    def fails(self, x, y):
        raise problem

    monkeypatch.setattr(Loop, "_step", fails)
    sweeping = Sweeping(replace(sweep, trials=1), tmp_path)
    if said is None:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            work(sweeping)
        assert sweeping.counts()["running"] == 1
    else:
        (trial,) = work(sweeping)
        assert (trial.problem, trial.values, trial.pruned) == (said, None, False)
        assert sweeping.counts() == {"complete": 0, "pruned": 0, "failed": 1, "running": 0}
        (stored,) = sweeping.study.trials()
        assert stored.user_attrs["problem"] == said


def test_a_sweep_of_which_all_trials_fail(options, optuna, call):
    code, printed, (err,) = call("--trials=1", search={**options["search"], "sizes": "1M"})
    assert code == 2
    assert "0 complete, 0 pruned, 1 failed, 0 running" in printed
    assert err == "nas sweep: no trial of the study 'nas' has come to its end yet"


def test_the_command_line(optuna, whole, call, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    for file in (tmp_path / "out").glob("study.db"):
        file.unlink()
    code, _, (err,) = call()
    assert (code, err) == (2, f"nas sweep: {tmp_path / 'out' / 'trial-0000'} is of another study; choose another --out")
    shutil.rmtree(tmp_path / "out")
    code, printed, _ = call("--trials=2")
    *lines, last = printed.splitlines()
    found = json.loads(last)
    assert code == 0
    assert found["storage"] == f"sqlite:///{tmp_path / 'out' / 'study.db'}"
    assert set(found["front"][0]) == {"trial", "run", "score", "params", "options"}
    assert sum(line.startswith("  score ") for line in lines) == 2
    table = lines[next(k for k, line in enumerate(lines) if line.startswith("front ")) :]
    assert table[0].split() == ["front", "score", "params", "model_options.width", "lr", "second_moment"]
    assert len(table) == 1 + len(found["front"])
    assert call("--trials=2")[1].splitlines()[-1] == last  # nothing is left to do


# What can be wrong with the storage


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", "storage must be a URL such as sqlite:///sweep.db or"),
        ("foo://bar", "the storage foo://bar cannot be used: Can't load plugin: sqlalchemy.dialects:foo"),
        ("sqlite:////nowhere/x.db", "the storage sqlite:////nowhere/x.db cannot be used: unable to open database file"),
        ("sqlite:///sweep.yaml", "the storage sqlite:///sweep.yaml cannot be used: file is not a database"),
        ("postgresql://me:secret@localhost:9/x", "the storage postgresql://me:***@localhost:9/x cannot be used: "),
    ],
)
def test_a_storage_that_cannot_be_used(optuna, call, tmp_path, monkeypatch, storage, message):
    monkeypatch.chdir(tmp_path)
    code, _, (err,) = call(f"--storage={storage}")
    assert code == 2
    assert err.startswith(f"nas sweep: {message}")
    assert "secret" not in err
    assert not (tmp_path / "out").exists()


def test_a_study_of_something_else(optuna, options, call, tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=url, study_name="nas").ask()
    assert call(f"--storage={url}")[2] == [
        f"nas sweep: the study 'nas' in {url} is none of nas sweep; choose another name with study"
    ]
    assert call(f"--storage={url}", study="mine", trials=1)[0] == 0
    shutil.rmtree(tmp_path / "out")
    search = {**options["search"], "epochs": 4}
    for changed, what in (
        ({"objectives": ["score"]}, "objectives (score, params, not score)"),
        ({"search": search}, "epochs (3, not 4)"),
    ):
        code, _, (err,) = call(f"--storage={url}", study="mine", **changed)
        assert code == 2
        assert err.endswith(f"was begun with other {what}; choose another name with study")


def test_a_folder_that_holds_a_single_run(optuna, sweep, whole):
    with pytest.raises(ValueError, match="trial-0000 holds a single run; choose another --out"):
        Sweeping(sweep, whole / "trial-0000")


def test_optuna_is_an_extra(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, (err,) = call()
    assert code == 2
    assert err == "nas sweep: nas sweep needs optuna; pip install 'bregman-nas[sweep]'"
    assert not (tmp_path / "out").exists()
