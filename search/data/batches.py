"""Batches of training data, drawn at random: crops of pictures, or whole pictures with their labels."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.search.data.files import Files
from nas.search.data.stack import Header, Picture, Stack

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch -> pairs (observed, target)
MAX_BATCH = 2**26  # pixels of one batch
AHEAD = 2  # batches
IN_A_ROW, SMALL = 8, 2**20  # batches, and numbers in all of them


class Observer(Protocol):
    """What turns pictures (..., channels, height, width) into what the network sees, alone or with what its output is
    compared with."""

    def observe(self, clean: Tensor, generator: torch.Generator) -> Tensor: ...
    def pair(self, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


def random_crops(
    pictures: Sequence[Picture],
    task: Observer,
    *,
    crop: int,
    batch: int,
    steps: int,
    seed: int = 0,
    views: Callable[[Picture], Sequence[Tensor]] = lambda picture: [picture.pixels],
) -> Batches:
    """Batches of random square crops, flipped and turned at random, with noise that is fresh in every epoch.

    The batches of an epoch depend on ``seed`` and the number of the epoch alone, so that a run can be continued.

    Args:
        pictures: of one number of channels.
        task: makes the observation, such as `nas.search.Denoise`.
        crop: side of the crops in pixels; at most the smaller side of every picture.
        batch: crops per batch.
        steps: batches per epoch.
        views: of a picture, what is cut, turned and flipped alike; one behind the other they are the channels.

    Returns:
        A function of the epoch that iterates over what ``task.pair`` makes of (batch, channels, crop, crop): usually
        pairs (observed, clean).

    Raises:
        ValueError: a size below 1, or a picture smaller than the crop.
    """
    _check_positive(crop=crop, batch=batch, steps=steps)
    _check_batch(batch, crop, crop)
    for header in headers(pictures):
        check_size(header, crop, f"the crop of {crop}")

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = _generator(seed, epoch)
        for _ in range(steps):
            numbers = _numbers(5 * batch, generator)
            chosen = several(pictures, [number % len(pictures) for number in numbers[::5]])
            squares = [
                _cut(view.numpy(), crop, *numbers[5 * k + 1 : 5 * k + 5])
                for k, picture in enumerate(chosen)
                for view in views(picture)
            ]
            crops = torch.from_numpy(np.concatenate(squares)).contiguous()
            yield task.pair(crops.view(batch, -1, crop, crop), generator)

    return batches


def _numbers(count: int, generator: torch.Generator) -> list[int]:
    """Random numbers below 2^32. Modulo a limit they are what ``count`` calls of ``torch.randint`` would draw."""
    before = generator.get_state()
    drawn = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    if count % 2:
        generator.set_state(before)
        torch.randint(2, (count,), generator=generator)  # not one more
    return [number for pair in drawn.tolist() for number in divmod(pair % 2**64, 2**32)][:count]


def _cut(pixels: np.ndarray, side: int, down: int, right: int, turns: int, flips: int) -> np.ndarray:
    """A square of (channels, height, width), turned and flipped, by numbers of any size."""
    _, height, width = pixels.shape
    top, left = down % (height - side + 1), right % (width - side + 1)
    square = pixels[:, top : top + side, left : left + side]
    if turns % 2:
        square = square[:, :, ::-1].swapaxes(1, 2)  # a quarter
    if turns // 2 % 2:
        square = square[:, ::-1, ::-1]
    return square[:, :, ::-1] if flips % 2 else square


def ahead(batches: Batches) -> Batches:
    """The same batches; a thread makes the next `AHEAD` ones while one is in use. What it raises comes in the place of
    the batch."""

    def made(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        source, thread = batches(epoch), ThreadPoolExecutor(1)
        try:
            coming = deque(thread.submit(next, source, None) for _ in range(1 + AHEAD))
            while (pair := coming.popleft().result()) is not None:
                yield pair
                coming.append(thread.submit(next, source, None))
        finally:
            thread.shutdown(cancel_futures=True)

    return made


def in_rows(batches: Batches) -> Batches:
    """The same batches; up to `IN_A_ROW` small ones are made one after the other, which takes half of the time: after a
    training step nothing that this needs is in the caches of the processor."""

    def made(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        source = batches(epoch)
        for first in source:
            count = min(IN_A_ROW, SMALL // first[0].numel())
            yield from [first, *islice(source, max(0, count - 1))]

    return made


def headers(pictures: Sequence[Picture]) -> Sequence[Header]:
    """What is known of pictures without reading any; of a stack, whose pictures are alike, of one."""
    if isinstance(pictures, Files):
        return pictures.headers
    return pictures[:1] if isinstance(pictures, Stack) else pictures


def check_size(picture: Header, least: int, what: str) -> None:
    """Raise ValueError, naming the picture and ``what`` it is too small for, if a side is shorter than ``least``."""
    _, height, width = picture.shape
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
    _, height, width = headers(pictures)[0].shape
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
    first, *others = headers(pictures)
    for picture in (first, *others):
        if picture.label is None:
            raise ValueError(f"the picture {picture.name} has no label")
        if picture.shape != first.shape:
            sizes = [" x ".join(map(str, each.shape)) for each in (picture, first)]
            raise ValueError(f"the picture {picture.name} has the shape {sizes[0]}, {first.name} has {sizes[1]}")


def several(pictures: Sequence[Picture], indices: Sequence[int]) -> list[Picture]:
    """The pictures of these indices."""
    return pictures.several(indices) if isinstance(pictures, Files) else [pictures[k] for k in indices]


def take(pictures: Sequence[Picture], indices: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels (k, channels, height, width) and labels (k,) of some labelled pictures."""
    if isinstance(pictures, Stack):
        return pictures.take(indices)
    chosen = several(pictures, indices.tolist())
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
