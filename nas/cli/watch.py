"""Watching a search while it runs: a report that is kept current, and loggers."""

from jsonargparse import ArgumentParser, Namespace

from nas.analysis.report.live import LiveReport
from nas.search.callbacks.callback import Callback
from nas.search.callbacks.loggers import LOGGERS
from nas.search.runs.run import REPORT


def add_watching(parser: ArgumentParser) -> None:
    """Options of verbs that search."""
    parser.add_argument(
        "--live", action="store_true", help=f"keep {REPORT} in the run folder current; open it in a browser and watch"
    )
    parser.add_argument(
        "--logger", choices=list(LOGGERS), nargs="+", default=[], help="also log for TensorBoard, W&B or MLflow"
    )


def watchers(options: Namespace) -> list[Callback]:
    """What the options of `add_watching` say.

    Raises:
        ValueError: a logger is not installed.
    """
    return [*(LOGGERS[name]() for name in options.logger), *([LiveReport()] if options.live else [])]
