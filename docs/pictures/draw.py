"""The pictures of "How it works" and "Gallery", drawn by what they show: python docs/pictures/draw.py runs

in a checkout with the runs of the gallery, made by the commands on its page.
"""

import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from nas import ROWS, GroupLasso, LinBreg, ProxSGD
from nas.cli import main

PICTURES = Path(__file__).resolve().parent
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00")  # of Okabe and Ito


def draw_entry(file: Path) -> None:
    """Four rows of a matrix pulled towards targets of different length: their duals, and their weights."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": ""}
    targets = torch.tensor([3.0, 2.0, 1.0, 0.2])[:, None] * torch.tensor([[0.6, 0.8]])
    penalty = GroupLasso(0.8, ROWS, rms=False)
    dual, found = _lengths(LinBreg, penalty, targets)
    _, shrunk = _lengths(ProxSGD, penalty, targets)
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, colour in enumerate(COLOURS):
        left.plot(dual[:, row], color=colour, label=f"target {targets[row].norm():.1f}")
        right.plot(found[:, row], color=colour)
        right.plot(shrunk[:, row], color=colour, linestyle="dotted", linewidth=1)
    left.axhline(penalty.lam, color="black", linestyle="dashed", linewidth=0.8)
    left.set(xlabel="step", ylabel="subgradient in the dual", ylim=(0, 1.05 * penalty.lam))
    left.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.08))
    right.set(xlabel="step", ylabel="weights")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def _lengths(kind: type[LinBreg | ProxSGD], penalty: GroupLasso, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Over 120 steps, the length of each row of the dual's subgradient, dual - weights, and of the weights."""
    weight = nn.Parameter(torch.zeros_like(targets))
    optimizer = kind([weight], lr=0.05, penalty=penalty)
    subgradients, weights = [], []
    for _ in range(120):
        weight.grad = weight.detach() - targets
        optimizer.step()
        weights.append(weight.detach().norm(dim=1))
        dual = optimizer.state[weight].get("dual", weight).detach()
        subgradients.append((dual - weight.detach()).norm(dim=1))
    return torch.stack(subgradients), torch.stack(weights)


def shown(run: Path, name: str, *options: str) -> None:
    """Keep the drawing of ``nas show`` under this name."""
    main(["show", str(run), *options])
    shutil.copy(run / "topology.svg", PICTURES / f"{name}.svg")


if __name__ == "__main__":
    draw_entry(PICTURES / "entry.svg")
    runs = Path(sys.argv[1])
    for epoch in (0, 4, 20):  # the start, on the way, the end of its growth
        shown(runs / "demo", f"epoch-{epoch}", f"--epoch={epoch}")
    shown(runs / "demo", "topology")
    shutil.copy(runs / "demo" / "growth.svg", PICTURES)
    for name in ("conv", "mixed", "unet", "mnist"):
        shown(runs / name, name)
