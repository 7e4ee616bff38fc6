"""Networks that come with the package: whole, as good as their cards say they are for, and used by name."""

import json

import pytest
import torch
from skimage import data, io
from skimage.metrics import peak_signal_noise_ratio

from nas.cli import main
from nas.models import DagNet, separable_autoencoder
from nas.models.families import hand_made
from nas.models.price import total
from nas.search import Run, SearchConfig
from nas.search.data.images import to_array
from nas.search.data.vision import import_torchvision
from nas.search.runs.networks import load_compact, load_retrained
from nas.search.tasks.noise import with_level
from nas.search.tasks.use import colours, opponent
from nas.search.zoo.denoiser import Denoiser
from nas.search.zoo.shipped import DEFAULT, Shipped, find_shipped, load, shipped
from tests.nets import random_weights

NAMES = [each.name for each in shipped()]


@pytest.fixture(scope="module")
def camera():
    return torch.from_numpy(data.camera()[128:256, 160:288].copy())[None, None] / 255


def test_there_are_some_and_one_is_the_default():
    assert DEFAULT in NAMES
    assert [each.params for each in shipped()] == sorted(each.params for each in shipped())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_its_card_says(name):
    card = find_shipped(name)
    net = card.load()
    assert (net.plan.num_params, net.plan.channels, net.plan.extra) == (card.params, 1, 1)
    assert total(net.plan, "flops") == card.flops
    assert sum(file.stat().st_size for file in card.folder.iterdir()) < 200_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_each_removes_noise(name, sigma, camera):
    """On a picture that none was trained on, at least 4 dB at any level."""
    noisy = camera + sigma / 255 * torch.randn(camera.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = Denoiser(load(name))(noisy, sigma / 255)
    before, after = (peak_signal_noise_ratio(camera.numpy(), each.numpy(), data_range=1) for each in (noisy, restored))
    assert after > before + 4


def test_a_changed_network_is_refused(tmp_path, monkeypatch):
    card = shipped()[0]
    for file in card.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    net = load(tmp_path)
    with torch.no_grad():
        net.nodes["out"].bias[0] += 1e-3
    net.save_pretrained(tmp_path)
    monkeypatch.setattr(Shipped, "folder", tmp_path)
    with pytest.raises(ValueError, match=r"is not the one that its card\.json is of; install it anew"):
        card.load()


def test_a_picture_is_cleaned_right_after_installation(tmp_path, monkeypatch, capsys, camera):
    monkeypatch.chdir(tmp_path)
    noisy = camera + 25 / 255 * torch.randn(camera.shape, generator=torch.Generator().manual_seed(0))
    io.imsave("photo.png", to_array(noisy[0]))
    assert main(["denoise", "photo.png", "--sigma", "25", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["files"] == ["photo-clean.png", "photo-clean-before-after.png"]
    assert result["network"].endswith(DEFAULT)
    clean = camera[0, 0].numpy()
    assert peak_signal_noise_ratio(clean, io.imread("photo-clean.png") / 255, data_range=1) > 26
    assert main(["denoise", "photo.png", "--network", NAMES[0], "-o", "other.png"]) == 0
    load(NAMES[0]).save_pretrained("mine")
    assert main(["denoise", "photo.png", "--network", "mine", "-o", "third.png", "--sigma", "25"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--network", "blue"], "there is no network 'blue'; there are grey-"),
        (["photo.png", "--max-params", "4k"], "is a single network; what chooses among several goes with a run folder"),
        (["photo.png", "--sigma", "90"], "sigma is 90.0, and the network was trained for 5 to 55"),
        (["photo.png", "photo.png"], "several pictures, and standard input, need -o"),
        (["-"], "several pictures, and standard input, need -o"),
        (["nowhere.png"], "nowhere.png: No such file"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    io.imsave("photo.png", to_array(torch.rand(1, 40, 40)))
    assert main(["denoise", *words]) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_the_list(capsys):
    assert main(["zoo", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert [each["name"] for each in json.loads(last)["networks"]] == NAMES


def told(channels):
    """A small network that is told the level of the noise."""
    torch.manual_seed(0)
    like = separable_autoencoder(channels, depth=1, width=4, hidden=4).plan.with_extra(1)
    return random_weights(DagNet(hand_made("chain1", like, 4))).float()


def test_each_picture_of_a_batch_has_its_own_level():
    net, x, sigma = told(1), torch.rand(2, 2, 8, 10), torch.tensor([0.1, 0.2])
    restored = Denoiser(net)(x, sigma)
    for k, level in enumerate(sigma):
        expected = [net(with_level(channel[None], level)[None])[0] for channel in x[k]]
        torch.testing.assert_close(restored[k], torch.cat(expected))
    assert not torch.equal(Denoiser(net)(x, 0.1), Denoiser(net)(x, 0.2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pictures_keep_their_type(dtype, channels):
    denoiser, x, sigma = Denoiser(told(1)), torch.rand(1, channels, 8, 10).to(dtype), torch.tensor(0.125)
    restored = denoiser(x, sigma)
    assert restored.dtype == dtype
    torch.testing.assert_close(restored, denoiser(x.float(), sigma).to(dtype))


@pytest.mark.parametrize(
    ("x", "sigma", "sentence"),
    [
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 0.1, "x must hold floats.*got uint8"),
        (torch.zeros(1, 4, 4), 0.1, r"got float32 of shape \(1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), -0.1, "a number >= 0, or one for each of the 2 pictures, got -0.1"),
        (torch.zeros(2, 1, 4, 4), torch.ones(3), "one for each of the 2 pictures"),
    ],
)
def test_bad_calls(x, sigma, sentence):
    with pytest.raises(ValueError, match=sentence):
        Denoiser(told(1))(x, sigma)


def test_a_denoiser_is_compiled_as_one_graph():
    denoiser, x, sigma = Denoiser(told(1)), torch.rand(2, 3, 8, 10), torch.tensor([0.1, 0.2])
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, sigma), denoiser(x, sigma))
    torch.export.export(denoiser, (x, sigma))


def test_grey_networks_see_colours_as_brightness_and_differences(tmp_path, monkeypatch):
    """Better than channel by channel, in files, too; the two ways are inverse."""
    clean = torch.from_numpy(data.astronaut()[:160, 160:320].copy()).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(colours(opponent(clean)), clean)
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(load(DEFAULT))
    with torch.no_grad():
        restored = denoiser(noisy, 25 / 255)
        alone = denoiser(noisy.transpose(0, 1), 25 / 255).transpose(0, 1)
    errors = [(each - clean).square().mean().log10() for each in (restored, alone)]
    assert errors[0] < errors[1] - 0.05  # 0.5 dB
    monkeypatch.chdir(tmp_path)
    io.imsave("photo.png", to_array(noisy[0]))
    assert main(["denoise", "photo.png", "--sigma", "25"]) == 0
    seen = torch.from_numpy(io.imread("photo.png").copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = io.imread("photo-clean.png").astype(int), to_array(denoiser(seen, 25 / 255)[0]).astype(int)
    assert abs(expected[0] - expected[1]).max() <= 1


def test_colour_networks_see_colours_together():
    net, x = told(3), torch.rand(2, 3, 8, 10)
    torch.testing.assert_close(Denoiser(net)(x, 0.1), net(with_level(x, torch.tensor(0.1))))
    with pytest.raises(ValueError, match="is for pictures with 3 channels, got 2"):
        Denoiser(net)(x[:, :2], 0.1)


def test_deepinv_takes_it(camera):
    """A step of plug-and-play gradient descent, as deepinv makes it."""
    import_torchvision()
    deepinv = pytest.importorskip("deepinv", reason="deepinv is an extra")
    net = Denoiser(load(DEFAULT))
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    prior, y = deepinv.optim.PnP(denoiser=net), camera + 0.1 * torch.randn(camera.shape)
    with torch.no_grad():
        restored = prior.prox(physics.A_adjoint(y), sigma_denoiser=0.1)
    torch.testing.assert_close(restored, net(y, 0.1))


@pytest.fixture(scope="module")
def adopted(data_root, tmp_path_factory):
    """The run folder of a shipped network, tuned."""
    run = tmp_path_factory.mktemp("adopted") / "run"
    words = ["--data=folder", f"--data_root={data_root}", "--epochs=1", "--batch=1", "--crop=16", f"--out={run}"]
    assert main(["retrain", "grey-4k", *words]) == 0
    return run


def test_a_shipped_network_is_retrained_in_a_run_of_its_own(adopted, tmp_path, capsys):
    run, x = Run.open(adopted), torch.rand(2, 2, 20, 22)
    [only] = run.front()
    for net in (run.supernet(only.snapshot.epoch), load_compact(run)):
        torch.testing.assert_close(net(x), find_shipped("grey-4k").load()(x), atol=1e-6, rtol=0)
    tuned, result = load_retrained(run)
    assert tuned.plan == find_shipped("grey-4k").load().plan
    assert set(result["by_condition"]) == {"sigma 15", "sigma 25", "sigma 50"}
    assert main(["verify", str(adopted)]) == 0
    assert main(["export", str(adopted), "--format=python", f"--out={tmp_path / 'net.py'}"]) == 0
    assert main(["resume", str(adopted)]) == 2
    assert "so that the search cannot go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "problem"),
    [
        ("grey-4k", ["--sigma=25"], "grey-4k is told the level of the noise: sigma must be a range, got 25.0"),
        ("grey-4k", ["--data=nothing"], "unknown data 'nothing'"),
        ("grey-9k", [], "there is no network 'grey-9k'; there are grey-4k, grey-15k, grey-28k, run folders"),
    ],
)
def test_bad_tunings_are_refused(tmp_path, capsys, name, words, problem):
    assert main(["retrain", name, f"--out={tmp_path / 'run'}", *words]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_clean_pictures_a_network_that_is_told_levels_is_not_tuned(tmp_path, capsys):
    for k in range(4):
        io.imsave(tmp_path / f"{k}.png", to_array(torch.rand(1, 64, 64)))
    words = ["--data=folder", f"--data-root={tmp_path}", "--clean=none", "--sigma=25", f"--out={tmp_path / 'run'}"]
    assert main(["retrain", "grey-4k", *words]) == 2
    assert "it learns from clean pictures alone, got data folder with clean none" in capsys.readouterr().err


def test_a_run_is_not_replaced_unasked(adopted, capsys):
    assert main(["retrain", "grey-4k", f"--out={adopted}"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["retrain", str(adopted), f"--out={adopted}"]) == 2
    assert "what is retrained stays in it" in capsys.readouterr().err


def test_a_shipped_topology_is_for_its_channels():
    with pytest.raises(ValueError, match="grey-4k takes pictures of 1 channel, got channels=3"):
        SearchConfig(model="grey-4k", sigma="5:55", channels=3).build()
