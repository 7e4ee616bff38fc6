"""A search that is stopped or killed anywhere goes on bit for bit; damaged checkpoints; one process at a time."""

import errno
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.cli import main
from nas.files import alone, is_tidy
from nas.search import Run, Search
from nas.search.runs.run import NEXT_CONFIG
from nas.search.training.checkpoints import Checkpoints, Stopped
from nas.search.training.loop import Loop
from tests.searches import quick


class Killed(BaseException):
    """Nothing in the code knows it."""


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model_options={"depth": 2, "width": 6, "hidden": 6, "kernel": 5},
        epochs=3,
        steps=12,
        sizes="300,200",
        fit=6,
        refit=2,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("whole") / "run", config)
    calls = count_calls(run)
    return contents(run.folder), calls


def count_calls(run):
    calls = 0

    def keep(self, state):
        nonlocal calls
        calls += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "keep", keep)
        list(Search(run))
    return calls


def contents(folder):
    """All files but checkpoints, without what the clock says."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "checkpoints" not in file.parts:
            files[str(file.relative_to(folder))] = file.read_bytes()
    files["metrics.jsonl"] = [
        {**json.loads(line), "seconds": 0} for line in files["metrics.jsonl"].decode().splitlines()
    ]
    files["path.json"] = [{**point, "seconds": 0} for point in json.loads(files["path.json"])["points"]]
    return files


def killed_at(call, save):
    """`Checkpoints.keep` that saves every so many calls and dies at one of them."""
    calls = 0

    def keep(self, state):
        nonlocal calls
        calls += 1
        if calls % save == 0:
            self.save(state())
        if calls == call:
            raise Killed

    return keep


@settings(max_examples=5)
@given(data=st.data())
def test_a_killed_search_goes_on_bit_for_bit(whole, config, tmp_path_factory, data):
    """Killed three times at random steps of growth, fits and refits, with checkpoints at random intervals."""
    expected, calls = whole
    assert calls > 80
    folder = tmp_path_factory.mktemp("killed") / "run"
    resume = False
    for _ in range(3):
        call, save = data.draw(st.integers(1, calls)), data.draw(st.integers(1, 30))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "keep", killed_at(call, save))
            try:
                list(Search(Run(folder, config), resume=resume))
            except Killed:
                resume = True
            else:
                break
    if resume:
        list(Search(Run.open(folder), resume=True))
    assert contents(folder) == expected


@pytest.mark.parametrize(
    "name",
    [
        "engine.search.save_sparse",
        "engine.search.write_points",
        "callbacks.loggers.write_text",
        "engine.search.Checkpoints.save",
    ],
)
@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_writing(whole, config, tmp_path, monkeypatch, name, call, after):
    """Before and after each of the files of an epoch is written."""
    name = f"nas.search.{name}"
    write, calls = pkgutil.resolve_name(name), 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = write(*arguments)
        if calls == call:
            raise Killed
        return result

    run = Run(tmp_path / "run", config)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(name, dying)
        list(Search(run))
    if not (run.folder / "config.yaml").exists() and not (run.folder / NEXT_CONFIG).exists():
        list(Search(run))  # nothing was there yet, not even the configuration
    else:
        list(Search(Run.open(run.folder), resume=True))
    assert contents(run.folder) == whole[0]


def test_a_search_that_is_stopped_writes_a_checkpoint(whole, config, tmp_path):
    run = Run(tmp_path / "run", config)
    engine = Search(run, checkpoint_every=1e9)
    next(iter(engine))
    engine = Search(run, resume=True, checkpoint_every=1e9)
    engine.stop()
    with pytest.raises(Stopped):
        list(engine)
    state = engine.checkpoints.newest()
    assert (state["growth"]["loop"]["epoch"], len(state["growth"]["loop"]["losses"])) == (2, 1)
    list(Search(run, resume=True))
    assert contents(run.folder) == whole[0]


def test_a_damaged_checkpoint_is_not_used(whole, config, tmp_path):
    run = Run(tmp_path / "run", config)
    steps = iter(Search(run))
    next(steps), next(steps)
    steps.close()
    older, newest = sorted((run.folder / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=r"the checkpoint .*\.pt is damaged and not used"):
        engine = Search(run, resume=True)
    assert len(engine.points) == 2
    list(engine)
    assert contents(run.folder) == whole[0]


def test_nothing_to_go_on_from(config, tmp_path):
    run = Run(tmp_path / "run", replace(config, epochs=1, sizes="none"))
    list(Search(run))
    checkpoints = sorted((run.folder / "checkpoints").iterdir())
    for file in checkpoints:
        file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged and not used"),
        pytest.raises(ValueError, match="every checkpoint in .* is damaged; there is nothing to go on from"),
    ):
        Search(run, resume=True)
    for file in checkpoints:
        file.unlink()
    with pytest.raises(ValueError, match="there is no checkpoint in .*, so that the search cannot go on"):
        Search(run, resume=True)


def test_data_that_have_changed_are_noticed(config, tmp_path, data_root):
    data = tmp_path / "data"
    shutil.copytree(data_root, data)
    run = Run(tmp_path / "run", replace(config, data_root=data))
    next(iter(Search(run)))
    first, second, *_ = sorted(data.glob("*.png"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"the data of .*run \(folder\) are not those that the search began with"):
        Search(run, resume=True)


def test_data_may_move(config, tmp_path, data_root):
    run = Run(tmp_path / "run", config)
    next(iter(Search(run)))
    (tmp_path / "moved").mkdir()
    for file in data_root.iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    moved = replace(config, data_root=tmp_path / "moved")
    (run.folder / "config.yaml").write_text(moved.to_yaml())
    assert [point.snapshot.epoch for point in Search(Run.open(run.folder), resume=True)][-1] == 5


def test_only_one_process_writes(config, tmp_path):
    run = Run(tmp_path / "run", replace(config, epochs=1, sizes="none"))
    engine = Search(run)
    for options in ({"resume": True}, {"force": True}, {}):
        with pytest.raises(ValueError, match="run is in use by another process; wait until it has ended"):
            Search(run, **options)
    engine.close()
    list(Search(run, resume=True))


def test_a_lock_of_a_dead_process_is_not_in_the_way(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from nas.files import alone\n"
        "with alone(Path(sys.argv[1])): os._exit(9)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert result.returncode == 9
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_forced_search_that_is_killed_leaves_a_whole_run(config, tmp_path, monkeypatch, step):
    """Killed before the new configuration is there the old run stays; afterwards the new one begins."""
    import nas.search.runs.run as module

    config = replace(config, epochs=1, sizes="none")
    old, new = Run(tmp_path / "run", config), Run(tmp_path / "run", replace(config, seed=1))
    list(Search(old))
    (old.folder / "mine.txt").write_text("keep me")
    before = contents(old.folder)
    removed, calls = module.remove, 0

    def dying(path):
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        removed(path)

    def refuse(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, *(("write_text", refuse) if step == 0 else ("remove", dying)))
        Search(new, force=True)
    found = Run.open(old.folder)
    assert found.config == (old if step == 0 else new).config
    assert (old.folder / "mine.txt").read_text() == "keep me"
    if step == 0:
        assert contents(old.folder) == before
        return
    assert not (old.folder / "path.json").exists()
    list(Search(found, resume=True))
    list(Search(Run(tmp_path / "plain", new.config)))
    (old.folder / "mine.txt").unlink()
    assert contents(old.folder) == contents(tmp_path / "plain")


def test_what_diverged_is_not_kept(config, tmp_path):
    run = Run(tmp_path / "run", config)
    engine = Search(run)
    torch.nn.init.constant_(engine.net.nodes["t0"].edges["in"], float("nan"))
    engine.checkpoints.every = 1e-9
    with pytest.raises(
        FloatingPointError, match="has NaN or infinite entries, and no parameter was changed; use a smaller lr"
    ):
        list(engine)
    state = engine.checkpoints.newest()
    assert all(tensor.isfinite().all() for tensor in state["growth"]["loop"]["net"].values())


def test_the_front_may_be_chosen_anew_until_it_is_begun(config, tmp_path):
    run = Run(tmp_path / "run", replace(config, sizes="850"))
    with pytest.raises(ValueError, match="the largest that has grown has .* --resume and smaller sizes"):
        list(Search(run))
    smaller = Run(run.folder, config)
    next(iter(Search(smaller, resume=True)))
    assert Run.open(run.folder) == smaller
    assert len(smaller.points()) == 5
    with pytest.raises(ValueError, match="was begun with sizes 300,200, not 850"):
        Search(run, resume=True)


@pytest.fixture(scope="module")
def extracted(config, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("extracted") / "run", replace(config, epochs=2, sizes="none"))
    list(Search(run))
    assert main(["extract", str(run.folder), "--no-latency"]) == 0
    return run.folder


RETRAIN = ["--epochs=4", "--batch=2", "--checkpoint-every=1h"]


def copy_of(folder, place):
    shutil.copytree(folder, place / "run")
    return str(place / "run")


def retrained(folder):
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for name in ("retrained", "pictures")
        for file in (Path(folder) / name).iterdir()
    }
    assert not (Path(folder) / "retraining").exists()
    result = json.loads(files.pop("retrained/result.json"))
    return files, [{**result, "compared": [{**each, "seconds": 0} for each in result["compared"]]}]


@pytest.mark.parametrize(
    "words", [[], ["--compare", "--families", "chain1", "--random=0", "--seeds=1"]], ids=["", "compare"]
)
@pytest.mark.parametrize("again", ["resume", "retrain"])
def test_a_killed_retraining_goes_on_bit_for_bit(extracted, tmp_path, words, again):
    for name in "ab":
        (tmp_path / name).mkdir()
    whole, broken = (copy_of(extracted, tmp_path / name) for name in "ab")
    assert main(["retrain", whole, *RETRAIN, *words]) == 0
    for call in (60, 130) if words else (5, 9):  # a training of the comparison takes 48 steps
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Checkpoints, "keep", killed_at(call, 2))
            main(["retrain", broken, *RETRAIN, *words])
    assert (Path(broken) / "retraining").is_dir()
    assert main(["resume", broken] if again == "resume" else ["retrain", broken, *RETRAIN, *words]) == 0
    assert retrained(whole) == retrained(broken)


def test_a_stopped_retraining_is_not_lost(extracted, tmp_path, capsys):
    folder = copy_of(extracted, tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "keep", killed_at(3, 1))
        main(["retrain", folder, *RETRAIN])
    assert main(["retrain", folder, *RETRAIN, "--lr=0.001"]) == 2
    assert "with other options was stopped; go on with it by nas resume" in capsys.readouterr().err
    assert main(["retrain", folder, *RETRAIN, "--lr=0.001", "--force"]) == 0
    assert main(["resume", folder]) == 0  # of the search, which is complete


def test_a_refused_retraining_leaves_the_extracted_network_as_it_was(extracted, tmp_path, capsys):
    """So that what it says helps: nas resume still finds the network whose retraining was stopped."""
    folder = copy_of(extracted, tmp_path)
    compact = (Path(folder) / "compact" / "model.safetensors").read_bytes()
    for words in (["--crop=5000"], ["--rewind-epoch=99"]):
        assert main(["retrain", folder, "--epoch=0", *words]) == 2
        assert (Path(folder) / "compact" / "model.safetensors").read_bytes() == compact
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "keep", killed_at(3, 1))
        main(["retrain", folder, *RETRAIN])
    assert main(["retrain", folder, *RETRAIN, "--epoch=0"]) == 2
    assert (Path(folder) / "compact" / "model.safetensors").read_bytes() == compact
    assert main(["extract", folder, "--epoch=0", "--no-latency"]) == 0
    capsys.readouterr()
    assert main(["resume", folder]) == 2
    assert "is another one now; extract that one again, or begin anew with nas retrain" in capsys.readouterr().err
    assert main(["extract", folder, "--no-latency"]) == 0
    assert main(["resume", folder]) == 0


def test_a_retraining_never_makes_it_worse(extracted, tmp_path, capsys):
    """The start is a candidate; a better network of an earlier call is kept."""
    folder = copy_of(extracted, tmp_path)
    assert main(["retrain", folder, "--epochs=8", "--json"]) == 0
    good = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = retrained(folder)
    assert main(["retrain", folder, "--epochs=1", "--lr=1e9"]) == 2
    assert "training diverged; use a smaller lr; nothing was written" in capsys.readouterr().err
    assert retrained(folder) == files
    assert main(["retrain", folder, "--epochs=1", "--lr=1", "--json"]) == 0
    out = capsys.readouterr().out
    bad = json.loads(out.splitlines()[-1])
    assert "--force replaces it" in out and bad["kept"]
    assert good["validation"] > bad["validation"]
    assert bad["psnr"] == bad["psnr_before"]
    assert retrained(folder) == files
    assert main(["retrain", folder, "--epochs=1", "--lr=1", "--force"]) == 0
    assert retrained(folder) != files


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_write_a_checkpoint(config, tmp_path, name, capsys):
    """The handler is called within a step, and the step is done to its end."""
    number, sent = getattr(signal, name), []

    def send(self, x, y):
        if self.epoch == 2 and not sent:
            sent.append(os.kill(os.getpid(), number))
        return step(self, x, y)

    step = Loop._step
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    words = ["search", f"--config={tmp_path / 'config.yaml'}", f"--out={tmp_path / 'run'}", "--resume"]
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", send)
        assert main(words) == (130 if name == "SIGINT" else 143)
    assert signal.getsignal(number) == before
    assert "stopped after writing a checkpoint; go on with nas resume" in capsys.readouterr().err
    state = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    assert (state["growth"]["loop"]["epoch"], len(state["growth"]["loop"]["losses"])) == (2, 1)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("name", "echo", "code", "said"),
    [
        ("SIGTERM", 0.0, 143, "stopped at once"),
        ("SIGINT", 0.0, 130, "interrupted"),
        ("SIGTERM", 60.0, 143, "stopped after writing a checkpoint; go on with nas resume run"),
    ],
)
def test_a_second_signal_stops_at_once(config, tmp_path, name, echo, code, said, capsys, monkeypatch):
    """Unless it is the first one, sent twice."""

    def send(self, x, y):
        with suppress(Exception):  # as where pictures are read, whatever is wrong with them
            for _ in range(2):
                os.kill(os.getpid(), getattr(signal, name))
        return step(self, x, y)

    step = Loop._step
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(config.to_yaml())
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", send)
        patch.setattr("nas.cli.shared.ECHO", echo)
        assert main(["search", "--config=config.yaml", "--out=run"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"nas search: {said}"


@pytest.mark.parametrize("last", [3, 6 * 48 + 3, 9 * 48 + 3])
def test_a_comparison_stops_at_its_next_step(extracted, tmp_path, last, capsys):
    """Of the found network, of the dense supernet, and of the one that is thinned out."""
    step, steps = Loop._step, 0

    def send(self, x, y):
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", send)
        words = ["--compare", "--families", "chain1", "--random=0", "--seeds=1"]
        assert main(["retrain", copy_of(extracted, tmp_path), *RETRAIN, *words]) == 143
    assert steps == last
    assert "stopped after writing a checkpoint" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(config, tmp_path, capsys, monkeypatch):
    write, calls = Path.write_bytes, 0

    def fails(path, data):
        nonlocal calls
        calls += 1
        if calls == 9:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    (tmp_path / "config.yaml").write_text(config.to_yaml())
    words = ["search", f"--config={tmp_path / 'config.yaml'}", f"--out={tmp_path / 'run'}", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fails)
        assert main(words) == 2
    assert re.search(r"nas search: .*run/\S+: No space left on device", capsys.readouterr().err)
    assert main(words) == 0
    assert is_tidy(tmp_path / "run")
