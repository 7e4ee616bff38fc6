"""``nas extract``."""

from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.extraction.changes import describe_changes
from nas.analysis.extraction.stored import Extraction, extract_into
from nas.analysis.latency import Latency
from nas.cli.shared import CONSTANT, Result, add_choice, choice, differences, make_run_parser
from nas.files import alone
from nas.search.runs.run import COMPACT, Run


def parser() -> ArgumentParser:
    parser = make_run_parser("Write the compact network and the certificate that it computes the same function.")
    add_choice(parser)
    parser.add_argument("--no_latency", action="store_true", help="leave out measuring the time of both networks")
    parser.add_argument(
        "--round_to",
        type=int | Literal["auto"],
        default=1,
        help="round hidden widths up to multiples of this by zero units, or of what is fastest here (auto)",
    )
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    with alone(run.folder):
        found = extract_into(run, choice(options), round_to=options.round_to, timed=not options.no_latency)
    print_extraction(found, run)
    if options.round_to == "auto" and found.round_to == 1:
        print("widths are as they are: rounded up, they were not surely faster here")
    return found.to_dict()


def print_extraction(found: Extraction, run: Run) -> None:
    certificate, compact, supernet = found.certificate, found.compact, found.supernet
    part = compact.flops / supernet.flops
    print(f"epoch {found.epoch}: {compact.params:,} of {supernet.params:,} parameters, {part:.1%} of the FLOPs")
    if found.round_to > 1:
        print(f"widths are multiples of {found.round_to}")
    print(differences(certificate))
    print(describe_changes(certificate.changes))
    if certificate.constant:
        print(CONSTANT)
    for each in found.latency:
        print(_times(each))
    print(f"the certificate {'holds' if certificate.holds else 'DOES NOT HOLD'}; wrote {run.folder / COMPACT}")


def _times(timed: Latency) -> str:
    """One line: "batch 8: 12.1 ms (supernet 40.3 ms), 3.33 x as fast, on 2 threads"."""
    small, full = 1e3 * timed.compact.median, 1e3 * timed.supernet.median
    return (
        f"batch {timed.shape[0]}: {small:.1f} ms (supernet {full:.1f} ms), {timed.speed_up:.2f} x as fast, "
        f"on {timed.threads} thread{'s' if timed.threads > 1 else ''}"
    )
