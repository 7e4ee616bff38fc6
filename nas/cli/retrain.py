"""``nas retrain``."""

import os
from collections.abc import Sequence
from functools import partial

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from nas.analysis.verify import read_record
from nas.cli.shared import Result, load_compact, make_run_parser, save
from nas.files import replacing_folder
from nas.models.dag import DagNet
from nas.search.config import check_seed
from nas.search.path import Choice
from nas.search.restoration import Restoration
from nas.search.retrain import retrain, rewound, same_size
from nas.search.run import COMPACT, PICTURES, RETRAINED, Run
from nas.search.stack import Pictures
from nas.search.tasks import Example, Metric, Scores, evaluate, score_trivial
from nas.search.use import write_restored


def parser() -> ArgumentParser:
    parser = make_run_parser("Train the compact network with Adam; measure it beside classical methods.")
    parser.add_argument("--epochs", type=int, default=120, help="epochs, as long as those of the search")
    parser.add_argument("--lr", type=float, default=0.005, help="highest learning rate of the one-cycle schedule")
    parser.add_argument("--from_scratch", action="store_true", help="forget the found weights, keep the topology")
    parser.add_argument("--rewind_epoch", type=int, help="start with the weights of this epoch of the search")
    parser.add_argument(
        "--patience",
        type=int,
        help="stop after so many looks (every 5 epochs) without a better validation score",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train two more networks alike, from scratch: one of the same size built by hand, and the dense supernet",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training data, the noise and new weights")
    return parser


def perform(options: Namespace) -> Result:
    run, found = _open(options)
    data = run.data()
    task, validation, test = run.task(data), run.validation(data), run.test(data)
    check_seed(options.seed)

    train = partial(_train, run=run, data=data, validation=validation, options=options)
    net = _with_first_weights(found, run, options)
    before = evaluate(net, test, task)
    train(net, "retrain")
    after = evaluate(net, test, task)
    others = _others(net, run, options.seed) if options.compare else {}
    for title, other in others.items():
        train(other, title)
    compared = {title: evaluate(other, test, task) for title, other in others.items()}
    name, untouched = score_trivial(test, task)
    classical = task.baselines(data.train, validation, test)

    key = task.metrics[0].key
    result = {
        **after,
        f"{key}_{name}": untouched[key],
        f"{key}_before": before[key],
        "baselines": {title: scores[key] for title, scores in classical.items()},
        "compared": {title: scores[key] for title, scores in compared.items()},
        "params": sum(p.numel() for p in net.parameters()),
        "from_scratch": options.from_scratch,
    }
    save(net, run.folder / RETRAINED, "result.json", result)
    rows = {name: untouched, **classical, "before retraining": before, "retrained network": after, **compared}
    _print_table(f"mean over {len(test)} held-out pictures", rows, task.metrics)
    wrote = [run.folder / RETRAINED]
    if isinstance(task, Restoration):
        wrote.append(run.folder / PICTURES)
        replacing_folder(wrote[-1], lambda folder: write_restored(net, test, folder, task.observed_name))
    print(f"wrote {' and '.join(map(str, wrote))}")
    return result


def _open(options: Namespace) -> tuple[Run, DagNet]:
    """The run and its compact network; what would fail after the training is said now."""
    if options.from_scratch and options.rewind_epoch is not None:
        raise ValueError("retrain starts from scratch or from a rewound epoch, not both")
    run = Run.open(options.run)
    net = load_compact(run)
    if not os.access(run.folder, os.W_OK):
        raise ValueError(f"{run.folder}: no permission to write")
    return run, net


def _with_first_weights(net: DagNet, run: Run, options: Namespace) -> DagNet:
    """The compact network with the weights to start from: those that were found, unless the options say otherwise."""
    if options.from_scratch:
        torch.manual_seed(options.seed)
        return DagNet(net.plan)
    if options.rewind_epoch is not None:
        found = read_record(run.folder / COMPACT / "certificate.json").epoch
        early = run.choose(Choice(epoch=options.rewind_epoch)).snapshot.epoch
        return rewound(run.supernet(found), run.supernet(early), seed=options.seed)
    return net


def _others(net: DagNet, run: Run, seed: int) -> dict[str, DagNet]:
    """The networks to compare ``net`` with, untrained."""
    torch.manual_seed(seed)
    supernet = run.supernet(0)
    return {"same size, built by hand": same_size(net, supernet), "the supernet, dense": DagNet(supernet.plan)}


def _train(
    net: DagNet, title: str, *, run: Run, data: Pictures, validation: Sequence[Example], options: Namespace
) -> None:
    """Train ``net`` with the options of nas retrain, with a progress bar; it ends with its best weights."""
    task = run.task(data)
    metric = task.metrics[0]
    bar = tqdm(total=options.epochs, unit="epoch", desc=title, delay=0.1)  # none for options that are refused

    def progress(epoch: int, loss: float) -> None:
        bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
        bar.update()

    def validate() -> float:
        headline = evaluate(net, validation, task)[metric.key]
        bar.set_description(f"{title}, {metric.text(headline)}")
        return headline

    batches = run.batches(data, run.config.seed + 1 + options.seed)  # other crops and noise than in the search
    with bar:
        retrain(
            net,
            batches,
            task.loss,
            epochs=options.epochs,
            steps=run.config.steps,
            lr=options.lr,
            on_epoch=progress,
            validate=validate,
            patience=options.patience,
        )


def _print_table(title: str, rows: dict[str, Scores], metrics: Sequence[Metric]) -> None:
    print(f"{title:<36}" + "".join(f"{metric.title:>12}" for metric in metrics))
    for name, scores in rows.items():
        print(f"  {name:<34}" + "".join(f"{metric.number(scores[metric.key]):>12}" for metric in metrics))
