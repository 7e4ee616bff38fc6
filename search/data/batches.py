"""Batches of training data, drawn at random: crops of pictures, or whole pictures with their labels."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.search.data.stack import Picture, Stack, first_of_each_size

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch -> pairs (observed, target)
MAX_BATCH = 2**26  # pixels of one batch


class Observer(Protocol):
    """What turns pictures (..., channels, height, width) into what the network sees, alone or with what its output is
    compared with."""

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor: ...
    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


def random_crops(
    pictures: Sequence[Picture], task: Observer, *, crop: int, batch: int, steps: int, seed: int = 0
) -> Batches:
    """Batches of random square crops, flipped and turned at random, with noise that is fresh in every epoch.

    The batches of an epoch depend on ``seed`` and the number of the epoch alone, so that a run can be continued.

    Args:
        pictures: of one number of channels.
        task: makes the observation, such as `nas.search.Denoise`.
        crop: side of the crops in pixels; at most the smaller side of every picture.
        batch: crops per batch.
        steps: batches per epoch.

    Returns:
        A function of the epoch that iterates over what ``task.pair`` makes of (batch, channels, crop, crop): usually
        pairs (observed, clean).

    Raises:
        ValueError: a size below 1, or a picture smaller than the crop.
    """
    _check_positive(crop=crop, batch=batch, steps=steps)
    _check_batch(batch, crop, crop)
    for picture in first_of_each_size(pictures):
        check_size(picture, crop, f"the crop of {crop}")

    def draw(generator: torch.Generator) -> Tensor:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        pixels = pictures[below(len(pictures))].pixels
        top, left = (below(size - crop + 1) for size in pixels.shape[-2:])
        square = pixels[:, top : top + crop, left : left + crop].rot90(below(4), (1, 2))
        return square.flip(2) if below(2) else square

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = _generator(seed, epoch)
        for _ in range(steps):
            clean = torch.stack([draw(generator) for _ in range(batch)])
            yield task.pair(clean, generator)

    return batches


def check_size(picture: Picture, least: int, what: str) -> None:
    """Raise ValueError, naming the picture and ``what`` it is too small for, if a side is shorter than ``least``."""
    height, width = picture.pixels.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"the picture {picture.name} has {width} x {height} pixels, smaller than {what}")


def random_samples(
    pictures: Sequence[Picture],
    task: Observer,
    *,
    batch: int,
    steps: int,
    flip: bool = False,
    shift: int = 0,
    seed: int = 0,
) -> Batches:
    """Batches of whole pictures with their labels; no picture comes again before all have come, within an epoch.

    The batches of an epoch depend on ``seed`` and the number of the epoch alone.

    Args:
        pictures: labelled, of one size.
        task: makes the observation, such as `nas.search.Classify`.
        batch: pictures per batch.
        steps: batches per epoch.
        flip: mirror every second picture, left to right, at random.
        shift: move each picture by up to so many pixels, in each direction, at random; black comes in.

    Returns:
        A function of the epoch that iterates over pairs (observed (batch, channels, height, width), labels (batch,)).

    Raises:
        ValueError: a size out of range, a picture without a label or of another size than the first.
    """
    _check_positive(batch=batch, steps=steps)
    check_labelled(pictures)
    height, width = pictures[0].pixels.shape[-2:]
    _check_batch(batch, height, width)
    if not isinstance(shift, int) or not 0 <= shift < min(height, width):
        raise ValueError(f"shift must lie between 0 and {min(height, width) - 1} pixels, got {shift}")

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = _generator(seed, epoch)
        rounds = math.ceil(batch * steps / len(pictures))
        order = torch.cat([torch.randperm(len(pictures), generator=generator) for _ in range(rounds)])
        for indices in order[: batch * steps].split(batch):
            pixels, labels = take(pictures, indices)
            if flip:
                mirrored = torch.rand(len(pixels), generator=generator) < 0.5
                pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
            if shift:
                pixels = _shifted(pixels, shift, generator)
            yield task.observe(pixels, generator), labels

    return batches


def check_labelled(pictures: Sequence[Picture]) -> None:
    """Raise ValueError unless there are pictures, all with a label and all of one shape."""
    if not pictures:
        raise ValueError("there is no picture to train, validate or test on")
    first = pictures[0]
    for picture in first_of_each_size(pictures):
        if picture.label is None:
            raise ValueError(f"the picture {picture.name} has no label")
        if picture.pixels.shape != first.pixels.shape:
            sizes = [" x ".join(map(str, each.pixels.shape)) for each in (picture, first)]
            raise ValueError(f"the picture {picture.name} has the shape {sizes[0]}, {first.name} has {sizes[1]}")


def take(pictures: Sequence[Picture], indices: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels (k, channels, height, width) and labels (k,) of some labelled pictures."""
    if isinstance(pictures, Stack):
        return pictures.take(indices)
    chosen = [pictures[k] for k in indices.tolist()]
    return torch.stack([each.pixels for each in chosen]), torch.tensor([each.label for each in chosen])


def _shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture of a batch, moved by its own random offset of up to ``most`` pixels, with zeros coming in."""
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (most,) * 4)
    corners = torch.randint(2 * most + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack(
        [each[:, top : top + height, left : left + width] for each, (top, left) in zip(padded, corners, strict=True)]
    )


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_batch(batch: int, height: int, width: int) -> None:
    if batch * height * width > MAX_BATCH:
        raise ValueError(f"a batch of {batch} times {width} x {height} pixels is larger than {MAX_BATCH} pixels")
