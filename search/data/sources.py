"""Data sources: clean pictures for training, validation and test, split by picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nas.registry import Registry
from nas.search.data.images import read_folder, to_tensor, warn_of_skipped
from nas.search.data.labelled import cifar10, class_folder, fashion_mnist, mnist
from nas.search.data.stack import Picture, Pictures, split

# The photographs that ship inside scikit-image. Fixed; listed in docs/data.md.
TRAIN = (
    "astronaut", "brick", "cell", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "stereo_motorcycle", "text",
)  # fmt: skip
VALIDATION = ("cat", "coins")
TEST = ("camera", "coffee", "rocket")


Source = Callable[[Path | None, bool, int], Pictures]  # (data root, download, channels) -> data set


def load_data(source: str, *, root: Path | None = None, download: bool = False, channels: int = 1) -> Pictures:
    """The pictures of a named source.

    Args:
        source: a key of `SOURCES`.
        root: folder of the pictures ("folder", "class_folder") or of the data set ("mnist", ...).
        download: fetch a data set that is missing ("mnist", ...).
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: unknown source, unsuitable options, or pictures that cannot be used.
    """
    load = SOURCES.find(source)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    return load(root, download, channels)


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
    skipped: list[str] = []
    found = [Picture(path.name, to_tensor(pixels, channels)) for path, pixels in read_folder(root, skipped)]
    warn_of_skipped(skipped, root)
    if len(found) < 3:
        raise ValueError(
            f"the folder {root} holds {len(found)} pictures; a search needs at least 3 (training, validation, test)"
        )
    train, validation, test = ([found[k] for k in part] for part in split(len(found), 2))
    return Pictures(train, validation, test)


def _pictures(root: Path | None, download: bool, channels: int) -> Pictures:
    if root is not None or download:
        raise ValueError("the data 'pictures' ships with scikit-image and takes neither a data root nor a download")
    return pictures(channels)


def _in_folder(name: str, load: Callable[[Path, int], Pictures]) -> Source:
    def source(root: Path | None, download: bool, channels: int) -> Pictures:
        if root is None or download:
            raise ValueError(f"the data {name!r} needs --data-root FOLDER and takes no download")
        return load(root, channels)

    return source


def _fetched(name: str, load: Callable[..., Pictures]) -> Source:
    def source(root: Path | None, download: bool, channels: int) -> Pictures:
        if root is None:
            raise ValueError(
                f"the data {name!r} needs --data-root FOLDER, where the data set is or is to be downloaded to"
            )
        return load(root, download=download, channels=channels)

    return source


SOURCES: Registry[Source] = Registry(
    "data",
    {
        "pictures": _pictures,
        **{name: _in_folder(name, load) for name, load in {"folder": folder, "class_folder": class_folder}.items()},
        **{
            name: _fetched(name, load)
            for name, load in {"mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10}.items()
        },
    },
)


def register_data(name: str, source: Source) -> None:
    """Let ``source`` be chosen by ``data: name``.

    Args:
        name: an identifier.
        source: makes the data set from the data root (None if not given), whether to download, and the number of
            channels, 1 or 3. It raises ValueError for what it cannot use.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    SOURCES.register(name, source)
