"""Pictures of a folder: in memory where they fit, else read from their files when they are asked for."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from nas.search.data.formats.files import read_size
from nas.search.data.formats.sheet import NotAPictureError
from nas.search.data.images import files_below, read_picture, to_bytes, to_tensor
from nas.search.data.stack import Picture

MEMORY = 2**32  # bytes of decoded pictures that are kept at most
READERS = min(8, os.cpu_count() or 1)  # threads


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that is in its file.

    Attributes:
        root: the folder that is read.
        name: of the file below it.
        shape: (channels, height, width) of what it is to become.
        num_bytes: of the file.
        label, noisy: as of `Picture`. What has a label is kept with 8 bits per value.
        given: pixel values that are black and white, where the file does not say so.
    """

    root: Path
    name: str
    shape: tuple[int, int, int]
    num_bytes: int
    label: int | None = None
    noisy: "PictureFile | None" = None
    given: tuple[float, float] | None = None

    @property
    def files(self) -> "tuple[PictureFile, ...]":
        """Itself, and its partner in a pair."""
        return (self,) if self.noisy is None else (self, self.noisy)

    @property
    def memory(self) -> int:
        """Bytes of the decoded picture, without its partner."""
        channels, height, width = self.shape
        return channels * height * width * (4 if self.label is None else 1)

    def decode(self) -> Tensor:
        """float32, or uint8 where it has a label.

        Raises:
            ValueError: it is damaged, or of another size than its header said.
            OSError: it cannot be read.
        """
        path, channels = self.root / self.name, self.shape[0]
        pixels = (to_tensor if self.label is None else to_bytes)(read_picture(path, self.given), channels)
        if tuple(pixels.shape) != self.shape:
            (_, height, width), (_, expected_height, expected_width) = pixels.shape, self.shape
            raise ValueError(
                f"the picture {path} has {width} x {height} pixels, not the {expected_width} x {expected_height} that "
                "stood in its header at the start"
            )
        return pixels

    def open(self, decode: "Decode" = decode) -> Picture:
        """The picture; errors as of `decode`."""
        pixels = decode(self) if self.label is None else decode(self) / 255
        return Picture(self.name, pixels, self.label, None if self.noisy is None else decode(self.noisy))


Decode = Callable[[PictureFile], Tensor]


def find_pictures(
    folder: Path, root: Path, channels: int, skipped: list[str], given: tuple[float, float] | None = None
) -> Iterator[PictureFile]:
    """The picture files of a folder, which is ``root`` or below it, and of its subfolders, in the order of their names.

    The names of other files are added to ``skipped``.

    Raises:
        ValueError: the header of a picture is damaged.
        OSError: a file cannot be read.
    """
    for path in files_below(folder):
        try:
            shape = channels, *read_size(path)
        except NotAPictureError:
            skipped.append(path.name)
        else:
            name, num_bytes = path.relative_to(root).as_posix(), path.stat().st_size
            yield PictureFile(root, name, shape, num_bytes, given=given)


class Files(Sequence[Picture]):
    """Pictures that are read when they are asked for; by several threads, where several are.

    Errors as of `PictureFile.decode` when they are asked for.

    Args:
        headers: what is known of the pictures.
        decode: `PictureFile.decode`, or what remembers some of its results.
    """

    def __init__(self, headers: Sequence[PictureFile], decode: Decode) -> None:
        self.headers, self._decode = headers, decode

    def __len__(self) -> int:
        return len(self.headers)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> "Files": ...
    def __getitem__(self, index: int | slice) -> "Picture | Files":
        if isinstance(index, slice):
            return Files(self.headers[index], self._decode)
        return self.headers[index].open(self._decode)

    @property
    def most_at_once(self) -> int:
        """So many of them, as float32, take an eighth of `MEMORY` at most; 1 at least."""
        largest = max(math.prod(header.shape) for header in self.headers)
        return max(1, MEMORY // 8 // (4 * largest))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All pixels in their order, (size, channels, height, width) at a time; (1, ...) where they have no labels and
        may be of several sizes."""
        size = 1 if self.headers[0].label is None else size
        for first in range(0, len(self), size):
            pictures = self.several(range(len(self))[first : first + size])
            yield torch.stack([picture.pixels for picture in pictures])

    def several(self, indices: Sequence[int]) -> list[Picture]:
        """The pictures of these indices."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self.__getitem__, indices))


def gather(
    parts: Sequence[Sequence[PictureFile]], keep: Callable[[Sequence[PictureFile]], Sequence[Picture]]
) -> tuple[Sequence[Picture], Sequence[Picture], Sequence[Picture]]:
    """The parts of a data set (training, validation, test): what ``keep`` makes of them, decoded, where all of them fit
    into `MEMORY` bytes; else `Files`, of which those that were asked for last are kept, up to as many bytes."""
    sizes = [each.memory for part in parts for file in part for each in file.files]
    if sum(sizes) > MEMORY:
        decode = lru_cache(MEMORY // max(sizes) or 1)(PictureFile.decode)
        keep = partial(Files, decode=decode)
    train, validation, test = map(keep, parts)
    return train, validation, test
