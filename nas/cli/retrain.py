"""``nas retrain``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.extraction.stored import extract_into
from nas.cli.alike import OTHER_PICTURES, add_training, progress_bar, retrain_config
from nas.cli.extract import print_extraction
from nas.cli.shared import (
    Result,
    add_checkpoints,
    add_choice,
    add_compute,
    compute,
    make_run_parser,
    resume_command,
    say_compute,
    seconds,
    stopping,
)
from nas.files import alone
from nas.search.retraining.config import RetrainConfig
from nas.search.retraining.retraining import RetrainResult, RunRetraining
from nas.search.retraining.table import summarised, table
from nas.search.runs.config import SearchConfig
from nas.search.runs.options import ROOTS
from nas.search.runs.path import Choice
from nas.search.runs.run import RETRAINED, Run
from nas.search.tasks.task import Metric, Scores
from nas.search.training import ranks
from nas.search.zoo.adopted import adopt
from nas.search.zoo.shipped import find_shipped, shipped


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Train the compact network (extracted anew if you choose one) with Adam; measure it beside classical methods.",
        "run folder of nas search, or a network of nas zoo to be trained on your pictures",
    )
    parser.add_argument("--epochs", type=int, default=120, help="epochs, as long as those of the search")
    parser.add_argument(
        "--batch", type=int, help="crops, or pictures to classify, per step (default: as in the search)"
    )
    parser.add_argument("--crop", type=int, help="side of the training crops in pixels (default: as in the search)")
    parser.add_argument("--out", type=Path, help="run folder to make for a network of nas zoo (default: runs/NAME)")
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
    for name, text in OTHER_PICTURES.items():
        parser.add_argument(f"--{name}", type=str, help=f"{text}, as of nas search (default: as in the search)")
    parser.add_argument("--random", type=int, default=5, help="random networks in the comparison")
    add_training(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a retrained network that is better or of other pictures, or a retraining that was stopped",
    )
    add_checkpoints(parser)
    add_compute(parser)
    return parser


def perform(options: Namespace) -> Result:
    config = retrain_config(options)
    name = str(options.run)
    if not options.run.is_dir() and (options.out is not None or name in {each.name for each in shipped()}):
        run = _adopted(name, options.out or Path("runs") / name, config, force=options.force)
        return retrain(run, replace(config, instead={}), options)
    if options.out is not None:
        raise ValueError(f"--out is for a network of nas zoo; {name} is a folder, and what is retrained stays in it")
    return retrain(Run.open(options.run), config, options, force=options.force)


def _adopted(name: str, out: Path, config: RetrainConfig, *, force: bool) -> Run:
    """A new run of a shipped network, on the pictures that the options say."""
    learnt: dict[str, Any] = {"sigma": "{:g}:{:g}".format(*find_shipped(name).sigma), **config.instead}
    learnt |= {root: Path(learnt[root]) for root in ROOTS if root in learnt}
    learnt |= {name: size for name in ("batch", "crop") if (size := getattr(config, name)) is not None}
    run = Run(out, SearchConfig(model=name, density=1.0, epochs=1, sizes="none", **learnt).at_absolute_roots())
    data = run.data()
    config.training(run, data).batches(config.seed)  # what is wrong with batch and crop is said now
    ranks.on_first(lambda: adopt(run, data, force=force))
    with ranks.by_first(alone(out)):
        ranks.on_first(lambda: extract_into(run, Choice(), timed=False))
    return run


def retrain(run: Run, config: RetrainConfig, options: Namespace, *, force: bool = False) -> Result:
    """Retrain, with the options of `add_checkpoints` and `add_compute`, and say what came of it."""
    every, where = seconds(options.checkpoint_every), compute(options)
    with ranks.by_first(alone(run.folder)):
        retraining = RunRetraining(run, config, force=force, checkpoint_every=every, compute=where)
        if config.choice != Choice():
            ranks.on_first(lambda: print_extraction(extract_into(run, config.choice, timed=False), run))
        retraining.open()
        if retraining.resumed:
            print("going on with the retraining that was stopped")
        say_compute(str(where), retraining.computed)
        with (
            stopping(retraining.stop, resume_command(run, options)),
            progress_bar(retraining.num_epochs, retraining.epochs_done) as progress,
        ):
            retraining.train(progress)
        result = retraining.finish()
    _print_result(result, retraining)
    return result.record


def _print_result(result: RetrainResult, retraining: RunRetraining) -> None:
    training, (metric, *_) = retraining.training, retraining.training.task.metrics
    if result.compared:
        title = f"held-out pictures: {len(training.test)}, seeds: {len(training.seeds)}"
        compared = summarised(result.compared, training.headline)
        print("\n".join(table(title, result.untrained, compared, training.task.metrics)))
    else:
        title = f"mean over {len(training.test) // max(1, len(result.by_condition))} held-out pictures"
        rows = {**result.untrained, "retrained network": result.retrained}
        rows |= {f"  at {name}": scores for name, scores in result.by_condition.items()}
        _print_table(title, rows, training.task.metrics)
    _print_published_ssim(result.record["pictures"])
    if result.better is None:
        print(f"wrote {' and '.join(map(str, result.folders))}")
    else:
        print(
            f"kept {retraining.run.folder / RETRAINED}: {metric.text(result.better)} in validation, this one "
            f"{metric.number(result.record['validation'])}; --force replaces it"
        )


def _print_published_ssim(pictures: Sequence[Mapping[str, Any]]) -> None:
    """The mean SSIM in the setting of most articles, beside what PSNR and the SSIM of the table are."""
    published = [each["published_ssim"] for each in pictures if "published_ssim" in each]
    if published:
        mean = math.fsum(published) / len(published)
        print(
            f"SSIM with a Gaussian window, as published: {mean:.4f} (in the table: uniform windows); PSNR with a data "
            "range of 1, 255 of bytes"
        )


def _print_table(title: str, rows: Mapping[str, Scores], metrics: Sequence[Metric]) -> None:
    print(f"{title:<36}" + "".join(f"{metric.title:>12}" for metric in metrics))
    for name, scores in rows.items():
        print(f"  {name:<34}" + "".join(f"{metric.number(scores[metric.key]):>12}" for metric in metrics))
