"""A compact network beside the supernet that it was taken from: does the time fall with the FLOPs?"""

from functools import partial

import torch

from benchmarks.timing import medians
from nas.analysis import cost
from nas.models import DagNet, compact, conv_skip_autoencoder, skip_autoencoder

BATCH = 64
CONVOLUTIONS, MATRICES = (0.55, 0.4, 0.3, 0.22), (0.47, 0.3, 0.2, 0.13)  # parts of the units that stay


@torch.no_grad()
def main() -> None:
    threads = torch.get_num_threads()
    print(f"{f'batch {BATCH}, {threads} thread(s)':<44}{'FLOP ratio':>12}{'speed-up':>10}{'per FLOP ratio':>16}")
    networks = {
        "conv_skip_autoencoder, 48 x 48 pixels": (conv_skip_autoencoder(), 48, CONVOLUTIONS),
        "conv_skip_autoencoder, width 64, 48 x 48": (conv_skip_autoencoder(width=64), 48, CONVOLUTIONS),
        "skip_autoencoder, 28 x 28 pixels": (skip_autoencoder(), 28, MATRICES),
    }
    for title, (net, side, parts) in networks.items():
        for part in parts:
            _thin_out(net, part)
            small = compact(net)
            x = torch.rand(BATCH, net.plan.channels, side, side)
            times = medians({"supernet": partial(net, x), "compact": partial(small, x)}, rounds=20)
            flops, speed_up = cost(net).flops / cost(small).flops, times["supernet"] / times["compact"]
            print(f"{title:<44}{flops:>12.1f}{speed_up:>10.2f}{speed_up / flops:>16.2f}")


def _thin_out(net: DagNet, part: float) -> None:
    """Leave ``part`` of the units of every hidden node alive, and one skip."""
    torch.manual_seed(0)
    for name, members in net.unit_parameters().items():
        for p in members:
            p.normal_(std=0.05)
        if name != "out":
            dead = torch.randperm(len(members[0]))[round(part * len(members[0])) :]
            for p in members:
                p[dead] = 0
    net.named_nodes()["n5"].gates[-1] = 0.5


if __name__ == "__main__":
    main()
