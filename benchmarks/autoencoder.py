"""Denoising of MNIST with fully connected layers, all as wide as the picture: is an autoencoder unveiled?

The denoising experiment of Bungert et al., JMLR 23(192), 2022: LinBreg, a penalty on the rows of all
weights, no skips. What came out is in docs/autoencoder.md.

    python -m benchmarks.autoencoder --data-root data                   the search
    python -m benchmarks.autoencoder --data-root data --dense --lr 10   the same network, dense, with SGD
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR

from nas import LinBreg, Zero, param_groups, sparse_start
from nas.files import replacing
from nas.models import DagNet, skip_autoencoder
from nas.search import Batches, Denoise, Picture, evaluate, held_out, mnist, score
from nas.search.data.batches import take
from nas.search.training.loop import Loop

SIGMA = 12.75  # of 255: 0.05 on the scale [0, 1]
PAPER = {"n1": 294, "n2": 171, "n3": 74, "n4": 109, "n5": 120, "out": 488}  # rows after 100 epochs

Widths = dict[str, int]  # node -> number of rows of its weight that are not zero


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print one line per epoch, draw the widths if wanted; exit code 2 on bad options, as too large an lr."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    try:
        run(**options)
    except (ValueError, FloatingPointError) as problem:
        parser.error(str(problem))


def run(
    data_root: Path, epochs: int, pictures: int, batch: int, lr: float, lam: float, density: float,
    joint_biases: bool, dense: bool, seed: int, draw: Path | None,
) -> None:  # fmt: skip
    """One training; the arguments are the options of the command line."""
    torch.manual_seed(seed)
    data, task, net = mnist(data_root), Denoise(SIGMA), chain()
    train_set = data.train[:pictures]
    batches = whole_pictures(train_set, task, batch=batch, seed=seed)
    test = held_out(data.test, task)
    if dense:
        optimizer: torch.optim.Optimizer = SGD(net.parameters(), lr)
    else:
        groups = param_groups(net, lam=lam, lr=lr, rules=None if joint_biases else {"nodes.*.bias": Zero()})
        sparse_start(net, density, groups=groups, batch=next(batches(0))[0], seed=seed)
        if not joint_biases:
            start_biases(net)
        optimizer = LinBreg(groups)
    steps = epochs * math.ceil(len(train_set) / batch)
    scheduler = LinearLR(optimizer, start_factor=1, end_factor=0.1, total_iters=steps)

    print(f"noisy test pictures: SSIM {score(test, task.trivial(test)[1], task)['ssim']:.3f}")
    history = [widths(net)]
    print("epoch  " + "".join(f"{name:>6}" for name in history[0]) + "      loss   SSIM  seconds")
    began = time.perf_counter()
    for epoch, loss in islice(Loop(net, batches, optimizer, task.loss, scheduler=scheduler), epochs):
        history.append(widths(net))
        row = "".join(f"{width:6d}" for width in history[-1].values())
        ssim, seconds = evaluate(net, test, task)["ssim"], time.perf_counter() - began
        print(f"{epoch:5d}  {row}  {loss:.6f}  {ssim:.3f}  {seconds:7.0f}", flush=True)
    if draw is not None:
        draw_widths(history, draw)


def chain(depth: int = 5, patch: int = 28) -> DagNet:
    """The supernet x_(l+1) = relu(W_l x_l + b_l), l = 0 .. depth: all layers have patch ** 2 units, no skips."""
    plan = skip_autoencoder(depth=depth, patch=patch).plan
    return DagNet(replace(plan, nodes=tuple(replace(node, skips=()) for node in plan.nodes)))


@torch.no_grad()
def start_biases(net: DagNet) -> None:
    """Biases uniform in (0, 1 / sqrt(n)) for n inputs: behind a row that is zero the rectifier stays open."""
    for weight, bias in net.unit_parameters().values():
        bias.uniform_(0, weight.shape[1] ** -0.5)


def whole_pictures(pictures: Sequence[Picture], task: Denoise, *, batch: int, seed: int) -> Batches:
    """Every picture once per epoch, in random order and with fresh noise: pairs (observed, clean)."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for indices in torch.randperm(len(pictures), generator=generator).split(batch):
            clean, _ = take(pictures, indices)
            yield task.observe(clean, generator), clean

    return batches


def widths(net: DagNet) -> Widths:
    """How many rows of each weight are not zero."""
    return {name: int(weight.ne(0).any(dim=1).sum()) for name, (weight, _) in net.unit_parameters().items()}


def draw_widths(history: Sequence[Widths], path: Path) -> None:
    """The widths over the epochs, and the last ones layer by layer beside those of the paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in history[0]:
        left.plot([epoch[name] for epoch in history], label=name)
    left.set(xlabel="epoch", ylabel="rows that are not zero")
    left.legend(fontsize="small", ncols=2)
    names = ["in", *history[-1]]
    right.plot(names, [28 * 28, *history[-1].values()], marker="o", label=f"epoch {len(history) - 1}")
    right.plot(names, [28 * 28, *PAPER.values()], marker="s", linestyle="dashed", label="JMLR, epoch 100")
    right.set(xlabel="layer", ylabel="rows that are not zero")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    replacing(path, lambda temporary: figure.savefig(temporary))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoencoder",
        description="Denoise MNIST: which widths does the search leave?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-root", type=Path, required=True, help="folder of the data set MNIST")
    parser.add_argument("--epochs", type=_positive, default=100, help="passes over the pictures")
    parser.add_argument("--pictures", type=_positive, default=55_000, help="the first so many for training")
    parser.add_argument("--batch", type=_positive, default=128, help="pictures per step")
    parser.add_argument("--lr", type=float, default=20.0, help="step at the start; it falls to a tenth, linearly")
    parser.add_argument("--lam", type=float, default=0.07, help="strength of the penalty on the rows")
    parser.add_argument("--density", type=float, default=0.0103, help="part of the rows alive at the start")
    parser.add_argument("--joint-biases", action="store_true", help="a row and its bias are one unit, as in nas search")
    parser.add_argument("--dense", action="store_true", help="SGD without penalty, from a dense start")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--draw", type=Path, help="picture of the widths to write; its suffix names the format")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
