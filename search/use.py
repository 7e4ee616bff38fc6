"""Using a denoiser on any picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nas.models.dag import DagNet
from nas.search.images import split_alpha
from nas.search.restoration import restore

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
