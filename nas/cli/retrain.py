"""``nas retrain``."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from nas.analysis.extraction.verify import read_record
from nas.cli.alike import add_training, check_training, make_training, train_alike
from nas.cli.extract import write_extract
from nas.cli.shared import Result, add_choice, choice, load_compact, make_run_parser, save
from nas.files import replacing_folder
from nas.models.dag import DagNet
from nas.search.compare import (
    Competitor,
    Trained,
    Training,
    fresh,
    hand_made_networks,
    random_networks,
    summarised,
    table,
)
from nas.search.path import Choice
from nas.search.retrain import retrain, rewound
from nas.search.run import COMPACT, PICTURES, RETRAINED, Run, thinned_from_dense
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.task import Metric, Scores, evaluate, score_trivial
from nas.search.tasks.use import write_restored


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Train the compact network (extracted anew if you choose one) with Adam; measure it beside classical methods."
    )
    parser.add_argument("--epochs", type=int, default=120, help="epochs, as long as those of the search")
    parser.add_argument(
        "--batch", type=int, help="crops, or pictures to classify, per step (default: as in the search)"
    )
    parser.add_argument("--crop", type=int, help="side of the training crops in pixels (default: as in the search)")
    add_choice(parser)
    parser.add_argument("--from_scratch", action="store_true", help="forget the found weights, keep the topology")
    parser.add_argument("--rewind_epoch", type=int, help="start with the weights of this epoch of the search")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train others alike: hand-made networks of this size, random ones of the supernet, the dense supernet and "
        "one thinned out from it, each at 3 rates (0.4, 1 and 2 times --lr) and with every seed: by default about 100 "
        "times the work",
    )
    parser.add_argument("--random", type=int, default=5, help="random networks in the comparison")
    add_training(parser)
    return parser


def perform(options: Namespace) -> Result:
    run, found = _open(options)
    data = run.data()
    task, test = run.task(data), run.test(data)
    training = make_training(run, data, options)
    name, untouched = score_trivial(test, task)
    net = _with_first_weights(found, run, options, options.seed)
    before = evaluate(net, test, task)
    compared: list[Trained] = []
    if options.compare:
        net, compared = _beside_the_found(_competitors(found, run, options), training)
    else:
        _train(net, training, options)
    after = evaluate(net, test, task)
    classical = task.baselines(data.train, training.validation, test)

    key = task.metrics[0].key
    result = {
        **after,
        f"{key}_{name}": untouched[key],
        f"{key}_before": before[key],
        "baselines": {title: scores[key] for title, scores in classical.items()},
        "compared": [each.to_dict() for each in compared],
        "params": sum(p.numel() for p in net.parameters()),
        "from_scratch": options.from_scratch,
    }
    save(net, run.folder / RETRAINED, "result.json", result)
    rows = {name: untouched, **classical, "before retraining": before}
    if options.compare:
        _print_comparison(rows, compared, training)
    else:
        _print_table(f"mean over {len(test)} held-out pictures", {**rows, "retrained network": after}, task.metrics)
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
    check_training(options)
    if options.random < 0:
        raise ValueError(f"random must be at least 0, got {options.random}")
    run = Run.open(options.run)
    if not os.access(run.folder, os.W_OK):
        raise ValueError(f"{run.folder}: no permission to write")
    changed = {name: value for name in ("batch", "crop") if (value := options[name]) is not None}
    run = replace(run, config=replace(run.config, **changed))
    if (chosen := choice(options)) != Choice():
        write_extract(run, chosen, timed=False)
    return run, load_compact(run)


def _with_first_weights(net: DagNet, run: Run, options: Namespace, seed: int) -> DagNet:
    """The compact network with the weights to start from: those that were found, unless the options say otherwise."""
    if options.from_scratch:
        return fresh(net.plan)(seed)
    if options.rewind_epoch is not None:
        found = read_record(run.folder / COMPACT / "certificate.json").epoch
        early = run.choose(Choice(epoch=options.rewind_epoch)).snapshot.epoch
        return rewound(run.supernet(found), run.supernet(early), seed=seed)
    return net


def _competitors(found: DagNet, run: Run, options: Namespace) -> list[Competitor]:
    """What is trained alike, the found network first: titles with functions from the seed to a network."""
    supernet, params = run.blank.plan, found.plan.num_params
    competitors = [
        Competitor("retrained network", lambda seed: _with_first_weights(found, run, options, seed)),
        *hand_made_networks(supernet, params, options.families),
        Competitor("the supernet, dense", fresh(supernet)),
        Competitor("thinned out from it", lambda seed: thinned_from_dense(run, params, seed)),
    ]
    try:
        competitors += random_networks(supernet, params, options.random)
    except ValueError as problem:
        warnings.warn(str(problem), stacklevel=1)
    return competitors


def _beside_the_found(competitors: Sequence[Competitor], training: Training) -> tuple[DagNet, list[Trained]]:
    """The first competitor as trained with the first seed, and what became of each."""
    (first,) = train_alike(competitors[:1], training)
    if first.network is None:
        raise FloatingPointError("the found network does not train at any of the rates; use a smaller lr")
    return first.network, [first, *train_alike(competitors[1:], training)]


def _train(net: DagNet, training: Training, options: Namespace) -> None:
    """Train ``net`` with the options of nas retrain, with a progress bar; it ends with its best weights."""
    metric = training.task.metrics[0]
    bar = tqdm(total=options.epochs, unit="epoch", desc="retrain", delay=0.1)  # none for options that are refused

    def progress(epoch: int, loss: float) -> None:
        bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
        bar.update()

    def validate() -> float:
        headline = evaluate(net, training.validation, training.task)[metric.key]
        bar.set_description(f"retrain, {metric.text(headline)}")
        return headline

    with bar:
        retrain(
            net,
            training.batches(options.seed),
            training.task.loss,
            epochs=options.epochs,
            steps=training.steps,
            lr=options.lr,
            on_epoch=progress,
            validate=validate,
            patience=options.patience,
        )


def _print_comparison(rows: dict[str, Scores], compared: Sequence[Trained], training: Training) -> None:
    """The table of all competitors; of the random ones the best and the median."""
    metrics = training.task.metrics
    title = f"held-out pictures: {len(training.test)}, seeds: {len(training.seeds)}"
    print("\n".join(table(title, rows, summarised(compared, training.headline), metrics)))


def _print_table(title: str, rows: dict[str, Scores], metrics: Sequence[Metric]) -> None:
    print(f"{title:<36}" + "".join(f"{metric.title:>12}" for metric in metrics))
    for name, scores in rows.items():
        print(f"  {name:<34}" + "".join(f"{metric.number(scores[metric.key]):>12}" for metric in metrics))
