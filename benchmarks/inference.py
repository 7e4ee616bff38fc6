"""A compact network beside the supernet that it was taken from: time, FLOPs and parameters."""

from functools import partial

import torch

from benchmarks.timing import medians, print_table
from nas.analysis import cost
from nas.models import DagNet, compact, conv_skip_autoencoder


@torch.no_grad()
def main() -> None:
    for part in (0.5, 0.25):
        net = _sparse_supernet(part)
        small = compact(net)
        for batch, side in ((1, 256), (64, 48)):
            x = torch.rand(batch, 1, side, side)
            times = medians({"supernet": partial(net, x), "compact": partial(small, x)})
            print_table(f"{part:.0%} of the units, batch {batch} of {side} x {side} pixels", times, "supernet")
            print(f"{'FLOPs of compact / supernet':<48}{cost(small).flops / cost(net).flops:>10.2f}")


def _sparse_supernet(part: float) -> DagNet:
    torch.manual_seed(0)
    net = conv_skip_autoencoder()
    for members in net.unit_parameters().values():
        dead = torch.randperm(len(members[0]))[int(part * len(members[0])) :]
        for p in members:
            p[dead] = 0
    net.named_nodes()["n5"].gates[0] = 0.5
    return net


if __name__ == "__main__":
    main()
