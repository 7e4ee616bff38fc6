"""``nas resume``."""

from jsonargparse import ArgumentParser, Namespace

from nas.cli.retrain import retrain
from nas.cli.search import run_to_the_end
from nas.cli.shared import (
    Result,
    add_checkpoints,
    add_compute,
    add_hours,
    compute,
    make_run_parser,
    resume_command,
    seconds,
)
from nas.cli.watch import add_watching, watchers
from nas.search.engine.search import Search
from nas.search.retraining.retraining import stopped_retraining
from nas.search.runs.run import Run


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Go on with a search, or a retraining, that was interrupted; on the same CPU bit for bit as if not."
    )
    add_checkpoints(parser)
    add_compute(parser)
    add_hours(parser)
    add_watching(parser)
    return parser


def perform(options: Namespace) -> Result:
    callbacks = watchers(options)
    run, every = Run.open(options.run), seconds(options.checkpoint_every)
    if (stopped := stopped_retraining(run)) is not None:
        return retrain(run, stopped, options)
    engine = Search(
        run, resume=True, checkpoint_every=every, compute=compute(options), callbacks=callbacks, hours=options.hours
    )
    return run_to_the_end(engine, resume_command(run, options))
