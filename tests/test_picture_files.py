"""Pictures that stay in their files because they do not fit into memory."""

import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nas.search import Denoise, class_folder, folder, held_out, random_crops
from nas.search.data import files
from nas.search.data.batches import ahead
from nas.search.data.files import Files, PictureFile
from nas.search.data.formats.files import read_size
from nas.search.data.images import read_picture
from nas.search.data.sources import pairs
from nas.search.tasks.classification import Classify
from nas.search.tasks.unclean import Paired

BUDGET = 2**14  # bytes: a few tiny pictures


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(files, "MEMORY", BUDGET)


def write(path, height=12, width=15, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_many(root, count=120):
    for k in range(count):
        write(root / f"{k % 3}" / f"{k:03}.{('png', 'tif', 'bmp')[k % 3]}", 12 + k % 5, 14 + k % 4, seed=k)
    return root


def both(monkeypatch, load):
    """The same data in memory and in files."""
    in_memory = load()
    monkeypatch.setattr(files, "MEMORY", BUDGET)
    in_files = load()
    assert not isinstance(in_memory.train, Files)
    assert all(isinstance(part, Files) for part in (in_files.train, in_files.validation, in_files.test))
    return in_memory, in_files


def check_equal(one, other):
    for pairs_of_tensors in zip(one, other, strict=True):
        for x, y in zip(*pairs_of_tensors, strict=True):
            assert torch.equal(x, y) and x.stride() == y.stride()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_in_files_gives_the_same_batches_and_examples(tmp_path, monkeypatch, channels):
    write_many(tmp_path)
    data = both(monkeypatch, lambda: folder(tmp_path, channels))
    task = Denoise(25)
    for epoch in (1, 2):
        check_equal(*(task.batches(each.train, crop=10, batch=8, steps=6, seed=3)(epoch) for each in data))
    for parts in ([each.validation for each in data], [each.test for each in data]):
        for example, other in zip(held_out(parts[0], task), parts[1], strict=True):
            assert example.name == other.name and torch.equal(example.target, other.pixels)


def test_pairs_in_files_give_the_same_batches(tmp_path, monkeypatch):
    for k in range(40):
        write(tmp_path / "clean" / f"{k:02}.png", seed=k)
        write(tmp_path / "noisy" / f"{k:02}.bmp", seed=100 + k)
    data = both(monkeypatch, lambda: pairs(tmp_path))
    check_equal(*(Paired().batches(each.train, crop=10, batch=5, steps=6)(1) for each in data))
    assert torch.equal(data[0].test[1].noisy, data[1].test[1].noisy)


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_in_files_give_the_same_batches_and_moments(tmp_path, monkeypatch, channels):
    for k in range(120):
        write(tmp_path / "ab"[k % 2] / f"{k:03}.png", seed=k)
    data = both(monkeypatch, lambda: class_folder(tmp_path, channels))
    assert data[0].mean == data[1].mean and data[0].std == data[1].std
    task = Classify(data[0].classes, data[0].mean, data[0].std, flip=True, shift=2)
    check_equal(*(task.batches(each.train, crop=1, batch=8, steps=30)(1) for each in data))


def test_the_start_reads_headers_alone_and_later_no_more_is_kept_than_fits(tmp_path, monkeypatch, small_memory):
    write_many(tmp_path)
    reads = []
    monkeypatch.setattr(files, "read_picture", lambda path, given: reads.append(path.name) or read_picture(path, given))
    data = folder(tmp_path)
    batches = random_crops(data.train, Denoise(25), crop=10, batch=4, steps=2)
    data.fingerprint()
    assert not reads
    list(batches(1))
    assert 0 < len(reads) <= 8
    kept = BUDGET // (4 * 16 * 17)  # float32 of the largest
    for k in range(kept):
        data.train[k]
    reads.clear()
    for k in (*range(kept), kept, 0):
        data.train[k]
    assert len(reads) == 2  # one more, and the one that it took the place of
    assert len(held_out(data.test, Denoise(25))) == 12 // 6  # an eighth of the memory has room for one


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_header_says_the_size_of_the_upright_picture(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    file = write(tmp_path / f"a.{suffix}", exif=exif)
    assert read_size(file) == read_picture(file).shape[:2] == ((12, 15) if orientation < 5 else (15, 12))


def test_a_header_says_the_size_of_the_first_frame(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 12, 15), np.uint16))
    tifffile.imwrite(tmp_path / "planes.tif", np.zeros((3, 12, 15), np.uint8), photometric="rgb")
    Image.fromarray(np.zeros((12, 15), np.uint8)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    write(tmp_path / "a.gif")
    assert {read_size(file) for file in tmp_path.iterdir()} == {(12, 15)}


def test_damage_is_said_when_it_is_met_and_in_the_header_at_the_start(tmp_path, small_memory):
    write_many(tmp_path)
    broken = write(tmp_path / "broken.png", 40, 40)
    broken.write_bytes(broken.read_bytes()[:2000])
    grown = write(tmp_path / "grown.png")
    data = folder(tmp_path)
    write(grown, 13, 15)
    with pytest.raises(ValueError, match=r"the picture .*broken.png is truncated, damaged or too large"):
        data.train[-2]
    with pytest.raises(ValueError, match=r"grown.png has 15 x 13 pixels, not the 15 x 12 that stood in its header"):
        list(ahead(random_crops(data.train[-1:], Denoise(25), crop=10, batch=1, steps=1))(1))
    grown.unlink()
    with pytest.raises(FileNotFoundError, match=r"grown\.png"):
        data.train.several([0, len(data.train) - 1])
    broken.write_bytes(broken.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"the picture .*broken.png is truncated"):
        folder(tmp_path)
    broken.unlink()
    write(tmp_path / "flat.png", 9, 40)
    with pytest.raises(ValueError, match=r"flat.png has 40 x 9 pixels, smaller than the crop of 10"):
        random_crops(folder(tmp_path).train, Denoise(25), crop=10, batch=1, steps=1)


def test_a_fingerprint_knows_names_sizes_and_bytes_but_not_the_folder(tmp_path, small_memory):
    write_many(tmp_path / "here")
    known = folder(tmp_path / "here").fingerprint()
    there = (tmp_path / "here").rename(tmp_path / "there")
    assert folder(there).fingerprint() == known
    for change in (
        lambda file: file.write_bytes(file.read_bytes() + b"."),
        lambda file: file.rename(file.with_name("x.png")),
    ):
        change(there / "0" / "000.png")
        assert folder(there).fingerprint() != known
        known = folder(there).fingerprint()


def test_labels_are_a_part_of_what_is_known(tmp_path):
    file = PictureFile(tmp_path, "a.png", (1, 12, 15), 7)
    assert (file.memory, replace(file, label=1).memory) == (4 * 12 * 15, 12 * 15)
    assert replace(file, noisy=file).files == (replace(file, noisy=file), file)


def threads():
    return {thread for thread in threading.enumerate() if thread is not threading.main_thread()}


def test_what_is_made_ahead_is_the_same_and_its_thread_ends(tmp_path, small_memory):
    data, before = folder(write_many(tmp_path)), threads()
    batches = random_crops(data.train, Denoise(25), crop=10, batch=3, steps=7)
    check_equal(batches(4), ahead(batches)(4))
    one = ahead(batches)(4)
    next(one)
    one.close()  # as when a signal, or an exception, ends an epoch
    assert threads() == before


def test_made_ahead_is_what_comes_next_and_no_more():
    made = []

    def batches(epoch):
        for k in range(10):
            made.append(k)
            yield torch.tensor(k), torch.tensor(k)
            if k == 6:
                raise ValueError("the picture a.png is damaged")

    pairs = ahead(batches)(1)
    assert [int(x) for x, _ in islice(pairs, 3)] == [0, 1, 2]
    assert len(made) <= 5
    rest = []
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        rest.extend(int(x) for x, _ in pairs)
    assert rest == [3, 4, 5, 6]
