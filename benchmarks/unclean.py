"""What a network loses that is trained without clean pictures.

    python -m benchmarks.unclean --train DATA/train400 --test DATA/set12 --network runs/mine/compact --steps 12000

The topology of a stored network is trained anew on a folder of grey pictures: with clean ones, and in each of the ways
that do without (docs/data.md), for which every picture has one noise of --sigma (pairs: two), drawn once and not
clipped. Each way keeps the weights that are best in validation by its own score. Measured is the PSNR on the pictures
of --test, clean, with the noise of `benchmarks.score`. An experiment is a line as soon as it is done.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nas.cli.shared import sentence
from nas.models import DagNet, load
from nas.process import tune_process
from nas.search import Denoise, Example, Picture, held_out
from nas.search.data.files import find_pictures
from nas.search.data.sources import folder
from nas.search.retraining.competitors import fresh
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.task import evaluate
from nas.search.tasks.unclean import Neighbours, NoiseToNoise, Recorrupted
from nas.search.training.retrain import retrain

EPOCH = 200  # steps


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unclean", description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="folder of pictures; a tenth of them validates")
    parser.add_argument("--test", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--network", type=Path, required=True, help="folder of a stored network")
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, on the 0..255 scale")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    tune_process()
    try:
        run(options)
    except (ValueError, OSError) as problem:
        parser.error(sentence(problem))


def run(options: argparse.Namespace) -> None:
    """Train in each way, and print how good the network is; ``options`` are those of the command line."""
    clean = Denoise(options.sigma)
    data, plan = folder(options.train), load(options.network).plan
    test = held_out([file.open() for file in find_pictures(options.test, options.test, 1, [])], clean)
    ways: dict[str, Restoration] = {
        "clean pictures": clean,
        "pairs of noisy pictures": NoiseToNoise(),
        "noisy pictures of a known level": Recorrupted(options.sigma),
        "noisy pictures of an unknown level": Neighbours(),
    }
    for title, task in ways.items():
        began, net = time.perf_counter(), fresh(plan)(options.seed)
        train, validation = (
            part if task is clean else with_noise(part, clean, seed)
            for part, seed in ((data.train, 1), (data.validation, 2))
        )
        examples = held_out(validation, task, seed=3)
        batches = task.batches(train, crop=options.crop, batch=options.batch, steps=EPOCH, seed=options.seed)
        validate = partial(_headline, net, examples, task)
        epochs = max(1, options.steps // EPOCH)
        retrain(net, batches, task.loss, epochs=epochs, steps=EPOCH, lr=options.lr, validate=validate)
        psnr = evaluate(net, test, clean)["psnr"]
        print(f"{title:36} {psnr:6.2f} dB  {time.perf_counter() - began:6.0f} s", flush=True)


def _headline(net: DagNet, examples: Sequence[Example], task: Restoration) -> float:
    return evaluate(net, examples, task)[task.metrics[0].key]


def with_noise(pictures: Sequence[Picture], task: Denoise, seed: int) -> list[Picture]:
    """Noisy pictures with a noise of their own that stays, and another noisy view of each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        replace(each, pixels=task.observe(each.pixels, generator), noisy=task.observe(each.pixels, generator))
        for each in pictures
    ]


if __name__ == "__main__":
    main()
