"""``nas front``."""

import torch
from jsonargparse import ArgumentParser, Namespace

from nas.analysis.latency import seconds_per_call
from nas.cli.shared import Result, make_run_parser
from nas.models.compact import compact
from nas.search.path import Point
from nas.search.run import Run

SIDE = 512  # of the pictures that the time is measured on
MEGAPIXEL = 1e6


def parser() -> ArgumentParser:
    return make_run_parser(
        "The networks of a search, from the smallest to the largest, with what they cost and are worth."
    )


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    metric, front = run.config.headline, sorted(run.front(), key=lambda point: point.params)
    if not front:
        raise ValueError(f"{run.folder} has no front yet; it is made at the end of nas search (unless --sizes none)")
    recommended = run.choose()
    unit = "ms/Mpixel" if run.blank.plan.patch is not None else "ms"
    print(f"{'epoch':>7}{'parameters':>12}{'MACs/pixel':>12}{unit:>12}{metric.title:>12}")
    rows = [_row(point, run) for point in front]
    for point, row in zip(front, rows, strict=True):
        star = "  recommended" if point == recommended else ""
        print(
            f"{row['epoch']:>7}{row['params']:>12,}{row['flops']:>12,.0f}{row['milliseconds']:>12.1f}"
            f"{metric.number(point.headline):>12}{star}"
        )
    return {"recommended": recommended.snapshot.epoch, "front": rows}


def _row(point: Point, run: Run) -> Result:
    net = compact(run.supernet(point.snapshot.epoch))
    size = (SIDE, SIDE) if net.plan.patch is not None else ()
    seconds = seconds_per_call(net, torch.rand(1, net.plan.channels, *size))
    per = MEGAPIXEL / SIDE**2 if size else 1.0
    return {
        "epoch": point.snapshot.epoch,
        "params": point.params,
        "flops": point.flops,
        "milliseconds": 1e3 * seconds * per,
        **point.scores,
    }
