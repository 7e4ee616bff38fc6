"""Training steps of supernets on what is alive beside dense ones: forward and backward, and with the optimiser's step;
and with 19 coarse steps for each full one, where the level that they need is a part of their cost.

Also how the time grows with the units that are alive, and a step of the package bregman-learning on the dense network,
if it is installed (pip install 'bregman-nas[bench]'). CPU time on one core, so that other programs count little."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import medians
from nas import AdaBreg, param_groups, sparse_start
from nas.models import (
    DagNet,
    alive_only,
    conv_skip_autoencoder,
    dense_conv,
    mixed_autoencoder,
    mlp,
    separable_autoencoder,
    skip_autoencoder,
)
from nas.process import tune_process
from nas.search.training.coarse import CoarseLevel

COARSE = 19
DENSITIES = (0.1, 0.2, 0.3, 0.6, 1.0)
SUPERNETS: dict[str, tuple[Callable[[], DagNet], tuple[int, ...]]] = {
    "MNIST, 6 x 784 neurons": (skip_autoencoder, (128, 1, 28, 28)),
    "2 x 2048 neurons": (lambda: mlp(1024, widths=(2048, 2048), patch=None), (128, 1024)),
    "separable, 64 channels, 8 blocks": (lambda: separable_autoencoder(width=64, depth=8), (16, 1, 48, 48)),
    "separable, of make demo": (separable_autoencoder, (8, 1, 48, 48)),
    "mixed": (mixed_autoencoder, (8, 1, 48, 48)),
    "5 x 32 filters": (conv_skip_autoencoder, (8, 1, 48, 48)),
    "5 x 128 filters": (lambda: conv_skip_autoencoder(width=128), (8, 1, 48, 48)),
    "dense blocks, 5 x 32 filters": (lambda: dense_conv(depth=5, growth=32), (8, 1, 24, 24)),
}


def main() -> None:
    tune_process()
    torch.set_num_threads(1)
    print(f"{'dense / ours':<36}{'alive':>8}{'dense':>12}{'alive only':>12}{'ratio':>8}{'with step':>12}{'coarse':>8}")
    for name, (make, shape) in SUPERNETS.items():
        for density in DENSITIES:
            times = _race(make, torch.rand(shape), density, rounds=10)
            dense, ours, step, level, coarse = (
                times[k] for k in ("dense", "alive only", "step", "level", "coarse step")
            )
            multilevel = (ours + step + level + COARSE * coarse) / (COARSE + 1)
            print(
                f"{name:<36}{density:>8.0%}{1e3 * dense:>9.1f} ms{1e3 * ours:>9.1f} ms{dense / ours:>8.2f}"
                f"{(dense + step) / (ours + step):>12.2f}{(dense + step) / multilevel:>8.2f}"
            )
            if "bregman-learning" in times:
                theirs = times["bregman-learning"]
                ratios = f"{theirs / (ours + step):>20.2f}{theirs / multilevel:>8.2f}"
                print(f"{'bregman-learning, dense / ours':<76}{ratios}")
    shares = (0.1, 0.2, 0.4, 1.0)
    growth = [
        _race(lambda: mlp(1024, widths=(4096, 4096), patch=None), torch.rand(128, 1024), share, rounds=4)["alive only"]
        for share in shares
    ]
    exponent = math.log(growth[-1] / growth[0]) / math.log(shares[-1] / shares[0])
    print(f"2 x 4096 neurons: time grows with the units alive to the power {exponent:.2f} (10 to 100 %)")


def _race(make: Callable[[], DagNet], x: Tensor, density: float, rounds: int) -> dict[str, float]:
    """Median CPU seconds of forward and backward, dense and on what is alive, of the optimiser's step, of making and
    leaving a coarse level, and of a whole coarse step."""
    torch.manual_seed(0)
    net = make()
    sparse_start(net, density)
    dense = copy.deepcopy(net)
    optimizer = AdaBreg(param_groups(net, lam=0.5, lr=1e-4))
    rivals: dict[str, Callable[[], object]] = {}
    if find_spec("bregman") is not None and x.shape[0] == 128:
        rivals["bregman-learning"] = _bregman_learning_step(make(), x)
    with ExitStack() as stack:
        stack.enter_context(alive_only(net))
        _gradients(net, x)
        optimizer.step()
        level = CoarseLevel(net, optimizer)
        steps: dict[str, Callable[[], object]] = {
            "dense": lambda: _gradients(dense, x),
            "alive only": lambda: _gradients(net, x),
            "step": optimizer.step,
            "level": lambda: CoarseLevel(net, optimizer).take_back(),
            "coarse step": lambda: _coarse_step(level, x),
        }
        return medians(steps | rivals, rounds, time.process_time)


def _gradients(net: DagNet, x: Tensor) -> None:
    net.zero_grad()
    (net(x) - x).square().mean().backward()


def _coarse_step(level: CoarseLevel, x: Tensor) -> None:
    level.optimizer.zero_grad()
    (level.net(x) - x).square().mean().backward()
    level.optimizer.step()


def _bregman_learning_step(net: DagNet, x: Tensor) -> Callable[[], object]:
    import bregman
    from bregman.regularizers import L12

    reg: Any = L12(rc=0.5)
    weights = [p for p in net.parameters() if p.ndim > 1]
    optimizer = bregman.AdaBreg([{"params": weights, "reg": reg}], lr=1e-4)

    def step() -> None:
        _gradients(net, x)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
