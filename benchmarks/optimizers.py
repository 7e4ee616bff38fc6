"""One step of the Bregman optimisers beside the torch optimisers that they extend."""

from collections.abc import Callable

import torch
from torch.nn import Parameter

from benchmarks.timing import medians, print_table
from nas import AdaBreg, GroupLasso, LinBreg
from nas.groups import ROWS

SHAPES = {
    "six 784 x 784 weights": [(784, 784)] * 6,
    "the supernet of make demo (rows)": [(32, 36), *[(32, 288)] * 4, (4, 288)],
}


def main() -> None:
    torch.set_flush_denormal(True)
    for title, shapes in SHAPES.items():
        group = {"penalty": GroupLasso(0.1, ROWS)}
        makers: dict[str, Callable[[list[Parameter]], torch.optim.Optimizer]] = {
            "torch Adam(fused=True)": lambda ps: torch.optim.Adam(ps, fused=True),
            "torch Adam": lambda ps: torch.optim.Adam(ps),
            "AdaBreg, row groups": lambda ps, group=group: AdaBreg([{"params": ps, **group}]),  # type: ignore[misc]
            "torch SGD(fused=True)": lambda ps: torch.optim.SGD(ps, fused=True),
            "LinBreg, row groups": lambda ps, group=group: LinBreg([{"params": ps, **group}]),  # type: ignore[misc]
        }
        times = medians({name: make(_parameters(shapes)).step for name, make in makers.items()})
        print_table(f"one step, {title}", times, "torch Adam(fused=True)")


def _parameters(shapes: list[tuple[int, int]]) -> list[Parameter]:
    parameters = [Parameter(0.03 * torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = 1e-3 * torch.randn_like(p)
    return parameters


if __name__ == "__main__":
    main()
