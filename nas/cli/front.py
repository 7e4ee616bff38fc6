"""``nas front``."""

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.latency import milliseconds
from nas.cli.alike import add_training, progress_bar, retrain_config
from nas.cli.shared import Result, add_compute, compute, make_run_parser, say_compute
from nas.models.network import compacted, input_shape
from nas.search.retraining.compete import Training, compete
from nas.search.retraining.competitors import Competitor, hand_made_networks, plan_like
from nas.search.retraining.config import RetrainConfig
from nas.search.runs.path import Point
from nas.search.runs.run import Run


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "The networks of a search, from the smallest to the largest: what they cost and are worth."
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train each of them, and hand-made networks of its size, alike (3 rates, all seeds), and show the best "
        "hand-made one",
    )
    parser.add_argument("--epochs", type=int, default=40, help="of these trainings")
    add_training(parser)
    add_compute(parser)
    return parser


def perform(options: Namespace) -> Result:
    config, where = retrain_config(options), compute(options)
    run = Run.open(options.run)
    metric, front = run.config.headline, sorted(run.front(), key=lambda point: point.params)
    if not front:
        raise ValueError(f"{run.folder} has no front yet; it is made at the end of nas search (unless --sizes none)")
    recommended = run.choose().snapshot.epoch
    rows = [_row(point, run) for point in front]
    unit = "ms/Mpixel" if len(input_shape(run.blank, 1, 1)) == 4 else "ms"
    print(f"{'epoch':>7}{'parameters':>12}{'MACs/pixel':>12}{unit:>12}{metric.title:>12}")
    for row in rows:
        print(
            f"{row['epoch']:>7}{row['params']:>12,}{row['flops']:>12,.0f}{row['milliseconds']:>12.1f}"
            f"{metric.number(row[metric.key]):>12}{'  recommended' if row['epoch'] == recommended else ''}"
        )
    if options.compare:
        say_compute(str(where), None)
        training = config.training(run, run.data(), where)
        print(f"\n{metric.title} on the held-out pictures after {options.epochs} epochs (mean; spread over the seeds)")
        rows = [{**row, **_compared(row, run, config, training)} for row in rows]
    return {"recommended": recommended, "front": rows}


def _row(point: Point, run: Run) -> Result:
    return {
        "epoch": point.snapshot.epoch,
        "params": point.params,
        "flops": point.flops,
        "milliseconds": milliseconds(compacted(run.supernet(point.snapshot.epoch))),
        **point.scores,
    }


def _compared(row: Result, run: Run, config: RetrainConfig, training: Training) -> Result:
    """The network of this row and the best hand-made one of its size, trained alike."""
    net = compacted(run.supernet(row["epoch"]))
    like = plan_like(net)
    others = [] if like is None else hand_made_networks(like, row["params"], config.families)
    competitors = [Competitor("found", lambda seed: net), *others]
    with progress_bar(len(competitors) * training.num_epochs) as progress:
        found, *hand_made = [compete(each, training, progress) for each in competitors]
    trained = [each for each in hand_made if each.rate is not None]
    best = max(trained, key=lambda each: each.mean(training.headline), default=None)
    shown = [found] if best is None else [found, best]
    metric = training.task.metrics[0]
    print(
        f"{row['params']:>12,}  "
        + "; ".join(
            f"{each.title} {metric.number(each.mean(metric.key))} ({each.spread(metric.key):.2f})" for each in shown
        )
    )
    return {"found": found.to_dict(), "hand_made": None if best is None else best.to_dict()}
