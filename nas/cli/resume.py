"""``nas resume``."""

from jsonargparse import ArgumentParser, Namespace

from nas.cli.search import run_to_the_end
from nas.cli.shared import Result, make_run_parser
from nas.cli.watch import add_watching, check_watching, watching
from nas.search.run import Run, Search


def parser() -> ArgumentParser:
    parser = make_run_parser("Go on with a search that was interrupted; the same as if it had not been, bit for bit.")
    add_watching(parser)
    return parser


def perform(options: Namespace) -> Result:
    check_watching(options)
    run = Run.open(options.run)
    with watching(run, options, fresh=False) as watch:
        return run_to_the_end(Search(run, resume=True), watch)
