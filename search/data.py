"""Data sources: pictures for training, validation and test, as tensors in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

CHANNELS = {1: "grey", 3: "colour"}

# The photographs that ship inside scikit-image, split by picture (fixed; listed in docs/data.md).
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
    """A data set split by picture."""

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]


def pictures(channels: int = 1) -> Pictures:
    """The photographs that ship inside scikit-image: 12 for training, 2 for validation, 3 for the test."""
    from skimage import data

    def load(names: Sequence[str]) -> tuple[Picture, ...]:
        loaded = {name: getattr(data, name)() for name in names}
        arrays = {name: array[0] if isinstance(array, tuple) else array for name, array in loaded.items()}
        return tuple(Picture(name, to_tensor(array, channels)) for name, array in arrays.items())

    return Pictures(load(TRAIN), load(VALIDATION), load(TEST))


def to_tensor(array: np.ndarray, channels: int) -> Tensor:
    """Pixels of any integer or float picture as a float32 tensor (channels, height, width) in [0, 1].

    Args:
        array: shape (height, width) or (height, width, 1..4); a fourth or second channel (alpha) is dropped.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated).
    """
    from skimage import color, util

    pixels = util.img_as_float32(array)
    if pixels.ndim == 3:
        pixels = pixels[..., :1] if pixels.shape[-1] < 3 else pixels[..., :3]
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and channels == 1:
        pixels = color.rgb2gray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float().clamp(0, 1)
    return tensor.expand(channels, -1, -1).contiguous()
