"""Pictures of any size in bounded memory: tiles that overlap as far as the network sees, so that no seam remains."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.models.network import Sight, sight
from nas.search.training.compute import device_of

MEMORY = 2**28  # bytes that the states of a network may take, unless --tile says otherwise

Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Tile:
    """A part of a picture.

    Attributes:
        place: what the tile fills of the picture.
        seen: what the network is shown: ``place`` and, up to the border of the picture, all that it depends on.
        inside: where ``place`` lies in ``seen``.
    """

    place: Window
    seen: Window
    inside: Window


def tiles(height: int, width: int, seen: Sight, side: int | None = None) -> Iterator[Tile]:
    """Tiles that fill a picture of ``height`` x ``width`` pixels, row by row.

    They start at multiples of the grain of the network and see as far as it does, so that what it makes of the tiles
    is what it makes of the whole picture; at the border of the picture both see the border.

    Args:
        height, width: of the picture.
        seen: how the network sees it.
        side: largest side of ``place`` in pixels, >= 1, rounded to a multiple of the grain; by default as large as
            `MEMORY` allows.

    Raises:
        ValueError: ``side`` is no such number.
    """
    if side is not None and not (isinstance(side, int) and side >= 1):
        raise ValueError(f"the side of a tile must be an integer of at least 1 pixel, got {side}")
    unit = seen.grain
    margin = -(-seen.reach // unit) * unit
    side = _automatic(height, width, seen, margin) if side is None else side
    side = max(unit, side // unit * unit)
    for row in _intervals(height, side, margin, unit):
        for column in _intervals(width, side, margin, unit):
            yield Tile(*zip(row, column, strict=True))


@torch.no_grad()
def restore_in_tiles(net: nn.Module, picture: Tensor, side: int | None = None) -> Tensor:
    """What ``net`` makes of a picture (inputs, height, width), not clamped: the same, up to rounding, as at once.

    Args:
        side: see `tiles`.
    """
    height, width = picture.shape[-2:]
    seen, device = sight(net), device_of(net)
    result = picture.new_empty(seen.channels, height, width)
    for tile in tiles(height, width, seen, side):
        result[:, *tile.place] = net(picture[None, :, *tile.seen].to(device))[0][:, *tile.inside]
    return result


def _automatic(height: int, width: int, seen: Sight, margin: int) -> int:
    """That of the whole picture, or of a tile that fills `MEMORY` with its margins; at least as large as both."""
    pixels = int(MEMORY / seen.bytes_per_pixel)
    if height * width <= pixels:
        return max(height, width) + seen.grain
    return max(math.isqrt(pixels) - 2 * margin, 2 * margin, 1)


def _intervals(length: int, side: int, margin: int, unit: int) -> Iterator[tuple[slice, slice, slice]]:
    """``place``, ``seen`` and ``inside`` along one axis, about equally long."""
    count = -(-length // side)
    side = -(-length // (count * unit)) * unit
    for start in range(0, length, side):
        stop = min(start + side, length)
        first = max(0, start - margin)
        yield slice(start, stop), slice(first, min(stop + margin, length)), slice(start - first, stop - first)
