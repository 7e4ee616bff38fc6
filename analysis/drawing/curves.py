"""How the network grew: units, skips and quality along a search path."""

from collections.abc import Sequence
from pathlib import Path

from nas.files import replacing
from nas.search.runs.path import Point
from nas.search.tasks.task import Metric


def draw_growth(points: Sequence[Point], path: Path, *, metric: Metric, picked: int | None = None) -> None:
    """Two curves over the epochs: alive units per node (stacked), and the headline score in validation.

    Args:
        points: a search path.
        path: file to write; its suffix names the format.
        metric: the headline.
        picked: epoch to mark.
    """
    from matplotlib.figure import Figure

    epochs = [point.snapshot.epoch for point in points]
    units = {name: [len(point.snapshot.units[name]) for point in points] for name in points[0].snapshot.units}
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.stackplot(epochs, *units.values(), labels=list(units), alpha=0.8)
    left.set(xlabel="epoch", ylabel="alive units")
    left.legend(loc="upper left", fontsize="small", ncols=2)
    right.plot(epochs, [point.headline for point in points], color="#4a6fa5")
    right.set(xlabel="epoch", ylabel=f"validation {metric.title}" + (f" in {metric.unit}" if metric.unit else ""))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if picked is not None:
            axes.axvline(picked, color="#d9822b", linestyle="dashed", linewidth=1)
    replacing(path, lambda temporary: figure.savefig(temporary))
