"""Makes a network of the zoo: one that was found for one level of noise learns all of them, and gets its card.

    python -m benchmarks.zoo runs/t400/retrained grey-15k --train DATA/train400 --test DATA/set12 --epochs 80 \
        --lr 0.005 --terms "where the pictures come from, and on what terms"

A channel with the level of the noise is put behind the picture, with weights of zero, so that it begins as it was.
With --alone 15 it learns that level instead, in as many steps and without being told: what knowing one level is worth.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.score import seen
from nas.cli.shared import sentence
from nas.models import DagNet, load
from nas.models.price import total
from nas.models.store import fingerprint
from nas.process import tune_process
from nas.search import Denoise, Run, SearchConfig, evaluate, held_out, predict, score
from nas.search.data.files import find_pictures
from nas.search.tasks.noise import MEASURED
from nas.search.training.retrain import Retraining
from nas.search.zoo.shipped import CARD, NETWORKS, Shipped

SIGMA = 5.0, 55.0
STEPS, BATCH, CROP = 256, 16, 48
VALIDATED = 36  # pictures and levels
EVERY = 10  # epochs


def main(arguments: Sequence[str] | None = None) -> None:
    tune_process()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", type=Path, help="folder of a network for one level, grey or of colours")
    parser.add_argument("name", help="such as grey-15k")
    parser.add_argument("--train", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--test", type=Path, required=True, help="folder of pictures for the card")
    parser.add_argument("--terms", required=True, help="for the card: the training pictures, and their terms")
    parser.add_argument("--epochs", type=int, default=80, help=f"of {STEPS} steps")
    parser.add_argument("--lr", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--alone", type=float, metavar="SIGMA", help="train for this level alone")
    parser.add_argument("--out", type=Path, default=NETWORKS, help="folder for the folder of the network")
    options = parser.parse_args(arguments)
    try:
        found = load(options.network)
        if options.alone is None:
            net, sigma = told_the_level(found), SIGMA
        else:
            net, sigma = found, (options.alone, options.alone)
        train(net, sigma, options.train, options.epochs, options.lr)
        print(write(net, sigma, options.out / options.name, options.terms, options.test))
    except (ValueError, OSError, FloatingPointError) as problem:
        parser.error(sentence(problem))


@torch.no_grad()
def told_the_level(net: DagNet) -> DagNet:
    """The same function, with an input channel more that nothing depends on yet."""
    told = DagNet(net.plan.with_extra(1))
    weights = net.state_dict()
    for name, tensor in told.state_dict().items():
        tensor.zero_()[_corner(weights[name])] = weights[name]
    return told


def _corner(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(n) for n in tensor.shape)


def train(net: DagNet, sigma: tuple[float, float], root: Path, epochs: int, lr: float) -> None:
    """In place, on the levels between two; it ends with its best weights."""
    low, high = sigma
    config = SearchConfig(
        data="folder", data_root=root, channels=net.plan.channels, sigma=low if low == high else f"{low:g}:{high:g}",
        steps=STEPS, crop=CROP,
    )  # fmt: skip
    run = Run(Path(), config)
    data = run.data()
    task, validation = run.task(data), run.validation(data)[:VALIDATED]

    def validate() -> float:
        return evaluate(net, validation, task)["psnr"]

    torch.manual_seed(0)
    Retraining(
        net, run.batches(data, 1, batch=BATCH), task.loss, epochs=epochs, steps=STEPS, lr=lr, validate=validate,
        every=EVERY, or_start=True, on_epoch=lambda epoch, loss: print(f"epoch {epoch}, loss {loss:.5f}", flush=True),
    ).run()  # fmt: skip


def write(net: DagNet, sigma: tuple[float, float], folder: Path, terms: str, test: Path) -> Shipped:
    """Store the network with its card."""
    levels = [level for level in MEASURED if sigma[0] <= level <= sigma[1]]
    psnr = {f"{level:g}": round(measured(net, test, level), 2) for level in levels}
    card = Shipped(folder.name, sigma, net.plan.num_params, total(net.plan, "flops"), psnr, terms, fingerprint(net))
    folder.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(folder)
    (folder / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=1) + "\n", encoding="utf-8")
    return card


def measured(net: DagNet, root: Path, sigma: float) -> float:
    """PSNR in dB at one level; picture k with the noise of seed k."""
    task = Denoise(sigma)
    pictures = [file.open() for file in find_pictures(root, root, net.plan.channels, [])]
    examples = held_out(pictures, task)
    outputs = predict(net, [seen(net, each.observed, sigma / 255) for each in examples])
    return score(examples, [task.finish(output) for output in outputs], task)["psnr"]


if __name__ == "__main__":
    main()
