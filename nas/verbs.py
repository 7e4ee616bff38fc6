"""The verbs of the command line in words, and its help; torch, which takes two seconds to import, is not needed."""

import argparse

from nas import __version__

DESCRIPTION = "Networks found by Bregman iterations: search, look, extract, retrain, use."
IMPORT_HELP = "run this Python file or module first: tasks, data or models of your own (with any verb)"
SUMMARIES = {
    "search": "find a network",
    "resume": "go on with an interrupted search",
    "front": "the networks of several sizes",
    "compare": "runs side by side",
    "sweep": "many searches, with options drawn from ranges",
    "show": "what is alive",
    "extract": "the compact network, with proof",
    "verify": "recompute the proof",
    "retrain": "train the compact network",
    "denoise": "clean pictures",
    "zoo": "networks that come with the package",
    "report": "a run, or several, in one page",
    "export": "for machines without this package",
}


def asks_for_help(words: list[str]) -> str | None:
    """What ``nas --help`` or ``nas --version`` prints; None if something else is asked for."""
    if words in (["--help"], ["-h"]):
        return _help()
    return f"nas {__version__}" if words == ["--version"] else None


def _help() -> str:
    parser = argparse.ArgumentParser(prog="nas", description=DESCRIPTION)
    parser.add_argument("--version", action="version", help="print the version")
    parser.add_argument("--import", metavar="FILE.py|MODULE", help=IMPORT_HELP)
    verbs = parser.add_subparsers(required=True, title="verbs", metavar="VERB", help="options of one: nas VERB --help")
    for name, summary in SUMMARIES.items():
        verbs.add_parser(name, help=summary)
    return parser.format_help().rstrip()
