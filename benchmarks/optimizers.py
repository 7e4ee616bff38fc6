"""One step of the Bregman optimisers beside the torch optimisers around which they are built, and beside the package
bregman-learning if it is installed (pip install 'bregman-nas[bench]')."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.timing import medians, print_table
from nas import ROWS, AdaBreg, GroupLasso, LinBreg, param_groups
from nas.models import conv_skip_autoencoder

RESNET18 = [  # the weights of ResNet-18, as matrices of (filters, entries of a filter)
    *[(64, 147)],
    *[(64, 576)] * 4,
    *[(128, 576), (128, 64), *[(128, 1152)] * 3],
    *[(256, 1152), (256, 128), *[(256, 2304)] * 3],
    *[(512, 2304), (512, 256), *[(512, 4608)] * 3],
    *[(1000, 512)],
]
SHAPES = {
    "six weights of 784 x 784": [(784, 784)] * 6,
    "two weights of 4096 x 4096": [(4096, 4096)] * 2,
    "the 21 weights of ResNet-18": RESNET18,
}
LAM = 0.1

Maker = Callable[[list[Parameter]], Optimizer]


def main() -> None:
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = GroupLasso(LAM, ROWS)
    makers: dict[str, Maker] = {
        "torch Adam(fused=True)": partial(torch.optim.Adam, fused=True),
        "torch Adam": torch.optim.Adam,
        "AdaBreg, row groups": partial(AdaBreg, penalty=rows),
        **_bregman_learning(),
    }
    for title, shapes in SHAPES.items():
        _race(f"{title}, {device}", makers, shapes, device, "torch Adam(fused=True)")
    for momentum in (0.9, 0.0):
        makers = {
            "torch SGD(fused=True)": partial(torch.optim.SGD, lr=0.1, momentum=momentum, fused=True),
            "LinBreg, row groups": partial(LinBreg, penalty=rows, momentum=momentum),
        }
        for title, shapes in SHAPES.items():
            _race(f"{title}, momentum {momentum:g}, {device}", makers, shapes, device, "torch SGD(fused=True)")
    net = conv_skip_autoencoder()
    groups = param_groups(net, lam=LAM, lr=1e-3)
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    optimizers = {"torch Adam(fused=True)": torch.optim.Adam(net.parameters(), fused=True), "AdaBreg": AdaBreg(groups)}
    times = medians({name: optimizer.step for name, optimizer in optimizers.items()})
    print_table("the supernet of make demo: filters with biases, gates, cpu", times, "torch Adam(fused=True)")


def _race(title: str, makers: dict[str, Maker], shapes: Sequence[tuple[int, int]], device: str, reference: str) -> None:
    optimizers = {name: make(_parameters(shapes, device)) for name, make in makers.items()}
    times = medians({name: partial(_step, optimizer, device) for name, optimizer in optimizers.items()})
    print_table(title, times, reference)
    for name, optimizer in optimizers.items():
        print(f"{'state per weight: ' + name:<48}{_state_size(optimizer):>10.2f}")


def _step(optimizer: Optimizer, device: str) -> None:
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


def _parameters(shapes: Sequence[tuple[int, int]], device: str) -> list[Parameter]:
    torch.manual_seed(0)
    parameters = [Parameter(0.03 * torch.randn(shape, device=device)) for shape in shapes]
    for p in parameters:
        p.grad = 1e-3 * torch.randn_like(p)
    return parameters


def _state_size(optimizer: Optimizer) -> float:
    """Numbers in the state for each number in the weights."""
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    weights: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(v.numel() for v in tensors) / sum(p.numel() for p in weights)


def _bregman_learning() -> dict[str, Maker]:
    if find_spec("bregman") is None:
        return {}
    import bregman
    from bregman.regularizers import L12

    reg: Any = L12(rc=LAM)
    return {"bregman-learning AdaBreg, row groups": partial(bregman.AdaBreg, reg=reg)}


if __name__ == "__main__":
    main()
