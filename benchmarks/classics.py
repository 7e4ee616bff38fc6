"""Sparse training of the classics beside dense Adam: accuracy and density after every epoch.

    python -m benchmarks.classics --data-root DATA --model vgg16 --optimizer adabreg --lam 0.06 --epochs 5

DATA holds ``train/CLASS/*`` and ``test/CLASS/*``, pictures of 32 x 32 pixels such as those of CIFAR-10; for `mnist_mlp`
and `fashion_convnet` it is what `torchvision.datasets.MNIST` reads. Validation pictures are training pictures left
out; the test pictures are looked at once, after the last epoch, with ``--test``. Prints one JSON line per epoch, and
appends it to a log, with all options.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas import KERNELS, L1, AdaBreg, GroupLasso, LinBreg, Zero, describe, param_groups, sparse_start
from nas.analysis import extract
from nas.models import CLASSICS, RightReLU
from nas.process import tune_process
from nas.search.data.vision import import_torchvision
from nas.search.training.loop import Loop

GREY = "mnist_mlp", "fashion_convnet"


@dataclass(frozen=True)
class Part:
    """Pictures (N, channels, height, width) and their classes (N,)."""

    x: Tensor
    y: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Part":
        return Part(self.x[index], self.y[index])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x.split(size), self.y.split(size), strict=True)


class Bfloat16(nn.Module):
    """The network in bfloat16 (`torch.autocast`), with logits in single precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.net(x)
        return logits.float()


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    if options.without_norm and not options.model.startswith("vgg"):
        parser().error(f"--without-norm is for vgg13 and vgg16, not for {options.model}")
    try:
        training, validation, test = load(options)
        torch.manual_seed(options.seed)
        net = make_net(options)
        optimizer = make_optimizer(net, options, training.x[: options.batch])
    except (ValueError, OSError, RuntimeError) as problem:  # the last is how torchvision says that there is no MNIST
        parser().error(str(problem))
    tune_process()
    steps = math.ceil(len(training.y) / options.batch)
    forward = Bfloat16(net) if options.bfloat16 else net

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(training.y), generator=torch.Generator().manual_seed(1000 * options.seed + epoch))
        return training[order].batches(options.batch)

    scheduler = CosineAnnealingLR(optimizer, options.epochs * steps)
    report(options, epoch=0, density=density(net))
    began = time.perf_counter()
    for epoch, loss in Loop(forward, batches, optimizer, F.cross_entropy, scheduler=scheduler):
        seconds = time.perf_counter() - began
        forward.eval()
        found = {"validation": accuracy(forward, validation), "density": density(net), "seconds": round(seconds, 1)}
        if epoch == options.epochs:
            if options.test:
                found["test"] = accuracy(forward, test)
            compact, certificate = extract(net, inputs=list(test.x[:4]))
            found |= {"compact": parameters(compact) / parameters(net), "exact": certificate.max_rel_float64}
        report(options, epoch=epoch, loss=loss, **found)
        if epoch == options.epochs:
            break
        forward.train()
        began = time.perf_counter()


def make_net(options: argparse.Namespace) -> nn.Module:
    """The network; where units sleep, behind an activation with a slope at 0."""
    norm = {"batch_norm": False} if options.without_norm else {}
    return CLASSICS[options.model](activation=RightReLU if options.groups == "units" else nn.ReLU, **norm)


def make_optimizer(net: nn.Module, options: argparse.Namespace, x: Tensor) -> torch.optim.Optimizer:
    """Adam for the dense network, or a sparse start and a Bregman optimiser.

    Free are norms, biases (but those of units), the last layer and, in a convolutional network, the first one. The
    entries of linear layers are penalised where convolutions lose kernels.
    """
    if options.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), lr=options.lr, fused=True)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    rules: dict[Any, Any] = {}
    if isinstance(layers[0], nn.Conv2d):
        rules[next(name for name, _ in net.named_parameters())] = Zero()
        layers = layers[1:]
    if options.groups != "units":
        kernels = GroupLasso(options.lam, KERNELS) if options.groups == "kernels" else L1(options.lam)
        penalties = {nn.Conv2d: kernels, nn.Linear: L1(options.lam)}
        rules |= {kind: penalty for kind, penalty in penalties.items() if kind in map(type, layers[:-1])}
    lam = options.lam if options.groups == "units" else None
    groups = param_groups(net, lam=lam, lr=options.lr, rules=rules)
    for group in groups:
        if isinstance(group["penalty"], Zero) and options.free_lr is not None:
            group["lr"] = options.free_lr
    sparse_start(net, options.density, groups=groups, seed=options.seed, batch=x)
    print(describe(groups), flush=True)
    return AdaBreg(groups) if options.optimizer == "adabreg" else LinBreg(groups, momentum=options.momentum)


def load(options: argparse.Namespace) -> tuple[Part, Part, Part]:
    """Training, validation and test pictures, shifted and scaled such that the training pictures have mean 0 and
    deviation 1 in every channel.

    Raises:
        ValueError: fewer training pictures than asked for.
    """
    read = _mnist if options.model in GREY else _folders
    wanted = options.pictures + options.validation
    training, test = read(options.data_root, wanted, torch.Generator().manual_seed(options.seed))
    if len(training.y) < wanted:
        raise ValueError(f"--pictures and --validation ask for {wanted} training pictures, there are {len(training.y)}")
    mean = training.x[: options.pictures].mean((0, 2, 3), keepdim=True)
    deviation = training.x[: options.pictures].std((0, 2, 3), keepdim=True)
    training, test = (Part((part.x - mean) / deviation, part.y) for part in (training, test))
    return training[slice(options.pictures)], training[slice(options.pictures, None)], test


def _folders(root: Path, wanted: int, generator: torch.Generator) -> tuple[Part, Part]:
    """``wanted`` random pictures of root/train, and all of root/test."""
    vision = import_torchvision()
    sets = [vision.datasets.ImageFolder(root / part, vision.transforms.PILToTensor()) for part in ("train", "test")]
    chosen = torch.randperm(len(sets[0]), generator=generator)[:wanted].tolist()
    parts = []
    for pictures, indices in zip(sets, (chosen, range(len(sets[1]))), strict=True):
        x, y = zip(*(pictures[k] for k in indices), strict=True)
        parts.append(Part(torch.stack(x).float() / 255, torch.tensor(y)))
    return parts[0], parts[1]


def _mnist(root: Path, wanted: int, generator: torch.Generator) -> tuple[Part, Part]:
    """``wanted`` random training pictures of MNIST, and all test pictures."""
    vision = import_torchvision()
    sets = [vision.datasets.MNIST(root, train=train) for train in (True, False)]
    training, test = (Part(part.data[:, None].float() / 255, part.targets) for part in sets)
    return training[torch.randperm(len(training.y), generator=generator)[:wanted]], test


@torch.no_grad()
def accuracy(net: nn.Module, part: Part) -> float:
    """Part of the pictures whose class has the largest logit, in [0, 1]."""
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in part.batches(250))
    return right / len(part.y)


def density(net: nn.Module) -> float:
    """Non-zero weights / all weights, of all convolution and linear layers, penalised or not."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def report(options: argparse.Namespace, **found: float) -> None:
    print(json.dumps(found), flush=True)
    if options.log is not None:
        with options.log.open("a") as log:
            log.write(json.dumps({**found, "options": vars(options)}, default=str) + "\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--data-root", type=Path, required=True)
    command.add_argument("--model", choices=CLASSICS, default="vgg16")
    command.add_argument("--without-norm", action="store_true", help="VGG without batch normalisation")
    command.add_argument("--optimizer", choices=("adam", "linbreg", "adabreg"), default="adabreg")
    command.add_argument("--groups", choices=("entries", "kernels", "units"), default="entries", help="what is sparse")
    command.add_argument("--lam", type=float, default=0.06)
    command.add_argument("--density", type=float, default=0.1, help="of the groups, at the start")
    command.add_argument("--lr", type=float, default=1e-3)
    command.add_argument("--free-lr", type=float, help="of what is not penalised; that of the rest by default")
    command.add_argument("--momentum", type=float, default=0.9, help="of LinBreg")
    command.add_argument("--epochs", type=_positive, default=5)
    command.add_argument("--pictures", type=_positive, default=10_000)
    command.add_argument(
        "--validation", type=_positive, default=2_000, help="pictures left out of the training pictures"
    )
    command.add_argument("--batch", type=_positive, default=50)
    command.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, weights and duals in float32")
    command.add_argument("--test", action="store_true", help="accuracy on the test pictures after the last epoch")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--log", type=Path)
    return command


if __name__ == "__main__":
    main()
