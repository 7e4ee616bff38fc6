"""Using a network that restores pictures: on any picture, and to show what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nas.models.network import sight
from nas.search.data.dataset import estimate_sigma
from nas.search.data.formats.sheet import GREY, RGB, Sheet
from nas.search.data.formats.values import Values
from nas.search.data.images import plain, split_alpha, to_array, write_picture
from nas.search.tasks.anscombe import Anscombe
from nas.search.tasks.degradations import magnified, masked
from nas.search.tasks.noise import with_level
from nas.search.tasks.restoration import Restoration, restore
from nas.search.tasks.task import Example
from nas.search.tasks.tiles import Tile, tiles
from nas.search.training.compute import device_of

if TYPE_CHECKING:
    import numpy as np

OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0, -0.5], [0.25, -0.5, 0.25]], dtype=torch.float64)
OPPONENT_ZERO = torch.tensor([0, 0.5, 0.5])[:, None, None]  # where colours are 0
OPPONENT_NOISE = OPPONENT.square().sum(dim=1).sqrt().tolist()  # of white noise of 1
FEW = 3  # different estimates of the noise in the frames of one file that are all said
DETAIL = 2048  # pixels: of a larger picture the middle is shown by `before_after`, and looked at for its noise


@dataclass(frozen=True)
class Noise:
    """What is known about the noise of pictures to be cleaned.

    Attributes:
        sigma: of white Gaussian noise, on the scale where black is 0 and white 255, > 0. None: with ``peak`` there is
            none, without it is estimated where the network is to be told, for each channel that it sees on its own.
        peak: photons that white stands for, > 0. The network then sees the picture after the `Anscombe` transform, in
            which the noise is white and Gaussian. None: no photon noise.
        within: ends of the range of levels that the network was trained for; estimates beyond them are cut.

    Raises:
        ValueError: ``sigma`` or ``peak`` is out of range.
    """

    sigma: float | None = None
    peak: float | None = None
    within: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if self.sigma is not None and not 0 < self.sigma <= 255:
            raise ValueError(f"sigma must lie in (0, 255], on the 0..255 scale, got {self.sigma}")
        if self.peak is not None and not 0 < self.peak < math.inf:
            raise ValueError(f"peak must be > 0 photons, got {self.peak}")

    @property
    def transform(self) -> Anscombe | None:
        return None if self.peak is None else Anscombe(self.peak, (self.sigma or 0.0) / 255)

    @property
    def level(self) -> float | None:
        """Standard deviation of the noise that the network sees, on the 0..255 scale; None if unknown."""
        return self.sigma if self.transform is None else 255 * self.transform.level


def denoise_sheet(
    net: nn.Module, sheet: Sheet, tile: int | None = None, noise: Noise = Noise(), known: np.ndarray | None = None
) -> Sheet:
    """The same with every frame cleaned; alpha stays as it is. Levels of noise that were estimated are in its notes.

    Args:
        net: a denoiser of pictures in [0, 1]; one with an extra channel is told the level of the noise.
        sheet: what a file holds. Colours go through a colour network together, else each channel is grey to it.
        tile: side of the tiles in pixels; by default what memory allows (`tiles`).
        noise: what is known about the noise.
        known: for a network that fills in missing pixels (`Inpaint`), where they are not missing: booleans (height,
            width). These stay as they are.

    Raises:
        ValueError: ``tile`` is not positive, the network does not return pictures or needs more than the level, or
            ``known`` is of another size than a frame.
    """
    seen = sight(net)
    if seen.extra > 1:
        raise ValueError(f"the network sees {seen.extra} channels beside the picture; it is no denoiser")
    frames, said = [], list[str]()
    for frame in sheet.frames:
        cleaned = frame.copy()
        height, width = frame.shape[:2]
        if known is not None and known.shape != (height, width):
            raise ValueError(
                f"the mask has {known.shape[1]} x {known.shape[0]} pixels, {sheet.name} {width} x {height}"
            )
        levels, estimated = ([], "") if known is not None else _levels(net, frame, sheet, noise)
        for part in tiles(height, width, seen, tile):
            _clean(net, frame, cleaned, part, sheet, noise, levels, known)
        if known is not None:
            cleaned[known] = frame[known]
        frames.append(cleaned)
        said += [estimated] if estimated else []
    different = list(dict.fromkeys(said))
    if len(different) > FEW:
        different = [f"{said[0]} in the first of {len(frames)} frames, its own in each"]
    return replace(sheet, frames=tuple(frames), notes=tuple(dict.fromkeys([*sheet.notes, *different])))


def magnify(sheet: Sheet, scale: int) -> Sheet:
    """Every frame, alpha included, ``scale`` times as large by bicubic interpolation; the same for 1."""
    if scale == 1:
        return sheet

    def larger(frame: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(sheet.values.to_unit(frame)).permute(2, 0, 1)[None]
        return sheet.values.from_unit(magnified(planes, scale)[0].permute(1, 2, 0).numpy(), frame.dtype)

    return replace(sheet, frames=tuple(map(larger, sheet.frames)))


def _levels(net: nn.Module, frame: np.ndarray, sheet: Sheet, noise: Noise) -> tuple[list[float], str]:
    """Of the noise in each channel of a frame, or in all that the network sees together, black 0 and white 1; nothing
    where the network is not told. If they were estimated, what is to be said of that, too."""
    together = sight(net).channels == 3 and sheet.space == RGB
    if not sight(net).extra:
        return [], ""
    low, high = noise.within
    parts = OPPONENT_NOISE if _mixes(net, sheet) else [1.0] * (1 if together else sheet.colours)
    if noise.level is not None:
        return [max(low, part * noise.level) / 255 for part in parts], ""
    middle = torch.from_numpy(sheet.values.to_unit(_middle(frame)[..., : sheet.colours])).permute(2, 0, 1)
    found = estimate_sigma(opponent(middle) if _mixes(net, sheet) else middle)
    found = [math.hypot(*found) / math.sqrt(len(found))] if together else found
    levels = [min(max(level, low / 255), high / 255) for level in found]
    said, used = _texts(found, parts), _texts(levels, parts)
    beyond = "" if used == said else f", taken for {used}, the nearest that the network was trained for"
    return levels, f"estimated noise of sigma {said} of 255{beyond}"


def _texts(levels: Sequence[float], parts: Sequence[float]) -> str:
    """Levels of noise of channels in which white noise of 1 in the picture is noise of ``parts``, as of the picture."""
    return ", ".join(f"{255 * level / part:.1f}" for level, part in zip(levels, parts, strict=True))


def _clean(
    net: nn.Module,
    frame: np.ndarray,
    cleaned: np.ndarray,
    part: Tile,
    sheet: Sheet,
    noise: Noise,
    levels: list[float],
    known: np.ndarray | None,
) -> None:
    """Fill one tile of ``cleaned``, but for alpha."""
    seen = torch.from_numpy(sheet.values.to_unit(frame[*part.seen, : sheet.colours])).permute(2, 0, 1)
    transform = noise.transform
    extras = [torch.tensor(level) for level in levels]
    if known is not None:
        extras = [torch.from_numpy(known[*part.seen])[None].float()] * sheet.colours
        seen = masked(seen, extras[0])[:-1]
    seen = seen if transform is None else transform(seen)
    if levels and _mixes(net, sheet):
        restored = colours(_restored(net, opponent(seen), sheet.space, extras))
    else:
        restored = _restored(net, seen, sheet.space, extras)
    restored = (restored if transform is None else transform.inverse(restored))[:, *part.inside]
    cleaned[*part.place, : sheet.colours] = sheet.values.from_unit(restored.permute(1, 2, 0).numpy(), frame.dtype)


def _mixes(net: nn.Module, sheet: Sheet) -> bool:
    return sheet.space == RGB and sees_opponents(net, sheet.colours)


def sees_opponents(net: nn.Module, channels: int) -> bool:
    """Whether a network sees so many channels as brightness and two differences (`opponent`): grey ones that are told
    levels do so with colours."""
    seen = sight(net)
    return seen.channels == 1 and seen.extra == 1 and channels == 3


def opponent(rgb: Tensor) -> Tensor:
    """Brightness and two differences of colours, (..., 3, height, width), in [0, 1] as these: pictures have most of
    their detail in the first, and noise is weaker there (as in colour BM3D: Dabov et al., ICIP 2007)."""
    return torch.einsum("ij,...jhw->...ihw", OPPONENT.to(rgb), rgb) + OPPONENT_ZERO.to(rgb)


def colours(opponents: Tensor) -> Tensor:
    """The inverse of `opponent`."""
    back = torch.linalg.inv(OPPONENT).to(opponents)
    return torch.einsum("ij,...jhw->...ihw", back, opponents - OPPONENT_ZERO.to(opponents))


@torch.no_grad()
def _restored(net: nn.Module, seen: Tensor, space: str, extras: list[Tensor]) -> Tensor:
    """What the network makes of (channels, height, width), not clamped; on the CPU.

    A grey network cleans each channel on its own; a colour network sees a channel that is no colour three times, and
    the mean is taken.
    """
    channels = sight(net).channels
    if channels == 3 and space == RGB:
        return _seen_through(net, seen, extras[:1])
    planes = [_seen_through(net, plane.expand(channels, -1, -1), extras[k : k + 1]) for k, plane in enumerate(seen)]
    return torch.stack([plane.mean(dim=0) for plane in planes])


def _seen_through(net: nn.Module, picture: Tensor, extra: list[Tensor]) -> Tensor:
    """The output of the network for one picture and, if it is told it, the level of its noise or what is known."""
    x = with_level(picture, *extra) if extra else picture
    output: Tensor = net(x[None].contiguous().to(device_of(net)))[0]
    return output.cpu()


def denoise_pixels(net: nn.Module, pixels: np.ndarray, noise: Noise = Noise()) -> np.ndarray:
    """A cleaned picture of the same shape and type, whatever its size and number of channels.

    Args:
        net, noise: as of `denoise_sheet`.
        pixels: uint8 or uint16, of shape (height, width) or (height, width, 1..4); a second or fourth channel is alpha.

    Raises:
        ValueError: ``pixels`` are something else.
    """
    import numpy as np

    shape = pixels.shape
    if (
        pixels.dtype.type not in (np.uint8, np.uint16)
        or not pixels.size
        or len(shape) not in (2, 3)
        or max(shape[2:], default=1) > 4
    ):
        raise ValueError(
            "pixels must be uint8 or uint16 of shape (height, width) or (height, width, 1..4), got "
            f"{pixels.dtype} of shape {shape}; denoise_sheet takes all else"
        )

    colours, alpha = split_alpha(pixels)
    values = Values.between(0, float(np.iinfo(pixels.dtype).max))
    frame = pixels.reshape(*pixels.shape[:2], -1)
    space = GREY if colours.shape[2] == 1 else RGB
    sheet = denoise_sheet(net, Sheet("", "", (frame,), space, alpha.shape[2] > 0, values), noise=noise)
    return sheet.frames[0].reshape(pixels.shape)


def before_after(before: Sheet, after: Sheet) -> np.ndarray:
    """The first frame of both side by side, as uint8 or uint16; of a large one its middle; a smaller one magnified."""
    before = magnify(before, after.frames[0].shape[0] // before.frames[0].shape[0])
    return beside([_shown(_middle(plain(sheet))) for sheet in (before, after)])


def _middle(pixels: np.ndarray) -> np.ndarray:
    """At most `DETAIL` rows and columns."""
    top, left = (max(0, (length - DETAIL) // 2) for length in pixels.shape[:2])
    return pixels[top : top + DETAIL, left : left + DETAIL]


def _shown(pixels: np.ndarray) -> np.ndarray:
    """Integers as they are, floats in [0, 1] as bytes."""
    import numpy as np

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


def write_restored(net: nn.Module, examples: Sequence[Example], folder: Path, task: Restoration, most: int = 8) -> None:
    """Write the first held-out pictures as the network sees them, as it restores them and, if that is known, clean;
    and all of these in one.

    Args:
        net: a network that restores pictures.
        examples: at most ``most`` of them are written.
        folder: it exists.
        task: what it was trained for.
        most: number of pictures.
    """
    shown = examples[:most]
    for example, restored in zip(shown, restore(net, [each.observed for each in shown]), strict=True):
        stem = "-".join([Path(example.name.replace("/", "-")).stem, *example.condition.split()])
        arrays = {name: to_array(view) for name, view in task.views(example, restored).items()}
        for name, array in arrays.items():
            write_picture(folder / f"{stem}-{task.observed_name if name == 'observed' else name}.png", array)
        write_picture(folder / f"{stem}.png", beside(list(arrays.values())))
