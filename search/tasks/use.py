"""Using a network that restores pictures: on any picture, and to show what it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nas.models.dag import DagNet
from nas.search.data.images import split_alpha, to_array, write_picture
from nas.search.tasks.restoration import restore
from nas.search.tasks.task import Example

if TYPE_CHECKING:
    import numpy as np


def denoise_pixels(net: DagNet, pixels: np.ndarray) -> np.ndarray:
    """A cleaned picture of the same shape and type, whatever its size and number of channels.

    A grey network cleans each colour of a colour picture on its own; a colour network sees a grey picture three
    times and the mean is taken. Alpha stays as it is.

    Args:
        net: a denoiser of pictures in [0, 1].
        pixels: uint8 or uint16, of shape (height, width) or (height, width, 1..4).
    """
    import numpy as np
    from skimage import util

    colours, alpha = split_alpha(pixels)
    observed = torch.from_numpy(util.img_as_float32(colours)).permute(2, 0, 1)
    if net.plan.channels == 1:
        restored = torch.cat(restore(net, [colour[None] for colour in observed]))
    else:
        restored = restore(net, [observed.expand(3, -1, -1)])[0]
        restored = restored if len(observed) == 3 else restored.mean(dim=0, keepdim=True)
    array = np.rint(restored.permute(1, 2, 0).numpy() * np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return np.concatenate([array, alpha], axis=2).reshape(pixels.shape)


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
