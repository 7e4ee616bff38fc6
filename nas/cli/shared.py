"""What several verbs need: parsers, the networks of a run, their sizes, sentences."""

import re
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.extraction.certificate import Certificate
from nas.files import replacing_folder, write_json
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.store import load
from nas.search.config import parse_size
from nas.search.path import Choice, Point
from nas.search.run import COMPACT, RETRAINED, SNAPSHOTS, Run

Result = dict[str, Any]  # what --json prints
REPORT = "report.html"
CONSTANT = "the network is constant: no path from input to output"


def make_parser(description: str, **options: Any) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, **options)


def make_run_parser(description: str) -> ArgumentParser:
    """A parser of a verb that works on a run."""
    parser = make_parser(description)
    parser.add_argument("run", type=Path, help="run folder of nas search")
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


def check_free(file: Path, force: bool) -> None:
    """Raise ValueError if the file of ``-o`` is there already, unless it may be replaced."""
    if file.exists() and not force:
        raise ValueError(f"{file} exists; choose another -o, or --force to replace it")


def load_compact(run: Run) -> DagNet:
    """The extracted network of a run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = run.folder / COMPACT
    if not folder.is_dir():
        raise ValueError(f"there is no network in {folder}; make it with nas extract {run.folder}")
    return load(folder)


def load_chosen(run: Run, options: Namespace) -> tuple[Path, DagNet]:
    """The network that the options of `add_choice` name, as the search left it; without any `load_last`.

    Raises:
        ValueError: there is none such, or a file is damaged.
    """
    if (chosen := choice(options)) == Choice():
        return load_last(run)
    epoch = run.choose(chosen).snapshot.epoch
    return run.folder / SNAPSHOTS / f"{epoch:04}.safetensors", compact(run.supernet(epoch))


def load_last(run: Run) -> tuple[Path, DagNet]:
    """The retrained network with its folder; the compact one if there is none of the present extraction.

    Raises:
        ValueError: there is no compact network, or one is damaged.
    """
    extracted, folder = load_compact(run), run.folder / RETRAINED
    if folder.is_dir():
        retrained = load(folder)
        if retrained.plan == extracted.plan:
            return folder, retrained
        warnings.warn(f"{folder} is of an earlier extraction and not used", stacklevel=1)
    return run.folder / COMPACT, extracted


def save(net: DagNet, folder: Path, name: str, result: Result) -> None:
    """Replace ``folder`` by one with ``net`` and, in the file ``name``, the result of the verb."""

    def write(place: Path) -> None:
        net.save_pretrained(place)
        write_json(place / name, result)

    replacing_folder(folder, write)


def sizes(point: Point, run: Run) -> Result:
    """Units, skips and parameters that are alive at ``point``, each beside the total of the supernet."""
    nodes = run.blank.plan.nodes
    return {
        "units": {"alive": point.snapshot.num_units, "total": sum(node.units for node in nodes if node.searched)},
        "skips": {
            "alive": len(point.snapshot.skips),
            "total": sum(node.num_skips for node in nodes),
        },
        "params": {"alive": point.params, "total": sum(p.numel() for p in run.blank.parameters())},
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
    if literal := re.fullmatch(r'Parser key "(\w+)": Expected a typing.Literal\[(.*)\]. Got value: (.*)', text):
        key, kinds, value = literal.groups()
        accepted = " or ".join(re.findall(r"'(\w+)'", kinds))
        return f"{key} must be {accepted}, got {value}"
    if union := re.fullmatch(
        r'Parser key "(\w+)": Does not validate .* Subtypes: \[(.*)\] Errors: .* value: (.*)', text
    ):
        key, kinds, value = union.groups()
        kinds = kinds.replace("<class 'NoneType'>", "")
        accepted = " or ".join(a or b for a, b in re.findall(r"class '(\w+)'|Literal\['(\w+)'\]", kinds))
        return f"{key} must be {accepted}, got {value}"
    return text
