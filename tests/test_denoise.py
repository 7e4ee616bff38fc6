"""nas denoise: one picture, folders, patterns, standard input and output, and what can go wrong."""

import errno
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.odd_files import STEP
from nas.cli import main
from nas.models import conv_skip_autoencoder, mlp
from nas.models.store import fingerprint
from nas.search import SearchConfig

GREY = np.arange(35, 245, dtype=np.uint8).reshape(14, 15)
DARKER = GREY - np.uint8(32)  # 32 of 255 is nearly STEP


def darkening(**options):
    """A network that takes `STEP` from every pixel."""
    net = conv_skip_autoencoder(depth=1, width=1, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.named_nodes()["out"].bias.fill_(-STEP)
    return net


def put_network(place, net):
    """Make it the compact network of the run."""
    net.save_pretrained(place / "run" / "compact")
    hashes = dict.fromkeys(("supernet", "compact"), fingerprint(net))
    record = {"epoch": 1, "certificate": {"hashes": hashes}}
    (place / "run" / "compact" / "certificate.json").write_text(json.dumps(record))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run whose network darkens, and a folder with three pictures, one of them deeper, and two other files."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(SearchConfig().to_yaml())
    put_network(tmp_path, darkening())
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.tif", "sub/c.png"):
        Image.fromarray(GREY).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place, capsys):
    """Calls ``nas denoise run``; returns the exit code, the JSON object, and what was said."""

    def call(*words):
        code = main(["denoise", "run", *map(str, words)])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        lines = output.out.splitlines()
        return code, json.loads(lines[-1]) if "--json" in words and code != 2 else lines, output.err.strip()

    return call


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_one_picture_and_both_side_by_side(call, place):
    code, result, said = call("in/a.png", "-o", "a.png", "--json")
    assert (code, said) == (0, "")
    assert result["files"] == ["a.png", "a-before-after.png"]
    assert np.abs(pixels("a.png") - DARKER.astype(int)).max() <= 1
    both = pixels("a-before-after.png")
    assert np.array_equal(both[:, :15], GREY)
    assert np.array_equal(both[:, -15:], pixels("a.png"))
    before = {file: file.read_bytes() for file in place.rglob("*.png")}
    assert call("in/a.png", "-o", "a.png")[0] == 2
    assert call("in/a.png", "-o", "in/a.png", "--force")[0] == 2
    assert {file: file.read_bytes() for file in place.rglob("*.png")} == before
    assert call("in/a.png", "-o", "a.png", "--force", "--tile=3")[0] == 0
    assert {file: file.read_bytes() for file in place.rglob("*.png")} == before


def test_a_folder_keeps_names_and_goes_on(call, place):
    code, result, said = call("in", "-o", "out", "--json")
    assert (code, said) == (0, "")
    assert result["files"] == ["out/a.png", "out/b.tif", "out/sub/c.png"]
    assert result["not_pictures"] == ["in/notes.txt"]
    assert not list((place / "out").rglob("*before*"))
    (place / "out" / "a.png").unlink()
    Image.fromarray(GREY).save(place / "in" / "d.png")
    code, result, _ = call("in", "-o", "out", "--json")
    assert result["files"] == ["out/a.png", "out/d.png"]
    assert result["earlier"] == ["out/b.tif", "out/sub/c.png"]
    assert len(call("in", "-o", "out", "--force", "--json")[1]["files"]) == 4


def test_what_a_killed_process_had_begun_to_write_is_removed(call, place):
    for folder in (place, place / "out" / "sub", place / "out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".unfinished-ab12cd34.png").write_bytes(b"half")
    (place / "out" / ".mine.old").write_bytes(b"kept")
    assert call("in/a.png", "-o", "a.png")[0] == 0
    assert call("in", "-o", "out")[0] == 0
    assert not list(place.rglob(".unfinished-*"))
    assert (place / "out" / ".mine.old").read_bytes() == b"kept"


def test_what_fails_does_not_stop_the_others(call, place):
    (place / "in" / "aa.png").write_bytes((place / "in" / "a.png").read_bytes()[:45])
    (place / "in" / "bad.png").write_text("no picture")
    code, result, said = call("in", "-o", "out", "--json")
    assert code == 1
    assert list(result["failed"]) == ["in/aa.png", "in/bad.png"]
    assert len(result["files"]) == 3
    assert said.splitlines()[1] == "nas denoise: in/bad.png is not a picture"
    assert "aa.png is truncated, damaged or too large" in said.splitlines()[0]
    assert call("in/notes.txt", "in/a.png", "-o", "other", "--json")[1]["failed"] == {
        "in/notes.txt": "in/notes.txt is not a picture"
    }


def test_several_files_and_patterns(call):
    assert call("in/a.png", "in/b.tif", "-o", "out", "--json")[1]["files"] == ["out/a.png", "out/b.tif"]
    assert call("in/a.png", "in/a.png", "-o", "once", "--json")[1]["files"] == ["once/a.png"]
    assert call("in/*.png", "-o", "other", "--json")[1]["files"] == ["other/a.png"]
    assert call("in/**/*.png", "-o", "third", "--json")[1]["files"] == ["third/a.png", "third/c.png"]


def test_a_name_may_look_like_a_pattern(call, place):
    (place / "in" / "a.png").rename(place / "in" / "a[1].png")
    code, result, _ = call("in/a[1].png", "--json")
    assert (code, result["files"][0]) == (0, "in/a[1]-clean.png")


def test_an_output_inside_of_the_input_is_no_input(call):
    assert len(call("in", "-o", "in/out", "--json")[1]["files"]) == 3
    assert len(call("in", "-o", "in/out", "--json")[1]["earlier"]) == 3


def test_standard_input_and_output(call, place, monkeypatch):
    sent = io.BytesIO()
    Image.fromarray(GREY).save(sent, "BMP")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(sent.getvalue())))
    received = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=received, flush=lambda: None))
        assert main(["denoise", "run", "-", "-o", "-"]) == 0
    with Image.open(received) as image:
        assert image.format == "BMP"
        assert np.abs(np.asarray(image) - DARKER.astype(int)).max() <= 1
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(sent.getvalue()[:40])))
    assert call("-", "-o", "x.png")[2].startswith("nas denoise: the picture standard input is truncated, damaged")


def test_a_loss_is_said(call, place):
    rgba = np.dstack([GREY, GREY, GREY, GREY])
    Image.fromarray(rgba).save(place / "rgba.png", dpi=(300, 300))
    code, result, said = call("rgba.png", "-o", "x.jpg", "--json")
    assert code == 0
    assert result["notes"] == ["a file .jpg holds no transparency"]
    assert said == "nas denoise: rgba.png: a file .jpg holds no transparency"
    with Image.open("x.jpg") as image:
        assert image.info["dpi"] == (300, 300)
        assert image.layers == 3 and {layer[1:3] for layer in image.layer} == {(1, 1)}  # 4:4:4
        assert max(image.quantization[0]) <= 12  # 95 or better
    assert call("rgba.png", "-o", "y.bmp", "--json")[1]["notes"] == ["a file .bmp holds no transparency"]


def test_a_range_is_given(call, place):
    import tifffile

    tifffile.imwrite(place / "hu.tif", GREY.astype(np.int16) - 1000)
    code, _, said = call("hu.tif", "-o", "x.tif")
    assert (code, said.endswith("such as --range=-965:-756")) == (2, True)
    assert call("hu.tif", "-o", "x.tif", "--range=-1000:-745")[0] == 0
    assert tifffile.imread(place / "x.tif").dtype == np.int16
    notes = ["its values of type int16 become integers of 16 bits", "its values beyond -900 and -800 are cut off"]
    assert call("hu.tif", "-o", "z.png", "--range=-900:-800", "--json")[1]["notes"] == notes
    tifffile.imwrite(place / "words.tif", GREY, description="words")
    assert call("words.tif", "-o", "y.png", "--json")[1]["notes"] == ["a file .png does not keep its TIFF tags"]
    assert np.abs(tifffile.imread(place / "x.tif") - (DARKER.astype(int) - 1000)).max() <= 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_stops_and_leaves_what_is_finished(call, place, monkeypatch, code):
    save = Image.Image.save

    def fail(self, stream, *words, **options):
        stream.write(b"half of a ")
        raise OSError(code, "No space left on device")

    assert call("in/a.png", "in/b.tif", "-o", "out")[0] == 0
    monkeypatch.setattr(Image.Image, "save", fail)
    exit_code, _, said = call("in", "-o", "out")
    assert (exit_code, said) == (2, "nas denoise: out/sub/c.png: No space left on device")
    assert sorted(file.name for file in (place / "out").rglob("*") if file.is_file()) == ["a.png", "b.tif"]
    monkeypatch.setattr(Image.Image, "save", save)
    assert call("in", "-o", "out", "--json")[1]["files"] == ["out/sub/c.png"]


def test_a_full_disk_under_tifffile_is_said(call, place, monkeypatch):
    import tifffile

    def fail(*words, **options):
        raise OSError("210 requested and 0 written")  # of numpy, without a number

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    sentence = "nas denoise: x.tif: it was not written whole; is the disk full?"
    assert call("in/b.tif", "-o", "x.tif")[::2] == (2, sentence)
    assert not list(place.glob("*x*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("in", "-o", "in"), "in/a.png is a picture to be cleaned; choose another -o"),
        (("in", "-o", "in/a.png"), "in/a.png is a file; several pictures need a folder as -o"),
        (
            ("in/a.png", "in/sub/../a.png", "-o", "out"),
            "in/a.png and in/sub/../a.png would both become out/a.png; clean them into different folders",
        ),
        (("in/a.png", "nowhere.png", "-o", "out"), "there is no file or folder nowhere.png"),
        (("nowhere/*.png", "-o", "out"), "no file matches nowhere/*.png"),
        (("in/a.png", "-", "-o", "out"), "- stands for one picture; name one picture and one file, or -, with -o"),
        (("-", "-o", "in"), "- stands for one picture"),
        (("in/a.png", "-o", "-", "--json"), "--json and -o - both write to standard output"),
        (("in/a.png", "-o", "x"), "cannot write x: pictures without suffix cannot be written: choose a suffix such as"),
        (("in/a.png", "-o", "x.psd"), "cannot write x.psd: pictures .psd cannot be written: choose a suffix such as"),
        (("in/a.png", "-o", "x.png", "--tile=0"), "the side of a tile must be an integer of at least 1 pixel, got 0"),
        (("in", "-o", "out", "--tile=-8"), "the side of a tile must be an integer of at least 1 pixel, got -8"),
        (("in/a.png", "-o", "x.png", "--range=5"), "a range must be two different numbers BLACK:WHITE, such as 0:4095"),
        (("in/a.png", "-o", "x.png", "--range=5:5"), "a range must be two different numbers"),
        (("in/a.png", "-o", "x.png", "--range=nan:5"), "a range must be two different numbers"),
    ],
)
def test_bad_words_are_one_sentence_and_leave_nothing(call, place, words, sentence):
    before = sorted(place.rglob("*"))
    code, _, said = call(*words)
    assert code == 2
    assert sentence in said and "\n" not in said
    assert sorted(place.rglob("*")) == before


def test_a_network_that_returns_no_picture(call, place):
    put_network(place, mlp(outputs=3, patch=7))
    for words in (("in/a.png", "-o", "x.png"), ("in", "-o", "out")):
        code, _, said = call(*words)
        assert (code, said.endswith("it cannot restore a picture")) == (2, True)


def test_a_colour_network_sees_grey_three_times(call, place):
    put_network(place, darkening(channels=3))
    assert call("in/a.png", "-o", "x.png")[0] == 0
    assert np.abs(pixels("x.png") - DARKER.astype(int)).max() <= 1
