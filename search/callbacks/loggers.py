"""Loggers: callbacks that hand the lines of metrics.jsonl on, each as soon as it is there."""

import importlib
import json
import shutil
import uuid
from abc import abstractmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import yaml

from nas.files import write_json, write_text
from nas.search.callbacks.callback import Callback, Line
from nas.search.runs.path import Point
from nas.search.runs.run import LOGGED, METRICS, TENSORBOARD, WANDB, Run

if TYPE_CHECKING:
    from nas.search.engine.search import Search

MLFLOW = "mlflow"


class Logger(Callback):
    """Logs the lines of growth and front alike, but for that of the start; a logger of your own subclasses it."""

    @abstractmethod
    def log(self, line: Line) -> None:
        """A line is there."""

    def on_epoch(self, point: Point, line: Line) -> None:
        self.log(line)

    def on_network(self, point: Point, line: Line) -> None:
        self.log(line)


class MetricsFile(Logger):
    """Keeps metrics.jsonl; part of every search. The file is whole whenever the process is killed."""

    def on_start(self, search: "Search") -> None:
        self._search = search
        self._write()

    def log(self, line: Line) -> None:
        self._write()

    def _write(self) -> None:
        lines = (json.dumps(line) + "\n" for line in self._search.metrics)
        write_text(self._search.run.folder / METRICS, "".join(lines))


class TensorBoard(Logger):
    """Writes scalars to the folder tensorboard/ of the run.

    Raises:
        ValueError: it is not installed.
    """

    def __init__(self) -> None:
        _check_installed(TENSORBOARD)

    def on_start(self, search: "Search") -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, begun = search.run.folder / TENSORBOARD, len(search.points)
        if begun == 1 and folder.is_dir():
            shutil.rmtree(folder)
        self._writer = SummaryWriter(str(folder), purge_step=begun)

    def log(self, line: Line) -> None:
        for name, value in _numbers(line).items():
            self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()

    def on_end(self, search: "Search", problem: BaseException | None) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """Logs over the epochs to Weights & Biases, as its environment variables say (WANDB_PROJECT, WANDB_MODE ...). A
    search that goes on goes on there, too.

    Raises:
        ValueError: it is not installed, or (from `on_start`) refuses.
    """

    def __init__(self) -> None:
        _check_installed(WANDB)
        self._wandb: Any = importlib.import_module(WANDB)

    def on_start(self, search: "Search") -> None:
        run = search.run
        name = _known(run, WANDB) or _remember(run, WANDB, uuid.uuid4().hex)
        try:
            self._run = self._wandb.init(
                id=name, name=run.folder.name, dir=str(run.folder), config=_options(run), resume="allow"
            )
        except self._wandb.Error as problem:
            raise ValueError(f"W&B: {problem}") from None
        self._run.define_metric("*", step_metric="epoch")

    def log(self, line: Line) -> None:
        self._run.log({"epoch": line["epoch"], **_numbers(line)})

    def on_end(self, search: "Search", problem: BaseException | None) -> None:
        self._run.finish(exit_code=0 if problem is None else 1)


class MLflow(Logger):
    """Logs to MLflow, as its environment variables say (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ...). A search that
    goes on goes on there, too.

    Raises:
        ValueError: it is not installed, or (from `on_start`) refuses.
    """

    def __init__(self) -> None:
        _check_installed(MLFLOW)
        self._mlflow: Any = importlib.import_module(MLFLOW)

    def on_start(self, search: "Search") -> None:
        run, known = search.run, _known(search.run, MLFLOW)
        try:
            active = self._mlflow.start_run(run_id=known, run_name=None if known else run.folder.name)
            if known is None:
                self._mlflow.log_params(_options(run))
                _remember(run, MLFLOW, active.info.run_id)
        except self._mlflow.exceptions.MlflowException as problem:
            raise ValueError(f"MLflow: {problem}") from None

    def log(self, line: Line) -> None:
        self._mlflow.log_metrics(_numbers(line), step=line["epoch"])

    def on_end(self, search: "Search", problem: BaseException | None) -> None:
        self._mlflow.end_run("FINISHED" if problem is None else "FAILED")


LOGGERS: dict[str, type[Logger]] = {TENSORBOARD: TensorBoard, WANDB: WeightsAndBiases, MLFLOW: MLflow}


def _check_installed(name: str) -> None:
    if find_spec(name) is None:
        raise ValueError(f"{name} is not installed: pip install {name}, or leave out --logger")


def _numbers(line: Line) -> dict[str, float]:
    """What there is of a line, without the epoch."""
    return {name: value for name, value in line.items() if name != "epoch" and value is not None}


def _options(run: Run) -> dict[str, Any]:
    """Of the search, as plain data."""
    options: dict[str, Any] = yaml.safe_load(run.config.to_yaml())
    return options


def _known(run: Run, logger: str) -> str | None:
    """What the run is called there, if it has been logged."""
    return _names(run).get(logger)


def _remember(run: Run, logger: str, name: str) -> str:
    write_json(run.folder / LOGGED, {**_names(run), logger: name})
    return name


def _names(run: Run) -> dict[str, str]:
    """What the run is called, by logger.

    Raises:
        ValueError: the file that keeps it is damaged.
    """
    file = run.folder / LOGGED
    try:
        names = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file} is damaged; remove it, and what follows is logged as a new run")
    return names
