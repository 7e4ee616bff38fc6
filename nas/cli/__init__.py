"""The command line: ``nas VERB --help``. Every verb is a file of this folder and a line of `VERBS`."""

import argparse
import json
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace

from nas import __version__
from nas.cli import compare, denoise, export, extract, front, report, resume, retrain, search, show, sweep, verify, zoo
from nas.cli.shared import Result, Signalled, make_parser, sentence
from nas.process import tune_process
from nas.registry import import_registrations
from nas.search.training import ranks
from nas.search.training.launch import RankError
from nas.steering import DeadTraining
from nas.verbs import DESCRIPTION, IMPORT_HELP, SUMMARIES


class Verb(NamedTuple):
    """One command.

    Attributes:
        parser: makes the parser of its own options.
        perform: does it and prints; returns what ``--json`` prints.
        joint: several processes that torchrun started can do it together.
    """

    parser: Callable[[], ArgumentParser]
    perform: Callable[[Namespace], Result]
    joint: bool = False


VERBS = {
    "search": Verb(search.parser, search.perform, joint=True),
    "resume": Verb(resume.parser, resume.perform, joint=True),
    "front": Verb(front.parser, front.perform),
    "compare": Verb(compare.parser, compare.perform),
    "sweep": Verb(sweep.parser, sweep.perform),
    "show": Verb(show.parser, show.perform),
    "extract": Verb(extract.parser, extract.perform),
    "verify": Verb(verify.parser, verify.perform),
    "retrain": Verb(retrain.parser, retrain.perform, joint=True),
    "denoise": Verb(denoise.parser, denoise.perform),
    "zoo": Verb(zoo.parser, zoo.perform),
    "report": Verb(report.parser, report.perform),
    "export": Verb(export.parser, export.perform),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done. 1: a certificate does not hold, or some of many pictures failed. 2: something the user can mend, said
        in one sentence.
        130: interrupted with Ctrl-C. 143: stopped by SIGTERM or SIGHUP.
    """
    tune_process()
    name = "nas"
    try:
        with ranks.joined(), _only_first_prints():
            arguments = _parse(sys.argv[1:] if argv is None else argv)
            name = f"nas {arguments.verb}"
            result = _perform(VERBS[arguments.verb], arguments[arguments.verb], name)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Signalled as stopped:
        return _end(f"{name}: {stopped}", stopped.code)
    except KeyboardInterrupt:
        return _end(f"{name}: interrupted", 130)
    except (ArgumentError, ValueError, OSError, FloatingPointError, DeadTraining, RankError) as problem:
        return _end(f"{name}: {sentence(problem)}")
    except (RuntimeError, MemoryError) as problem:
        if type(problem).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(problem).strip().splitlines()[:2])
            return _end(f"{name}: torch.compile fails on this machine ({reason}); leave out --compile")
        if "memory" not in str(problem).lower():
            raise
        return _end(f"{name}: the memory of this machine does not suffice for networks or pictures so large")
    holds = (result.get("holds"), result.get("certificate", {}).get("holds"))
    return 1 if False in holds or result.get("failed") else 0


def _end(problem: str, code: int = 2) -> int:
    if ranks.speaks():
        print(problem, file=sys.stderr)
    return code


@contextmanager
def _only_first_prints() -> Iterator[None]:
    """Of several processes that torchrun started rank 0 prints for all."""
    if ranks.is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _parse(argv: Sequence[str]) -> Namespace:
    """The verb and its options, after what ``--import`` names has been run."""
    if "" in argv:  # as a path it would be the present folder, with all pictures below it
        raise ValueError(f"argument {argv.index('') + 1} is empty, as a variable of the shell is that was not set")
    words, sources = _split_imports(argv)
    for source in sources:
        import_registrations(source)
    return _parser().parse_args(_with_underscores(words))


def _perform(verb: Verb, options: Namespace, name: str) -> Result:
    if ranks.size() > 1 and not verb.joint:
        joint = [each for each, other in VERBS.items() if other.joint]
        raise ValueError(f"it works in one process; what torchrun starts can be nas {', '.join(joint)}")
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"{name}: {message}", file=sys.stderr)
        result = verb.perform(options)
    if options.json:
        print(json.dumps(result, allow_nan=False))
    sys.stdout.flush()
    return result


def _parser() -> ArgumentParser:
    parser = make_parser(DESCRIPTION, prog="nas", version=__version__)
    parser.add_argument("--import", action="append", metavar="FILE.py|MODULE", help=IMPORT_HELP)  # for its help only
    verbs = parser.add_subcommands(required=True, dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        parser_of_verb = verb.parser()
        parser_of_verb.add_argument("--config", action="config", help="YAML file with options of this verb")
        parser_of_verb.add_argument("--json", action="store_true", help="print a JSON object as the last line")
        verbs.add_subcommand(name, parser_of_verb, help=SUMMARIES[name])
    return parser


def _split_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without each ``--import SOURCE``, and the sources.

    Taken from the command line before anything else is read, so that no configuration file can import anything.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--import", dest="sources", action="append", default=[])
    found, words = parser.parse_known_args(argv)
    return words, found.sources


def _with_underscores(argv: Iterable[str]) -> list[str]:
    """--from-scratch and --from_scratch are the same option."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word)
    return words
