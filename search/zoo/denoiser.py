"""A network as a denoiser of batches that is told the noise, as plug-and-play methods and deepinv call it."""

import torch
from torch import Tensor, nn

from nas.models.dag import DagNet
from nas.search.tasks.noise import with_level
from nas.search.tasks.use import OPPONENT_NOISE, colours, opponent, sees_opponents


class Denoiser(nn.Module):
    """Calls of the form ``denoiser(x, sigma)``, as of the denoisers of deepinv.

    Args:
        net: of pictures, on one scale with ``x``: black 0 and white 1. A grey one that is told the level sees colours
            as brightness and differences (`nas.search.tasks.use.opponent`), other channels one at a time.
    """

    def __init__(self, net: DagNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """
        Args:
            x: (batch, channels, height, width), floats; what comes out has their type, the network computes in its own.
            sigma: standard deviation of the noise, on the same scale: a number, or one for each picture (batch,). A
                network that was trained for one level is not told.

        Raises:
            ValueError: ``x`` or ``sigma`` is something else, or the network is for another number of channels.
        """
        plan = self.net.plan
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(
                "x must hold floats, black 0 and white 1, of shape (batch, channels, height, width), got "
                f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
            )
        if plan.channels not in (1, x.shape[1]):
            raise ValueError(f"the network is for pictures with {plan.channels} channels, got {x.shape[1]}")
        return self._restored(x.to(next(self.net.parameters()).dtype), sigma).to(x.dtype)

    def _restored(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The same, in the type of the network."""
        plan = self.net.plan
        planes = (-1, plan.channels, *x.shape[-2:])
        if not plan.extra:
            restored: Tensor = self.net(x.reshape(planes))
            return restored.reshape(x.shape)
        mixed = sees_opponents(self.net, x.shape[1])
        parts = torch.tensor(OPPONENT_NOISE if mixed else [1.0] * (x.shape[1] // plan.channels)).to(x)
        levels = torch.as_tensor(sigma).to(x).reshape(-1, 1)
        if len(levels) not in (1, len(x)) or not (torch.compiler.is_compiling() or (levels >= 0).all()):
            raise ValueError(f"sigma must be a number >= 0, or one for each of the {len(x)} pictures, got {sigma}")
        levels = (levels * parts).expand(len(x), -1).reshape(-1, 1, 1, 1)
        seen = (opponent(x) if mixed else x).reshape(planes)
        restored = self.net(with_level(seen, levels)).reshape(x.shape)
        return colours(restored) if mixed else restored
