"""Data sources: clean pictures for training, validation and test, split by picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nas.registry import Registry
from nas.search.data.dataset import Pictures, split
from nas.search.data.files import PictureFile, find_pictures, gather
from nas.search.data.images import to_tensor, warn_of_skipped
from nas.search.data.labelled import cifar10, class_folder, fashion_mnist, mnist
from nas.search.data.stack import Picture

# The photographs that ship inside scikit-image. Fixed; listed in docs/data.md.
TRAIN = (
    "astronaut", "brick", "cell", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "stereo_motorcycle", "text",
)  # fmt: skip
VALIDATION = ("cat", "coins")
TEST = ("camera", "coffee", "rocket")


PAIRS, NOISY_PAIRS = "pairs", "noisy_pairs"
NOISY, NOISY2 = "noisy", "noisy2"  # folders
Source = Callable[..., Pictures]  # (data root or None, download, channels) -> data set


def load_data(
    source: str,
    *,
    root: Path | None = None,
    download: bool = False,
    channels: int = 1,
    val_root: Path | None = None,
    test_root: Path | None = None,
    given: tuple[float, float] | None = None,
) -> Pictures:
    """The pictures of a named source.

    Args:
        source: a key of `SOURCES`.
        root: folder of the pictures ("folder", "pairs", "class_folder") or of the data set ("mnist", ...).
        download: fetch a data set that is missing ("mnist", ...).
        channels: 1 for grey, 3 for colour.
        val_root, test_root: folders to validate and test on (`FOLDERS`); by default pictures of ``root`` are held out.
        given: pixel values that are black and white in files that do not say so (`FOLDERS`).

    Raises:
        ValueError: unknown source, unsuitable options, or pictures that cannot be used.
    """
    load = SOURCES.find(source)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    options: dict[str, Any] = {"val_root": val_root, "test_root": test_root, "given": given}
    options = {name: each for name, each in options.items() if each is not None}
    if options and source not in FOLDERS:
        flag = "range" if "given" in options else min(options)
        raise ValueError(f"--{flag.replace('_', '-')} goes with the data {', '.join(FOLDERS)}, not with {source!r}")
    return load(root, download, channels, **options)


def pictures(channels: int = 1) -> Pictures:
    """The photographs that ship inside scikit-image: 12 to train, 2 to validate, 3 to test."""
    from skimage import data

    def load(names: Sequence[str]) -> list[Picture]:
        arrays = [getattr(data, name)() for name in names]
        firsts = [array[0] if isinstance(array, tuple) else array for array in arrays]  # the left picture of a pair
        return [Picture(name, to_tensor(array, channels)) for name, array in zip(names, firsts, strict=True)]

    return Pictures(load(TRAIN), load(VALIDATION), load(TEST))


def folder(
    root: Path,
    channels: int = 1,
    *,
    val_root: Path | None = None,
    test_root: Path | None = None,
    given: tuple[float, float] | None = None,
) -> Pictures:
    """The pictures of a folder and its subfolders, in the order of their names.

    Every tenth picture, counted from the fifth, is for validation and the one after it for the test (at least the
    last two pictures where there are fewer), unless these have folders of their own. Files that are not pictures are
    skipped; a warning counts them. Pixel values that are black and white are ``given`` where files do not say so.

    Raises:
        ValueError: no such folder, too few pictures in it, or a damaged picture.
    """
    return _from_folders(partial(find_folder, given=given), root, channels, val_root, test_root)


def pairs(
    root: Path,
    channels: int = 1,
    *,
    second: str = "clean",
    val_root: Path | None = None,
    test_root: Path | None = None,
    given: tuple[float, float] | None = None,
) -> Pictures:
    """Pairs of the same name (but for the suffix) and size in the folders ``root/noisy`` and ``root/clean``.

    Args:
        second: the other folder; "noisy2" for second noisy views of what the first ones show.
        given: as of `folder`.

    Raises:
        ValueError: as of `folder`; a picture without a partner, or of another size than its partner.
    """
    return _from_folders(partial(find_pairs, second=second, given=given), root, channels, val_root, test_root)


Finder = Callable[[Path, int], list[PictureFile]]  # (root, channels) -> all pictures below it


def _from_folders(find: Finder, root: Path, channels: int, val_root: Path | None, test_root: Path | None) -> Pictures:
    """All of ``root`` for training, but for what is held out where there are no other folders for that."""
    others = [None if each is None else find(each, channels) for each in (val_root, test_root)]
    found, missing = find(root, channels), others.count(None)
    if len(found) < 1 + missing:
        raise ValueError(
            f"the folder {root} holds {len(found)} pictures; a search needs at least 3 (training, validation, test), "
            "or other folders with --val-root and --test-root"
        )
    for each, pictures in zip((val_root, test_root), others, strict=True):
        if pictures is not None and not pictures:
            raise ValueError(f"the folder {each} holds no pictures")
    train, *held_out = ([found[k] for k in part] for part in split(len(found), missing))
    validation, test = (held_out.pop(0) if each is None else each for each in others)
    return Pictures(*gather((train, validation, test), lambda files: [file.open() for file in files]))


def find_folder(root: Path, channels: int, given: tuple[float, float] | None = None) -> list[PictureFile]:
    """Every picture below a folder, in the order of their names."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    skipped: list[str] = []
    found = list(find_pictures(root, root, channels, skipped, given))
    warn_of_skipped(skipped, root)
    return found


def find_pairs(root: Path, channels: int, second: str, given: tuple[float, float] | None = None) -> list[PictureFile]:
    """Every pair below ``root/noisy`` and ``root/second``, by the names of the second."""
    noisy, others = (_by_stem(find_folder(root / name, channels, given), root / name) for name in (NOISY, second))
    for here, there, folder in ((noisy, others, second), (others, noisy, NOISY)):
        if alone := sorted(set(here) - set(there)):
            raise ValueError(f"{here[alone[0]].name} has no partner in {root / folder}")
    for stem, picture in others.items():
        if picture.shape != noisy[stem].shape:
            sizes = [f"{each.shape[-1]} x {each.shape[-2]}" for each in (noisy[stem], picture)]
            raise ValueError(f"the pair {stem} in {root} has two sizes: {sizes[0]} and {sizes[1]} pixels")
    return [replace(picture, noisy=noisy[stem]) for stem, picture in others.items()]


def _by_stem(pictures: Sequence[PictureFile], folder: Path) -> dict[str, PictureFile]:
    """By their names without suffix."""
    found: dict[str, PictureFile] = {}
    for picture in pictures:
        stem = PurePosixPath(picture.name).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"{found[stem].name} and {picture.name} in {folder} differ in their suffix alone")
        found[stem] = picture
    return found


def _pictures(root: Path | None, download: bool, channels: int) -> Pictures:
    if root is not None or download:
        raise ValueError("the data 'pictures' ships with scikit-image and takes neither a data root nor a download")
    return pictures(channels)


def _in_folder(name: str, load: Callable[..., Pictures]) -> Source:
    def source(root: Path | None, download: bool, channels: int, **options: Any) -> Pictures:
        if root is None or download:
            raise ValueError(f"the data {name!r} needs --data-root FOLDER and takes no download")
        return load(root, channels, **options)

    return source


def _fetched(name: str, load: Callable[..., Pictures]) -> Source:
    def source(root: Path | None, download: bool, channels: int) -> Pictures:
        if root is None:
            raise ValueError(
                f"the data {name!r} needs --data-root FOLDER, where the data set is or is to be downloaded to"
            )
        return load(root, download=download, channels=channels)

    return source


FOLDERS: dict[str, Callable[..., Pictures]] = {
    "folder": folder,
    PAIRS: pairs,
    NOISY_PAIRS: partial(pairs, second=NOISY2),
}  # that take --val-root, --test-root and --range
SOURCES: Registry[Source] = Registry(
    "data",
    {
        "pictures": _pictures,
        **{name: _in_folder(name, load) for name, load in {**FOLDERS, "class_folder": class_folder}.items()},
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
