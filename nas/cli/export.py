"""``nas export``."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from nas.analysis.export.export import FORMATS, export, files_of
from nas.analysis.export.int8 import Loss, export_int8, int8_loss
from nas.cli.shared import Result, add_choice, check_free, choice, make_run_parser
from nas.files import alone
from nas.search.runs.networks import load_chosen
from nas.search.runs.run import EXPORT, Run
from nas.search.tasks.task import Metric, Scores

ONNX = "onnx"


def parser() -> ArgumentParser:
    parser = make_run_parser("Write the network for machines without this package; run and compared before it counts.")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="plain PyTorch source, or a program")
    parser.add_argument(
        "--int8", action="store_true", help="of the format onnx: multiply 8-bit integers; what it loses is measured"
    )
    parser.add_argument("-o", "--out", type=Path, help="file to write (default: export/model*.* in the run folder)")
    add_choice(parser)
    parser.add_argument("--force", action="store_true", help="replace the file -o if it exists")
    return parser


def perform(options: Namespace) -> Result:
    if options.int8 and options.format != ONNX:
        raise ValueError(f"--int8 is for the format {ONNX}, not for {options.format}")
    run = Run.open(options.run)
    folder, net = load_chosen(run, choice(options))
    name = "model-int8" if options.int8 else "model"
    out = options.out or run.folder / EXPORT / f"{name}{FORMATS[options.format]}"
    files = files_of(out, options.format)
    for file in files if options.out else ():
        check_free(file, options.force)
    with nullcontext() if options.out else _new_folder(run):
        said, found = _write_int8(run, net, out) if options.int8 else _write(net, out, options.format)
    sizes = {str(file): file.stat().st_size for file in files}
    print(f"exported the network in {folder}")
    for path, size in sizes.items():
        print(f"  {path}  {size:,} bytes")
    print(said)
    return {"network": str(folder), "format": options.format, "files": sizes, **found}


@contextmanager
def _new_folder(run: Run) -> Iterator[None]:
    """Makes the folder of what is exported if it is missing, and leaves none that is empty."""
    folder = run.folder / EXPORT
    with alone(run.folder):
        folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()


def _write(net: nn.Module, out: Path, format: str) -> tuple[str, Result]:
    """What to say, and what to return."""
    difference = export(net, out, format)
    said = f"loaded again, its outputs differ by at most {difference:.1e} on random inputs of several sizes"
    return said, {"max_abs": difference}


def _write_int8(run: Run, net: nn.Module, out: Path) -> tuple[str, Result]:
    """Likewise."""
    data = run.data()
    task, test = run.task(data), run.test(data)
    file = export_int8(net, out, [example.observed for example in run.validation(data)])
    loss = int8_loss(net, file, test, task)
    title = f"in 8-bit integers, not exact; mean over {len(test) // max(1, len(loss.conditions))} held-out pictures"
    said = "\n".join([f"{title:<68}{'exact':>10}{'int8':>10}{'lost':>10}", *_rows(loss, task.metrics)])
    return said, {"int8": {"exact": loss.exact, "int8": loss.int8, "by_condition": loss.conditions}}


def _rows(loss: Loss, metrics: tuple[Metric, ...]) -> Iterator[str]:
    """One for each metric; and of the headline one for each condition."""
    for metric in metrics:
        yield _row(metric.title, (loss.exact, loss.int8), metric)
    for name, both in loss.conditions.items():
        yield _row(f"{metrics[0].title} at {name}", both, metrics[0])


def _row(title: str, scores: tuple[Scores, Scores], metric: Metric) -> str:
    exact, int8 = (each[metric.key] for each in scores)
    return f"  {title:<66}" + "".join(f"{metric.number(value):>10}" for value in (exact, int8, exact - int8))
