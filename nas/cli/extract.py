"""``nas extract``."""

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.cost import cost
from nas.analysis.extraction.changes import describe_changes
from nas.analysis.extraction.extract import extract
from nas.analysis.latency import Latency, latency
from nas.cli.shared import CONSTANT, Result, add_choice, choice, differences, make_run_parser, save
from nas.files import alone
from nas.search.path import Choice
from nas.search.run import COMPACT, Run


def parser() -> ArgumentParser:
    parser = make_run_parser("Write the compact network and the certificate that it computes the same function.")
    add_choice(parser)
    parser.add_argument("--no_latency", action="store_true", help="leave out measuring the time of both networks")
    parser.add_argument("--round_to", type=int, default=1, help="round hidden widths up to multiples, by zero units")
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    with alone(run.folder):
        return write_extract(run, choice(options), round_to=options.round_to, timed=not options.no_latency)


def write_extract(run: Run, chosen: Choice, *, round_to: int = 1, timed: bool = True) -> Result:
    """Write the compact network of a run with its certificate, and say what it is."""
    epoch = run.choose(chosen).snapshot.epoch
    net = run.supernet(epoch)
    small, certificate = extract(net, run.inputs(run.data()), round_to=round_to)
    compact, supernet = cost(small), cost(net)
    timings = latency(net, small) if timed else ()
    result = {
        "epoch": epoch,
        "certificate": certificate.to_dict(),
        **asdict(compact),
        **{f"{name}_supernet": number for name, number in asdict(supernet).items()},
        "latency": [asdict(each) for each in timings],
    }
    save(small, run.folder / COMPACT, "certificate.json", result)
    part = compact.flops / supernet.flops
    print(f"epoch {epoch}: {compact.params:,} of {supernet.params:,} parameters, {part:.1%} of the FLOPs")
    print(differences(certificate))
    print(describe_changes(certificate.changes))
    if certificate.constant:
        print(CONSTANT)
    for each in timings:
        print(_times(each))
    print(f"the certificate {'holds' if certificate.holds else 'DOES NOT HOLD'}; wrote {run.folder / COMPACT}")
    return result


def _times(timed: Latency) -> str:
    """One line: "batch 8: 12.1 ms (supernet 40.3 ms), 3.33 x as fast, on 2 threads"."""
    small, full = 1e3 * timed.compact.median, 1e3 * timed.supernet.median
    return (
        f"batch {timed.shape[0]}: {small:.1f} ms (supernet {full:.1f} ms), {timed.speed_up:.2f} x as fast, "
        f"on {timed.threads} thread{'s' if timed.threads > 1 else ''}"
    )
