"""Training steps of supernets on what is alive beside dense ones: forward and backward, and with the optimiser's step;
and with 19 coarse steps for each full one, where the level that they need is a part of their cost. An epoch is so many
of them. Beside them the same dense network with torch's fused Adam and, where pictures are those of MNIST, with AdaBreg
of the package bregman-learning, if it is installed (pip install 'bregman-nas[bench]').

Also how time and memory grow with the units that are alive. CPU time on one core, so that other programs count little.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor, nn

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
Supernets = dict[str, tuple[Callable[[], DagNet], tuple[int, ...]]]  # by name what makes it, and the shape of a batch
SUPERNETS: Supernets = {
    "MNIST, 6 x 784 neurons": (skip_autoencoder, (128, 1, 28, 28)),
    "separable, 64 channels, 8 blocks": (lambda: separable_autoencoder(width=64, depth=8), (16, 1, 48, 48)),
    "separable, of make demo": (separable_autoencoder, (8, 1, 48, 48)),
    "mixed": (mixed_autoencoder, (8, 1, 48, 48)),
    "5 x 32 filters": (conv_skip_autoencoder, (8, 1, 48, 48)),
    "5 x 128 filters": (lambda: conv_skip_autoencoder(width=128), (8, 1, 48, 48)),
    "dense blocks, 5 x 32 filters": (lambda: dense_conv(depth=5, growth=32), (8, 1, 24, 24)),
}
SIZES: Supernets = {
    **{
        f"2 x {width} neurons": (partial(mlp, 1024, widths=(width, width), patch=None), (128, 1024))
        for width in (256, 1024, 4096)
    },
    **{
        f"5 x {width} filters, 2 crops": (partial(conv_skip_autoencoder, width=width), (2, 1, 48, 48))
        for width in (32, 64, 128, 256)
    },
}
SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)


def main() -> None:
    tune_process()
    torch.set_num_threads(1)
    titles = ("dense", "alive only", "ratio", "with step", "coarse", "Adam", "coarse")
    print(f"{'dense / ours':<36}{'alive':>6}" + "".join(f"{title:>11}" for title in titles))
    for name, (make, shape) in SUPERNETS.items():
        for density in DENSITIES:
            _print_row(name, density, _race(make, torch.rand(shape), density, rounds=6))
    for name, (make, shape) in SIZES.items():
        for density in (0.1, 0.3, 1.0):
            _print_row(name, density, _race(make, torch.rand(shape), density, rounds=4, warm_up=1))
    _print_growth()


def _print_row(name: str, density: float, times: dict[str, float]) -> None:
    dense, ours, multilevel = times["dense"], times["alive only"], times["cycle"] / (COARSE + 1)
    ratios = (
        dense / ours,
        times["dense step"] / times["step"],
        times["dense step"] / multilevel,
        times["Adam"] / times["step"],
        times["Adam"] / multilevel,
    )
    numbers = "".join(f"{ratio:>11.2f}" for ratio in ratios)
    print(f"{name:<36}{density:>6.0%}{1e3 * dense:>8.1f} ms{1e3 * ours:>8.1f} ms{numbers}")
    if theirs := times.get("bregman-learning"):
        print(f"{'bregman-learning, dense / ours':<75}{theirs / times['step']:>11.2f}{theirs / multilevel:>11.2f}")


def _race(make: Callable[[], DagNet], x: Tensor, density: float, rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median CPU seconds, in turns of several in a row: of forward and backward, dense and on what is alive; of whole
    steps, dense, on what is alive, and dense with Adam; and of a full step with the coarse ones that follow it."""
    net, optimizer = _started(make, density)
    dense, dense_optimizer = _started(make, density)
    rival = copy.deepcopy(dense)
    adam = torch.optim.Adam(rival.parameters(), lr=1e-9, fused=True)
    rivals: dict[str, Callable[[], object]] = {}
    if find_spec("bregman") is not None and x.shape == (128, 1, 28, 28):
        rivals["bregman-learning"] = _bregman_learning_step(make(), x)
    with alive_only(net):
        _step(net, optimizer, x)
        level = CoarseLevel(net, optimizer)
        steps: dict[str, Callable[[], object]] = {
            "dense": lambda: _gradients(dense, x),
            "alive only": lambda: _gradients(net, x),
            "dense step": lambda: _step(dense, dense_optimizer, x),
            "step": lambda: _step(net, optimizer, x),
            "Adam": lambda: _step(rival, adam, x),
            "coarse step": lambda: _step(level.net, level.optimizer, x),
        }
        times = medians(steps | rivals, rounds, time.process_time, warm_up, in_a_row=4)
        return times | medians({"cycle": lambda: _cycle(net, optimizer, x)}, rounds, time.process_time, warm_up=1)


def _started(make: Callable[[], DagNet], density: float) -> tuple[DagNet, AdaBreg]:
    torch.manual_seed(0)
    net = make()
    sparse_start(net, density)
    return net, AdaBreg(param_groups(net, lam=0.5, lr=1e-4))


def _print_growth() -> None:
    """With which power of the share that is alive time and memory grow, in full steps and in coarse ones."""
    make, x = partial(mlp, 1024, widths=(4096, 4096), patch=None), torch.rand(128, 1024)
    print("\n2 x 4096 neurons, 128 vectors: growth with the units that are alive, 10 to 100 %")
    rows = []
    for share in SHARES:
        times, bytes_ = _race(make, x, share, rounds=3, warm_up=1), _memory(make, x, share)
        rows.append((times["alive only"], times["step"], times["coarse step"], *bytes_))
    titles = "forward and backward", "a full step", "a coarse step", "kept by a full step", "kept by a coarse step"
    for title, values in zip(titles, zip(*rows, strict=True), strict=True):
        unit, factor = ("MB", 1e-6) if title.startswith("kept") else ("ms", 1e3)
        numbers = "".join(f"{factor * value:>9.1f}" for value in values)
        print(f"{title:<24}{numbers} {unit}{f'to the power {_exponent(values):.2f}':>24}")


def _exponent(values: Sequence[float]) -> float:
    """Of the power law through the values at `SHARES`, by least squares of the logarithms."""
    return linear_regression([math.log(share) for share in SHARES], [math.log(value) for value in values]).slope


def _memory(make: Callable[[], DagNet], x: Tensor, share: float) -> tuple[int, int]:
    """Bytes of weights, gradients, state of the optimiser and what is kept for the backward pass, of a full step and a
    coarse one; the supernet and its state, which wait beside the latter, are not counted."""
    net, optimizer = _started(make, share)
    with alive_only(net):
        full = _kept(net, optimizer, x)
        level = CoarseLevel(net, optimizer)
        return full, _kept(level.net, level.optimizer, x)


def _kept(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> int:
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        optimizer.zero_grad()
        loss = (net(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    for p in net.parameters():
        count(p)
        if p.grad is not None:
            count(p.grad)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                count(value)
    return sum(storages.values())


def _gradients(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    (net(x) - x).square().mean().backward()


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (net(x) - x).square().mean().backward()
    optimizer.step()


def _cycle(net: DagNet, optimizer: AdaBreg, x: Tensor) -> None:
    _step(net, optimizer, x)
    level = CoarseLevel(net, optimizer)
    for _ in range(COARSE):
        _step(level.net, level.optimizer, x)
    level.take_back()


def _bregman_learning_step(net: DagNet, x: Tensor) -> Callable[[], object]:
    import bregman
    from bregman.regularizers import L12

    reg: Any = L12(rc=0.5)
    weights = [p for p in net.parameters() if p.ndim > 1]
    optimizer = bregman.AdaBreg([{"params": weights, "reg": reg}], lr=1e-4)

    return lambda: _step(net, optimizer, x)


if __name__ == "__main__":
    main()
