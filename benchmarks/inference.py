"""A compact network beside the supernet that it was taken from: does the time fall with the FLOPs?"""

import copy
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn

from benchmarks.timing import medians, print_table
from nas.analysis import cost, extract
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
            x = torch.rand(BATCH, net.plan.inputs, side, side)
            times = medians({"supernet": partial(net, x), "compact": partial(small, x)}, rounds=20)
            flops, speed_up = cost(net).flops / cost(small).flops, times["supernet"] / times["compact"]
            print(f"{title:<44}{flops:>12.1f}{speed_up:>10.2f}{speed_up / flops:>16.2f}")
    _beside_torch_pruning()


def _beside_torch_pruning() -> None:
    """The same dead filters removed by us and by Torch-Pruning, from a chain without skips, which it can handle."""
    if find_spec("torch_pruning") is None:
        return
    import torch_pruning

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(4, 64, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(64, 4, 3, padding=1)).eval()
    hidden = [layer for layer in list(model)[:-1] if isinstance(layer, nn.Conv2d)]
    dead = {layer: torch.randperm(64)[:40].sort().values for layer in hidden}
    for layer, filters in dead.items():
        for p in layer.parameters():
            p[filters] = 0
    x = torch.rand(BATCH, 4, 48, 48)
    ours, _ = extract(model, [x[0]])
    theirs = copy.deepcopy(model)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(theirs, example_inputs=x[:1])
    for position, filters in zip([k for k, m in enumerate(model) if m in dead], dead.values(), strict=True):
        graph.get_pruning_group(theirs[position], torch_pruning.prune_conv_out_channels, filters.tolist()).prune()
    networks = {"dense": model, "ours": ours, "Torch-Pruning": theirs}
    print_table(
        "a chain of convolutions, 40 of 64 filters dead",
        medians({k: partial(m, x) for k, m in networks.items()}, rounds=20),
        "dense",
    )
    for name, network in networks.items():
        print(f"{'largest difference: ' + name:<48}{float((network(x) - model(x)).abs().max()):>10.1e}")


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
