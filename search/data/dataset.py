"""Data sets, and what is known of their pictures together."""

import hashlib
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nas.search.data.files import Files
from nas.search.data.stack import Picture, Stack


@dataclass(frozen=True)
class Pictures:
    """A data set. Each picture is in one part only.

    Attributes:
        train, validation, test: its parts.
        classes: names of the classes; empty where the pictures have no labels.
    """

    train: Sequence[Picture]
    validation: Sequence[Picture]
    test: Sequence[Picture]
    classes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of all names, labels and pixels, in hexadecimal digits; of `Files`, instead of the pixels, of how many
        there are in each picture, and bytes in its file."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for part in (self.train, self.validation, self.test):
            if isinstance(part, Files):
                for file in part.headers:
                    facts = [(each.name, each.label, each.shape, each.num_bytes) for each in file.files]
                    digest.update(repr(facts).encode())
                continue
            for named, pixels in _contents(part):
                digest.update(repr((named, pixels.shape)).encode())
                digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the noise in the training pictures on the 0..255 scale: the median of what is estimated
        for the channels of each (`estimate_sigma`)."""
        return 255 * statistics.median(sigma for picture in self.train for sigma in estimate_sigma(picture.pixels))

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, over all pixels of the training pictures."""
        return self._moments[0]

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, over all pixels of the training pictures."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        train = self.train
        batches = (
            train.batches(1000) if isinstance(train, Stack | Files) else (picture.pixels[None] for picture in train)
        )
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for values in batches:
            count += values[:, 0].numel()
            total = total + values.sum(dim=(0, 2, 3), dtype=torch.float64)
            squares = squares + values.square().sum(dim=(0, 2, 3), dtype=torch.float64)
        mean = total / count
        return tuple(mean.tolist()), tuple((squares / count - mean**2).clamp(min=0).sqrt().tolist())


def estimate_sigma(picture: Tensor) -> list[float]:
    """Standard deviation of white Gaussian noise in each channel of (channels, height, width), in the units of the
    pixels: the median of the finest diagonal wavelet coefficients that are not 0 (Donoho and Johnstone, 1994;
    scikit-image); 0 where all of them are."""
    from skimage import restoration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of narrow pictures, and of those without such coefficients
        found = [float(restoration.estimate_sigma(channel.numpy())) for channel in picture]
    return [0.0 if math.isnan(sigma) else sigma for sigma in found]


def _contents(pictures: Sequence[Picture]) -> Iterator[tuple[object, Tensor]]:
    """Names and labels with pixels; of a stack all at once, as they are kept."""
    if isinstance(pictures, Stack):
        yield (list(pictures.names), pictures.labels.tolist(), pictures.channels), pictures.pixels
    else:
        for picture in pictures:
            yield (picture.name, picture.label), picture.pixels
            if picture.noisy is not None:
                yield "noisy", picture.noisy


def split(count: int, num_held_out: int) -> list[Sequence[int]]:
    """Indices of ``count`` pictures for training and ``num_held_out`` other parts, such as validation and test.

    Every tenth, counted from the fifth, validates and the one after it tests; at least the last ones, where there are
    fewer.
    """
    everything = range(count)
    if not num_held_out:
        return [everything]
    held_out = [everything[4 + k :: 10] for k in range(num_held_out)]
    if not held_out[-1]:
        held_out = [everything[count - num_held_out + k :][:1] for k in range(num_held_out)]
    return [[k for k in everything if not any(k in part for part in held_out)], *held_out]
