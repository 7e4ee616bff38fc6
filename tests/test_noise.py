"""Levels of noise: one network for a range of them, estimates, and photon noise."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nas.cli import main
from nas.models import DagNet, Plan, compact, conv_skip_autoencoder
from nas.search import Deblur, Denoise, Noise, Picture, SearchConfig, denoise_pixels, estimate_sigma, held_out, score
from nas.search.data.formats.sheet import GREY as SPACE
from nas.search.data.formats.sheet import Sheet
from nas.search.data.formats.values import Values
from nas.search.tasks.anscombe import Anscombe
from nas.search.tasks.noise import with_level
from nas.search.tasks.use import OPPONENT_NOISE, denoise_sheet, opponent
from tests.test_denoise import put_network

BLIND = Denoise((5, 55))
GREY = torch.full((1, 200, 200), 0.5)


def gradual(net):
    """Let a network with a channel for the level take the level from every pixel."""
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        n1, out = net.named_nodes()["n1"], net.named_nodes()["out"]
        n1.edges["in"][0, net.plan.channels * 4, 1, 1] = 1
        out.edges["n1"][:, 0, 1, 1] = -1
    return net


def blind(channels=1):
    return gradual(DagNet(conv_skip_autoencoder(channels, depth=1, width=1).plan.with_extra(1)))


def test_each_picture_has_its_own_level_and_tells_it():
    seen = BLIND.observe(GREY[:, :40, :40].expand(300, -1, -1, -1), torch.Generator().manual_seed(0))
    assert seen.shape == (300, 2, 40, 40)
    levels = 255 * seen[:, 1, 0, 0]
    assert (255 * seen[:, 1] == levels[:, None, None]).all()
    assert 5 <= levels.min() < 7 < 53 < levels.max() <= 55
    quarters = torch.histc((levels.sqrt() - math.sqrt(5)) / (math.sqrt(55) - math.sqrt(5)), 4, 0, 1) / 300
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.05, rtol=0)
    noise = 255 * (seen[:, 0] - 0.5).std(dim=(1, 2))
    torch.testing.assert_close(noise, levels, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("ends", "levels"), [((5, 55), [15, 25, 50]), ((20, 30), [25]), ((1, 10), [1, 10]), ((50, 60), [50])]
)
def test_a_range_is_measured_at_the_usual_levels_in_it(ends, levels):
    task = Denoise(tuple(map(float, ends)))
    examples = held_out([Picture("a", GREY)], task)
    assert [example.condition for example in examples] == [f"sigma {level}" for level in levels]
    for example, level in zip(examples, levels, strict=True):
        assert 255 * task.level(example.observed) == pytest.approx(level)
        assert 255 * (example.observed[0] - 0.5).std().item() == pytest.approx(level, rel=0.02)
        assert task.picture(example.observed).shape == example.target.shape


def test_without_a_network_a_range_scores_as_its_levels_do():
    examples = held_out([Picture("a", GREY)], BLIND)
    name, outputs = BLIND.trivial(examples)
    assert name == "noisy"
    expected = np.mean([-20 * np.log10(level / 255) for level in (15, 25, 50)])
    assert score(examples, outputs, BLIND)["psnr"] == pytest.approx(expected, abs=0.05)


def test_a_blurred_picture_may_have_noise_of_a_range():
    task = Deblur((5.0, 55.0), blur=2.0, kernel=5)
    seen = task.observe(GREY, torch.Generator().manual_seed(0))
    assert (255 * (seen[0, 5:-5, 5:-5] - 0.5).std() - 255 * task.level(seen)).abs() < 1


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        ("5:300", r"sigma must lie in \(0, 255\], on the 0..255 scale, got 300.0"),
        ("55:5", "a range of sigma must rise, such as 5:55, got 55:5"),
        ("much", "sigma must be a number such as 25, or a range such as 5:55, got 'much'"),
        ("1:2:3", "sigma must be a number such as 25, or a range such as 5:55, got '1:2:3'"),
    ],
)
def test_bad_ranges(sigma, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(sigma=sigma).build()


def test_the_range_is_in_the_configuration_and_in_the_network():
    config = SearchConfig(sigma="5:55", model="conv_skip_autoencoder", model_options={"residual": False})
    assert SearchConfig.from_yaml(config.to_yaml()) == config
    assert SearchConfig(sigma="25") == SearchConfig(sigma=25.0)
    plan = config.build().plan
    assert (plan.channels, plan.extra, plan.units["in"], plan.units["out"]) == (1, 1, 8, 4)
    assert plan.nodes[1:-1] == SearchConfig(model="conv_skip_autoencoder").build().plan.nodes[1:-1]
    assert Plan.from_dict({name: value for name, value in plan.to_dict().items() if name != "extra"}).extra == 0


def test_the_level_is_seen_as_it_is_and_not_returned():
    net = blind()
    picture = torch.rand(2, 1, 9, 7)
    output = net(with_level(picture, torch.tensor(0.2)))
    torch.testing.assert_close(output, picture - 0.2)
    torch.testing.assert_close(compact(net)(with_level(picture, torch.tensor(0.2))), output)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_level_is_given_or_estimated(shape, channels):
    """A network that subtracts what it is told tells what it was told."""
    noise = np.random.default_rng(0).normal(size=shape) * np.linspace(10, 30, shape[2] if len(shape) > 2 else 1)
    pixels = np.clip(np.rint(128 + noise), 0, 255).astype(np.uint8)
    colours = pixels[..., :3] if len(shape) > 2 else pixels[..., None]
    mixed, together = channels == 1 and len(shape) > 2, channels == 3 and len(shape) > 2

    def told(noise):
        """On the scale of 255, median of each channel that the network sees."""
        restored = denoise_pixels(blind(channels), pixels, noise).reshape(*shape[:2], -1)[..., : colours.shape[2]]
        less = torch.from_numpy(colours.astype(float) - restored).permute(2, 0, 1)
        less = opponent(less) - opponent(torch.zeros_like(less)) if mixed else less
        return less.flatten(1).median(dim=1).values.numpy()

    planes = torch.from_numpy(colours / 255).permute(2, 0, 1)
    found = [255 * sigma for sigma in estimate_sigma(opponent(planes) if mixed else planes)]
    np.testing.assert_allclose(told(Noise(25)), 25 * np.array(OPPONENT_NOISE if mixed else [1] * len(planes)), atol=1)
    np.testing.assert_allclose(told(Noise()), [np.sqrt(np.mean(np.square(found)))] * 3 if together else found, atol=1)


def test_estimates_are_right_on_a_flat_picture():
    for sigma in (5, 25, 50):
        noise = torch.randn(1, 500, 500, generator=torch.Generator().manual_seed(0))
        assert 255 * estimate_sigma(0.5 + sigma / 255 * noise)[0] == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (40, 40)])
def test_a_picture_without_noise_has_none_whatever_its_size(shape):
    assert estimate_sigma(torch.full((2, *shape), 0.5)) == [pytest.approx(0, abs=1e-7)] * 2
    assert denoise_pixels(blind(), np.full(shape, 100, np.uint8)).tolist() == np.full(shape, 100).tolist()


@pytest.mark.parametrize(("peak", "sigma"), [(20.0, 0.0), (5.0, 0.02), (100.0, 0.05)])
def test_the_transform_makes_photon_noise_gaussian_and_its_inverse_is_unbiased(peak, sigma):
    generator = torch.Generator().manual_seed(0)
    stabilise = Anscombe(peak, sigma)
    for grey in (0.2, 0.5, 1.0):
        clean = torch.full((500, 500), grey)
        noisy = torch.poisson(peak * clean, generator) / peak + sigma * torch.randn(clean.shape, generator=generator)
        stable = stabilise(noisy)
        if peak * grey > 3:
            assert stable.std().item() == pytest.approx(stabilise.level, rel=0.05)
        assert stabilise.inverse(stable.mean()).item() == pytest.approx(grey, rel=0.02)
    torch.testing.assert_close(stabilise(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_photon_noise_has_the_variance_of_counting():
    seen = Denoise(10, peak=30).observe(GREY, torch.Generator().manual_seed(0))
    assert (seen - 0.5).var().item() == pytest.approx(0.5 / 30 + (10 / 255) ** 2, rel=0.02)
    with pytest.raises(ValueError, match="peak must be > 0 photons, got 0"):
        Denoise(10, peak=0)


def test_classical_methods_work_on_the_transform():
    ramp = Picture("ramp", torch.linspace(0, 1, 1280).reshape(1, 32, 40))
    task = Denoise(5, peak=30)
    validation, test = held_out([ramp], task, seed=1), held_out([ramp], task, seed=2)
    untouched = score(test, [example.observed for example in test], task)["psnr"]
    assert all(each["psnr"] > untouched + 5 for each in task.baselines([], validation, test).values())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run for noise of sigma 5 to 55, whose network takes the level from every pixel; and a picture."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(SearchConfig(sigma="5:55").to_yaml())
    put_network(tmp_path, blind())
    pixels = 128 + np.random.default_rng(0).normal(size=(64, 64)) * 20
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_on_the_command_line_the_level_is_given_or_said(place, capsys):
    def notes(*words):
        assert main(["denoise", "run", "a.png", "-o", "b.png", "--force", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["notes"]

    (note,) = notes()
    assert note.startswith("estimated noise of sigma ")
    assert float(note.split()[4]) == pytest.approx(20, rel=0.1)
    assert note.endswith(" of 255")
    Image.new("L", (64, 64), 128).save("a.png")
    assert notes() == [
        "estimated noise of sigma 0.0 of 255, taken for 5.0, the nearest that the network was trained for"
    ]
    colour = 128 + 25 * np.random.default_rng(0).normal(size=(64, 64, 3))
    Image.fromarray(np.rint(colour).astype(np.uint8)).save("a.png")
    (note,) = notes()  # seen as brightness and differences, in which the same noise has other levels
    assert [float(word.strip(",")) for word in note.split()[4:7]] == pytest.approx([25] * 3, rel=0.1)
    assert notes("--sigma", "30") == notes("--peak", "50") == []


@pytest.mark.parametrize(
    ("dtype", "white"), [("int16", 4095), ("int32", 4095), ("uint16", 4095), ("float32", 1), ("float64", 1)]
)
def test_the_level_is_estimated_alike_in_all_types_of_numbers(dtype, white):
    light = 0.5 + 20 / 255 * np.random.default_rng(0).normal(size=(64, 64, 1))
    frame = (light * white if white == 1 else np.rint(light * white)).astype(dtype)
    sheet = denoise_sheet(blind(), Sheet("a", ".tif", (frame,), SPACE, False, Values.between(0, white)))
    (note,) = sheet.notes
    assert float(note.split()[4]) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("count", [3, 4])
def test_estimates_of_many_frames_are_one_sentence(count):
    frames = tuple(np.random.default_rng(0).normal(128, 10 + 5 * k, (64, 64, 1)).astype("uint8") for k in range(count))
    notes = denoise_sheet(blind(), Sheet("a", ".tif", frames, SPACE, False, Values.between(0, 255))).notes
    assert len(notes) == (3 if count == 3 else 1)
    assert notes[-1].endswith(" of 255" if count == 3 else " of 255 in the first of 4 frames, its own in each")


def test_levels_that_a_network_does_not_know(place, capsys):
    for words, message in (
        (["--sigma", "60"], "sigma is 60.0, and the network was trained for 5 to 55"),
        (["--peak", "0.5"], "after the transform of photon noise sigma is 394.7, and the network was trained for"),
        (["--sigma", "0"], "sigma must lie in (0, 255], on the 0..255 scale, got 0.0"),
        (["--sigma", "nan"], "sigma must lie in (0, 255], on the 0..255 scale, got nan"),
        (["--sigma", "1:25"], "--sigma is the one level of these pictures, such as 25, got '1:25'"),
        (["--peak", "-1"], "peak must be > 0 photons, got -1.0"),
    ):
        assert main(["denoise", "run", "a.png", "-o", "b.png", *words]) == 2
        assert message in capsys.readouterr().err
    (place / "run" / "config.yaml").write_text(SearchConfig().to_yaml())
    assert main(["denoise", "run", "a.png", "-o", "b.png", "--sigma", "25"]) == 2
    assert "--sigma is for networks that are told the level of the noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words", "sentence"),
    [
        ({"task_options": {"peak": 30}}, ["--peak", "30"], "this one was trained on photon noise as it is"),
        ({"task": "deblur"}, ["--peak", "30"], "the task of this one is deblur"),
        ({"sigma": "5:55", "task_options": {"peak": 30}}, [], "say it with --sigma"),
        ({"sigma": "5:55", "task_options": {"peak": 30}}, ["--sigma", "10", "--peak", "30"], "photon noise as it is"),
    ],
)
def test_photon_noise_that_a_network_has_learnt_is_not_transformed(place, capsys, options, words, sentence):
    if "sigma" not in options:
        put_network(place, conv_skip_autoencoder(depth=1, width=1))
    (place / "run" / "config.yaml").write_text(SearchConfig(**options).to_yaml())
    assert main(["denoise", "run", "a.png", "-o", "b.png", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_network_that_is_not_told_the_level_after_the_transform(place, capsys):
    put_network(place, conv_skip_autoencoder(depth=1, width=1))
    (place / "run" / "config.yaml").write_text(SearchConfig().to_yaml())
    assert main(["denoise", "run", "a.png", "-o", "b.png", "--peak", "3"]) == 0
    assert "after the transform sigma is 104.1, which this network is not told" in capsys.readouterr().err
