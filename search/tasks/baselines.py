"""Classical restoration by scikit-image: the least that a network has to beat."""

import torch
import torch.nn.functional as F
from torch import Tensor


def tv(picture: Tensor, sigma: float, strength: float) -> Tensor:
    """Total variation (Chambolle) with weight ``strength * sigma``, run to convergence."""
    from skimage.restoration import denoise_tv_chambolle

    restored = denoise_tv_chambolle(
        picture.numpy(), weight=strength * sigma, eps=1e-5, max_num_iter=500, channel_axis=0
    )
    return torch.from_numpy(restored).clamp(0, 1)


def nl_means(picture: Tensor, sigma: float, strength: float) -> Tensor:
    """Non-local means with cut-off ``strength * sigma``."""
    from skimage.restoration import denoise_nl_means

    options = {"h": strength * sigma, "sigma": sigma, "patch_size": 5, "patch_distance": 6}
    if len(picture) == 1:
        restored = denoise_nl_means(picture[0].numpy(), **options)[None]
    else:
        restored = denoise_nl_means(picture.numpy(), channel_axis=0, **options)
    return torch.from_numpy(restored).clamp(0, 1)


def wavelet(picture: Tensor, sigma: float, strength: float) -> Tensor:
    """Soft thresholds of wavelet coefficients (BayesShrink, sym4) for noise of ``strength * sigma``."""
    from skimage.restoration import denoise_wavelet

    options = {"wavelet": "sym4", "rescale_sigma": False, "channel_axis": 0}
    restored = denoise_wavelet(picture.numpy(), sigma=strength * sigma, **options)
    return torch.from_numpy(restored).to(picture.dtype).clamp(0, 1)


def biharmonic(picture: Tensor, known: Tensor) -> Tensor:
    """Biharmonic interpolation of the pixels that are not ``known`` (height, width)."""
    from skimage.restoration import inpaint_biharmonic

    restored = inpaint_biharmonic(picture.numpy(), ~known.numpy(), channel_axis=0)
    return torch.from_numpy(restored).to(picture.dtype).clamp(0, 1)


def unsharp(picture: Tensor, amount: float) -> Tensor:
    """``picture`` plus ``amount`` times its difference to itself, blurred by a Gaussian of one pixel."""
    from skimage.filters import unsharp_mask

    restored = unsharp_mask(picture.numpy(), radius=1, amount=amount, channel_axis=0)
    return torch.from_numpy(restored).to(picture.dtype).clamp(0, 1)


def wiener(picture: Tensor, kernel: Tensor, balance: float) -> Tensor:
    """Wiener deconvolution, with a smoothness prior of weight ``balance``, of a picture that was blurred behind a black
    border: the darkening there is divided out, then the picture is continued as in a mirror.

    Args:
        picture: (channels, height, width).
        kernel: (k, k) of the blur, non-negative.
    """
    import numpy as np
    from skimage.restoration import wiener as deconvolve

    brightness = F.conv2d(torch.ones_like(picture[None, :1]), kernel[None, None], padding=len(kernel) // 2)[0]
    margin = 2 * len(kernel)
    restored = [
        deconvolve(np.pad(channel.numpy(), margin, mode="symmetric"), kernel.numpy(), balance, clip=False)
        for channel in picture / brightness
    ]
    inside = torch.from_numpy(np.stack(restored))[:, margin:-margin, margin:-margin]
    return inside.to(picture.dtype).clamp(0, 1)
