"""A run: a search with its folder, which is valid after every epoch and from which the search can go on.

config.yaml        everything that determines the run
metrics.jsonl      one line per epoch
path.json, path/   what was alive after each epoch, then the networks of the front; and the weights
checkpoint.pt      to continue, bit for bit
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas import param_groups, sparse_start
from nas.bregman import Bregman
from nas.files import replacing, write_json, write_text
from nas.models.alive_only import alive_only
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.price import prices, total
from nas.penalised import Penalised
from nas.penalties import scaled, strengths
from nas.search import optimizers
from nas.search.config import AUTO, SearchConfig
from nas.search.data.batches import Batches
from nas.search.data.sources import load_data
from nas.search.data.stack import Pictures
from nas.search.front import Slimming, without_groups
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Choice, Point, load_sparse, read_points, save_sparse
from nas.search.retrain import retrain
from nas.search.tasks.task import Example, Task, evaluate, held_out
from nas.steering import EARLIEST, calibrate

CONFIG, METRICS, PATH, SNAPSHOTS, CHECKPOINT = "config.yaml", "metrics.jsonl", "path.json", "path", "checkpoint.pt"
COMPACT, RETRAINED, PICTURES, EXPORT = "compact", "retrained", "pictures", "export"  # folders that later steps add
DRAWINGS = ("topology.svg", "topology.json", "topology.graphml", "growth.svg")
VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
MAX_COMPARED = 1000
TRIAL_STEPS, TRIAL_FRACTION = 200, 0.1  # of the trial that chooses lam
HEADROOM = 1.5  # a network of the front is thinned out from one with so many times its size, if there is one
FITS = 1000  # epochs of data between two networks of the front
AUTO_SIZES = 1.0, 0.5, 0.25  # of the size that has grown


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
        if not file.is_file():
            raise ValueError(f"{folder} holds no run (no {CONFIG} in it); make one with nas search --out {folder}")
        try:
            return cls(folder, SearchConfig.from_yaml(file.read_text(encoding="utf-8")))
        except ValueError as problem:
            raise ValueError(f"{file} is damaged: {problem}") from None

    @cached_property
    def blank(self) -> DagNet:
        """The supernet with the random weights that the seed gives it, before its sparse start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.config.build()

    def points(self) -> list[Point]:
        """The search path so far, the start included.

        Raises:
            ValueError: it is missing or damaged.
        """
        points = read_points(self.folder / PATH)
        if not points:
            raise ValueError(f"the search path {self.folder / PATH} is empty")
        return points

    def front(self) -> list[Point]:
        """The networks of the front, so far as they are there."""
        return [point for point in self.points() if point.snapshot.epoch > self.config.epochs]

    def choose(self, choice: Choice = Choice()) -> Point:
        """The point that is meant: of the front, if there is one, unless an epoch is chosen; else of the path.

        Raises:
            ValueError: there is none such.
        """
        front = self.front()
        points = self.points() if choice.epoch is not None or not front else front
        return choice.of(points, self.config.tolerance)

    def supernet(self, epoch: int) -> DagNet:
        """The searched network as it was after ``epoch``.

        Raises:
            ValueError: its file is missing or damaged.
        """
        net = copy.deepcopy(self.blank)
        load_sparse(net, self.folder / SNAPSHOTS / f"{epoch:04}.safetensors")
        return net

    def data(self, *, download: bool = False) -> Pictures:
        config = self.config
        return load_data(config.data, root=config.data_root, download=download, channels=config.channels)

    def task(self, data: Pictures) -> Task:
        return self.config.make_task(data)

    def batches(self, data: Pictures, seed: int) -> Batches:
        config = self.config
        return self.task(data).batches(data.train, crop=config.crop, batch=config.batch, steps=config.steps, seed=seed)

    def validation(self, data: Pictures) -> list[Example]:
        return held_out(data.validation, self.task(data), seed=VALIDATION_SEED)

    def test(self, data: Pictures) -> list[Example]:
        return held_out(data.test, self.task(data), seed=TEST_SEED)

    def inputs(self, data: Pictures) -> list[Tensor]:
        """Observed test pictures, evenly spaced, on which networks are compared: at most `MAX_COMPARED`."""
        test = self.test(data)
        return [example.observed for example in test[:: math.ceil(len(test) / MAX_COMPARED)]]


class Search:
    """One search in its folder; iterate over it to let it run.

    Everything that can be wrong with the options or the data is found before the folder is touched. Its attribute
    ``on_fit`` can be set to a function that is called with the number of parameters after each removal of the front.

    Args:
        run: the folder and the options; `Search.run` has those options too that the data determine.
        resume: continue the search that the folder holds instead of starting a new one.
        force: replace a run that the folder holds.
        download: fetch a data set that is missing.

    Raises:
        ValueError: bad options or data, a folder that is in use, or nothing to continue.
    """

    def __init__(self, run: Run, *, resume: bool = False, force: bool = False, download: bool = False) -> None:
        data = run.data(download=download)
        self.task = run.task(data)
        run = self.run = Run(run.folder, run.config.with_outputs(self.task.num_outputs))
        config = run.config
        self.validation = run.validation(data)
        run.test(data)  # what is wrong with the test pictures is said now, not after the search
        self.batches = run.batches(data, config.seed)
        self.net = copy.deepcopy(run.blank)
        if not config.kind.dense:
            sparse_start(self.net, config.density, seed=config.seed, batch=next(self.batches(0))[0])
        self.dear = {} if config.currency is None else prices(self.net.plan, config.currency)
        self.optimizer = self._make_optimizer()
        if config.entry_time == AUTO and not resume:
            self._calibrate()
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=config.epochs * config.steps)
        self.points: list[Point] = []
        self.on_fit: Callable[[int], None] = lambda params: None
        if resume:
            self._restore()
        else:
            start = self._measure(snapshot(self.found, 0), self.found, 0.0)
            _prepare_folder(run, force)
            self._record(start, self.found)
            self._save_checkpoint(start)

    def _make_optimizer(self) -> Penalised:
        config, scale = self.run.config, self.run.config.gate_scale
        groups = param_groups(self.net, lam=1.0, lr=1.0, gate_lam=scale, gate_lr=scale, prices=self.dear)
        entry_time = TRIAL_STEPS if config.entry_time == AUTO else self.entry_time
        pairs = islice(chain.from_iterable(map(self.batches, count(1))), optimizers.TRIAL_STEPS)
        start = optimizers.Start(
            self.net, groups, pairs, self.task.loss, config.learning_rate,
            math.nan if entry_time is None else entry_time, config.second_moment,
        )  # fmt: skip
        return config.kind.build(start)

    @property
    def found(self) -> DagNet:
        """The network that the search has found so far; with SplitLBI another one than it trains."""
        return self.run.config.kind.found(self.net, self.optimizer)

    @property
    def entry_time(self) -> float | None:
        """Steps until units of the mean price can wake; None where the optimiser knows none."""
        config = self.run.config
        if isinstance(config.entry_time, str):
            return self.lam / config.learning_rate
        return config.kind.entry_time if config.entry_time is None else config.entry_time

    @property
    def lam(self) -> float:
        """Strength of the penalty on units of the mean price; on those of the first node where nodes differ."""
        group = self.optimizer.param_groups[0]
        return strengths(group["penalty"])[0] / self.dear.get(group["name"], 1.0)

    def _calibrate(self) -> None:
        """Choose lam by a trial (`nas.steering.calibrate`)."""
        pairs = chain.from_iterable(map(self.batches, count(1)))

        def train_step() -> None:
            x, y = next(pairs)
            self.optimizer.zero_grad()
            self.task.loss(self.net(x), y).backward()
            self.optimizer.step()

        assert isinstance(self.optimizer, Bregman)
        with alive_only(self.net):
            calibrate(self.net, self.optimizer, train_step, steps=TRIAL_STEPS, fraction=TRIAL_FRACTION)
        too_early = EARLIEST * self.run.config.learning_rate / self.lam
        if too_early > 1:
            for group in self.optimizer.param_groups:
                group["penalty"] = scaled(group["penalty"], too_early)

    def __iter__(self) -> Iterator[Point]:
        """Search on to the last epoch, then make the front; each point is on disk before it is yielded."""
        config, first = self.run.config, len(self.points)
        began = time.perf_counter() - self.points[-1].seconds
        searched = search(
            self.net, self.batches, self.optimizer, self.task.loss, scheduler=self.scheduler, first_epoch=first
        )
        for found in islice(searched, max(0, config.epochs + 1 - first)):
            net = self.found
            seen = found if net is self.net else snapshot(net, found.epoch, found.loss)
            point = self._measure(seen, net, time.perf_counter() - began)
            self._record(point, net)
            self._save_checkpoint(point)
            yield point
        for size in self.sizes()[len(self.points) - config.epochs - 1 :]:
            yield self._add_to_front(size, began)

    def sizes(self) -> list[int]:
        """What the networks of the front may cost, the largest first.

        Raises:
            ValueError: one is larger than all that has grown.
        """
        chosen, largest = self.run.config.front_sizes, max(map(self._cost, self._grown()))
        smallest = total(without_groups(self.run.blank).plan, self.run.config.sizes_in)
        if chosen is None:
            return [int(part * largest) for part in AUTO_SIZES if part * largest > smallest]
        if chosen and chosen[-1] < smallest:
            raise ValueError(
                f"a network of {chosen[-1]:,} {self.run.config.sizes_in} was asked for, and what a search cannot "
                f"remove has {smallest:,.0f}"
            )
        if chosen and chosen[0] > largest:
            raise ValueError(
                f"a network of {chosen[0]:,} {self.run.config.sizes_in} was asked for, and the largest that has grown "
                f"has {largest:,.0f}; search longer or with a shorter entry_time"
            )
        return chosen

    def _cost(self, point: Point) -> float:
        """Of a network, in what sizes are counted in."""
        cost: float = getattr(point, self.run.config.sizes_in)
        return cost

    def _grown(self) -> list[Point]:
        """The points of the search, but for its start."""
        return self.points[1 : self.run.config.epochs + 1]

    def _add_to_front(self, size: int, began: float) -> Point:
        """Thin out a larger network, refit it, and add it to the path."""
        epoch, larger = len(self.points), self._larger(size).snapshot.epoch
        slimming = Slimming(self.run.config, self.task, self.batches, FITS * epoch, self.on_fit)
        net = slimming.to_size(self.run.supernet(larger), size)
        point = self._measure(snapshot(net, epoch), net, time.perf_counter() - began)
        self._record(point, net)
        return point

    def _larger(self, size: int) -> Point:
        """The smallest network with room for one of this size: of the front, else of what has grown."""
        front = self.points[self.run.config.epochs + 1 :]
        grown = [point for point in self._grown() if self._cost(point) >= HEADROOM * size]
        largest = max(self._grown(), key=self._cost)
        best_of_equals = min(grown, key=lambda point: (self._cost(point), -point.headline), default=largest)
        return front[-1] if front else best_of_equals

    def _measure(self, found: Snapshot, net: DagNet, seconds: float) -> Point:
        small = compact(net)
        scores = evaluate(small, self.validation, self.task)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the weights of epoch {found.epoch} are not finite; use a smaller lr")
        return Point(found, scores, small.plan.num_params, total(small.plan, "flops"), seconds)

    def _record(self, point: Point, net: DagNet) -> None:
        """Weights first, then the path that names them, and the metrics."""
        folder = self.run.folder
        save_sparse(net, folder / SNAPSHOTS / f"{point.snapshot.epoch:04}.safetensors")
        write_json(folder / PATH, [each.to_dict() for each in (*self.points, point)])
        self.points.append(point)
        with (folder / METRICS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(self._metrics(point, net)) + "\n")

    def _save_checkpoint(self, point: Point) -> None:
        """What the growth goes on from."""
        state = {
            "config": self.run.config.to_yaml(),
            "epoch": point.snapshot.epoch,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        replacing(self.run.folder / CHECKPOINT, lambda temporary: torch.save(state, temporary))

    def _metrics(self, point: Point, net: DagNet) -> dict[str, Any]:
        nonzero = sum(int(p.count_nonzero()) for p in net.parameters())
        return {
            "epoch": point.snapshot.epoch,
            "loss": point.snapshot.loss,
            **point.scores,
            "density": nonzero / sum(p.numel() for p in net.parameters()),
            "units": point.snapshot.num_units,
            "skips": len(point.snapshot.skips),
            "params": point.params,
            "flops": point.flops,
            "lam": self.lam,
            "lr": self.scheduler.get_last_lr()[0],
            "seconds": round(point.seconds, 3),
        }

    def _restore(self) -> None:
        file = self.run.folder / CHECKPOINT
        try:
            state = torch.load(file)
            stored, done = state["config"], int(state["epoch"])
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        except Exception as problem:  # torch.load raises whatever a damaged file makes its readers raise
            raise ValueError(f"the checkpoint {file} is missing or damaged: {_first_line(problem)}") from None
        if stored != self.run.config.to_yaml():
            raise ValueError(f"{self.run.folder / CONFIG} was changed after the search began; make a new run with it")
        self.points = self.run.points()
        if len(self.points) < done + 1:
            raise ValueError(f"the search path {self.run.folder / PATH} is damaged: it ends before the checkpoint")
        if done < self.run.config.epochs:
            del self.points[done + 1 :]
        metrics = self.run.folder / METRICS
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[: len(self.points)]
        write_text(metrics, "".join(lines))


def thinned_from_dense(run: Run, size: int, seed: int) -> DagNet:
    """What the front does without any growth: the dense supernet, trained for as long as the search, thinned out.

    Raises:
        ValueError: the supernet is smaller than ``size``.
        FloatingPointError: training diverged.
    """
    config, data = run.config, run.data()
    batches, task = run.batches(data, config.seed + seed), run.task(data)
    torch.manual_seed(seed)
    net = DagNet(run.blank.plan)
    retrain(net, batches, task.loss, epochs=config.epochs, steps=config.steps)
    return compact(Slimming(config, task, batches, FITS * (config.epochs + 1)).to_size(net, size))


def _prepare_folder(run: Run, force: bool) -> None:
    folder = run.folder
    if (folder / CONFIG).exists():
        if not force:
            raise ValueError(f"{folder} already holds a run; choose another --out, or --force to replace it")
        for name in (METRICS, PATH, SNAPSHOTS, CHECKPOINT, COMPACT, RETRAINED, PICTURES, EXPORT, *DRAWINGS, CONFIG):
            _remove(folder / name)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is in use and holds no run; choose another --out")
    (folder / SNAPSHOTS).mkdir(parents=True)
    write_text(folder / CONFIG, run.config.to_yaml())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
