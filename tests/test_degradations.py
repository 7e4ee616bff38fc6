"""Missing pixels and smaller pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nas.cli import main
from nas.models import DagNet, conv_skip_autoencoder
from nas.search import Inpaint, Picture, SearchConfig, SuperResolve, denoise_sheet, held_out, predict, score
from nas.search.data.images import to_array
from nas.search.tasks.degradations import masked
from tests.test_denoise import darkening, pixels, put_network

x = torch.arange(72.0)
SMOOTH = Picture("smooth", (0.5 + 0.2 * torch.sin(x[:, None] / 7) + 0.2 * torch.cos(x / 5))[None])


@pytest.fixture
def mask(tmp_path):
    """A picture of 10 x 6 pixels that is black in its first column."""
    pixels = np.full((6, 10), 200, np.uint8)
    pixels[:, 0] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


def test_random_pixels_are_missing_and_the_network_is_told():
    clean = torch.rand(4, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    seen = Inpaint(0.3).observe(clean, torch.Generator().manual_seed(0))
    picture, known = seen[:, :3], seen[:, 3:]
    assert known.unique().tolist() == [0, 1]
    assert known.mean().item() == pytest.approx(0.7, abs=0.02)
    assert torch.equal(picture, torch.where(known > 0, clean, 0.5))
    assert torch.equal(Inpaint(0.3).picture(seen), picture)


def test_a_given_mask_is_repeated_from_a_random_place(mask):
    task = Inpaint(mask=mask)
    known = task.observe(torch.rand(60, 1, 33, 45), torch.Generator().manual_seed(0))[:, 1]
    assert known.shape == (60, 33, 45)
    assert {int(each[0].argmin()) for each in known} == set(range(10))
    for each in known:
        assert torch.equal(each, each[:1].expand_as(each))
        assert torch.equal(each[:, 10:], each[:, :-10])
        assert each[0, :10].sum() == 9
    assert "10 % pixels of the mask" in str(task)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_smaller_picture_is_seen_in_its_old_size(scale):
    task = SuperResolve(scale)
    (example,) = held_out([Picture("a", SMOOTH.pixels[:, :, :71])], task)
    assert example.observed.shape == example.target.shape == (1, 72 // scale * scale, 71 // scale * scale)
    inside = (..., slice(8, -8), slice(8, -8))
    assert (example.observed - example.target)[inside].abs().max() < 0.02  # smooth pictures survive
    assert torch.allclose(task.observe(torch.full((2, 3, 12, 12), 0.3), torch.Generator()), torch.tensor(0.3))
    stripes = (torch.arange(24) % 2).float().expand(1, 24, 24)
    assert task.observe(stripes, torch.Generator())[inside].std() < 0.15  # what is finer does not


@pytest.mark.parametrize(
    ("task", "name", "gain"), [(Inpaint(0.5), "biharmonic", 10), (SuperResolve(2), "unsharp", 0.0)]
)
def test_classical_methods(task, name, gain):
    validation, test = held_out([SMOOTH], task, seed=1), held_out([SMOOTH], task, seed=2)
    _, outputs = task.trivial(test)
    results = task.baselines([], validation, test)
    assert set(results) == {name}
    assert results[name]["psnr"] >= score(test, outputs, task)["psnr"] + gain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpaint(0), r"missing must lie in \(0, 1\), got 0"),
        (lambda: Inpaint(mask="no.png"), "the mask no.png cannot be read: No such file"),
        (lambda: SuperResolve(5), "scale must be 2, 3 or 4, got 5"),
        (lambda: SuperResolve(3).batches([SMOOTH], crop=16, batch=1, steps=1), "a multiple of the scale 3, got 16"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_must_have_both(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="must be black where pixels are missing, and not black elsewhere"):
        Inpaint(mask=str(tmp_path / "black.png"))


@pytest.mark.parametrize(
    ("task", "options", "extra"), [("inpaint", {"missing": 0.3}, 1), ("superresolve", {"scale": 3}, 0)]
)
def test_supernets_fit_the_task(task, options, extra):
    config = SearchConfig(task=task, task_options=options, model="conv_skip_autoencoder", model_options={"depth": 1})
    made, net = config.make_task(None), config.build()
    assert net.plan.extra == extra
    (example,) = held_out([SMOOTH], made)
    (output,) = predict(net, [example.observed])
    assert output.shape == example.target.shape


def place_run(place, task, net, **options):
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text(SearchConfig(task=task, task_options=options).to_yaml())
    put_network(place, net)
    Image.fromarray(to_array(SMOOTH.pixels)).save(place / "a.png")


def test_missing_pixels_are_filled_in_and_the_others_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = darkening()
    place_run(tmp_path, "inpaint", fill := DagNet(net.plan.with_extra(1)))
    with torch.no_grad():
        for p in fill.parameters():
            p.zero_()
        fill.named_nodes()["out"].bias.fill_(0.25)  # what is grey becomes 0.75
    put_network(tmp_path, fill)
    before = pixels("a.png")
    known = np.random.default_rng(0).random(before.shape) > 0.3
    Image.fromarray((known * 255).astype(np.uint8)).save("mask.png")
    assert main(["denoise", "run", "a.png", "-o", "b.png", "--mask", "mask.png", "--tile=20"]) == 0
    after = pixels("b.png")
    assert np.array_equal(after[known], before[known])
    assert set(after[~known]) == {191}
    capsys.readouterr()
    Image.fromarray((known[1:] * 255).astype(np.uint8)).save("mask.png")
    assert main(["denoise", "run", "a.png", "-o", "c.png", "--mask", "mask.png"]) == 2
    assert "the mask has 72 x 71 pixels, a.png 72 x 72" in capsys.readouterr().err
    assert main(["denoise", "run", "a.png", "-o", "c.png"]) == 2
    assert "--mask FILE, black where pixels are missing, goes with" in capsys.readouterr().err


def test_pictures_are_magnified(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place_run(tmp_path, "superresolve", darkening(), scale=3)
    assert main(["denoise", "run", "a.png", "-o", "b.png", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert pixels("b.png").shape == (216, 216)
    assert pixels(result["files"][1]).shape == (216, 216 + 8 + 216)
    with pytest.raises(ValueError, match="sees 2 channels beside the picture; it is no denoiser"):
        two = DagNet(conv_skip_autoencoder(depth=1, width=1).plan.with_extra(2))
        denoise_sheet(two, None)


def test_masked_pictures_have_their_mask_behind_them():
    seen = masked(torch.ones(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert seen.tolist() == [[[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
