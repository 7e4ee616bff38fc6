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
from nas import CHANNELS, ENTRIES, FILTERS, KERNELS, L1, ROWS, AdaBreg, GroupLasso, LinBreg, param_groups
from nas.models import separable_autoencoder
from nas.process import tune_process

RESNET18: list[tuple[int, ...]] = [  # the weights of ResNet-18, as matrices of (filters, entries of a filter)
    *[(64, 147)],
    *[(64, 576)] * 4,
    *[(128, 576), (128, 64), *[(128, 1152)] * 3],
    *[(256, 1152), (256, 128), *[(256, 2304)] * 3],
    *[(512, 2304), (512, 256), *[(512, 4608)] * 3],
    *[(1000, 512)],
]
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "six weights of 784 x 784": [(784, 784)] * 6,
    "two weights of 4096 x 4096": [(4096, 4096)] * 2,
    "the 21 weights of ResNet-18": RESNET18,
    "sixty weights of 64 x 32": [(64, 32)] * 60,
}
LAM = 0.1
AWAKE = (0.1, 1.0)

Maker = Callable[[list[Parameter]], Optimizer]


def main() -> None:
    tune_process()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    adam, rows = partial(torch.optim.Adam, fused=True), GroupLasso(LAM, ROWS)
    makers: dict[str, Maker]
    ours: dict[str, Maker] = {
        "AdaBreg, row groups": partial(AdaBreg, penalty=rows),
        "AdaBreg, a second moment per tensor": partial(AdaBreg, penalty=rows, second_moment="tensor"),
        **_bregman_learning(),
    }
    for title, shapes in SHAPES.items():
        for awake in AWAKE:
            makers = {"torch Adam(fused=True)": adam, "torch Adam": torch.optim.Adam, **ours}
            _race(f"{title}, {awake:.0%} of the rows awake", makers, shapes, device, awake)
    layouts = {"filters": FILTERS, "kernels": KERNELS, "input channels": CHANNELS, "entries": ENTRIES}
    makers = {
        "torch Adam(fused=True)": adam,
        **{f"AdaBreg, {name}": partial(AdaBreg, penalty=GroupLasso(LAM, groups)) for name, groups in layouts.items()},
        "AdaBreg, l1": partial(AdaBreg, penalty=L1(LAM)),
    }
    _race("six convolutions of 256 x 128 x 3 x 3", makers, [(256, 128, 3, 3)] * 6, device)
    for momentum in (0.9, 0.0):
        makers = {
            "torch SGD(fused=True)": partial(torch.optim.SGD, lr=0.1, momentum=momentum, fused=True),
            "LinBreg, row groups": partial(LinBreg, penalty=rows, momentum=momentum),
        }
        for title, shapes in SHAPES.items():
            for awake in AWAKE:
                _race(f"{title}, {awake:.0%} awake, momentum {momentum:g}", makers, shapes, device, awake)
    net = separable_autoencoder()
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    optimizers = {
        "torch Adam(fused=True)": adam(net.parameters()),
        "AdaBreg, a second moment per tensor": AdaBreg(param_groups(net, lam=LAM, lr=1e-3), second_moment="tensor"),
    }
    times = medians({name: optimizer.step for name, optimizer in optimizers.items()})
    print_table("the supernet of make demo, cpu", times, "torch Adam(fused=True)")


def _race(
    title: str, makers: dict[str, Maker], shapes: Sequence[tuple[int, ...]], device: str, awake: float = 1.0
) -> None:
    """One step of each; the first is the reference."""
    optimizers = {name: make(_parameters(shapes, device, awake)) for name, make in makers.items()}
    times = medians({name: partial(_step, optimizer, device) for name, optimizer in optimizers.items()})
    print_table(f"{title}, {device}", times, next(iter(makers)))
    for name, optimizer in optimizers.items():
        print(f"{'state per weight: ' + name:<56}{_state_size(optimizer):>10.2f}")


def _step(optimizer: Optimizer, device: str) -> None:
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


def _parameters(shapes: Sequence[tuple[int, ...]], device: str, awake: float) -> list[Parameter]:
    """Weights of which the first rows are ``awake``."""
    torch.manual_seed(0)
    parameters = [Parameter(0.03 * torch.randn(shape, device=device)) for shape in shapes]
    for p in parameters:
        p.data[round(awake * len(p)) :] = 0
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
