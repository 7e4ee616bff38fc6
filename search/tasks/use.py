"""Using a network that restores pictures: on any picture, and to show what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas.models.dag import DagNet
from nas.search.compute import device_of
from nas.search.data.formats.sheet import GREY, RGB, Sheet
from nas.search.data.formats.values import Values
from nas.search.data.images import plain, split_alpha, to_array, write_picture
from nas.search.tasks.restoration import restore
from nas.search.tasks.task import Example
from nas.search.tasks.tiles import Tile, tiles

if TYPE_CHECKING:
    import numpy as np

DETAIL = 2048  # pixels: of a larger picture `before_after` shows the middle


def denoise_sheet(net: DagNet, sheet: Sheet, tile: int | None = None) -> Sheet:
    """The same with every frame cleaned; alpha stays as it is.

    Args:
        net: a denoiser of pictures in [0, 1].
        sheet: what a file holds. Colours go through a colour network together, else each channel is grey to it.
        tile: side of the tiles in pixels; by default what memory allows (`tiles`).

    Raises:
        ValueError: ``tile`` is not positive, or the network does not return pictures.
    """
    frames = []
    for frame in sheet.frames:
        cleaned = frame.copy()
        height, width = frame.shape[:2]
        for part in tiles(height, width, net.plan, tile):
            _clean(net, frame, cleaned, part, sheet)
        frames.append(cleaned)
    return replace(sheet, frames=tuple(frames))


def _clean(net: DagNet, frame: np.ndarray, cleaned: np.ndarray, part: Tile, sheet: Sheet) -> None:
    """Fill one tile of ``cleaned``, but for alpha."""
    seen = torch.from_numpy(sheet.values.to_unit(frame[*part.seen, : sheet.colours])).permute(2, 0, 1)
    restored = _restored(net, seen, sheet.space)[:, *part.inside].permute(1, 2, 0).numpy()
    cleaned[*part.place, : sheet.colours] = sheet.values.from_unit(restored, frame.dtype)


@torch.no_grad()
def _restored(net: DagNet, seen: Tensor, space: str) -> Tensor:
    """What the network makes of (channels, height, width), not clamped; on the CPU.

    A grey network cleans each channel on its own; a colour network sees a channel that is no colour three times, and
    the mean is taken.
    """
    seen = seen.to(device_of(net))
    if net.plan.channels == 3 and space == RGB:
        together: Tensor = net(seen[None].contiguous())[0]
        return together.cpu()
    planes: list[Tensor] = [net(plane.expand(1, net.plan.channels, -1, -1).contiguous()) for plane in seen]
    return torch.cat([plane.mean(dim=1) for plane in planes]).cpu()


def denoise_pixels(net: DagNet, pixels: np.ndarray) -> np.ndarray:
    """A cleaned picture of the same shape and type, whatever its size and number of channels.

    Args:
        net: a denoiser of pictures in [0, 1].
        pixels: uint8 or uint16, of shape (height, width) or (height, width, 1..4); a second or fourth channel is alpha.
    """
    import numpy as np

    colours, alpha = split_alpha(pixels)
    values = Values.between(0, float(np.iinfo(pixels.dtype).max))
    frame = pixels.reshape(*pixels.shape[:2], -1)
    space = GREY if colours.shape[2] == 1 else RGB
    return (
        denoise_sheet(net, Sheet("", "", (frame,), space, alpha.shape[2] > 0, values)).frames[0].reshape(pixels.shape)
    )


def before_after(before: Sheet, after: Sheet) -> np.ndarray:
    """The first frame of both side by side, as uint8 or uint16; of a large one its middle."""
    return beside([_middle(plain(sheet)) for sheet in (before, after)])


def _middle(pixels: np.ndarray) -> np.ndarray:
    """At most `DETAIL` rows and columns; floats in [0, 1] as bytes."""
    import numpy as np

    top, left = (max(0, (length - DETAIL) // 2) for length in pixels.shape[:2])
    pixels = pixels[top : top + DETAIL, left : left + DETAIL]
    return pixels if pixels.dtype.kind == "u" else np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def beside(pictures: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """Pictures of one height and type side by side, with a white gap; grey if all are grey, else RGB."""
    import numpy as np

    channels = max(split_alpha(picture)[0].shape[2] for picture in pictures)
    white = np.iinfo(pictures[0].dtype).max
    columns: list[np.ndarray] = []
    for picture in pictures:
        colours = split_alpha(picture)[0]
        columns += [np.full((len(colours), gap, channels), white, picture.dtype)] if columns else []
        columns.append(np.broadcast_to(colours, (*colours.shape[:2], channels)))
    joined = np.concatenate(columns, axis=1)
    return joined[..., 0] if channels == 1 else joined


def write_restored(net: DagNet, examples: Sequence[Example], folder: Path, observed_name: str, most: int = 8) -> None:
    """Write the first held-out pictures as the network sees them, as it restores them and clean; and all three in one.

    Args:
        net: a network that restores pictures.
        examples: at most ``most`` of them are written.
        folder: it exists.
        observed_name: what the observed pictures are called, such as "noisy" (`Restoration.observed_name`).
        most: number of pictures.
    """
    shown = examples[:most]
    for example, restored in zip(shown, restore(net, [each.observed for each in shown]), strict=True):
        stem = Path(example.name.replace("/", "-")).stem
        views = {"clean": example.target, observed_name: example.observed, "restored": restored}
        arrays = {name: to_array(view) for name, view in views.items()}
        for name, array in arrays.items():
            write_picture(folder / f"{stem}-{name}.png", array)
        write_picture(folder / f"{stem}.png", beside([arrays[name] for name in (observed_name, "restored", "clean")]))
