"""How good are stored networks on a folder of grey pictures?

    python -m benchmarks.score --test DATA/set12 runs/mine/retrained runs/mine/compact

Noise of --sigma (of 255), picture k always that of the seed k. Means over the pictures of PSNR (data range 1, which is
255 of bytes), of SSIM as scikit-image computes it (uniform window of 7 x 7 pixels) and as published (Gaussian window).
Networks for a range of levels are told --sigma, or with --estimate what is estimated of each picture.
--each adds a line per picture; --border leaves out so many pixels at each side.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.cli.shared import sentence
from nas.models import DagNet, load
from nas.process import tune_process
from nas.search import Denoise, Example, estimate_sigma, held_out, predict
from nas.search.data.files import find_pictures
from nas.search.tasks.noise import with_level
from nas.search.tasks.restoration import PSNR, SSIM, WINDOW
from nas.search.tasks.task import Metric

METRICS = (PSNR, SSIM, Metric("published_ssim", "SSIM (Gaussian window)", decimals=4))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description="PSNR and SSIM of stored networks.")
    parser.add_argument("--test", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, on the 0..255 scale")
    parser.add_argument("--estimate", action="store_true", help="tell networks what is estimated, not --sigma")
    parser.add_argument("--border", type=int, default=0, help="pixels at each side that do not count")
    parser.add_argument("--each", action="store_true", help="print a line for every picture")
    parser.add_argument("networks", type=Path, nargs="+", help="folders such as runs/mine/retrained")
    options = parser.parse_args(arguments)
    tune_process()
    try:
        task = Denoise(options.sigma, border=options.border)
        pictures = [file.open() for file in find_pictures(options.test, options.test, 1, [])]
        examples = held_out(pictures, task)
        _check_sizes(task, examples)
        nets = {folder: load(folder) for folder in options.networks}
    except (ValueError, OSError) as problem:
        parser.error(sentence(problem))
    print(f"{len(examples)} pictures")
    _report("noisy", examples, [example.observed for example in examples], task, options)
    level = None if options.estimate else options.sigma / 255
    for folder, net in nets.items():
        outputs = [
            task.finish(output) for output in predict(net, [seen(net, each.observed, level) for each in examples])
        ]
        _report(f"{folder}: {net.plan.num_params:,} parameters", examples, outputs, task, options)


def seen(net: DagNet, observed: Tensor, level: float | None) -> Tensor:
    """What a network sees of a picture: with the level of its noise behind it, if it is told that; None: estimated."""
    if not net.plan.extra:
        return observed
    return with_level(observed, torch.tensor(estimate_sigma(observed)[0] if level is None else level))


def _report(
    name: str, examples: Sequence[Example], outputs: Sequence[Tensor], task: Denoise, options: argparse.Namespace
) -> None:
    scores: list[dict[str, Any]] = task.by_picture(examples, outputs)
    if options.each:
        for each in scores:
            print(f"  {each['name']}: " + ", ".join(metric.text(each[metric.key]) for metric in METRICS))
    means = {metric.key: math.fsum(each[metric.key] for each in scores) / len(scores) for metric in METRICS}
    print(f"{name}: " + ", ".join(metric.text(means[metric.key]) for metric in METRICS), flush=True)


def _check_sizes(task: Denoise, examples: Sequence[Example]) -> None:
    """Raise ValueError unless enough of every picture is scored."""
    for example in examples:
        if min(task.scored(example.target).shape[-2:]) < WINDOW:
            raise ValueError(f"--border {task.border} leaves less than {WINDOW} x {WINDOW} pixels of {example.name}")


if __name__ == "__main__":
    main()
