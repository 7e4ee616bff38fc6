"""The benchmark of the classics, on a few made-up pictures."""

import json

import numpy as np
import pytest
import torch

from benchmarks.classics import main, make_net, make_optimizer, parser
from nas.search.data.images import write_picture

TINY = ["--model", "resnet20", "--epochs", "2", "--pictures", "12", "--validation", "4", "--batch", "6"]


@pytest.fixture
def data(tmp_path):
    """Twenty pictures of noise, bright or dark, and eight to test."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for label, offset in (("bright", 100), ("dark", 0)):
            (tmp_path / part / label).mkdir(parents=True)
            for k in range(count):
                pixels = offset + generator.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                write_picture(tmp_path / part / label / f"{k}.png", pixels)
    return tmp_path


def run(data, *options):
    """The lines of the log, without what differs between two runs."""
    log = data / "log.jsonl"
    log.unlink(missing_ok=True)
    main(["--data-root", str(data), "--log", str(log), *TINY, *options])
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (["--optimizer", "adam"], 1, 1),
        (["--groups", "entries", "--lam", "1"], 0.08, 0.12),  # nothing can wake in 4 steps
        (["--groups", "units", "--lam", "1", "--bfloat16"], 0.08, 0.12),
        (["--groups", "kernels", "--lam", "1", "--optimizer", "linbreg", "--lr", "0.1"], 0.08, 0.12),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_every_epoch_is_logged(data, options, low, high):
    lines = run(data, *options, "--test")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(low <= line["density"] <= high for line in lines)
    assert all(0 <= line["validation"] <= 1 and line["loss"] > 0 for line in lines[1:])
    assert "test" not in lines[1] and 0 <= lines[2]["test"] <= 1
    assert lines[2]["exact"] <= 1e-10 and lines[2]["compact"] <= 1
    assert lines[2]["options"]["pictures"] == 12


def test_the_same_seed_gives_the_same_run(data):
    first, second, other = (run(data, "--seed", seed) for seed in "001")
    assert first == second and first[-1]["loss"] != other[-1]["loss"]
    assert "test" not in first[-1]


def test_no_layer_but_the_first_and_the_last_stays_dense():
    """The linear layer of the ConvNet has most of its weights."""
    for groups in ("entries", "kernels", "units"):
        options = parser().parse_args(["--data-root", ".", "--model", "fashion_convnet", "--groups", groups])
        net = make_net(options)
        make_optimizer(net, options, torch.randn(8, 1, 28, 28))
        assert [p.count_nonzero() < 0.2 * p.numel() for p in net.parameters() if p.ndim > 1] == [
            False,
            True,
            True,
            False,
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pictures", "18"], "ask for 22 training pictures, there are 20"),
        (["--epochs", "0"], "--epochs: must be a whole number >= 1, got 0"),
        (["--model", "mnist_mlp"], "Dataset not found"),
        (["--lam", "-1"], "lam"),
        (["--without-norm"], "--without-norm is for vgg13 and vgg16, not for resnet20"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(data, capsys, options, message):
    with pytest.raises(SystemExit, match="^2$"):
        main(["--data-root", str(data), *TINY, *options])
    assert message in capsys.readouterr().err
