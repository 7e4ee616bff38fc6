"""Pictures: single ones, and many of one size kept as bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

LUMINANCE = (0.2125, 0.7154, 0.0721)  # of red, green and blue, as in skimage.color.rgb2gray


class Header(Protocol):
    """What is known of a picture without its pixels: name and label as of `Picture`, and (channels, height, width)."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> int | None: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...


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

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape
        return channels, height, width


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
