"""The report of a search that goes on."""

import time

from nas.analysis.report.report import write_report
from nas.search.callbacks.callback import Callback, Line
from nas.search.engine.search import Search
from nas.search.runs.path import Point
from nas.search.runs.run import REPORT

REFRESH = 5  # seconds after which the page loads itself anew
PATIENCE = 10  # times as long as it takes to write the report it is left alone


class LiveReport(Callback):
    """Keeps report.html current: written anew when that will not take a tenth of the time since it was; at the end
    complete."""

    def __init__(self) -> None:
        self._cost = self._written = 0.0

    def on_start(self, search: Search) -> None:
        self._run = search.run

    def on_epoch(self, point: Point, line: Line) -> None:
        began = time.perf_counter()
        if began - self._written >= PATIENCE * self._cost:
            write_report([self._run], self._run.folder / REPORT, refresh=REFRESH)
            self._written = time.perf_counter()
            self._cost = self._written - began

    on_network = on_epoch

    def on_end(self, search: Search, problem: BaseException | None) -> None:
        if problem is None:
            write_report([self._run], self._run.folder / REPORT)
