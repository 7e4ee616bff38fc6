"""A run: a search with its folder, which is valid after every epoch and from which the search can go on.

config.yaml        everything that determines the run
metrics.jsonl      one line per epoch
surroundings.jsonl versions and the machine, with which it was computed
path.json, path/   what was alive after each epoch, then the networks of the front; and the weights
checkpoints/       to go on from, bit for bit
.lock              held by the process that writes here
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.files import LOCK, alone, is_tidy, remove, write_text
from nas.registry import Unknown
from nas.search.data.batches import Batches, ahead, in_rows
from nas.search.data.dataset import Pictures
from nas.search.data.files import Files
from nas.search.data.sources import load_data
from nas.search.runs.config import SearchConfig
from nas.search.runs.path import Choice, Point, front_of, load_sparse, read_points
from nas.search.tasks.task import Example, Task, held_out
from nas.search.training import ranks

CONFIG, METRICS, PATH, SNAPSHOTS, CHECKPOINTS = (
    "config.yaml", "metrics.jsonl", "path.json", "path", "checkpoints"
)  # fmt: skip
NEXT_CONFIG = ".config.yaml.next"  # of a run that takes the place of another
COMPACT, RETRAINED, PICTURES, EXPORT = "compact", "retrained", "pictures", "export"  # folders that later steps add
SURROUNDINGS = "surroundings.jsonl"
RETRAINING = "retraining"  # checkpoints
DRAWINGS = "topology.svg", "topology.json", "topology.graphml", "growth.svg"
FILM, REPORT = "growth.gif", "report.html"
TENSORBOARD, WANDB, LOGGED = "tensorboard", "wandb", "loggers.json"  # the last: what the run is called by loggers
VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
MAX_COMPARED = 1000


@dataclass(frozen=True)
class Run:
    """A run folder and the configuration in it."""

    folder: Path
    config: SearchConfig

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in ``folder``.

        Raises:
            ValueError: there is no run, or its configuration is damaged.
        """
        file = folder / CONFIG
        if not cls.is_in(folder):
            raise ValueError(f"{folder} holds no run (no {CONFIG} in it); make one with nas search --out {folder}")
        try:
            return cls(folder, SearchConfig.from_yaml(file.read_text(encoding="utf-8")))
        except Unknown as problem:
            raise ValueError(f"{folder}: {problem}") from None
        except ValueError as problem:
            raise ValueError(f"{file} is damaged: {problem}") from None

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether there is a run in ``folder``."""
        recover(folder)
        return (folder / CONFIG).is_file()

    @cached_property
    def blank(self) -> nn.Module:
        """The supernet with the random weights that the seed gives it, before its sparse start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.config.build()

    def points(self) -> list[Point]:
        """The search path so far, the start included.

        Raises:
            ValueError: it is missing or damaged.
        """
        points = read_points(self.folder / PATH, self.config.identity)
        if not points:
            raise ValueError(f"the search path {self.folder / PATH} is empty")
        return points

    def front(self) -> list[Point]:
        """The networks of the front, so far as they are there."""
        return front_of(self.points())

    def choose(self, choice: Choice = Choice()) -> Point:
        """The point that is meant: of the front, if there is one, unless an epoch is chosen; else of the path.

        Raises:
            ValueError: there is none such.
        """
        points = self.points()
        front = front_of(points)
        return choice.of(points if choice.epoch is not None or not front else front, self.config.tolerance)

    def supernet(self, epoch: int) -> nn.Module:
        """The searched network as it was after ``epoch``.

        Raises:
            ValueError: its file is missing or damaged.
        """
        points, net = self.points(), copy.deepcopy(self.blank)
        point = Choice(epoch=epoch).of(points, 0.0)
        load_sparse(net, self.folder / SNAPSHOTS / f"{epoch:04}.safetensors", point.sha256)
        return net.eval()

    def data(self, *, download: bool = False) -> Pictures:
        config = self.config
        return load_data(
            config.data, root=config.data_root, download=download, channels=config.channels,
            val_root=config.val_root, test_root=config.test_root, given=config.black_and_white,
        )  # fmt: skip

    def task(self, data: Pictures) -> Task:
        return self.config.make_task(data)

    def batches(self, data: Pictures, seed: int, *, batch: int | None = None, crop: int | None = None) -> Batches:
        """Training data; by default of the sizes of the search. What is read from files is read ahead.

        Raises:
            ValueError: they do not suit the data, or several ranks cannot share a batch.
        """
        config = self.config
        batch, crop = config.batch if batch is None else batch, config.crop if crop is None else crop
        ranks.check_divides(batch)
        batches = self.task(data).batches(data.train, crop=crop, batch=batch, steps=config.steps, seed=seed)
        return ahead(batches) if isinstance(data.train, Files) else in_rows(batches)

    def validation(self, data: Pictures) -> list[Example]:
        return held_out(data.validation, self.task(data), seed=VALIDATION_SEED)

    def test(self, data: Pictures) -> list[Example]:
        return held_out(data.test, self.task(data), seed=TEST_SEED)

    def inputs(self, data: Pictures) -> list[Tensor]:
        """Observed test pictures, evenly spaced, on which networks are compared: at most `MAX_COMPARED`."""
        test = self.test(data)
        return [example.observed for example in test[:: math.ceil(len(test) / MAX_COMPARED)]]


def recover(folder: Path) -> None:
    """Finish in a run folder what a process that was killed has left half done, unless another one is at work there."""
    if (folder / NEXT_CONFIG).exists() or not is_tidy(folder):
        with suppress(ValueError, OSError), alone(folder):
            _replace_run(folder)


@contextmanager
def begun(run: Run, force: bool) -> Iterator[None]:
    """The folder of a new run with nothing but its configuration in it, and nobody else may write there meanwhile.

    Raises:
        ValueError: it holds a run (unless ``force`` says that it is to be replaced) or is in use.
        OSError: it cannot be written.
    """
    folder = run.folder
    recover(folder)
    if not (folder / CONFIG).exists() and _visible(folder):
        raise ValueError(f"{folder} is in use and holds no run; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if (folder / CONFIG).exists() and not force:
            raise ValueError(f"{folder} already holds a run; choose another --out, or --force to replace it")
        write_text(folder / NEXT_CONFIG, run.config.to_yaml())  # from here on the new run is there, the old one is not
        _replace_run(folder)
        yield


def _visible(folder: Path) -> list[Path]:
    """What is in the way of a new folder of this name."""
    if not folder.is_dir():
        return [folder] if folder.exists() else []
    return [path for path in folder.iterdir() if path.name != LOCK]


def _replace_run(folder: Path) -> None:
    """Let a new configuration take the place of an old run."""
    if (folder / NEXT_CONFIG).exists():
        for name in (
            METRICS,
            SURROUNDINGS,
            PATH,
            SNAPSHOTS,
            CHECKPOINTS,
            COMPACT,
            RETRAINED,
            RETRAINING,
            PICTURES,
            EXPORT,
            *DRAWINGS,
            FILM,
            REPORT,
            TENSORBOARD,
            WANDB,
            LOGGED,
        ):
            remove(folder / name)
        (folder / NEXT_CONFIG).replace(folder / CONFIG)
