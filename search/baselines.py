"""Classical denoisers of scikit-image, tuned on the validation pictures: the least that a network has to beat."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas.search.tasks import Example, Score, score

Method = Callable[[Tensor, float, float], Tensor]  # (observed picture, sigma of 1, strength) -> restored picture
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)


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


METHODS: dict[str, Method] = {"tv": tv, "nl_means": nl_means}


def baselines(sigma: float, validation: Sequence[Example], test: Sequence[Example]) -> dict[str, Score]:
    """Test score of each method of `METHODS`, with the strength that has the best PSNR on the validation pictures.

    Args:
        sigma: standard deviation of the noise on the 0..255 scale.
    """
    return {name: _tuned(method, sigma / 255, validation, test) for name, method in METHODS.items()}


def _tuned(method: Method, sigma: float, validation: Sequence[Example], test: Sequence[Example]) -> Score:
    def result(examples: Sequence[Example], strength: float) -> Score:
        return score(examples, [method(example.observed, sigma, strength) for example in examples])

    best = max(STRENGTHS, key=lambda strength: result(validation, strength).psnr)
    return result(test, best)
