"""The command line, as a user meets it."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nas.analysis import read_graph
from nas.cli import VERBS, main
from nas.models import conv_skip_autoencoder, load
from nas.search import Run, Search, SearchConfig
from nas.search.runs.path import write_points
from nas.verbs import SUMMARIES

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "--data=folder", "--model_options={depth: 2, width: 4}", "--epochs=3", "--steps=40", "--batch=2", "--crop=16",
    "--density=0.25", "--entry-time=20", "--lr=0.01", "--model=conv_skip_autoencoder",
    "--price=none", "--second-moment=entry", "--sizes=none", "--tolerance=0.1",
]  # fmt: skip


def nas(*words, cwd, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nas", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **options)


def last_json(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures, a file that is no picture, and a run that went all the way."""
    place = tmp_path_factory.mktemp("place")
    (place / "data").mkdir()
    x, y = np.meshgrid(np.arange(32), np.arange(24))
    for k in range(4):
        pixels = 127 + 100 * np.sin(x / (2 + k)) * np.cos(y / (3 + k))
        Image.fromarray(pixels.astype(np.uint8)).save(place / "data" / f"{k}.png")
    (place / "data" / "notes.txt").write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 4), np.uint8)).save(place / "colour.png")
    return place


@pytest.fixture(scope="module")
def search_result(place):
    result = nas("search", *TINY, "--data-root=data", "--out=run", "--json", cwd=place)
    assert nas("extract", "run", "--no-latency", cwd=place).returncode == 0
    return result


@pytest.fixture
def inside(place, search_result, monkeypatch, capsys):
    """Calls ``nas`` in this process, in the folder of the run; returns the exit code and the last line of stderr."""
    monkeypatch.chdir(place)

    def call(*words):
        code = main([str(word) for word in words])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.err.strip()

    return call


def test_the_front(place, tmp_path):
    options = [word for word in TINY if word != "--sizes=none"]
    sizes = ["--sizes=150,90", "--fit=5", "--refit=1", "--density=0.5", "--epochs=4"]
    made = nas("search", *options, *sizes, f"--data-root={place / 'data'}", "--out=run", "--json", cwd=tmp_path)
    assert last_json(made)["epoch"] in (5, 6)
    assert "network 1 of the front" in made.stdout or "network 2 of the front" in made.stdout
    printed = nas("front", "run", "--json", cwd=tmp_path)
    front = last_json(printed)
    assert [row["params"] <= size for row, size in zip(front["front"], (90, 150), strict=True)] == [True, True]
    assert set(front["front"][0]) == {"epoch", "params", "flops", "milliseconds", "psnr", "ssim"}
    assert front["recommended"] == last_json(made)["epoch"]
    assert printed.stdout.count("recommended\n") == 1

    compared = nas(
        "front", "run", "--compare", "--epochs=2", "--seeds=1", "--families", "chain1", "chain2", "--json", cwd=tmp_path
    )
    for row in last_json(compared)["front"]:
        assert row["found"]["params"] == row["params"]
        assert row["hand_made"] is None or row["hand_made"]["params"] <= row["params"]
    assert compared.stdout.count("  found ") == 2

    small = front["front"][0]
    shown = last_json(nas("show", "run", "--max-params=0.1k", "--json", cwd=tmp_path))
    assert (shown["epoch"], shown["params"]["alive"]) == (small["epoch"], small["params"])
    extracted = last_json(
        nas("extract", "run", "--no-latency", f"--max-flops={small['flops']:.0f}", "--json", cwd=tmp_path)
    )
    assert extracted["params"] == small["params"]
    retrained = last_json(
        nas("retrain", "run", "--min-score=0", "--epochs=1", "--batch=1", "--crop=8", "--json", cwd=tmp_path)
    )
    assert retrained["params"] == small["params"]
    done = nas("denoise", "run", place / "colour.png", "-o", "clean.png", "--max-params=120", "--json", cwd=tmp_path)
    assert last_json(done)["network"].endswith(f"{small['epoch']:04}.safetensors")
    for words, message in (
        (["extract", "run", "--max-params=3"], "there is no network so small; the smallest has"),
        (["show", "run", "--min-score=99"], "there is no network with a score of 99 or more; the smallest has"),
        (["show", "run", "--knee", "--epoch=1"], "choose by epoch, by min_score, by the knee, or by max_params"),
        (
            ["denoise", "run", place / "colour.png", "-o", "x.png", "--max-params=many"],
            "a size must be a positive number",
        ),
    ):
        refused = nas(*words, cwd=tmp_path)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_run_without_a_front(inside):
    code, error = inside("front", "run")
    assert code == 2
    assert error.endswith("run has no front yet; it is made at the end of nas search (unless --sizes none)")


def test_the_main_job(place, search_result):
    found = last_json(search_result)
    assert set(found) >= {"psnr_noisy", "psnr", "units", "skips", "params", "seconds"}
    assert all(set(found[name]) == {"alive", "total"} for name in ("units", "skips", "params"))
    assert found["units"]["total"] == 8
    assert found["skips"]["total"] == 3
    assert 0 < found["params"]["alive"] <= found["params"]["total"]
    assert "that are not pictures: notes.txt" in search_result.stderr
    progress = [line for line in search_result.stderr.splitlines() if "epoch [" in line]
    assert [line.split("/")[0] for line in progress] == ["1", "2", "3"] and "units" in progress[0]
    assert {path.name for path in (place / "run").iterdir()} == {
        ".lock", "checkpoints", "compact", "config.yaml", "metrics.jsonl", "path", "path.json", "surroundings.jsonl",
    }  # fmt: skip

    shown = nas("show", "run", "--json", cwd=place)
    assert last_json(shown)["units"] == found["units"]
    assert re.search(r"n1 +\d / 4 +0 +\d +\d", shown.stdout)
    assert last_json(shown)["structure"]["depth"] == 3
    assert re.search(r"depth +3 \(shortest path \d\), \d paths over nodes\nbottleneck +\d units", shown.stdout)
    assert "parameters" in shown.stdout
    topology = json.loads((place / "run" / "topology.json").read_text())
    assert {"in", "out"} <= {node["id"] for node in topology["nodes"]}
    assert (place / "run" / "topology.svg").read_text().startswith("<?xml")
    graphs = [read_graph(place / "run" / name) for name in ("topology.json", "topology.graphml")]
    assert nx.utils.graphs_equal(*graphs)

    extracted = last_json(nas("extract", "run", "--json", cwd=place))
    assert set(extracted) >= {"certificate", "params", "flops", "params_supernet", "flops_supernet"}
    assert extracted["certificate"]["max_abs_float32"] <= 1e-5
    assert extracted["certificate"]["max_abs_float64"] <= 1e-10
    assert extracted["certificate"]["num_given"] == 1
    assert extracted["params"] == found["params"]["alive"]
    assert extracted["bytes"] == 4 * extracted["params"]
    assert set(extracted["certificate"]["nodes"]) <= {"n1", "n2", "out"}
    assert [change["node"] for change in extracted["certificate"]["changes"]] == ["n1", "n2", "out"]
    assert [timed["shape"][0] for timed in extracted["latency"]] == [1, 8, 64]
    assert all(timed["speed_up"] > 0 and timed["rounds"] >= 3 for timed in extracted["latency"])
    verified = last_json(nas("verify", "run", "--json", cwd=place))
    assert verified["holds"]
    assert verified["certificate"] == extracted["certificate"]
    assert sorted(path.name for path in (place / "run" / "compact").iterdir()) == [
        "certificate.json", "config.json", "model.safetensors",
    ]  # fmt: skip

    retrained = last_json(nas("retrain", "run", "--epochs=2", "--json", cwd=place))
    assert set(retrained) >= {"psnr", "psnr_noisy", "ssim", "baselines", "params"}
    assert set(retrained["baselines"]) == {"tv", "nl_means", "wavelet"}
    assert retrained["params"] == extracted["params"]
    assert (place / "run" / "pictures" / "3-noisy.png").exists()

    cleaned = last_json(nas("denoise", "run", "colour.png", "-o", "clean.png", "--json", cwd=place))
    assert cleaned["files"] == ["clean.png", "clean-before-after.png"]
    before, after = (np.asarray(Image.open(place / name)) for name in ("colour.png", "clean.png"))
    assert after.shape == before.shape
    assert np.array_equal(after[..., 3], before[..., 3])  # alpha is not noise
    assert not np.array_equal(after, before)
    assert np.asarray(Image.open(place / "clean-before-after.png")).shape == (13, 17 + 8 + 17, 3)


def test_from_scratch_and_other_epochs(place, search_result):
    assert last_json(nas("extract", "run", "--epoch=1", "--no-latency", "--json", cwd=place))["epoch"] == 1
    assert last_json(nas("retrain", "run", "--epochs=1", "--from-scratch", "--json", cwd=place))["from_scratch"]
    nas("retrain", "run", "--epochs=1", "--rewind-epoch=0", cwd=place)
    refused = nas("retrain", "run", "--epochs=1", "--rewind-epoch=0", "--from-scratch", cwd=place, check=False)
    assert (refused.returncode, refused.stderr.strip()) == (
        2,
        "nas retrain: retrain starts from scratch or from a rewound epoch, not both",
    )
    assert last_json(nas("show", "run", "--epoch=0", "--level=unit", "--json", cwd=place))["skips"]["alive"] == 0


def test_compare(place, search_result, inside, capsys):
    words = ["--epochs=3", "--compare", "--seeds=2", "--random=2", "--lr=0.02", "--families", "chain1", "chain2"]
    assert main(["retrain", "run", *words, "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["compared"] == json.loads((place / "run" / "retrained" / "result.json").read_text())["compared"]
    found, *others = result["compared"]
    titles = [each["title"].split(",")[0] for each in others]
    assert found["title"] == "retrained network"
    assert titles == [
        "chain of one hidden layer", "chain of 2 hidden layers", "the supernet", "thinned out from it",
        "random network 1", "random network 2",
    ]  # fmt: skip
    assert found["test"][0]["psnr"] == result["psnr"]
    assert found["rate"] in (0.008, 0.02, 0.04)
    assert len(found["test"]) == 2
    assert all(each["params"] <= found["params"] for each in others if each["title"] != "the supernet, dense")
    assert lines[0].startswith("held-out pictures: 1, seeds: 2")
    assert "random network, best of 2" in "\n".join(lines)


def test_a_refused_retraining_leaves_the_extraction(place, search_result, inside):
    before = (place / "run" / "compact" / "certificate.json").read_bytes()
    code, error = inside("retrain", "run", "--knee", "--batch=0")
    assert (code, error) == (2, "nas retrain: batch must be at least 1, got 0")
    assert (place / "run" / "compact" / "certificate.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds=0"], "seeds must be at least 1, got 0"),
        (["--random=-1"], "random must be at least 0, got -1"),
        (["--families", "tree3"], "there is no network 'tree3'; write chain3, residual2 or separable5k7"),
        (["--lr=0"], "lr must be > 0, got 0.0"),
    ],
)
def test_bad_comparisons_are_refused(place, search_result, inside, words, message):
    code, error = inside("retrain", "run", "--compare", *words)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("format", "names"), [("python", ["model.py", "model.safetensors"]), ("torch-export", ["model.pt2"])]
)
def test_export(place, search_result, inside, capsys, format, names):
    folder = place / "run" / "export"
    assert main(["export", "run", f"--format={format}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == names
    assert found["files"] == {f"run/export/{name}": (folder / name).stat().st_size for name in names}
    assert found["network"] in ("run/compact", "run/retrained")
    assert found["format"] == format
    assert 0 <= found["max_abs"] <= 1e-5
    assert inside("export", "run", f"--format={format}")[0] == 0  # its own folder needs no --force
    shutil.rmtree(folder)


def test_export_to_a_file_replaces_nothing_unless_forced(place, search_result, inside):
    (place / "mine.safetensors").write_text("mine")
    words = ["export", "run", "--format=python", "-o", "mine.py"]
    code, error = inside(*words)
    assert code == 2
    assert "mine.safetensors exists; choose another -o, or --force to replace it" in error
    assert not (place / "mine.py").exists()
    assert inside(*words, "--force")[0] == 0
    assert (place / "mine.safetensors").read_bytes() != b"mine"
    assert "class Model(nn.Module)" in (place / "mine.py").read_text()


def test_an_export_that_fails_leaves_nothing(place, search_result, inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, error = inside("export", "run", "--format=onnx")
    assert code == 2
    assert error.endswith("pip install 'bregman-nas[onnx]'")
    assert not (place / "run" / "export").exists()


def test_int8_says_what_it_loses(place, search_result, inside, capsys):
    pytest.importorskip("onnxscript")
    assert main(["export", "run", "--format=onnx", "--int8", "--json"]) == 0
    *_, heading, psnr, ssim, last = capsys.readouterr().out.splitlines()
    assert "not exact" in heading and psnr.startswith("  PSNR") and ssim.startswith("  SSIM")
    found = json.loads(last)
    assert list(found["files"]) == ["run/export/model-int8.onnx"]
    assert found["int8"]["int8"]["psnr"] == pytest.approx(found["int8"]["exact"]["psnr"], abs=1.0)
    assert "max_abs" not in found
    shutil.rmtree(place / "run" / "export")
    (place / "data").rename(place / "gone")
    try:
        code, error = inside("export", "run", "--format=onnx", "--int8")
    finally:
        (place / "gone").rename(place / "data")
    assert (code, error.count("\n")) == (2, 0) and "data" in error
    assert not (place / "run" / "export").exists()


def test_extract_in_blocks(place, search_result, inside):
    assert inside("extract", "run", "--round-to=3")[0] == 0
    net = load(place / "run" / "compact")
    assert all(node.units % 3 == 0 for node in net.plan.nodes[:-1])
    assert inside("extract", "run", "--round-to=auto", "--no-latency")[0] == 0
    assert inside("extract", "run", "--round-to=0")[0] == 2
    assert inside("extract", "run", "--epoch=1")[0] == 0  # that of the retrained network, as before


def test_a_search_too_short_to_grow_says_so(place, inside):
    code, error = inside("search", *TINY, "--data-root=data", "--entry-time=500", "--epochs=1", "--out=short")
    assert code == 0
    assert "nothing can wake in so few steps" in error


def test_resume_goes_on(place, search_result, inside):
    config = Run.open(place / "run").config
    with pytest.warns(UserWarning, match="not pictures"):
        next(iter(Search(Run(place / "broken-off", config))))
    assert inside("resume", "broken-off")[0] == 0
    files = [(place / name / "path" / "0003.safetensors").read_bytes() for name in ("run", "broken-off")]
    assert files[0] == files[1]


def test_a_retrained_network_of_another_extraction_is_not_used(place, search_result, inside):
    (place / "stale").mkdir()
    for name in ("config.yaml", "compact"):
        source, target = place / "run" / name, place / "stale" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    conv_skip_autoencoder(depth=1, width=1).save_pretrained(place / "stale" / "retrained")
    code, error = inside("denoise", "stale", "colour.png", "-o", "other.png")
    assert code == 0
    assert "stale/retrained is of an earlier extraction and not used" in error


def test_a_stored_configuration_repeats_the_run(place, search_result):
    again = nas("search", "--config=run/config.yaml", "--out=again", cwd=place)
    assert again.returncode == 0, again.stderr
    files = [(place / name / "path" / "0003.safetensors").read_bytes() for name in ("run", "again")]
    assert files[0] == files[1]


def test_ctrl_c_leaves_a_valid_run(place, search_result):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nas", "search", *TINY, "--epochs=1000", "--data-root=data", "--out=long"]
    process = subprocess.Popen(
        command, cwd=place, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (place / "long" / "path" / "0002.safetensors").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "nas search: stopped after writing a checkpoint; go on with nas resume long" in error
    shown = nas("show", "long", cwd=place)
    assert re.search(r"the search stopped after epoch \d+ of 1000", shown.stdout)
    assert nas("extract", "long", "--no-latency", cwd=place).returncode == 0


def test_a_name_that_cannot_be_shown_is_no_error(tmp_path):
    code = """
import nas.__main__, nas.cli

nas.cli.main = lambda: print("\N{LATIN SMALL LETTER A WITH DIAERESIS}, \\udce9") or 0
raise SystemExit(nas.__main__.main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "\\xe4, \\udce9\n", "")


def test_a_name_that_is_not_utf_8_is_refused(capsys):
    assert main(["show", "r\udce9"]) == 2
    assert capsys.readouterr().err == "nas: run: a name must be text in UTF-8; rename the file or folder\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_python_ends_is_no_traceback(tmp_path, name):
    """Of Ctrl-C where it is ignored, as in the background of a script."""
    code = f"""
import atexit, os, signal
import nas.__main__, nas.cli

signal.signal(signal.SIGINT, signal.SIG_IGN)
nas.cli.main = lambda: 143
atexit.register(os.kill, os.getpid(), signal.{name})
raise SystemExit(nas.__main__.main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_unfinished_file(tmp_path, name):
    """Of the verbs that need no checkpoint, such as denoise."""
    code = f"""
import os, signal
from pathlib import Path
import nas.__main__, nas.cli
from nas.files import replacing

def write(file):
    file.write_bytes(b"half")
    os.kill(os.getpid(), signal.{name})

nas.cli.main = lambda: replacing(Path("picture.png"), write)
nas.__main__.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stopped = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (stopped.returncode, stopped.stderr) == (143, "nas: stopped\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], 'expected "verb" to be one of'),
        (["find"], "invalid choice: 'find'"),
        (["search", "--sigma=loud"], "sigma must be a number such as 25, or a range such as 5:55, got 'loud'"),
        (["search", "--epochs=1.5"], "epochs must be an integer, got 1.5"),
        (["search", "--model-options=deep"], "model_options must be a mapping such as {depth: 3}, got deep"),
        (["search", "--config=data/notes.txt"], "a configuration must name options of the verb"),
        (["retrain", "run", "--patience=0"], "retrain: patience must be at least 1, got 0"),
        (["retrain", "run", "--families", "foo"], "there is no network 'foo'; write chain3, residual2 or"),
        (["show"], "the following arguments are required: run"),
        (["search", "--sigm=20"], "--sigm=20"),
        (["search", "--sigma=-25"], r"sigma must lie in \(0, 255\], on the 0..255 scale, got -25.0"),
        (["search", "--sigma=1e9"], r"sigma must lie in \(0, 255\]"),
        (["search", "--epochs=0"], "epochs must be at least 1, got 0"),
        (["search", "--task=sing"], "unknown task 'sing'; there are: classify, deblur, denoise"),
        (
            ["search", "--data=cats"],
            "unknown data 'cats'; there are: cifar10, class_folder, fashion_mnist, folder, mnist, noisy_pairs, pairs",
        ),
        (
            ["search", "--model=unet"],
            "unknown model 'unet'; there are: conv_skip_autoencoder, dense_conv, dense_mlp",
        ),
        (["search", *TINY, "--data-root=nowhere"], r"there is no folder \S*nowhere"),
        (["search", *TINY, "--data-root=run/path"], "holds 0 pictures; a search needs at least 3"),
        (["search", *TINY, "--data-root=data", "--crop=25"], "32 x 24 pixels, smaller than the crop of 25"),
        (["search", *TINY, "--data-root=data", "--out=run"], "run already holds a run; choose another --out"),
        (["search", *TINY, "--data-root=data", "--out=data"], "data is in use and holds no run; choose another --out"),
        (["search", *TINY, "--data-root=data", "--out=colour.png/run"], "Not a directory"),
        (["search", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["show", "nowhere"], "nowhere holds no run"),
        (["show", ""], "argument 2 is empty"),
        (["show", "run", "--epoch=9"], "the search has epochs 0 to 3, not 9"),
        (["show", "run", "--level=layer"], "layer"),
        (["retrain", "run", "--epochs=0"], "epochs must be at least 1, got 0"),
        (["denoise", "run"], "picture|out"),
        (["denoise", "run", "nowhere.png", "-o", "x.png"], "nowhere.png: No such file"),
        (["denoise", "run", "data/notes.txt", "-o", "x.png"], "data/notes.txt is not a picture"),
        (
            ["denoise", "run", "colour.png", "-o", "colour.png"],
            "colour.png is the picture to be cleaned; choose another -o",
        ),
        (["denoise", "run", "colour.png", "-o", "data/0.png"], "data/0.png exists; choose another -o"),
        (["denoise", "run", "colour.png", "-o", "nowhere/x.png"], "there is no folder nowhere for nowhere/x.png"),
        (["search", "--price=gold"], "price must be params or flops or none, got gold"),
        (["search", "--second-moment=row"], "second_moment must be entry or group or tensor, got row"),
        (["search", "--optimizer=sgd"], "unknown optimizer 'sgd'; there are: adabreg, linbreg"),
        (["search", *TINY, "--data-root=data", "--out=new", "--sizes=4k,"], "a size must be a positive number such as"),
        (["search", "--model-options={kernel: 4}"], "node 'd1' has the kernel size 4; it must be odd"),
        (["search", "--entry-time=soon"], "entry_time must be float or auto, got soon"),
        (["search", "--coarse=4", "--optimizer=xrda"], "xrda has no exact restriction to what is alive"),
        (["export", "run"], "format"),
        (["export", "run", "--format=tflite"], "tflite"),
        (["export", "run", "--format=python", "--int8"], "--int8 is for the format onnx, not for python"),
        (["export", "nowhere", "--format=python"], "nowhere holds no run"),
        (["export", "run", "--format=python", "-o", "x.onnx"], r"must be named \*.py, got x.onnx"),
        (["export", "run", "--format=python", "-o", "nowhere/x.py"], "nowhere is no folder"),
        (["extract", "run", "--round-to=-8"], "round_to must be an integer from 1"),
        (["retrain", "run", "--seed=-1"], "seed must lie between 0 and"),
        (["search", "--seed=99999999999"], "seed must lie between 0 and"),
        (["show", "run", "--epoch=x"], "epoch.*x"),
        (["search", "--config=colour.png"], "should hold text"),
        (["search", "--model_options={width: 1000000000}"], "must be an integer from 1 to 100000"),
        (["search", "--model=skip_autoencoder", "--model_options={patch: 0}"], "must be an integer from 1 to"),
        (["search", *TINY, "--data-root=data", "--batch=1000000000000"], "is larger than \\d+ pixels"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(place, inside, words, sentence):
    before = sorted(place.rglob("*"))
    code, error = inside(*words)
    (line,) = [line for line in error.splitlines() if " files in " not in line]
    assert code == 2
    assert line.startswith("nas")
    assert re.search(sentence, line)
    assert sorted(place.rglob("*")) == before


def test_a_damaged_run_is_named(place, search_result, inside):
    nas("search", *TINY, "--data-root=data", "--out=broken", cwd=place)
    nas("extract", "broken", "--no-latency", cwd=place)
    for verb, name in (
        ("denoise", "compact/config.json"),
        ("retrain", "compact/model.safetensors"),
        ("show", "path.json"),
        ("resume", "checkpoints/*"),
        ("verify", "compact/model.safetensors"),
        ("extract", "config.yaml"),
    ):
        for file in (place / "broken").glob(name):
            file.write_bytes(b"\x00garbage")
        code, error = inside(verb, "broken", *(["colour.png", "-o", "y.png"] if verb == "denoise" else []))
        assert code == 2
        assert "damaged" in error.splitlines()[-1]
    assert not (place / "y.png").exists()


def test_a_certificate_that_does_not_hold_exits_with_1(inside, monkeypatch):
    from nas.analysis import Certificate
    from nas.models import compact

    monkeypatch.setattr(
        "nas.analysis.extraction.stored.extract",
        lambda net, inputs, **options: (compact(net), Certificate(1e-3, 1e-3, 1.0, 1, 1)),
    )
    assert inside("extract", "run", "--no-latency")[0] == 1


def change_by(file, name, amount):
    """Add ``amount`` to the first number of a stored tensor."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] += amount
    save_file(tensors, file)


@pytest.fixture
def copied(place, search_result):
    """A copy of the run that may be spoilt."""
    folder = place / "copied"
    shutil.copytree(place / "run", folder)
    assert main(["extract", str(folder), "--no-latency"]) == 0
    yield folder
    shutil.rmtree(folder)


def test_an_untouched_run_verifies(copied, inside):
    for words in ((), ("--seed=7",)):
        code, error = inside("verify", "copied", *words)
        assert code == 0
        assert "not the recorded one" not in error


def test_a_changed_compact_network_does_not_verify(copied, inside):
    change_by(copied / "compact" / "model.safetensors", "nodes.out.bias", 1e-3)
    code, error = inside("verify", "copied")
    assert code == 1
    assert re.search(r"the compact network is not the recorded one: its hash is \w{12}..., not \w{12}...", error)
    assert re.search(r"the outputs differ by \d\.\de-\d\d in float32 and \d\.\de-\d\d in float64", error)


def test_a_changed_supernet_does_not_verify(copied, inside):
    epoch = json.loads((copied / "compact" / "certificate.json").read_text())["epoch"]
    change_by(copied / "path" / f"{epoch:04}.safetensors", "nodes.n1.bias", 1e-3)
    code, error = inside("verify", "copied", "--json")
    assert code == 2
    assert f"copied/path/{epoch:04}.safetensors is damaged: it is not what the search wrote" in error


def test_another_network_that_was_changed_does_not_verify(copied, inside):
    assert inside("retrain", "copied", "--epochs=1")[0] == 0
    files = [copied / "path" / "0000.safetensors", copied / "retrained" / "model.safetensors"]
    before = [file.read_bytes() for file in files]
    for file, data in zip(files, before, strict=True):
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, error = inside("verify", "copied")
    first, second = error.splitlines()[-2:]
    assert code == 1
    assert first == "nas verify: the snapshot copied/path/0000.safetensors is damaged: it is not what the search wrote"
    assert second.startswith("nas verify: the network in copied/retrained is not the one that its result.json is of")
    for file, data in zip(files, before, strict=True):
        file.write_bytes(data)
    assert inside("verify", "copied")[0] == 0


def test_a_compact_network_of_another_architecture_does_not_verify(copied, inside):
    conv_skip_autoencoder(depth=1, width=1).save_pretrained(copied / "compact")
    code, error = inside("verify", "copied", "--json")
    assert code == 1
    assert "has not the nodes and units that are alive in the searched one" in error


def test_a_network_that_became_constant_is_said_to_be_so(copied, place):
    file = copied / "path" / "0001.safetensors"
    tensors = load_file(file)
    save_file({name: t if name.endswith(".rows") else torch.zeros_like(t) for name, t in tensors.items()}, file)
    run = Run.open(copied)
    points = run.points()
    points[1] = replace(points[1], sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    write_points(copied / "path.json", points, run.config.identity)
    for words in (("show", "copied"), ("extract", "copied", "--no-latency")):
        done = nas(*words, "--epoch=1", cwd=place)
        assert done.returncode == 0, done.stderr
        assert "no path from input to output: the network computes a constant" in done.stdout
    assert nas("verify", "copied", cwd=place).returncode == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"epoch": "1", "certificate": {"hashes": {}}}', "\0garbage"])
def test_a_damaged_certificate_is_named(copied, inside, text):
    (copied / "compact" / "certificate.json").write_text(text)
    code, error = inside("verify", "copied")
    assert code == 2
    assert "copied/compact/certificate.json is damaged, or of an earlier version" in error


def test_help_does_not_wait_for_torch():
    code = "import sys; from nas.__main__ import main; assert main() == 0; assert 'torch' not in sys.modules"
    for words, first in ((["--help"], "usage: nas "), (["--version"], "nas 0.1.0")):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(first)
    assert list(SUMMARIES) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_option_and_default(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--json" in text
    if verb == "search":
        for name in SearchConfig.__dataclass_fields__:
            assert f"--{name}" in text
        assert "default: 25.0" in text
