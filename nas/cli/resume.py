"""``nas resume``."""

from jsonargparse import ArgumentParser, Namespace

from nas.cli.search import add_live, run_to_the_end
from nas.cli.shared import Result, make_run_parser
from nas.search.run import Run, Search


def parser() -> ArgumentParser:
    parser = make_run_parser("Go on with a search that was interrupted; the same as if it had not been, bit for bit.")
    add_live(parser)
    return parser


def perform(options: Namespace) -> Result:
    return run_to_the_end(Search(Run.open(options.run), resume=True), live=options.live)
