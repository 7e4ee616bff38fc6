"""Data sets whose pictures have classes: all of one size, kept as bytes."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas.search.data.dataset import Pictures, split
from nas.search.data.files import PictureFile, find_pictures, gather
from nas.search.data.images import warn_of_skipped
from nas.search.data.stack import Stack

VALIDATION = 5_000  # the last training pictures of a data set of torchvision


def mnist(root: Path, *, download: bool = False, channels: int = 1) -> Pictures:
    """Ten digits, 28 x 28 grey: 55,000 to train, 5,000 to validate (the last for training), 10,000 to test.

    Raises:
        ValueError: the data set is not in ``root`` and ``download`` is False, or the download failed.
    """
    return _of_torchvision("MNIST", root, download, channels)


def fashion_mnist(root: Path, *, download: bool = False, channels: int = 1) -> Pictures:
    """Ten kinds of clothes; sizes, split and errors as of `mnist`."""
    return _of_torchvision("FashionMNIST", root, download, channels)


def cifar10(root: Path, *, download: bool = False, channels: int = 1) -> Pictures:
    """Ten kinds of things, 32 x 32 colour: 45,000 to train, 5,000 to validate (the last for training), 10,000 to test.

    Errors as of `mnist`.
    """
    return _of_torchvision("CIFAR10", root, download, channels)


def _of_torchvision(name: str, root: Path, download: bool, channels: int) -> Pictures:
    from nas.search.data.vision import import_torchvision

    kind = getattr(import_torchvision().datasets, name)
    try:
        train, test = (kind(root, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as problem:
        hint = f"the download failed: {problem}" if download else "fetch it with --download"
        raise ValueError(f"{name} is not in the folder {root}; {hint}") from None
    except Exception:  # whatever a damaged file makes its reader raise
        raise ValueError(f"the files of {name} in the folder {root} are damaged; fetch them again") from None
    pictures = _stack(train, "train", channels)
    return Pictures(
        pictures[:-VALIDATION], pictures[-VALIDATION:], _stack(test, "test", channels), tuple(map(str, train.classes))
    )


def _stack(part: Any, name: str, channels: int) -> Stack:
    """A part of a torchvision data set: ``data`` are bytes (n, height, width) or (n, height, width, 3)."""
    pixels = torch.as_tensor(part.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Stack([f"{name}{k}" for k in range(len(pixels))], pixels, torch.as_tensor(part.targets), channels)


def class_folder(root: Path, channels: int = 1) -> Pictures:
    """Pictures of one size, one folder per class; or train/ and test/, each with one folder per class.

    Within each class and in the order of their names every tenth picture, counted from the fifth, is for validation
    and, without train/ and test/, the one after it for the test (at least the last one or two where there are fewer).
    Pictures are kept with 8 bits per value. Files that are not pictures are skipped; a warning counts them.

    Raises:
        ValueError: no such folder, fewer than 2 classes, other classes in test/ than in train/, a class with too few
            pictures, a damaged picture or one of another size.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    tops = [root / "train", root / "test"] if (root / "train").is_dir() and (root / "test").is_dir() else [root]
    classes = _class_names(tops)
    skipped: list[str] = []
    found = [
        [
            [replace(file, label=label) for file in find_pictures(top / name, root, channels, skipped)]
            for label, name in enumerate(classes)
        ]
        for top in tops
    ]
    warn_of_skipped(skipped, root)
    parts: tuple[list[PictureFile], ...] = ([], [], [])
    num_held_out = 3 - len(tops)
    for name, pictures in zip(classes, found[0], strict=True):
        if len(pictures) <= num_held_out:
            count = len(pictures)
            raise ValueError(f"the class {name!r} in {tops[0]} has {count} pictures; it needs {num_held_out + 1}")
        for part, indices in zip(parts, split(len(pictures), num_held_out), strict=False):
            part += [pictures[k] for k in indices]
    if len(tops) == 2:
        parts[2].extend(itertools.chain(*found[1]))
        if not parts[2]:
            raise ValueError(f"{tops[1]} holds no picture")
    _check_sizes([*itertools.chain(*parts)])
    return Pictures(*gather(parts, _join), classes)


def _class_names(tops: Sequence[Path]) -> tuple[str, ...]:
    """The names of the folders in each of ``tops``, which must agree."""
    first, *others = (
        tuple(sorted(path.name for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")))
        for top in tops
    )
    if len(first) < 2:
        raise ValueError(f"{tops[0]} holds {len(first)} folders; each class needs one, and there must be 2 or more")
    if others and others[0] != first:
        odd = min(set(first).symmetric_difference(others[0]))
        raise ValueError(f"the class {odd!r} is in only one of {tops[0]} and {tops[1]}")
    return first


def _check_sizes(pictures: Sequence[PictureFile]) -> None:
    first = pictures[0]
    for odd in pictures:
        if odd.shape != first.shape:
            here, there = (f"{width} x {height}" for _, height, width in (odd.shape, first.shape))
            raise ValueError(
                f"pictures with classes must be of one size, but {odd.name} has {here} pixels, {first.name} {there}"
            )


def _join(pictures: Sequence[PictureFile]) -> Stack:
    pixels, labels = torch.stack([file.decode() for file in pictures]), torch.tensor([file.label for file in pictures])
    return Stack([file.name for file in pictures], pixels, labels, pictures[0].shape[0])
