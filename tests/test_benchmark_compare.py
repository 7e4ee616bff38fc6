"""The comparison of benchmarks/compare.py, with tiny sizes."""

import json

import pytest

from benchmarks import compare, score
from nas.models import conv_skip_autoencoder
from nas.models.sample import random_subnet
from nas.search.retraining.competitors import fresh

TINY = [
    "--sizes", "1200", "--steps", "20", "--batch", "2", "--crop", "16", "--validate", "1", "--rates", "0.005", "0.01",
    "--families", "chain1", "--random", "2", "--model", "conv_skip_autoencoder",
    "--model-options", '{"depth": 2, "width": 12}',
]  # fmt: skip


@pytest.fixture
def words(data_root):
    return ["--train", str(data_root), "--test", str(data_root), *TINY]


def test_every_network_is_a_line_and_is_trained_once(words, tmp_path, capsys, monkeypatch):
    found = tmp_path / "found"
    fresh(random_subnet(conv_skip_autoencoder(depth=2, width=12).plan, 1000, 0))(0).save_pretrained(found)
    words += ["--seeds", "2", "--run", str(found), "--out", str(tmp_path / "results.jsonl")]
    compare.main(words)
    printed = capsys.readouterr().out
    first, *_ = printed.splitlines()
    assert first.split()[:5] == ["chain", "of", "one", "hidden", "layer,"]
    stored = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(stored) == 1 + 2 + 2 + 1 + 2  # of the size of the found network, then of 1200 parameters
    assert [len(each["test"]) for each in stored] == [2, 2, 2, 1, 1, 2, 1, 1]
    assert f"{found}, its weights: rank " in printed and f"{found}, from scratch: rank " in printed
    assert "among 2 random networks and itself" in printed
    assert "random network, best of 2" in printed

    monkeypatch.setattr(compare, "compete", lambda *_: pytest.fail("trained again"))
    compare.main(words)
    assert capsys.readouterr().out == printed


def test_other_settings_are_other_results(words, tmp_path):
    file = tmp_path / "results.jsonl"
    short = [*words, "--seeds", "1", "--random", "0", "--out", str(file)]
    for more in ([], ["--sigma", "15"], ["--steps", "30"], ["--sigma", "15"]):
        compare.main([*short, *more])
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sizes", "0"], "an integer of at least 1, got '0'"),
        (["--random", "x"], "an integer of at least 0, got 'x'"),
        (["--families", "chain"], "there is no network 'chain'"),
        (["--model-options", "[1]"], "must be a JSON object, got '[1]'"),
        (["--model-options", '{"deep": 2}'], "the options of the supernet do not suit it"),
        (["--model", "tree"], "tree"),
        (["--validate", "3"], "holds 4 pictures, too few to validate on 3"),
        (["--crop", "100"], "smaller than the crop of 100"),
        (["--rates", "0"], "rates must be > 0, got 0.0"),
        (["--train", "nowhere"], "nowhere: No such file or directory"),
        (["--run", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, more, message, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([*words, *more])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_networks_that_see_other_squares_are_refused(words, tmp_path, capsys):
    net = conv_skip_autoencoder(depth=2, width=4, patch=1)
    net.save_pretrained(tmp_path / "pixels")
    with pytest.raises(SystemExit):
        compare.main([*words, "--run", str(tmp_path / "pixels")])
    assert "works on squares of 1 x 1 pixels, the supernet on 2 x 2" in capsys.readouterr().err


def test_a_damaged_file_of_results_is_refused(words, tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    file.write_text('{"key": 1}\n')
    with pytest.raises(SystemExit):
        compare.main([*words, "--out", str(file)])
    assert "has a line that is no result of a network" in capsys.readouterr().err


def test_a_size_without_random_networks_is_said(words, capsys):
    compare.main([*words, "--sizes", "9000", "--steps", "1", "--seeds", "1", "--families"])
    assert "no random network of 8550 to 9000 parameters was found in a supernet of" in capsys.readouterr().out


def test_scores_of_stored_networks(tmp_path, data_root, capsys):
    conv_skip_autoencoder(depth=1, width=2).save_pretrained(tmp_path / "net")
    score.main(["--test", str(data_root), str(tmp_path / "net")])
    count, first, line = capsys.readouterr().out.splitlines()
    assert count.endswith(" pictures")
    assert first.startswith("noisy: PSNR 2")
    assert line.startswith(f"{tmp_path / 'net'}: 150 parameters: PSNR ")
    with pytest.raises(SystemExit, match="2"):
        score.main(["--test", str(data_root), str(tmp_path / "nowhere")])
    assert "No such file or directory" in capsys.readouterr().err
