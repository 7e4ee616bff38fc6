"""Pictures of one's own: subfolders, parts of their own, pairs, and no clean pictures at all."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nas.cli import main
from nas.search import Denoise, Picture, Pictures, SearchConfig, estimate_sigma, folder, held_out, load_data, score
from nas.search.data.sources import pairs
from nas.search.tasks.unclean import Neighbours, NoiseToNoise, Paired, Recorrupted

WAVES = [
    0.5 + 0.4 * torch.sin(torch.arange(96.0)[:, None] / (k + 3)) * torch.cos(torch.arange(80.0) / (k + 4))
    for k in range(6)
]


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(255 * np.asarray(pixels)), 0, 255).astype(np.uint8)).save(path)


def noisy(clean, sigma, seed):
    return clean + sigma / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def names(pictures):
    return [picture.name for picture in pictures]


def test_subfolders_are_read_and_hidden_files_are_not(tmp_path):
    for name in ("b.png", "a/c.png", "a/d/e.png", ".hidden/f.png", "a/.g.png"):
        write(tmp_path / name, WAVES[0])
    data = folder(tmp_path)
    assert names([*data.train, *data.validation, *data.test]) == ["a/c.png", "a/d/e.png", "b.png"]


def test_parts_have_folders_of_their_own(tmp_path):
    for k in range(12):
        write(tmp_path / "train" / f"{k:02}.png", WAVES[0])
    for name in ("val/a.png", "test/b.png"):
        write(tmp_path / name, WAVES[1])

    def parts(**roots):
        roots = {name: tmp_path / root for name, root in roots.items()}
        data = load_data("folder", root=tmp_path / "train", **roots)
        return len(data.train), names(data.validation), names(data.test)

    assert parts() == (10, ["04.png"], ["05.png"])
    assert parts(val_root="val") == (11, ["a.png"], ["04.png"])
    assert parts(val_root="val", test_root="test") == (12, ["a.png"], ["b.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty holds no pictures"):
        parts(val_root="empty")
    with pytest.raises(
        ValueError, match="--val-root goes with the data folder, pairs, noisy_pairs, not with 'pictures'"
    ):
        load_data("pictures", val_root=tmp_path)
    with pytest.raises(ValueError, match="--range goes with the data folder, pairs, noisy_pairs, not with 'mnist'"):
        load_data("mnist", root=tmp_path, given=(0, 255))


@pytest.mark.parametrize("in_memory", [True, False])
def test_noise_beyond_black_and_white_is_kept(tmp_path, monkeypatch, in_memory):
    """Clipping it would shift its mean, which is what learning without clean pictures rests on."""
    if not in_memory:
        monkeypatch.setattr("nas.search.data.files.MEMORY", 1)
    for k in range(3):
        pixels = 1000 + 200 * noisy(WAVES[k], 60, k).numpy()
        for name in ("noisy", "noisy2"):
            path = tmp_path / name / f"{k}.tif"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.float32)).save(path)
    with pytest.raises(ValueError, match=r"0.tif has values from .* say which are black and white"):
        load_data("folder", root=tmp_path / "noisy").train[0]
    data = load_data("folder", root=tmp_path / "noisy", given=(1000, 1200))
    torch.testing.assert_close(data.train[0].pixels[0], noisy(WAVES[0], 60, 0), atol=1e-5, rtol=0)
    assert data.train[0].pixels.min() < -0.2
    pair = load_data("noisy_pairs", root=tmp_path, given=(1000, 1200)).train[0]
    assert torch.equal(pair.pixels, data.train[0].pixels)
    assert torch.equal(pair.noisy, data.train[0].pixels)


def write_pairs(root, second="clean"):
    for k, wave in enumerate(WAVES):
        write(root / "noisy" / "sub" / f"{k}.png", noisy(wave, 25, k))
        write(root / second / "sub" / f"{k}.tif", wave if second == "clean" else noisy(wave, 25, 100 + k))
    return root


def test_pairs_are_matched_by_name(tmp_path):
    data = pairs(write_pairs(tmp_path))
    assert names(data.train) == [f"sub/{k}.tif" for k in range(4)]
    for picture, wave in zip(data.train, WAVES, strict=False):
        assert (picture.pixels - wave).abs().max() < 0.01
        assert 255 * (picture.noisy - picture.pixels).std().item() == pytest.approx(25, rel=0.05)
    other = pairs(write_pairs(tmp_path, "noisy2"), second="noisy2")
    assert data.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("noisy/sub/x.png", (96, 80), r"sub/x.png has no partner in .*clean"),
        ("clean/sub/x.png", (96, 80), r"sub/x.png has no partner in .*noisy"),
        ("clean/sub/0.tif", (90, 80), r"the pair sub/0 in .* has two sizes: 80 x 96 and 80 x 90 pixels"),
        ("clean/sub/0.png", (96, 80), r"sub/0.png and sub/0.tif in .*clean differ in their suffix alone"),
    ],
)
def test_pairs_that_are_none(tmp_path, name, shape, message):
    write(write_pairs(tmp_path) / name, torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        pairs(tmp_path)


def test_pairs_are_cut_and_turned_alike(tmp_path):
    pictures = [Picture(str(k), wave[None], noisy=wave[None] + 1) for k, wave in enumerate(WAVES)]
    for observed, target in Paired().batches(pictures, crop=16, batch=8, steps=2)(1):
        torch.testing.assert_close(observed, target + 1)
    (example,) = held_out(pictures[:1], Paired())
    assert torch.equal(example.observed, pictures[0].noisy)
    assert torch.equal(example.target, pictures[0].pixels)


CLEAN = torch.stack(WAVES)[:, None].repeat(1, 1, 4, 4)  # as large as estimates of the error need


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])  # of the clean picture, in what is scored
@pytest.mark.parametrize("kind", [NoiseToNoise, Recorrupted])
def test_estimated_psnr_is_that_of_clean_pictures(kind, mix):
    sigma = 25
    pictures = [
        Picture(str(k), noisy(each, sigma, k), noisy=noisy(each, sigma, 100 + k)) for k, each in enumerate(CLEAN)
    ]
    task = NoiseToNoise() if kind is NoiseToNoise else Recorrupted(sigma)
    examples = held_out(pictures, task, seed=1000)
    outputs = [(1 - mix) * e.observed + mix * (clean + 0.02) for e, clean in zip(examples, CLEAN, strict=True)]
    errors = [(output - clean).square().mean() for output, clean in zip(outputs, CLEAN, strict=True)]
    psnr = np.mean([-10 * math.log10(error) for error in errors])
    assert score(examples, outputs, task) == {"psnr_estimate": pytest.approx(psnr, abs=0.5 if mix == 1 else 0.1)}


def test_without_clean_pictures_the_gradient_is_that_of_clean_ones_in_the_mean():
    """The best constant factor on the observation, by each loss, is that for the squared error to the clean picture."""
    sigma, generator = 25, torch.Generator().manual_seed(0)
    wave = CLEAN - CLEAN.mean()
    y = noisy(wave, sigma, 1)

    def best_factor(task, pictures):
        observed, target = task.pair(pictures, generator)
        factor = torch.tensor(0.5, requires_grad=True)
        (slope,) = torch.autograd.grad(task.loss(factor * observed, target), factor)
        return factor.item() - slope.item() / (2 * observed.square().mean().item())

    power, variance = wave.square().mean().item(), (sigma / 255) ** 2
    ideal = power / (power + variance)
    assert best_factor(NoiseToNoise(), torch.cat([y, noisy(wave, sigma, 2)], 1)) == pytest.approx(ideal, abs=0.005)
    assert best_factor(Neighbours(), y) == pytest.approx(ideal, abs=0.02)  # neighbours are not quite alike
    assert best_factor(Recorrupted(sigma), y) == pytest.approx(power / (power + 1.04 * variance), abs=0.005)


def test_neighbours_are_neighbours():
    places = torch.arange(60.0).reshape(1, 1, 6, 10).expand(2, 3, -1, -1)
    first, second = Neighbours().pair(places, torch.Generator().manual_seed(0))
    assert first.shape == second.shape == (2, 3, 3, 5)
    assert set((first - second).abs().unique().tolist()) == {1.0, 10.0}
    assert (first - places[..., ::2, ::2]).unique().tolist() == [0.0, 1.0, 10.0, 11.0]
    assert torch.equal(first[:, :1].expand_as(first), first)  # all channels of one pixel
    odd = Neighbours().pair(torch.rand(1, 7, 5), torch.Generator())[0]
    assert odd.shape == (1, 3, 2)


def test_the_level_of_noisy_pictures_is_estimated():
    data = Pictures([Picture(str(k), noisy(each, 25, k)) for k, each in enumerate(CLEAN)], [], [])
    assert data.sigma == pytest.approx(25, rel=0.05)
    config = SearchConfig(clean="none", sigma="auto")
    assert config.make_task(data) == Recorrupted(data.sigma)
    assert 255 * estimate_sigma(data.train[0].pixels)[0] == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, Denoise),
        ({"data": "pairs"}, Paired),
        ({"data": "noisy_pairs"}, NoiseToNoise),
        ({"clean": "none"}, Recorrupted),
        ({"clean": "none", "sigma": "auto"}, Recorrupted),
        ({"clean": "none", "sigma": "unknown"}, Neighbours),
    ],
)
def test_what_is_learnt_follows_from_the_pictures(options, kind):
    config = SearchConfig(**options)
    assert config.task_class is kind
    assert config.headline is kind.metrics[0]
    assert SearchConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": "none", "task": "deblur"}, "clean none goes with the task denoise alone, got deblur"),
        ({"clean": "none", "data": "pairs"}, "clean none goes with single pictures, not with the data pairs"),
        ({"clean": "some"}, "clean must be given or none, got 'some'"),
        ({"clean": "none", "sigma": "5:55"}, "a range of sigma needs clean pictures, got 5:55 with clean none"),
        ({"sigma": "auto"}, "sigma auto goes with clean none; noise is added to clean pictures"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**options)


SMALL = [
    "--model=conv_skip_autoencoder", "--model-options={depth: 2, width: 4}", "--epochs=1", "--steps=10", "--crop=16",
    "--refit=1", "--fit=5", "--sizes=auto",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (["--data=noisy_pairs"], "psnr_estimate", "the PSNR is unknown, an estimate counts"),
        (["--data=folder", "--clean=none", "--sigma=auto"], "psnr_estimate", "the PSNR is unknown, an estimate counts"),
        (["--data=folder", "--clean=none", "--sigma=unknown"], "fit", "the PSNR is unknown, the fit"),
    ],
)
def test_search_extract_retrain_use_and_report_without_clean_pictures(
    tmp_path, monkeypatch, capsys, options, key, said
):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "data", "noisy2")

    def call(*words):
        assert main([*words, "--json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1]), "\n".join(lines)

    result, text = call("search", *options, "--data-root=data", *SMALL, "--out=run")
    assert said in text
    assert math.isfinite(result[key]) and "psnr" not in result
    call("extract", "run")
    result, _ = call("retrain", "run", "--epochs=1")
    assert math.isfinite(result[key]) and "psnr" not in result
    shown = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert {name.rpartition("-")[2] for name in shown if "-" in name} >= {"noisy.png", "restored.png"}
    assert not any("clean" in name for name in shown)
    call("denoise", "run", "data/noisy/sub/0.png", "-o", "cleaned.png")
    call("report", "run")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_found_network_is_tuned_to_other_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for k, wave in enumerate(WAVES):
        write(tmp_path / "clean" / f"{k}.png", wave)
        write(tmp_path / "noisy" / f"{k}.png", noisy(wave, 25, k))
    assert main(["search", "--data=folder", "--data-root=clean", *SMALL, "--out=run", "--sizes=none"]) == 0
    assert main(["extract", "run"]) == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    assert main(["retrain", "run", "--epochs=1"]) == 0
    words = ["retrain", "run", "--epochs=1", "--data-root=noisy", "--clean=none", "--sigma=auto", "--json"]
    capsys.readouterr()
    assert main(words) == 2
    assert "was retrained on other pictures, or for other noise; --force replaces it" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "psnr_estimate" in result
    assert not result["kept"]
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    for words, message in (
        (["--sigma=5:55"], "sees 0 channels beside the picture; sigma 5:55 needs 1"),
        (["--data-root=missing"], "there is no folder"),
        (["--clean=some"], "clean must be given or none, got 'some'"),
        (["--data=cats"], "unknown data 'cats'"),
        (["--range=5"], "a range must be two different numbers BLACK:WHITE, such as 0:4095, got '5'"),
    ):
        assert main(["retrain", "run", *words]) == 2
        assert message in capsys.readouterr().err
