"""``nas export``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from nas.analysis.export.export import FORMATS, export, files_of
from nas.cli.shared import Result, add_choice, check_free, choice, make_run_parser
from nas.files import alone
from nas.search.runs.networks import load_chosen
from nas.search.runs.run import EXPORT, Run


def parser() -> ArgumentParser:
    parser = make_run_parser("Write the network for machines without this package; run and compared before it counts.")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="plain PyTorch source, or a program")
    parser.add_argument("-o", "--out", type=Path, help="file to write (default: export/model.* in the run folder)")
    add_choice(parser)
    parser.add_argument("--force", action="store_true", help="replace the file -o if it exists")
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    folder, net = load_chosen(run, choice(options))
    out = options.out or run.folder / EXPORT / f"model{FORMATS[options.format]}"
    files = files_of(out, options.format)
    if options.out is None:
        with alone(run.folder):
            difference = _export_into_new_folder(net, out, options.format)
    else:
        for file in files:
            check_free(file, options.force)
        difference = export(net, out, options.format)
    sizes = {str(file): file.stat().st_size for file in files}
    print(f"exported the network in {folder}")
    for name, size in sizes.items():
        print(f"  {name}  {size:,} bytes")
    print(f"loaded again, its outputs differ by at most {difference:.1e} on random inputs of several sizes")
    return {"network": str(folder), "format": options.format, "files": sizes, "max_abs": difference}


def _export_into_new_folder(net: nn.Module, out: Path, format: str) -> float:
    """The same as `export`; makes the folder of ``out`` if it is missing, and leaves none that is empty."""
    out.parent.mkdir(exist_ok=True)
    try:
        return export(net, out, format)
    finally:
        if not any(out.parent.iterdir()):
            out.parent.rmdir()
