"""Searches with several seeds, what they agree on, and runs side by side."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nas.analysis.agreement import Agreement, agreement
from nas.analysis.runs import (
    differing_options,
    differing_problems,
    mean,
    outcome,
    repetitions_among,
    similarities,
    spread,
)
from nas.cli import main
from nas.models import RECIPES
from nas.search import Run, Search, Snapshot
from nas.search.engine.repeat import recommended, repetitions
from nas.search.runs.path import Point, write_points
from nas.search.training.loop import Loop
from tests.searches import quick


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model_options={"depth": 1, "width": 6, "hidden": 6, "kernel": 5},
        epochs=2,
        steps=8,
        sizes="180,120",
        fit=4,
        refit=1,
        seed=3,
    )


@pytest.fixture(scope="module")
def command(config, tmp_path_factory):
    file = tmp_path_factory.mktemp("options") / "config.yaml"
    file.write_text(config.to_yaml())
    return ["search", f"--config={file}"]


@pytest.fixture(scope="module")
def repeated(command, tmp_path_factory):
    """The folder of three searches."""
    out = tmp_path_factory.mktemp("repeated") / "out"
    assert main([*command, f"--out={out}", "--seeds=3"]) == 0
    return out


@pytest.fixture(scope="module")
def runs(repeated):
    return [Run.open(repeated / f"seed-{seed}") for seed in (3, 4, 5)]


def run_json(words, capsys):
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


def weights(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def times(folder):
    return {file: file.stat().st_mtime_ns for file in sorted(folder.rglob("*.safetensors"))}


def point(units, skips=(), kernels=()):
    indices = {name: tuple(range(count)) for name, count in units.items()}
    found = Snapshot(1, 0.1, indices, dict.fromkeys(skips, 0.5), dict(kernels))
    return Point(found, {"psnr": 25.0}, 100, 10.0, 1.0)


# What searches agree on


def test_every_part_that_can_be_chosen_is_counted():
    found = agreement(
        RECIPES.find("mixed_autoencoder")(1, depth=3, width=4),
        [
            point({"n1": 4, "n2": 2}, [("n1", "n2")], {("n1", "n2"): 3, ("n1_depthwise", "n2"): 7}),
            point({"n1": 3, "n2": 2}, [("n1", "n3")], {("n1_depthwise", "n2"): 5}),
            point({"n1": 1, "n2": 4}, [("n1", "n3")], {}),
        ],
    )
    assert found.num == 3
    assert found.skips == {("n1", "n2"): (1, 0, 0), ("n1", "n3"): (0, 1, 1), ("n2", "n3"): (0, 0, 0)}
    assert found.kernels["n1_depthwise", "n2"] == (7, 5, 0)
    assert found.kernels["n2", "n3"] == (0, 0, 0)
    assert found.units == {"n1": (4, 3, 1), "n2": (2, 2, 4), "n3": (0, 0, 0)}
    assert ("n1_depthwise", "n2") in found.blocks
    assert ("n1_pointwise", "n2") not in found.blocks

    stable = found.stable(0.6)  # two of three
    assert stable.skips == (("n1", "n3"),)
    assert stable.kernels == {("n1_depthwise", "n2"): 5}
    assert stable.units == {"n1": 3, "n2": 2, "n3": 0}
    assert found.stable(1.0).units == {"n1": 1, "n2": 2, "n3": 0}


def test_trunks_are_not_searched():
    net = RECIPES.find("separable_autoencoder")(1, depth=2, width=4, hidden=4, kernel=3)
    assert any(skip.trunk for node in net.plan.nodes for skip in node.skips)
    assert agreement(net, [point({})]).skips == {}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 100))
def test_stable_is_what_so_many_reach(counts, percent):
    fraction = percent / 100
    found = Agreement(len(counts), {}, {("a", "b"): tuple(counts)}, {"a": tuple(counts)}, frozenset())
    stable = found.stable(fraction)
    reached = [k for k in range(10) if sum(each >= k for each in counts) >= fraction * len(counts) - 1e-9]
    assert stable.units["a"] == max(reached)
    assert stable.kernels.get(("a", "b"), 0) == max(reached)


@pytest.mark.parametrize("fraction", [0.0, 1.1, -0.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="stable must be a fraction of the seeds, above 0 and at most 1, got"):
        Agreement(1, {}, {}, {}, frozenset()).stable(fraction)


# Searches with several seeds


def test_each_is_the_search_with_that_seed(config, runs, tmp_path):
    assert [run.config.seed for run in runs] == [3, 4, 5]
    alone = Run(tmp_path / "alone", replace(config, seed=4))
    list(Search(alone))
    assert weights(alone.folder) == weights(runs[1].folder)
    assert weights(runs[0].folder) != weights(runs[1].folder)


def test_what_was_complete_is_not_repeated(command, repeated, runs, capsys):
    before = times(repeated)
    printed, found = run_json([*command, f"--out={repeated}", "--seeds=3", "--resume", "--stable=0.6"], capsys)
    assert times(repeated) == before
    assert [each["run"] for each in found["seeds"]] == [str(run.folder) for run in runs]
    assert found["left_out"] == []
    counts = [len(run.choose().snapshot.units["t0"]) for run in runs]
    assert found["chosen"]["units"]["t0"] == counts
    assert found["chosen"]["stable"]["units"]["t0"] == sorted(counts)[1]
    assert re.search(r"chosen by the 3 searches +how often +stable\n", printed)
    assert re.search(r"kernel of in -> t0 +3x3 in 3 +3x3\n", printed)
    best, chosen = recommended(runs)
    assert found["run"] == str(best.folder)
    assert f"recommended: {best.folder}, PSNR {chosen.headline:.2f} dB with {chosen.params:,} parameters" in printed


@pytest.mark.parametrize(("tolerance", "expected"), [(0.0, "b"), (0.1, "c"), (9.0, "a")])
def test_the_smallest_of_those_about_as_good_is_recommended(tolerance, expected):
    def run(folder, params, score):
        chosen = replace(point({}), params=params, scores={"psnr": score})
        return SimpleNamespace(folder=folder, config=SimpleNamespace(tolerance=tolerance), choose=lambda: chosen)

    best, chosen = recommended([run("a", 50, 20.0), run("b", 200, 25.0), run("c", 100, 24.95)])
    assert best.folder == expected
    assert chosen is best.choose()


def test_a_signal_stops_the_one_that_runs(command, repeated, tmp_path, monkeypatch, capsys):
    """Sent within the second search; the first one is complete, and the third was not begun."""
    out, step, calls = tmp_path / "out", Loop._step, []

    def send(self, x, y):
        if (out / "seed-4" / "path.json").exists() and not calls:
            calls.append(os.kill(os.getpid(), signal.SIGTERM))
        return step(self, x, y)

    words = [*command, f"--out={out}", "--seeds=3"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", send)
        assert main(words) == 143
    assert "stopped after writing a checkpoint; go on with the same command and --resume" in capsys.readouterr().err
    assert not (out / "seed-5").exists()
    before = times(out / "seed-3")
    assert main([*words, "--resume"]) == 0
    assert times(out / "seed-3") == before
    assert weights(out) == weights(repeated)


def failing(seeds):
    """`Search.__iter__` of which some fail."""
    iterate = Search.__iter__

    def fails(self):
        if self.run.config.seed in seeds:
            self.close()
            raise FloatingPointError("training diverged")
        return iterate(self)

    return fails


def test_one_that_fails_is_left_out(command, tmp_path, monkeypatch, capsys):
    words = [*command, "--epochs=1", "--steps=2", "--sizes=none", "--seeds=2", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(Search, "__iter__", failing([3]))
    _, found = run_json(words, capsys)
    assert found["run"].endswith("seed-4")
    assert found["left_out"] == ["seed 3: training diverged"]
    monkeypatch.setattr(Search, "__iter__", failing([3, 4]))
    assert main([*words, "--force"]) == 2
    err = capsys.readouterr().err
    assert "nas search: seed 4: training diverged; it is left out" in err
    assert err.strip().endswith("nas search: no search came to its end; seed 3: training diverged")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds=0"], "seeds must be at least 1, got 0"),
        (["--seeds=2", "--seed=4294967295"], "seed must lie between 0 and 4294967295, got 4294967296"),
        (["--seeds=2", "--stable=0"], "stable must be a fraction of the seeds, above 0 and at most 1, got 0"),
        (["--stable=0.5"], "--stable goes with --seeds of 2 or more"),
        (["--seeds=2", "--lr=-1"], "lr must be > 0, got -1.0"),
        (["--seeds=2", "--entry-time=20"], "entry_time must be at least"),
    ],
)
def test_bad_repetitions_are_refused(command, tmp_path, capsys, words, message):
    assert main([*command, f"--out={tmp_path / 'out'}", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_runs_are_not_overwritten(command, runs, repeated, capsys):
    before = weights(repeated)
    assert main([*command, f"--out={repeated}", "--seeds=4", "--seed=2"]) == 2
    assert "seed-3 already holds a run; choose another --out, --resume to go on, or --force" in capsys.readouterr().err
    assert main([*command, f"--out={repeated / 'seed-3'}", "--seeds=2"]) == 2
    assert "seed-3 holds a single run; choose another --out for several seeds" in capsys.readouterr().err
    assert weights(repeated) == before
    assert not (repeated / "seed-2").exists()
    with pytest.raises(ValueError, match="already holds a run"):
        repetitions(Run(repeated, runs[0].config), 1)


# Runs side by side


@pytest.fixture
def others(runs, tmp_path):
    """Copies of a run whose configuration and path say something else: another sigma, and another task."""

    def changed(name, scores, **options):
        folder = tmp_path / name
        shutil.copytree(runs[0].folder, folder)
        run = Run(folder, replace(runs[0].config, **options))
        (folder / "config.yaml").write_text(run.config.to_yaml())
        points = [replace(point, scores=scores(point)) for point in runs[0].points()]
        write_points(folder / "path.json", points, run.config.identity)
        return run

    noisy = changed("noisy", lambda point: point.scores, sigma=15.0, lr=0.02)
    labels = changed("labels", lambda point: {"accuracy": 90.0}, task="classify", data="class_folder")
    return noisy, labels


def test_options_that_differ(config):
    wide = replace(config, model_options={**config.model_options, "width": 8}, sigma=15.0)
    mlp = replace(config, model="dense_mlp", model_options={"patch": 4})
    assert differing_options([config, replace(config, seed=9)]) == {"seed": [3, 9]}
    assert differing_options([config, wide]) == {"model_options.width": [6, 8], "sigma": [25.0, 15.0]}
    assert differing_options([config, config]) == {}
    found = differing_options([config, mlp])
    assert (found["model_options.width"], found["model_options.patch"]) == ([6, None], [None, 4])
    assert differing_problems([config, wide]) == ["sigma"]
    assert differing_problems([config, mlp]) == []
    assert repetitions_among([config, wide, replace(config, seed=9)]) == [[0, 2], [1]]


def test_mean_and_spread(runs):
    outcomes = [outcome(run) for run in runs]
    scores = [run.choose().headline for run in runs]
    assert mean(outcomes)["psnr"] == pytest.approx(sum(scores) / 3)
    assert spread(outcomes)["psnr"] == pytest.approx(max(scores) - min(scores))
    assert set(mean(outcomes)) == {"params", "flops", "psnr", "ssim", "seconds"}
    assert all(each.finished for each in outcomes)
    alike = similarities([each.network for each in outcomes])
    assert [alike[k][k] for k in range(3)] == [1.0] * 3
    assert alike[0][1] == alike[1][0] <= 1


def test_compare_repetitions(runs, capsys):
    folders = [run.folder for run in runs]
    printed, found = run_json(["compare", *folders, "--chosen", "--stable=0.6"], capsys)
    assert found["options"] == {"seed": [3, 4, 5]}
    assert [row["run"] for row in found["runs"]] == [str(folder) for folder in folders]
    assert [row["params"] for row in found["runs"]] == [run.choose().params for run in runs]
    assert all(len(row["front"]) == 2 for row in found["runs"])
    (together,) = found["repetitions"]
    assert together["mean"]["psnr"] == pytest.approx(sum(row["psnr"] for row in found["runs"]) / 3)
    assert len(together["front"]) == 2
    assert set(together["chosen"]) == {"skips", "kernels", "units", "stable"}
    assert found["notes"] == []
    assert printed.count("    mean of 3  ") == 2
    assert "similarity of the recommended networks" in printed


def test_the_same_search_twice_is_one_seed(runs, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(runs[0].folder, again)
    folders = [runs[0].folder, again, runs[1].folder]
    printed, found = run_json(["compare", *folders, "--chosen"], capsys)
    _, once = run_json(["compare", runs[0].folder, runs[1].folder, "--chosen"], capsys)
    assert len(found["runs"]) == 3 and found["repetitions"] == once["repetitions"]
    assert found["notes"] == [
        f"{again} is {runs[0].folder} again, with the same seed: it counts in no mean and no spread"
    ]
    assert found["notes"][0] in printed and printed.count("    mean of 2  ") == 2
    printed, found = run_json(["compare", *folders[:2]], capsys)
    assert found["repetitions"] == [] and len(found["notes"]) == 1 and "mean of" not in printed


def test_compare_different_tasks(runs, others, capsys):
    printed, found = run_json(["compare", runs[0].folder, *(run.folder for run in others)], capsys)
    assert found["repetitions"] == []
    (note,) = found["notes"]
    assert note == (
        "the runs differ in task, data, sigma: they learnt different things, so that their sizes and times can be "
        "compared, and their scores cannot"
    )
    assert note in printed
    assert "mean of" not in printed
    header, first, _, last = printed[printed.index("recommended network") :].splitlines()[:4]
    assert [title for title in ("PSNR", "SSIM", "accuracy") if title in header] == ["PSNR", "SSIM", "accuracy"]
    assert "dB" in first and "90.0" in last and "dB" not in last


def test_compare_retrained_and_unfinished(config, runs, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(runs[0].folder, folder)
    assert main(["extract", str(folder), "--no-latency"]) == 0
    assert main(["retrain", str(folder), "--epochs=1"]) == 0
    begun = Run(tmp_path / "begun", replace(config, seed=8))
    next(iter(Search(begun)))
    printed, found = run_json(["compare", folder, begun.folder], capsys)
    stored = json.loads((folder / "retrained" / "result.json").read_text())
    assert found["runs"][0]["retrained"] == stored["psnr"]
    assert [row["finished"] for row in found["runs"]] == [True, False]
    assert f"{begun.folder} is not finished: 1 of 2 epochs, 0 networks of the front" in printed
    (folder / "retrained" / "result.json").write_text(json.dumps({**stored, "psnr": "good"}))
    assert main(["compare", str(folder), str(begun.folder)]) == 2
    assert re.search(r"retrained/result.json is damaged: could not convert", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["."], "compare needs at least two runs"),
        ([".", "../seed-3"], "../seed-3 is given twice"),
        ([".", "nowhere"], "nowhere holds no run"),
        ([".", "pathless"], "the search path pathless/path.json is missing or damaged"),
        ([".", "../seed-4", "--stable=0.5"], "--stable goes with --chosen"),
        ([".", "../seed-4", "--chosen", "--stable=2"], "stable must be a fraction of the seeds"),
    ],
)
def test_bad_comparisons_are_refused(runs, monkeypatch, capsys, words, message):
    monkeypatch.chdir(runs[0].folder)
    (runs[0].folder / "pathless").mkdir(exist_ok=True)
    (runs[0].folder / "pathless" / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(runs[0].config.to_yaml())))
    assert main(["compare", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nas compare: ")
    assert message in line
