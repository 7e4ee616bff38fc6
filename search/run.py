"""A run: a search with its folder, which is valid after every epoch and from which the search can go on.

config.yaml        everything that determines the run
metrics.jsonl      one line per epoch
path.json, path/   what was alive after each epoch, and after each removal of the polishing; and the weights
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

from nas import AdaBreg, param_groups, sparse_start
from nas.files import replacing, write_json, write_text
from nas.models.compact import compact, expand
from nas.models.dag import DagNet
from nas.penalties import scaled, strengths
from nas.search.batches import Batches
from nas.search.config import AUTO, SearchConfig
from nas.search.data import load_data
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Point, load_sparse, pick, read_points, save_sparse
from nas.search.polish import Polished, polish
from nas.search.stack import Pictures
from nas.search.tasks import Example, Task, evaluate, held_out, predict
from nas.steering import EARLIEST, calibrate

CONFIG, METRICS, PATH, SNAPSHOTS, CHECKPOINT = "config.yaml", "metrics.jsonl", "path.json", "path", "checkpoint.pt"
COMPACT, RETRAINED, PICTURES, EXPORT = "compact", "retrained", "pictures", "export"  # folders that later steps add
DRAWINGS = ("topology.svg", "topology.json", "topology.graphml", "growth.svg")
VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
MAX_COMPARED = 1000
TRIAL_STEPS, TRIAL_FRACTION = 200, 0.1  # of the trial that chooses lam
POLISHING = 20  # a removal is fitted for this part of the steps of the search
POLISHING_LR, POLISHING_TOLERANCE = 5e-3, 0.005


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

    def choose(self, epoch: int | None = None) -> Point:
        """The point of ``epoch``; by default the one that the search picks.

        Raises:
            ValueError: the path has no such epoch.
        """
        points = self.points()
        if epoch is None:
            total = sum(p.numel() for p in self.blank.parameters())
            return pick(points, self.config.tolerance, self.config.max_params * total)
        chosen = [point for point in points if point.snapshot.epoch == epoch]
        if not chosen:
            raise ValueError(f"{self.folder} has epochs 0 to {points[-1].snapshot.epoch}, not {epoch}")
        return chosen[0]

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
    ``on_trial`` can be set to what `nas.search.polish` is to call after each trial.

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
        sparse_start(self.net, config.density, seed=config.seed, batch=next(self.batches(0))[0])
        entry_time = TRIAL_STEPS if isinstance(config.entry_time, str) else config.entry_time
        lam, gate_lr = entry_time * config.lr, config.gate_scale * config.lr
        groups = param_groups(self.net, lam=lam, lr=config.lr, gate_lam=config.gate_scale * lam, gate_lr=gate_lr)
        self.optimizer = AdaBreg(groups)
        if config.entry_time == AUTO and not resume:
            self._calibrate()
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=config.epochs * config.steps)
        self.points: list[Point] = []
        self.on_trial: Callable[[Polished, bool], None] = lambda candidate, accepted: None
        if resume:
            self._restore()
        else:
            start = self._measure(snapshot(self.net, 0), self.net, 0.0)
            _prepare_folder(run, force)
            self._record(start)

    @property
    def lam(self) -> float:
        """Strength of the penalty on the units."""
        return strengths(self.optimizer.param_groups[0]["penalty"])[0]

    def _calibrate(self) -> None:
        """Choose lam by a trial (`nas.steering.calibrate`)."""
        pairs = chain.from_iterable(map(self.batches, count(1)))

        def train_step() -> None:
            x, y = next(pairs)
            self.optimizer.zero_grad()
            self.task.loss(self.net(x), y).backward()
            self.optimizer.step()

        calibrate(self.net, self.optimizer, train_step, steps=TRIAL_STEPS, fraction=TRIAL_FRACTION)
        too_early = EARLIEST * self.run.config.lr / self.lam
        if too_early > 1:
            for group in self.optimizer.param_groups:
                group["penalty"] = scaled(group["penalty"], too_early)

    def __iter__(self) -> Iterator[Point]:
        """Search on to the last epoch, then polish; each point is on disk before it is yielded."""
        config, first = self.run.config, len(self.points)
        began = time.perf_counter() - self.points[-1].seconds
        searched = search(
            self.net, self.batches, self.optimizer, self.task.loss, scheduler=self.scheduler, first_epoch=first
        )
        for found in islice(searched, max(0, config.epochs + 1 - first)):
            point = self._measure(found, self.net, time.perf_counter() - began)
            self._record(point)
            yield point
        if config.polish and len(self.points) == config.epochs + 1:
            yield from self._polish(began)

    def _polish(self, began: float) -> list[Point]:
        """Polish the picked network; the points of what was removed continue the path, all at once."""
        config = self.run.config
        chosen = self.run.supernet(self.run.choose().snapshot.epoch)
        way = polish(
            chosen, self.batches, self.task.loss, self._validation_loss, next(self.batches(0)),
            trials=config.polish, steps=max(1, config.epochs * config.steps // POLISHING), lr=POLISHING_LR,
            tolerance=POLISHING_TOLERANCE, first_epoch=config.epochs + 1, on_trial=self.on_trial,
        )  # fmt: skip
        nets = [expand(state.net, state.units, chosen) for state in way]
        points = []
        for epoch, net in enumerate(nets, config.epochs + 1):
            points.append(self._measure(snapshot(net, epoch), net, time.perf_counter() - began))
            save_sparse(net, self.run.folder / SNAPSHOTS / f"{epoch:04}.safetensors")
        write_json(self.run.folder / PATH, [each.to_dict() for each in (*self.points, *points)])
        for point, net in zip(points, nets, strict=True):
            self._add(point, net)
        return points

    def _validation_loss(self, net: DagNet) -> float:
        outputs = predict(net, [example.observed for example in self.validation])
        pairs = zip(outputs, self.validation, strict=True)
        losses = [self.task.loss(output[None], example.target[None]) for output, example in pairs]
        return float(torch.stack(losses).mean())

    def _measure(self, found: Snapshot, net: DagNet, seconds: float) -> Point:
        small = compact(net)
        scores = evaluate(small, self.validation, self.task)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the weights of epoch {found.epoch} are not finite; use a smaller lr")
        return Point(found, scores, sum(p.numel() for p in small.parameters()), seconds)

    def _record(self, point: Point) -> None:
        """Weights first, then the path that names them, the metrics, and last the checkpoint to go on from."""
        folder = self.run.folder
        save_sparse(self.net, folder / SNAPSHOTS / f"{point.snapshot.epoch:04}.safetensors")
        write_json(folder / PATH, [each.to_dict() for each in (*self.points, point)])
        self._add(point, self.net)
        state = {
            "config": self.run.config.to_yaml(),
            "epoch": point.snapshot.epoch,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        replacing(folder / CHECKPOINT, lambda temporary: torch.save(state, temporary))

    def _add(self, point: Point, net: DagNet) -> None:
        self.points.append(point)
        with (self.run.folder / METRICS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(self._metrics(point, net)) + "\n")

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
