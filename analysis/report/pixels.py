"""Pictures inside of a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

BLUE, PAPER, VERMILION = (0.0, 0.447, 0.698), (1.0, 1.0, 1.0), (0.835, 0.369, 0.0)


def png_uri(pixels: np.ndarray) -> str:
    """A data URI of uint8 pixels (height, width) or (height, width, 3 or 4)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tiles(filters: Tensor, columns: int = 16) -> Tensor:
    """Filters (n, channels, h, w) beside and below each other, a pixel apart: (rows * (h + 1), columns * (w + 1), 4).

    Each is divided by its largest absolute weight. Of one channel: blue adds, vermilion subtracts, white is 0; of three
    channels: grey is 0. The last of the four channels is the opacity, in [0, 1] like the others.
    """
    n, channels, h, w = filters.shape
    largest = filters.abs().flatten(1).amax(dim=1).clamp_min(1e-30)[:, None, None, None]
    scaled = filters / largest
    if channels == 3:
        colours = 0.5 + scaled / 2
    else:
        blue, paper, vermilion = (torch.tensor(each)[:, None, None] for each in (BLUE, PAPER, VERMILION))
        weight = scaled[:, :1]
        colours = paper + weight.clamp_min(0) * (blue - paper) - weight.clamp_max(0) * (vermilion - paper)
    columns = min(columns, n)
    rows = -(-n // columns)
    page = torch.zeros(rows, columns, 4, h + 1, w + 1)
    page.flatten(0, 1)[:n, :3, :h, :w] = colours
    page.flatten(0, 1)[:n, 3, :h, :w] = 1
    return page.permute(0, 3, 1, 4, 2).reshape(rows * (h + 1), columns * (w + 1), 4)


def to_uint8(page: Tensor) -> np.ndarray:
    """Numbers in [0, 1] as uint8 pixels of the same shape."""
    return (page * 255).round().to(torch.uint8).numpy()
