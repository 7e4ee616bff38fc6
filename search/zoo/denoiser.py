"""A network as a denoiser of batches that is told the noise, as plug-and-play methods and deepinv call it."""

import torch
from torch import Tensor, nn

from nas.models.dag import DagNet
from nas.search.tasks.noise import with_level


class Denoiser(nn.Module):
    """Calls of the form ``denoiser(x, sigma)``, as of the denoisers of deepinv.

    Args:
        net: of pictures, on one scale with ``x``: black 0 and white 1. A grey one sees each channel on its own.
    """

    def __init__(self, net: DagNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """
        Args:
            x: (batch, channels, height, width).
            sigma: standard deviation of the noise, on the same scale: a number, or one for each picture (batch,). A
                network that was trained for one level is not told.

        Raises:
            ValueError: the network is for pictures with another number of channels.
        """
        plan = self.net.plan
        if plan.channels not in (1, x.shape[1]):
            raise ValueError(f"the network is for pictures with {plan.channels} channels, got {x.shape[1]}")
        planes = x.reshape(-1, plan.channels, *x.shape[-2:])
        if plan.extra:
            level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1).expand(len(x), -1)
            planes = with_level(planes, level.repeat_interleave(len(planes) // len(x)).reshape(-1, 1, 1, 1))
        restored: Tensor = self.net(planes)
        return restored.reshape(x.shape)
