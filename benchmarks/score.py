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

import torch
from torch import Tensor

from nas.cli.shared import sentence
from nas.models import DagNet, load
from nas.process import tune_process
from nas.search import Denoise, Example, estimate_sigma, held_out, predict
from nas.search.data.files import find_pictures
from nas.search.tasks.noise import with_level
from nas.search.tasks.restoration import PSNR, SSIM, published_ssim
from nas.search.tasks.task import Metric

METRICS = (PSNR, SSIM, Metric("published_ssim", "SSIM (Gaussian window)", decimals=4))
MIN_SIDE = 11  # of the Gaussian window


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
        task = Denoise(options.sigma)
        pictures = [file.open() for file in find_pictures(options.test, options.test, 1, [])]
        examples = held_out(pictures, task)
        _check_border(options.border, examples)
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


def measure(output: Tensor, target: Tensor, task: Denoise, border: int = 0) -> dict[str, float]:
    """The `METRICS` of one picture, (1, height, width), without ``border`` pixels at each side."""
    height, width = target.shape[-2:]
    inner = (..., slice(border, height - border), slice(border, width - border))
    return task.score(output[inner], target[inner]) | {"published_ssim": published_ssim(output[inner], target[inner])}


def _report(
    name: str, examples: Sequence[Example], outputs: Sequence[Tensor], task: Denoise, options: argparse.Namespace
) -> None:
    scores = [
        measure(output, each.target, task, options.border) for each, output in zip(examples, outputs, strict=True)
    ]
    if options.each:
        for example, each in zip(examples, scores, strict=True):
            print(f"  {example.name}: " + ", ".join(metric.text(each[metric.key]) for metric in METRICS))
    means = {metric.key: math.fsum(each[metric.key] for each in scores) / len(scores) for metric in METRICS}
    print(f"{name}: " + ", ".join(metric.text(means[metric.key]) for metric in METRICS), flush=True)


def _check_border(border: int, examples: Sequence[Example]) -> None:
    """Raise ValueError unless enough is left of every picture."""
    if border < 0:
        raise ValueError(f"--border must be at least 0 pixels, got {border}")
    for example in examples:
        if min(example.target.shape[-2:]) - 2 * border < MIN_SIDE:
            raise ValueError(f"--border {border} leaves less than {MIN_SIDE} x {MIN_SIDE} pixels of {example.name}")


if __name__ == "__main__":
    main()
