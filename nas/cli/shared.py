"""What several verbs need: parsers, what their options say, sizes, sentences."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.extraction.certificate import Certificate
from nas.models.network import num_params, num_skips, widths
from nas.search.runs.options import parse_size
from nas.search.runs.path import Choice, Point
from nas.search.runs.run import Run
from nas.search.training import ranks
from nas.search.training.checkpoints import Stopped
from nas.search.training.compute import AUTO, PRECISIONS, SINGLE, Compute
from nas.search.training.launch import RankError

Result = dict[str, Any]  # what --json prints
KINDS = {"int": "an integer", "float": "a number", "dict": "a mapping such as {depth: 3}", "bool": "true or false"}
ECHO = 1.0  # seconds within which a signal is the one before, once more
CONSTANT = "no path from input to output: the network computes a constant, which a residual one adds to the picture"


def make_parser(description: str, **options: Any) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, **options)


def make_run_parser(description: str, run: str = "run folder of nas search") -> ArgumentParser:
    """A parser of a verb that works on a run."""
    parser = make_parser(description)
    parser.add_argument("run", type=Path, help=run)
    return parser


def add_choice(parser: ArgumentParser) -> None:
    """Options that say which network of a run is meant."""
    parser.add_argument("--epoch", type=int, help="the network of this epoch (default: the one that is recommended)")
    parser.add_argument("--max_params", type=str, help="the best one with at most so many parameters, such as 14k")
    parser.add_argument("--max_flops", type=str, help="the best one with at most so many multiply-adds per pixel")
    parser.add_argument("--min_score", type=float, help="the smallest one with this validation score, such as 28.5 dB")
    parser.add_argument("--knee", action="store_true", help="the one after which more parameters gain least")


def choice(options: Namespace) -> Choice:
    """What the options of `add_choice` say."""
    limits = {name: options[name] and parse_size(options[name]) for name in ("max_params", "max_flops")}
    return Choice(epoch=options.epoch, min_score=options.min_score, knee=options.knee, **limits)


def add_checkpoints(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint_every", type=str, default="60s", help="time between two checkpoints, such as 90s, 5m or 1h"
    )


def add_hours(parser: ArgumentParser) -> None:
    """The time budget of a search."""
    parser.add_argument(
        "--hours", type=float, help="what the search may take in all, such as 2 or 0.5: it stops growing early enough"
    )


def add_compute(parser: ArgumentParser) -> None:
    """Options of verbs that train."""
    parser.add_argument(
        "--device", type=str, default=AUTO, help="auto (a GPU, if there is one), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument(
        "--precision", type=str, default=SINGLE, help=f"of forward and loss: {', '.join(PRECISIONS)} (by autocast)"
    )
    parser.add_argument("--compile", action="store_true", help="let torch.compile translate the networks")


def compute(options: Namespace) -> Compute:
    """What the options of `add_compute` say."""
    compute = Compute(options.device, options.precision, options.compile)
    ranks.check_device(str(compute.device))
    return compute


def resume_command(run: Run, options: Namespace) -> str:
    """What goes on with what is stopped, with the options of `add_compute` and `add_hours` that were given."""
    words = "" if options.device == AUTO else f" --device {options.device}"
    words += "" if options.precision == SINGLE else f" --precision {options.precision}"
    words += "" if options.get("hours") is None else f" --hours {options.hours:g}"
    return f"nas resume {quote(str(run.folder))}{words}{' --compile' if options.compile else ''}"


def say_compute(now: str, before: str | None) -> None:
    """Print where and how this computes, unless it is the usual, and whether what is continued did so."""
    if before not in (None, now):
        print(f"so far this was computed on {before}, now on {now}: it does not go on bit for bit")
    elif now != "cpu":
        print(f"computing on {now}")


def seconds(text: str) -> float:
    """A span of time, such as 90, 90s, 5m or 1h.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise ValueError(f"a time must be a positive number such as 90s, 5m or 1h, got {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


class Signalled(BaseException):  # so that nothing takes it for what is wrong with a file
    """What was stopped by a signal, after it wrote a checkpoint or at once.

    Attributes:
        code: to exit with: 130 after Ctrl-C, 143 after SIGTERM or SIGHUP.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def stopping(stop: Callable[[], None], how_to_go_on: str) -> Iterator[None]:
    """On Ctrl-C, SIGTERM and SIGHUP let what runs inside stop at its next step; on a second one at once.

    Not so within `ECHO` seconds, since timeout(1) sends each signal twice, and under torchrun, which passes on to all
    ranks what they have received already.

    Raises:
        Signalled: it has stopped.
    """
    received: list[tuple[int, float]] = []

    def handle(number: int, _: object) -> None:
        if received and time.monotonic() - received[0][1] >= ECHO and not ranks.are_launched():
            raise KeyboardInterrupt if number == signal.SIGINT else Signalled("stopped at once", 143)
        received.append((number, time.monotonic()))
        stop()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except Stopped:
        code = 130 if received and received[0][0] == signal.SIGINT else 143
        raise Signalled(f"stopped after writing a checkpoint; go on with {how_to_go_on}", code) from None
    except RankError:
        before = dict.fromkeys(
            before, signal.SIG_IGN
        )  # torchrun tells those that are left to end; they do, and say why
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_free(file: Path, force: bool) -> None:
    """Raise ValueError if the file of ``-o`` is there already, unless it may be replaced."""
    if file.exists() and not force:
        raise ValueError(f"{file} exists; choose another -o, or --force to replace it")


def sizes(point: Point, run: Run) -> Result:
    """Units, skips and parameters that are alive at ``point``, each beside the total of the supernet."""
    whole = run.blank
    return {
        "units": {"alive": point.snapshot.num_units, "total": sum(widths(whole).values())},
        "skips": {
            "alive": len(point.snapshot.skips),
            "total": num_skips(whole),
        },
        "params": {"alive": point.params, "total": num_params(whole)},
    }


def differences(certificate: Certificate) -> str:
    return (
        f"largest difference to the searched network on {certificate.num_random} random inputs and "
        f"{certificate.num_given} held-out pictures: {certificate.max_abs_float32:.1e} in float32, "
        f"{certificate.max_abs_float64:.1e} in float64"
    )


def sentence(problem: BaseException) -> str:
    """What is wrong, in one line."""
    if isinstance(problem, UnicodeDecodeError):
        return "a file that should hold text, such as a configuration, does not"
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    text = " ".join(str(problem).split())
    if path := re.fullmatch(r'Parser key "(\w+)".*: \'utf-8\' codec can\'t encode .*', text):
        return f"{path[1]}: a name must be text in UTF-8; rename the file or folder"
    if literal := re.fullmatch(r'Parser key "(\w+)": Expected a typing.Literal\[(.*)\]. Got value: (.*)', text):
        key, kinds, value = literal.groups()
        accepted = " or ".join(re.findall(r"'(\w+)'", kinds))
        return f"{key} must be {accepted}, got {value}"
    if kind := re.fullmatch(r'Parser key "(\w+)": Expected a <class \'(\w+)\'>. Got value: (.*)', text):
        key, name, value = kind.groups()
        return f"{key} must be {KINDS.get(name, name)}, got {value}"
    if text.startswith("the following arguments are required: "):
        return re.sub(r"\b\w+\.(?=\w)", "", text)  # without the verb before each
    if text.startswith("Unexpected config:"):
        return "a configuration must name options of the verb, such as epochs: 20; this one names none"
    if union := re.fullmatch(
        r'Parser key "(\w+)": Does not validate .* Subtypes: \[(.*)\] Errors: .* value: (.*)', text
    ):
        key, kinds, value = union.groups()
        kinds = kinds.replace("<class 'NoneType'>", "")
        accepted = " or ".join(a or b for a, b in re.findall(r"class '(\w+)'|Literal\['(\w+)'\]", kinds))
        return f"{key} must be {accepted}, got {value}"
    return text
