"""``nas resume``."""

from jsonargparse import ArgumentParser, Namespace

from nas.cli import retrain
from nas.cli.search import run_to_the_end
from nas.cli.shared import Result, add_checkpoints, add_compute, compute, make_run_parser, resume_command, seconds
from nas.cli.watch import add_watching, check_watching, watching
from nas.search.engine import Search
from nas.search.run import Run


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Go on with a search, or a retraining, that was interrupted; on the same CPU bit for bit as if not."
    )
    add_checkpoints(parser)
    add_compute(parser)
    add_watching(parser)
    return parser


def perform(options: Namespace) -> Result:
    check_watching(options)
    run, every = Run.open(options.run), seconds(options.checkpoint_every)
    if (stopped := retrain.stopped_options(run)) is not None:
        names = ("checkpoint_every", "device", "precision", "compile")
        now = {"run": str(options.run), **{name: options[name] for name in names}}
        return retrain.perform(retrain.parser().parse_object({**stopped, **now}))
    with watching(run, options, fresh=False) as watch:
        engine = Search(run, resume=True, checkpoint_every=every, compute=compute(options))
        return run_to_the_end(engine, watch, resume_command(run, options))
