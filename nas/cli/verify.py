"""``nas verify``."""

import sys

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.extraction.verify import verify
from nas.cli.shared import Result, differences, make_run_parser, sentence
from nas.search.runs.networks import damages, stored_compact
from nas.search.runs.run import COMPACT, Run


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Recompute the certificate from the stored networks, and see whether all networks of the run are what was "
        "written; exit with 1 if not."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    small, record = stored_compact(run)
    net = run.supernet(record.epoch)
    verification = verify(net, small, record.hashes, run.inputs(run.data()), seed=options.seed)
    certificate = verification.certificate
    if certificate is not None:
        print(f"epoch {record.epoch}: {differences(certificate)}")
    problems = [*verification.problems, *map(sentence, damages(run))]
    for problem in problems:
        print(f"nas verify: {problem}", file=sys.stderr)
    print(f"the certificate of {run.folder / COMPACT} {'holds' if verification.holds else 'DOES NOT HOLD'}")
    return {
        "epoch": record.epoch,
        "holds": not problems,
        "problems": problems,
        **({"certificate": certificate.to_dict()} if certificate is not None else {}),
    }
