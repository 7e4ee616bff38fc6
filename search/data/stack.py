"""Pictures and data sets: single pictures, and many of one size kept as bytes."""

import hashlib
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

LUMINANCE = (0.2125, 0.7154, 0.0721)  # of red, green and blue, as in skimage.color.rgb2gray


@dataclass(frozen=True)
class Picture:
    """A picture: clean, unless the task is for pictures that are not.

    Attributes:
        name: of the file or the entry of the data set.
        pixels: float32 of shape (channels, height, width) in [0, 1].
        label: index of its class; None where the data set has no classes.
        noisy: of a pair, what was observed of it, of the same shape.
    """

    name: str
    pixels: Tensor
    label: int | None = None
    noisy: Tensor | None = None


class Stack(Sequence[Picture]):
    """Many pictures of one size, kept with 8 bits per value; each becomes a `Picture` when it is asked for.

    Args:
        names: of the pictures.
        pixels: uint8 of shape (n, 1 or 3, height, width).
        labels: (n,) integers.
        channels: of the pictures to be made: 1 (colour becomes luminance) or 3 (grey is repeated).
    """

    def __init__(self, names: Sequence[str], pixels: Tensor, labels: Tensor, channels: int) -> None:
        self.names, self.pixels, self.labels, self.channels = names, pixels, labels, channels

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> "Stack": ...
    def __getitem__(self, index: int | slice) -> "Picture | Stack":
        if isinstance(index, slice):
            return Stack(self.names[index], self.pixels[index], self.labels[index], self.channels)
        pixels = self._with_channels(self.pixels[index])
        return Picture(self.names[index], pixels, int(self.labels[index]))

    def _with_channels(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 1 or 3, height, width) as float32 (..., channels, height, width) in [0, 1]."""
        values = pixels / 255
        if self.channels == 1 and values.shape[-3] == 3:
            return torch.einsum("c,...chw->...hw", torch.tensor(LUMINANCE), values).unsqueeze(-3)
        return values.expand(*values.shape[:-3], self.channels, -1, -1)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All pixels in their order, (size, channels, height, width) at a time."""
        return map(self._with_channels, self.pixels.split(size))

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels (k, channels, height, width) and labels (k,) of some pictures at once."""
        return self._with_channels(self.pixels[indices]), self.labels[indices]


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
        """A hash of all names, labels and pixels, in hexadecimal digits."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for part in (self.train, self.validation, self.test):
            for facts, pixels in _contents(part):
                digest.update(repr((facts, pixels.shape)).encode())
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
        batches = train.batches(1000) if isinstance(train, Stack) else (picture.pixels[None] for picture in train)
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


def first_of_each_size(pictures: Sequence[Picture]) -> Sequence[Picture]:
    """Pictures among which all sizes occur; of a stack one is enough."""
    return pictures[:1] if isinstance(pictures, Stack) else pictures


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
