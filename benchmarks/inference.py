"""A compact network beside the supernet that it was taken from: does the time fall with the FLOPs? And its ONNX file in
8-bit integers beside that in single precision, if onnxruntime is installed (pip install 'bregman-nas[onnx]')."""

import copy
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import medians, print_table
from nas.analysis import cost, export, extract
from nas.analysis.export.export import load_onnx
from nas.analysis.export.int8 import export_int8
from nas.models import DagNet, compact, conv_skip_autoencoder, separable_autoencoder, skip_autoencoder

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
    _int8_beside_single_precision()


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


def _int8_beside_single_precision() -> None:
    """The size of both ONNX files, and their CPU time on one core for a picture or a batch of small ones."""
    if find_spec("onnxruntime") is None:
        return
    torch.set_num_threads(1)
    networks = {
        "conv_skip_autoencoder": (conv_skip_autoencoder(), (1, 1, 256, 256)),
        "conv_skip_autoencoder, width 64": (conv_skip_autoencoder(width=64), (1, 1, 256, 256)),
        "separable_autoencoder": (separable_autoencoder(), (1, 1, 256, 256)),
        "skip_autoencoder": (skip_autoencoder(), (1, 1, 28, 28)),
        f"skip_autoencoder, batch {BATCH}": (skip_autoencoder(), (BATCH, 1, 28, 28)),
    }
    print(f"\n{'ONNX, single precision / int8':<44}{'parameters':>12}{'file size':>12}{'speed-up':>12}")
    for title, (net, shape) in networks.items():
        for p in net.parameters():
            p.normal_(std=0.05)
        for each in (net, _half(net)):
            x = torch.rand(shape)
            with tempfile.TemporaryDirectory() as place:
                files = {name: Path(place) / f"{name}.onnx" for name in ("float", "int8")}
                export(each, files["float"], "onnx")
                export_int8(each, files["int8"], list(x[:8]))
                runs = {name: partial(load_onnx(file), x) for name, file in files.items()}
                times = medians(runs, 20, time.process_time)
                sizes = {name: file.stat().st_size for name, file in files.items()}
            ratios = "".join(f"{ratio['float'] / ratio['int8']:>12.2f}" for ratio in (sizes, times))
            print(f"{title:<44}{sum(p.numel() for p in each.parameters()):>12,}{ratios}")


def _half(net: DagNet) -> DagNet:
    """A compact network with half of the units."""
    half = copy.deepcopy(net)
    for members in half.unit_parameters().values():
        for p in members:
            p[: len(p) // 2] = 0
    return compact(half)


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
