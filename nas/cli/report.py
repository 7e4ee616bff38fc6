"""``nas report``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.report.report import write_report
from nas.cli.shared import Result, check_free, make_parser
from nas.search.runs.run import REPORT, Run


def parser() -> ArgumentParser:
    parser = make_parser("Write one page that opens anywhere, without a network: a run, or several beside each other.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of nas search")
    parser.add_argument(
        "-o", "--out", type=Path, help=f"file to write (default: {REPORT} in the run folder; of several runs, here)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file of -o, or the comparison that is here")
    return parser


def perform(options: Namespace) -> Result:
    runs = [Run.open(folder) for folder in options.runs]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise ValueError("a run is named twice")
    if options.out is None and len(runs) == 1:
        file = runs[0].folder / REPORT
    else:
        file = options.out or Path(REPORT)
        check_free(file, options.force)
    if file.suffix != ".html":
        raise ValueError(f"cannot write {file}: the suffix must be .html")
    write_report(runs, file)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return {"files": [str(file)]}
