"""nas report: one file that says what was found, and what is not there yet."""

import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nas.analysis import write_report
from nas.analysis.report.ablation import ablate
from nas.analysis.report.facts import command
from nas.analysis.report.filters import as_pictures
from nas.analysis.report.growth import MOST_FRAMES, frames, shown_points, whole_graph
from nas.analysis.report.pictures import held_out_pictures
from nas.analysis.report.pixels import tiles
from nas.cli import main
from nas.models import conv_skip_autoencoder, mixed_autoencoder, separable_autoencoder
from nas.models.families import hand_made
from nas.search import Run, SearchConfig
from nas.search.runs.path import Point
from nas.search.training.loop import Snapshot
from tests.browser import PROGRAM, chromium, visit

EVIL = "<script>document.title='run'; alert(1)"
OPTIONS = [
    "--model=conv_skip_autoencoder", "--model_options={depth: 3, width: 6}", "--epochs=4", "--steps=40", "--batch=2",
    "--crop=16", "--density=0.7", "--entry-time=20", "--lr=0.01", "--price=none", "--second-moment=entry",
    "--tolerance=0.1", "--sizes=400,250", "--fit=5", "--refit=1", "--data=folder",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures of a wicked name and a run of a wicked name that went all the way."""
    place = tmp_path_factory.mktemp("place")
    (place / "data").mkdir()
    x, y = np.meshgrid(np.arange(32), np.arange(24))
    for k in range(4):
        pixels = 127 + 100 * np.sin(x / (2 + k)) * np.cos(y / (3 + k))
        Image.fromarray(pixels.astype(np.uint8)).save(place / "data" / f"{EVIL}{k}.png")
    run = str(place / EVIL)
    assert main(["search", *OPTIONS, f"--data-root={place / 'data'}", f"--out={run}"]) == 0
    assert main(["extract", run]) == 0
    assert main(["retrain", run, "--epochs=1"]) == 0
    return place


@pytest.fixture
def copied(place, tmp_path):
    """A copy of the run that may be damaged."""
    shutil.copytree(place / EVIL, tmp_path / "run")
    return tmp_path / "run"


class Reader(HTMLParser):
    """The tags, the words outside of scripts and styles, and the data of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.data, self._within = [], "", "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._within = (tag, dict(attributes).get("id")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._within = None if tag in ("script", "style") else self._within

    def handle_data(self, text):
        if self._within is None:
            self.words += text
        elif self._within == ("script", "data"):
            self.data += text


def made(*folders, tmp_path):
    file = tmp_path / "page.html"
    write_report([Run.open(folder) for folder in folders], file)
    assert file.stat().st_size < 5e6
    return Reader(file.read_text(encoding="utf-8"))


def test_a_page_has_everything(place, tmp_path):
    page = made(place / EVIL, tmp_path=tmp_path)
    data = json.loads(page.data)
    run = Run.open(place / EVIL)
    points = run.points()
    assert [frame["epoch"] for frame in data["frames"]] == [point.snapshot.epoch for point in points]
    for frame, point in zip(data["frames"], points, strict=True):
        assert frame["params"] == point.params and frame["scores"] == point.scores
        assert set(frame["skips"]) == {f"{a}>{b}" for a, b in point.snapshot.skips}
        assert all(frame["units"][name] == len(units) for name, units in point.snapshot.units.items())
    assert {"epoch", "loss", "psnr", "units", "skips", "density", "lam", "lr", "seconds"} <= set(data["curves"])
    assert data["curves"]["epoch"] == [0, 1, 2, 3, 4]
    assert [row["recommended"] for row in data["front"]].count(True) == 1
    assert data["picked"] == run.choose().snapshot.epoch
    for words in (
        "The certificate holds", "parameters", "FLOPs", "ms for an input of", "tv: PSNR", "nl means: PSNR",
        "retrained network", "Of the network of epoch", "What is missed without a part", "filters, 6 x 6",
        "nas search --data=folder", "Searched with nas", "computed on cpu", "This report was made with nas", "torch 2",
    ):  # fmt: skip
        assert words in page.words, words
    assert [attributes.get("class") for _, attributes in page.tags].count("missing") == 1  # where there is no script
    nodes = [attributes["data-node"] for _, attributes in page.tags if "data-node" in attributes]
    assert nodes == ["in", "n1", "n2", "n3", "out"]


def test_the_page_is_complete_in_itself_and_runs_no_names(place, tmp_path):
    page = made(place / EVIL, tmp_path=tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, name)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert EVIL in page.words  # as the title, and of the picture
    assert page.words.count(EVIL) >= 2


def test_classical_methods_stand_beside_the_network(place):
    """The pictures are those of the network and of the methods with the strengths that were measured."""
    run = Run.open(place / EVIL)
    data = run.data()
    measured = json.loads((run.folder / "retrained" / "result.json").read_text())
    assert set(measured["strengths"]) == set(measured["baselines"]) == {"tv", "nl_means", "wavelet"}
    shown = held_out_pictures(run, data)["restored"]
    best = max(measured["baselines"], key=measured["baselines"].get).replace("_", " ")
    for picture, example in zip(shown, run.test(data), strict=True):
        assert [view["title"] for view in picture["views"]] == ["noisy", best, "restored", "clean"]
        assert picture["pairs"] == [(0, 2), (1, 2), (2, 3), (1, 3), (0, 3)]
        method, strength = run.task(data).methods["tv"][0], measured["strengths"]["tv"]
        psnr = run.task(data).score(method(example.observed, strength), example.target)["psnr"]
        assert picture["scores"]["tv"].startswith(f"PSNR {psnr:.2f} dB, SSIM")
        assert list(picture["scores"])[::4] == ["noisy", "restored"]


def test_what_is_not_there_is_said(copied, tmp_path):
    for folder, words in (
        ("retrained", "There is no retrained/result.json in the run yet. It is measured by nas retrain"),
        ("compact", "There is no compact/certificate.json in the run yet. It is made by nas extract"),
    ):
        shutil.rmtree(copied / folder)
        assert words in made(copied, tmp_path=tmp_path).words
    config = copied / "config.yaml"
    options = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**options, "data_root": str(tmp_path / "gone")}))
    page = made(copied, tmp_path=tmp_path)
    assert "The data of this run cannot be read here" in page.words
    assert json.loads(page.data)["frames"]


def test_with_what_it_was_searched(copied, tmp_path):
    file = copied / "surroundings.jsonl"
    (line,) = file.read_text().splitlines()
    later = {**json.loads(line), "epoch": 2, "torch": "99.0"}
    file.write_text(f"{line}\n{json.dumps(later)}\n{{damaged")
    words = made(copied, tmp_path=tmp_path).words
    assert "Searched with nas" in words and "From epoch 3 on with nas" in words and "torch 99.0" in words
    file.unlink()
    assert "The run does not record with what it was searched." in made(copied, tmp_path=tmp_path).words


def test_damaged_files_are_said(copied, tmp_path):
    (copied / "retrained" / "result.json").write_text('{"psnr": 1}')
    (copied / "compact" / "certificate.json").write_text("{")
    with (copied / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 4, "loss": NaN, "psnr": Infinity}\n{"epoch": 7, "lo')
    page = made(copied, tmp_path=tmp_path)
    words, curves = page.words, json.loads(page.data, parse_constant=pytest.fail)["curves"]
    assert curves["loss"][-1] is None
    assert "result.json is damaged" in words and "certificate.json cannot be read" in words


def test_a_run_without_a_path(copied, tmp_path):
    (copied / "path.json").unlink()
    page = made(copied, tmp_path=tmp_path)
    assert "Of this run there is no search path that can be shown" in page.words
    assert "nas search" in page.words


def test_a_run_that_is_still_written(place, tmp_path):
    run = str(tmp_path / "short")
    words = [word for word in OPTIONS if not word.startswith("--sizes")]
    assert main(["search", *words, "--sizes=none", f"--data-root={place / 'data'}", f"--out={run}"]) == 0
    written = made(tmp_path / "short", tmp_path=tmp_path)
    assert "There is no front yet" in written.words
    assert "The search goes on" not in written.words


def test_a_comparison(place, copied, tmp_path):
    other = [f"--data-root={place / 'data'}", "--tolerance=0.3", f"--out={tmp_path / 'other'}"]
    assert main(["search", *OPTIONS, *other]) == 0
    page = made(place / EVIL, tmp_path / "other", tmp_path=tmp_path)
    for words in ("tolerance", "0.3", "2 of 2", "on average", "units of node", "--tolerance=0.3", "The fronts"):
        assert words in page.words, words
    (title,) = json.loads(page.data)["fronts"]
    assert title == "PSNR in dB"
    for file in (copied / "path").iterdir():
        file.unlink()
    assert "is damaged" in made(place / EVIL, copied, tmp_path=tmp_path).words
    assert "is damaged" in made(copied, tmp_path=tmp_path).words
    (copied / "path.json").unlink()
    page = made(place / EVIL, copied, tmp_path=tmp_path)
    assert "run: there is no search path that can be shown" in page.words
    assert "Fewer than two of the runs can be read." in page.words


def test_runs_of_different_tasks_and_supernets(place, tmp_path):
    """A classifier shows its confusions, and beside a denoiser what can be shown."""
    rng = np.random.default_rng(0)
    for label in ("low", EVIL):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(0, 200, (8, 8)) + (40 if label == "low" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / label / f"{k}.png")
    run = str(tmp_path / "classes")
    assert main([
        "search", "--task=classify", "--data=class_folder", f"--data-root={tmp_path / 'data'}", "--model=dense_conv",
        "--model_options={depth: 2, growth: 3}", "--epochs=2", "--steps=10", "--batch=8", "--sizes=none",
        f"--out={run}",
    ]) == 0  # fmt: skip
    page = made(tmp_path / "classes", tmp_path=tmp_path)
    assert "true \\ found" in page.words and "right, by the network of epoch" in page.words
    assert "The mistakes that it is surest of" in page.words
    page = made(place / EVIL, tmp_path / "classes", tmp_path=tmp_path)
    assert "measured by different scores, which cannot be compared" in page.words
    assert "The runs have different supernets" in page.words
    assert len(json.loads(page.data)["fronts"]) == 2


def test_the_command(place, copied, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run"]) == 0
    assert "wrote run/report.html" in capsys.readouterr().out
    assert main(["report", "run"]) == 0
    assert main(["report", "run", str(place / EVIL), "-o", "both.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"files": ["both.html"]}
    (tmp_path / "report.html").write_text("of somebody else")
    for words, problem in (
        (["run", str(place / EVIL)], "report.html exists; choose another -o, or --force to replace it"),
        (["run", "-o", "both.html"], "both.html exists; choose another -o, or --force to replace it"),
        (["run", "-o", "page.txt"], "the suffix must be .html"),
        (["nothing"], "nothing holds no run"),
        (["run", "run"], "a run is named twice"),
        (["run", "-o", "nowhere/page.html"], "No such file or directory"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1


def test_a_live_report_changes_nothing_and_ends_complete(place, tmp_path, monkeypatch):
    written = []

    def write(runs, path, *, refresh=None):
        write_report(runs, path, refresh=refresh)
        written.append(path.read_text())

    monkeypatch.setattr("nas.analysis.report.live.write_report", write)
    monkeypatch.setattr("nas.analysis.report.live.PATIENCE", 0)
    run = tmp_path / "run"
    assert main(["search", *OPTIONS, f"--data-root={place / 'data'}", f"--out={run}", "--live"]) == 0
    assert len(written) == 7  # four epochs, two networks of the front, and the end
    assert all('http-equiv="refresh"' in page for page in written[:-1])
    assert "The search goes on" in written[0] and "Shown when the search has ended." in written[0]
    assert 'http-equiv="refresh"' not in written[-1] and "Shown when" not in written[-1]
    plain, live = (
        [{**json.loads(line), "seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (place / EVIL, run)
    )
    assert plain == live


def test_a_logger_that_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nas.search.callbacks.loggers.find_spec", lambda name: None)
    assert main(["search", *OPTIONS, f"--out={tmp_path / 'run'}", "--logger=tensorboard"]) == 2
    assert "tensorboard is not installed: pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(place, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    command = ["search", *OPTIONS, f"--data-root={place / 'data'}", f"--out={run}", "--logger=tensorboard"]
    for more in ([], ["--force"]):
        assert main([*command, *more]) == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("psnr")] == [1, 2, 3, 4, 5, 6]
    psnr = [point.headline for point in Run.open(run).points()][1:]
    assert [event.value for event in events.Scalars("psnr")] == pytest.approx(psnr)


def test_the_film(place, copied):
    assert main(["show", str(copied), "--film"]) == 0
    with Image.open(copied / "growth.gif") as film:
        assert film.n_frames == 6  # the start, four epochs, and the recommended network
        assert film.info["duration"] == 250


def test_the_exact_command():
    assert command(SearchConfig()) == "nas search"
    config = SearchConfig(sigma=15.0, model_options={"depth": 3}, seed=4)
    assert command(config) == "nas search '--model-options={depth: 3}' --sigma=15.0 --seed=4"


def test_ablation_measures_what_it_says():
    net = conv_skip_autoencoder(depth=2, width=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape))
        net.nodes["n1"].edges["in"][1] = 0  # a dead unit
        net.nodes["n1"].bias[1] = 0
        net.nodes["n2"].edges["n1"][:, 1] = 0
        net.nodes["n2"].gates.fill_(0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 1, 12, 12)
    losses, parts = ablate(net, torch.nn.functional.mse_loss, (x, torch.zeros_like(x)))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert parts == len(losses)
    assert [loss.name for loss in losses if loss.kind == "unit"] == ["n1.0", "n1.2", "n2.0", "n2.1", "n2.2"]
    by_name = {loss.name: loss for loss in losses}
    net.nodes["n1"].edges["in"].data[2] = 0
    net.nodes["n1"].bias.data[2] = 0
    without = net(x).square().mean().item()
    net.load_state_dict(before)
    assert by_name["n1.2"].growth == pytest.approx(without / net(x).square().mean().item() - 1, rel=1e-4)
    assert by_name["n1.2"].saved == 4 * 9 + 1 + 3 * 9  # its filter, its bias, and what reads it
    assert len(ablate(net, torch.nn.functional.mse_loss, (x, torch.zeros_like(x)), most=3)[0]) <= 3


def test_filters_are_shown_over_the_pixels():
    net = conv_skip_autoencoder(depth=1, width=2)
    picture = torch.zeros(1, 1, 6, 6)
    picture[0, 0, 3, 2] = 1  # seen by the filter around the middle patch
    weight = torch.randn(2, 4, 3, 3)
    response = torch.nn.functional.conv2d(torch.nn.functional.pixel_unshuffle(picture, 2), weight, padding=0)
    torch.testing.assert_close(as_pictures(weight, net.plan)[:, 0, 3, 2], response[0, :, 0, 0])
    page = tiles(torch.tensor([[[[1.0, -2.0], [0.0, 0.0]]]]))
    assert page.shape == (3, 3, 4)
    torch.testing.assert_close(page[1, 0], torch.ones(4))
    assert page[0, 1, 0] > page[0, 1, 2] and page[0, 0, 2] > page[0, 0, 0]  # vermilion subtracts, blue adds


@pytest.mark.parametrize("recipe", [conv_skip_autoencoder, mixed_autoencoder, separable_autoencoder])
def test_the_whole_supernet_is_drawn(recipe):
    net = recipe(depth=3)
    graph = whole_graph(net)
    assert list(graph) == list(net.plan.units)
    assert all(data["alive"] == data["total"] for _, data in graph.nodes(data=True))


def test_long_paths_are_thinned():
    losses = [None, *[0.5] * 1000, None, None, None]  # the start, the growth, and a front of three
    points = [Point(Snapshot(k, loss, {}, {}, {}), {"psnr": 1.0}, 1, 1.0, 0.0) for k, loss in enumerate(losses)]
    shown = shown_points(points)
    assert len(shown) < MOST_FRAMES + 10
    assert [point.snapshot.epoch for point in shown][-4:] == [1000, 1001, 1002, 1003]
    assert shown_points(points[:100]) == points[:100]


def test_frames_name_what_came_and_went(place):
    run = Run.open(place / EVIL)
    found = frames(run, run.points(), [])
    events = [event for frame in found for event in frame.events]
    assert any(re.fullmatch(r"\d+ units? (born|died)", event) for event in events)
    assert found[0].events == ()
    assert all(frame.units["in"] == 4 for frame in found)


def compare_with_a_chain(folder):
    """As nas retrain --compare leaves it."""
    file = folder / "retrained" / "result.json"
    result, plan = json.loads(file.read_text()), hand_made("chain1", Run.open(folder).blank.plan, 3)
    found = {"title": "retrained network", "params": 300, "mean": 21.0, "spread": 0.1}
    chain = {"title": "chain", "params": plan.num_params, "mean": 20.5, "spread": 0.2, "plan": plan.to_dict()}
    file.write_text(json.dumps({**result, "compared": [found, chain]}))


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
def test_in_a_browser(place, copied, tmp_path):
    write_report([Run.open(place / EVIL)], tmp_path / "page.html")
    write_report([Run.open(place / EVIL), Run.open(copied)], tmp_path / "both.html")
    state = """(() => ({
        text: document.getElementById("where").textContent,
        units: document.querySelector("#counts dd").textContent,
        count: document.querySelector('[data-node="n1"] .count').textContent,
        marks: [...document.querySelectorAll("#curves .now")].map((each) => each.getAttribute("x1")).join(),
        events: document.getElementById("events").textContent,
        slider: Number(document.getElementById("epoch").value),
    }))()"""
    with chromium() as (page, complaints, requests):
        visit(page, tmp_path / "page.html")
        assert "recommended" in page.evaluate(state)["text"]
        page.evaluate("document.getElementById('epoch').focus()")
        page.keyboard.press("Home")
        first = page.evaluate(state)
        assert (first["text"], first["slider"], first["events"]) == ("epoch 0", 0, "the start")
        page.keyboard.press("ArrowRight")
        second = page.evaluate(state)
        assert second["text"] == "epoch 1" and second["marks"] != first["marks"]
        page.keyboard.press("End")
        last = page.evaluate(state)
        assert last["text"].startswith("front: network 6")
        assert (last["units"], last["count"]) != (first["units"], first["count"])

        page.evaluate("document.querySelector('#front-chart .main').focus()")
        page.keyboard.press("Enter")
        smallest = page.evaluate("data.front[0].epoch")
        assert page.evaluate(state)["text"].startswith(f"front: network {smallest}")
        page.evaluate("document.querySelector('#test-chart .main').focus()")
        page.keyboard.press("Enter")
        extracted = page.evaluate("data.extracted")
        assert page.evaluate(state)["text"] == f"front: network {extracted}, recommended"
        page.evaluate("document.querySelector('[data-show=\"whole\"]').click()")
        assert page.evaluate(state)["count"] == "6 of 6"
        page.evaluate("document.getElementById('play').click()")
        played = "new Promise((done) => setTimeout(() => done(now), 1500))"
        page.evaluate("show(0)")
        assert page.evaluate(played) > 0

        before = page.evaluate("document.querySelector('.sheet').style.cssText")
        page.evaluate("""(() => { const views = document.querySelector('.wipe select');
            views.value = "0 3"; views.dispatchEvent(new Event('change')); })()""")
        last = "document.querySelector('.wipe img.b').src === document.querySelector('.wipe [data-view=\"3\"]').src"
        assert page.evaluate(last)
        page.evaluate("""for (const [kind, value] of [['.cut', 20], ['.zoom', 3]]) {
            const slider = document.querySelector(kind); slider.value = value; slider.dispatchEvent(new Event('input'));
        }""")
        after = page.evaluate("document.querySelector('.sheet').style.cssText")
        assert "scale(3)" in after and after != before
        assert "<script>" in page.evaluate("document.querySelector('h1').textContent")
        for width, dark in ((400, False), (1280, True)):
            visit(page, tmp_path / "page.html", width=width, dark=dark)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
        visit(page, tmp_path / "both.html", width=400)
        assert page.evaluate("document.querySelectorAll('#fronts circle').length") == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        compare_with_a_chain(copied)
        write_report([Run.open(copied)], tmp_path / "compared.html")
        visit(page, tmp_path / "compared.html")
        drawn, dots = page.locator(".other"), page.locator("#test-chart circle[role=button]")
        assert (drawn.count(), dots.count(), drawn.is_visible()) == (1, 2, False)
        dots.last.focus()
        page.keyboard.press("Enter")
        assert drawn.is_visible() and "n1" in drawn.text_content()
        (copied / "path.json").unlink()
        write_report([Run.open(copied)], tmp_path / "empty.html")
        visit(page, tmp_path / "empty.html")
        assert "no search path" in page.evaluate("document.body.textContent")
        assert complaints == [] and requests == []
