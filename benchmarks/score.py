"""How good are stored networks on a folder of grey pictures?

    python -m benchmarks.score --test DATA/set12 runs/mine/retrained runs/mine/compact

Noise of --sigma (of 255), picture k always that of the seed k; PSNR and SSIM as means over the pictures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from nas.cli.shared import sentence
from nas.models import load
from nas.search import Denoise, Picture, evaluate, held_out
from nas.search.data.images import read_folder, to_tensor
from nas.search.tasks.task import score_trivial


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description="PSNR and SSIM of stored networks.")
    parser.add_argument("--test", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, on the 0..255 scale")
    parser.add_argument("networks", type=Path, nargs="+", help="folders such as runs/mine/retrained")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    try:
        task = Denoise(options.sigma)
        pictures = [Picture(path.name, to_tensor(pixels, 1)) for path, pixels in read_folder(options.test, [])]
        examples = held_out(pictures, task)
        nets = {folder: load(folder) for folder in options.networks}
    except (ValueError, OSError) as problem:
        parser.error(sentence(problem))
    name, scores = score_trivial(examples, task)
    print(f"{len(examples)} pictures; {name}: " + ", ".join(metric.text(scores[metric.key]) for metric in task.metrics))
    for folder, net in nets.items():
        scores = evaluate(net, examples, task)
        print(
            f"{folder}: {net.plan.num_params:,} parameters, "
            + ", ".join(metric.text(scores[metric.key]) for metric in task.metrics),
            flush=True,
        )


if __name__ == "__main__":
    main()
