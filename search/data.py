"""Data sources: clean pictures for training, validation and test, split by picture."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas.search.images import NotAPictureError, read_picture, to_tensor

# The photographs that ship inside scikit-image. Fixed; listed in docs/data.md.
TRAIN = (
    "astronaut", "brick", "cell", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "stereo_motorcycle", "text",
)  # fmt: skip
VALIDATION = ("cat", "coins")
TEST = ("camera", "coffee", "rocket")


@dataclass(frozen=True)
class Picture:
    """A clean picture: its name and its pixels, float32 of shape (channels, height, width) in [0, 1]."""

    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Pictures:
    """A data set. Each picture is in one part only."""

    train: Sequence[Picture]
    validation: Sequence[Picture]
    test: Sequence[Picture]


def load_data(source: str, *, root: Path | None = None, download: bool = False, channels: int = 1) -> Pictures:
    """The pictures of a named source.

    Args:
        source: a key of `SOURCES`.
        root: folder of the pictures ("folder") or of the data set ("mnist").
        download: fetch a data set that is missing ("mnist").
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: unknown source, unsuitable options, or pictures that cannot be used.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown data {source!r}; there are {', '.join(sorted(SOURCES))}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    return SOURCES[source](root, download, channels)


def pictures(channels: int = 1) -> Pictures:
    """The photographs that ship inside scikit-image: 12 to train, 2 to validate, 3 to test."""
    from skimage import data

    def load(names: Sequence[str]) -> list[Picture]:
        arrays = [getattr(data, name)() for name in names]
        firsts = [array[0] if isinstance(array, tuple) else array for array in arrays]  # the left picture of a pair
        return [Picture(name, to_tensor(array, channels)) for name, array in zip(names, firsts, strict=True)]

    return Pictures(load(TRAIN), load(VALIDATION), load(TEST))


def folder(root: Path, channels: int = 1) -> Pictures:
    """The pictures of a folder (not of its subfolders), in the order of their names.

    Every tenth picture, counted from the fifth, is for validation and the one after it for the test (at least the
    last two pictures where there are fewer). Files that are not pictures are skipped; a warning counts them.

    Raises:
        ValueError: no such folder, fewer than 3 pictures in it, or a damaged picture.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    found, skipped = [], []
    for path in sorted(path for path in root.iterdir() if path.is_file()):
        try:
            found.append(Picture(path.name, to_tensor(read_picture(path), channels)))
        except NotAPictureError:
            skipped.append(path.name)
    if skipped:
        warnings.warn(f"skipped {len(skipped)} files in {root} that are not pictures: {_some(skipped)}", stacklevel=2)
    if len(found) < 3:
        raise ValueError(
            f"the folder {root} holds {len(found)} pictures; a search needs at least 3 (training, validation, test)"
        )
    return _split(found)


def _split(found: Sequence[Picture]) -> Pictures:
    validation, test = found[4::10], found[5::10]
    if not test:
        validation, test = found[-2:-1], found[-1:]
    held_out = {id(picture) for picture in (*validation, *test)}
    return Pictures([picture for picture in found if id(picture) not in held_out], validation, test)


def mnist(root: Path, *, download: bool = False, channels: int = 1) -> Pictures:
    """MNIST: 55,000 pictures of 28 x 28 to train, the next 500 to validate, the first 1,000 test pictures to test.

    Raises:
        ValueError: the data set is not in ``root`` and ``download`` is False, or the download failed.
    """
    from nas.search.vision import import_torchvision

    datasets = import_torchvision().datasets
    try:
        train, test = (datasets.MNIST(root, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as problem:
        hint = f"the download failed: {problem}" if download else "fetch it with --download"
        raise ValueError(f"MNIST is not in the folder {root}; {hint}") from None
    except (ValueError, AssertionError):
        raise ValueError(f"the files of MNIST in the folder {root} are damaged; fetch them again") from None

    def part(pixels: Tensor, first: int, last: int, name: str) -> list[Picture]:
        scaled = (pixels[first:last, None].float() / 255).expand(-1, channels, -1, -1)
        return [Picture(f"{name}{k}", picture) for k, picture in enumerate(scaled, first)]

    return Pictures(
        part(train.data, 0, 55_000, "train"),
        part(train.data, 55_000, 55_500, "train"),
        part(test.data, 0, 1_000, "test"),
    )


def _pictures(root: Path | None, download: bool, channels: int) -> Pictures:
    if root is not None or download:
        raise ValueError("the data 'pictures' ships with scikit-image and takes neither a data root nor a download")
    return pictures(channels)


def _folder(root: Path | None, download: bool, channels: int) -> Pictures:
    if root is None or download:
        raise ValueError("the data 'folder' needs --data-root FOLDER and takes no download")
    return folder(root, channels)


def _mnist(root: Path | None, download: bool, channels: int) -> Pictures:
    if root is None:
        raise ValueError("the data 'mnist' needs --data-root FOLDER, where the data set is or is to be downloaded to")
    return mnist(root, download=download, channels=channels)


SOURCES: dict[str, Callable[[Path | None, bool, int], Pictures]] = {
    "pictures": _pictures,
    "folder": _folder,
    "mnist": _mnist,
}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
