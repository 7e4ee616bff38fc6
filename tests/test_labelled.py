"""Data sets with classes: their formats, their splits, and what is said about bad ones."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nas.search import (
    Denoise,
    Picture,
    Pictures,
    Stack,
    cifar10,
    class_folder,
    fashion_mnist,
    held_out,
    load_data,
    mnist,
)
from nas.search.data.dataset import split
from nas.search.data.images import to_tensor


def write_mnist(folder):
    """In the format of the data set, with its numbers of pictures."""
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count) % 251
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.array([2049, count], ">i4").tobytes() + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_cifar10(folder):
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        index = 10_000 * number + np.arange(10_000)
        data = np.zeros((10_000, 3, 32, 32), np.uint8)
        data[:, :, 0, 0] = (index % 250)[:, None] + np.arange(3)
        (folder / name).write_bytes(pickle.dumps({"data": data.reshape(10_000, -1), "labels": (index % 10).tolist()}))
    names = {"label_names": [f"kind{k}" for k in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


@pytest.mark.parametrize(("load", "name"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_mnist_is_split(tmp_path, load, name):
    write_mnist(tmp_path / name / "raw")
    data = load(tmp_path, channels=3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    assert len(data.classes) == 10
    first = data.validation[0]
    assert (first.name, first.label) == ("train55000", 0)
    assert first.pixels.shape == (3, 28, 28)
    assert first.pixels[:, 0, 0].tolist() == pytest.approx([55_000 % 251 / 255] * 3)
    assert data.test[13].label == 3
    assert data.mean == pytest.approx([data.train.pixels.double().mean().item() / 255] * 3)


def test_cifar10_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data = cifar10(tmp_path, channels=3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert data.classes[:2] == ("kind0", "kind1")
    picture = data.validation[7]
    assert (picture.name, picture.label) == ("train45007", 7)
    assert (255 * picture.pixels[:, 0, 0]).tolist() == pytest.approx([7, 8, 9])
    grey = cifar10(tmp_path).validation[7]
    torch.testing.assert_close(grey.pixels, to_tensor(data.validation.pixels[7].permute(1, 2, 0).numpy(), 1))


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10])
def test_missing_data_say_how_to_get_them(tmp_path, load):
    with pytest.raises(ValueError, match=r"is not in the folder .*; fetch it with --download"):
        load(tmp_path)


def test_damaged_data_are_named(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\x00garbage")
    with pytest.raises(ValueError, match="the files of MNIST in the folder .* are damaged; fetch them again"):
        mnist(tmp_path)


@pytest.mark.parametrize("source", ["class_folder", "cifar10", "fashion_mnist"])
def test_the_data_root_is_asked_for(source):
    with pytest.raises(ValueError, match=f"the data '{source}' needs --data-root FOLDER"):
        load_data(source)


def write_classes(root, counts, size=(6, 5)):
    """Pictures whose grey value names the class and the number of the picture."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(np.full(size, 50 * label + k, np.uint8)).save(root / name / f"{k:02}.png")


def grey_values(part):
    return [round(255 * picture.pixels[0, 0, 0].item()) for picture in part]


def test_a_folder_of_classes(tmp_path):
    write_classes(tmp_path, {"b": 12, "a": 3})
    with pytest.warns(UserWarning, match="skipped 1 files in .* that are not pictures: notes.txt"):
        (tmp_path / "a" / "notes.txt").write_text("not a picture")
        data = class_folder(tmp_path)
    assert data.classes == ("a", "b")
    assert [grey_values(part) for part in (data.validation, data.test)] == [[51, 4], [52, 5]]
    assert grey_values(data.train) == [50, 0, 1, 2, 3, *range(6, 12)]
    assert [picture.label for picture in data.train] == [0, *[1] * 10]
    assert [picture.name for picture in data.test] == ["a/02.png", "b/05.png"]
    assert data.train[0].pixels.shape == (1, 6, 5)


def test_a_folder_of_classes_with_a_test_part(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 7})
    write_classes(tmp_path / "test", {"a": 1, "b": 4})
    data = class_folder(tmp_path, channels=3)
    assert [grey_values(part) for part in (data.train, data.validation)] == [[0, 50, 51, 52, 53, 55, 56], [1, 54]]
    assert grey_values(data.test) == [0, 50, 51, 52, 53]
    assert data.test[0].name == "test/a/00.png"
    assert data.train[0].pixels.shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "holds 0 folders; each class needs one, and there must be 2 or more"),
        ({"a": 5}, "holds 1 folders; each class needs one"),
        ({"a": 5, "b": 2}, "the class 'b' in .* has 2 pictures; it needs 3"),
        ({"train/a": 1, "train/b": 2, "test/a": 1, "test/b": 1}, "the class 'a' in .*train has 1 pictures; it needs 2"),
        ({"train/a": 2, "train/b": 2, "test/a": 1}, "the class 'b' is in only one of .*train and .*test"),
        ({"train/a": 2, "train/b": 2, "test/a": 0, "test/b": 0}, "test holds no picture"),
    ],
)
def test_bad_folders_of_classes(tmp_path, folders, message):
    write_classes(tmp_path, folders)
    with pytest.raises(ValueError, match=message):
        class_folder(tmp_path)


def test_a_folder_of_classes_that_is_missing_or_of_several_sizes(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        class_folder(tmp_path / "nowhere")
    write_classes(tmp_path, {"a": 3, "b": 3})
    Image.fromarray(np.zeros((7, 8), np.uint8)).save(tmp_path / "b" / "odd.png")
    with pytest.raises(ValueError, match="must be of one size, but b/odd.png has 8 x 7 pixels, a/00.png 5 x 6"):
        class_folder(tmp_path)


@pytest.mark.parametrize("count", range(2, 40))
@pytest.mark.parametrize("num_held_out", [1, 2])
def test_a_split_takes_everything_once(count, num_held_out):
    if count > num_held_out:
        parts = split(count, num_held_out)
        assert len(parts) == 1 + num_held_out
        assert all(parts)
        assert sorted(k for part in parts for k in part) == list(range(count))


@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stack_is_a_sequence_of_pictures(stored, channels):
    pixels = torch.randint(256, (7, stored, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stack = Stack([f"p{k}" for k in range(7)], pixels, torch.arange(7) % 3, channels)
    expected = [
        Picture(f"p{k}", to_tensor(each.permute(1, 2, 0).numpy(), channels), k % 3) for k, each in enumerate(pixels)
    ]
    assert len(stack) == len(expected)
    for some, others in ((stack, expected), (stack[1:6:2], expected[1:6:2]), (stack[-2:], expected[-2:])):
        for one, other in zip(some, others, strict=True):
            assert (one.name, one.label) == (other.name, other.label)
            torch.testing.assert_close(one.pixels, other.pixels)
    taken, labels = stack.take(torch.tensor([4, 0, 4]))
    torch.testing.assert_close(taken, torch.stack([expected[k].pixels for k in (4, 0, 4)]))
    assert labels.tolist() == [1, 0, 1]

    values = torch.stack([picture.pixels for picture in expected]).double()
    for train in (stack, expected):
        data = Pictures(train, train, train)
        assert data.mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist())
        assert data.std == pytest.approx(values.std(dim=(0, 2, 3), correction=0).tolist())


def test_labelled_pictures_can_be_restored(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3}, size=(9, 9))
    data = class_folder(tmp_path)
    assert [example.name for example in held_out(data.test, Denoise(25))] == ["a/02.png", "b/02.png"]
    x, y = next(Denoise(25).batches(data.train, crop=7, batch=2, steps=1)(1))
    assert x.shape == y.shape == (2, 1, 7, 7)
