"""A run: a search with its folder, which is valid after every epoch and from which the search can go on.

config.yaml        everything that determines the run
metrics.jsonl      one line per epoch
path.json, path/   what was alive after each epoch, then the networks of the front; and the weights
checkpoints/       to go on from, bit for bit
.lock              held by the process that writes here
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas import param_groups, sparse_start
from nas.bregman import Bregman
from nas.files import LOCK, alone, is_tidy, remove, write_text
from nas.models.alive_only import alive_only
from nas.models.compact import alive_plan, compact
from nas.models.dag import DagNet
from nas.models.price import prices, total
from nas.penalised import Penalised
from nas.penalties import scaled, strengths
from nas.search import optimizers
from nas.search.checkpoints import EVERY, Checkpoints, State
from nas.search.config import AUTO, SearchConfig
from nas.search.data.batches import Batches
from nas.search.data.sources import load_data
from nas.search.data.stack import Pictures
from nas.search.front import Slimming, without_groups
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Choice, Point, load_sparse, points_of, read_points, save_sparse, write_points
from nas.search.retrain import retrain
from nas.search.tasks.task import Example, Task, evaluate, held_out
from nas.steering import EARLIEST, LamController, calibrate

CONFIG, METRICS, PATH, SNAPSHOTS, CHECKPOINTS = (
    "config.yaml", "metrics.jsonl", "path.json", "path", "checkpoints"
)  # fmt: skip
NEXT_CONFIG = ".config.yaml.next"  # of a run that takes the place of another
COMPACT, RETRAINED, PICTURES, EXPORT = "compact", "retrained", "pictures", "export"  # folders that later steps add
RETRAINING = "retraining"  # checkpoints
DRAWINGS = "topology.svg", "topology.json", "topology.graphml", "growth.svg"
FILM, REPORT, TENSORBOARD = "growth.gif", "report.html", "tensorboard"
VALIDATION_SEED, TEST_SEED = 1_000_000, 2_000_000
MAX_COMPARED = 1000
TRIAL_STEPS, TRIAL_FRACTION = 200, 0.1  # of the trial that chooses lam
HEADROOM = 1.5  # a network of the front is thinned out from one with so many times its size, if there is one
STEERING = 16  # steps between two changes of lam
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
        if not cls.is_in(folder):
            raise ValueError(f"{folder} holds no run (no {CONFIG} in it); make one with nas search --out {folder}")
        try:
            return cls(folder, SearchConfig.from_yaml(file.read_text(encoding="utf-8")))
        except ValueError as problem:
            raise ValueError(f"{file} is damaged: {problem}") from None

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether there is a run in ``folder``."""
        recover(folder)
        return (folder / CONFIG).is_file()

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
        points = read_points(self.folder / PATH, self.config.identity)
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
        points, net = self.points(), copy.deepcopy(self.blank)
        point = Choice(epoch=epoch).of(points, 0.0)
        load_sparse(net, self.folder / SNAPSHOTS / f"{epoch:04}.safetensors", point.sha256)
        return net

    def data(self, *, download: bool = False) -> Pictures:
        config = self.config
        return load_data(config.data, root=config.data_root, download=download, channels=config.channels)

    def task(self, data: Pictures) -> Task:
        return self.config.make_task(data)

    def batches(self, data: Pictures, seed: int, *, batch: int | None = None, crop: int | None = None) -> Batches:
        """Training data; by default of the sizes of the search."""
        config = self.config
        batch, crop = config.batch if batch is None else batch, config.crop if crop is None else crop
        return self.task(data).batches(data.train, crop=crop, batch=batch, steps=config.steps, seed=seed)

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

    Everything that can be wrong with the options or the data is found before the folder is touched. From then until the
    iteration ends, or `close`, no other process may write there. Its attribute ``on_fit`` can be set to a function that
    is called with the number of parameters after each removal of the front.

    Args:
        run: the folder and the options; `Search.run` has those options too that the data determine.
        resume: continue the search that the folder holds instead of starting a new one.
        force: replace a run that the folder holds.
        download: fetch a data set that is missing.
        checkpoint_every: seconds between two checkpoints within an epoch, > 0.

    Raises:
        ValueError: bad options or data, a folder that is in use, or nothing to continue.
    """

    def __init__(
        self,
        run: Run,
        *,
        resume: bool = False,
        force: bool = False,
        download: bool = False,
        checkpoint_every: float = EVERY,
    ) -> None:
        data = run.data(download=download)
        self.task = run.task(data)
        run = self.run = Run(run.folder, run.config.with_outputs(self.task.num_outputs))
        config = run.config
        self.checkpoints = Checkpoints(run.folder / CHECKPOINTS, every=checkpoint_every)
        self.validation = run.validation(data)
        run.test(data)  # what is wrong with the test pictures is said now, not after the search
        self.batches, self.data = run.batches(data, config.seed), data.fingerprint()
        self.net = copy.deepcopy(run.blank)
        if not config.kind.dense:
            sparse_start(self.net, config.density, seed=config.seed, batch=next(self.batches(0))[0])
        self.dear = {} if config.currency is None else prices(self.net.plan, config.currency)
        self.optimizer = self._make_optimizer()
        self.points: list[Point] = []
        self.metrics: list[dict[str, Any]] = []
        self.on_fit: Callable[[int], None] = lambda params: None
        self._began = time.perf_counter()
        self._slimming: Slimming | None = None
        self._slimming_state: Mapping[str, Any] | None = None
        with ExitStack() as held:
            state = self._resumed(held) if resume else None
            self._prepare_growth(state)
            if state is None:
                start = self._measure(snapshot(self.found, 0), self.found)
                if not resume:
                    held.enter_context(begun(run, force))
                self._record(start, self.found)
            self._held = held.pop_all()

    def _resumed(self, held: ExitStack) -> State | None:
        """The state that an earlier process left; None if it was killed before there was any."""
        held.enter_context(alone(self.run.folder))
        state = self.checkpoints.newest()
        if state is None and (self.run.folder / PATH).exists() and len(self.run.points()) > 1:
            raise ValueError(f"there is no checkpoint in {self.checkpoints.folder}, so that the search cannot go on")
        return state

    def close(self) -> None:
        """Let others write in the folder."""
        self._held.close()

    def _prepare_growth(self, state: State | None = None) -> None:
        """What trains; in the given state of an earlier process, if any."""
        config = self.run.config
        if state is None and config.entry_time == AUTO:
            self._calibrate()
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=config.epochs * config.steps)
        self._controller = None if config.target is None else self._steered_to(config.target)
        self._growth = search(
            self.net, self.batches, self.optimizer, self.task.loss, scheduler=self.scheduler, on_step=self._on_step
        )
        if state is not None:
            self._restore(state)
        else:
            self._growth.check()

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

    def _steered_to(self, target: int) -> LamController:
        """Steers lam after every few steps, so that what grows leaves room for a network of this size."""
        currency, full = self.run.config.sizes_in, total(self.net.plan, self.run.config.sizes_in)
        controller = LamController(
            self.optimizer, min(HEADROOM * target, full), lambda: total(alive_plan(self.found), currency),
            total=full, every=STEERING, lam_max=math.inf, shrink=True,
        )  # fmt: skip
        self.optimizer.register_step_post_hook(lambda *_: controller.step())
        return controller

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
        """Search on to the last epoch, then make the front; each point is on disk before it is yielded.

        Raises:
            Stopped: after `stop`; a checkpoint was written.
            FloatingPointError: training diverged; the last good state is on disk.
        """
        config = self.run.config
        with self._held:
            for found in islice(self._growth, max(0, config.epochs + 1 - len(self.points))):
                net = self.found
                seen = found if net is self.net else snapshot(net, found.epoch, found.loss)
                yield self._record(self._measure(seen, net), net)
                self._on_step()
            for size in self.sizes()[len(self.points) - config.epochs - 1 :]:
                yield self._add_to_front(size)
                self._on_step()

    def stop(self) -> None:
        """Let the search write a checkpoint after its present step, and end with `Stopped`; for handlers of signals."""
        self.checkpoints.stop()

    def _on_step(self) -> None:
        self.checkpoints.keep(self._state)

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def sizes(self) -> list[int]:
        """What the networks of the front may cost, the largest first.

        Raises:
            ValueError: one is larger than all that has grown.
        """
        chosen, largest = self.run.config.front_sizes, max(map(self.cost, self._grown()))
        smallest = total(without_groups(self.run.blank).plan, self.run.config.sizes_in)
        if chosen is None:
            return [int(part * largest) for part in AUTO_SIZES if part * largest > smallest]
        if chosen and chosen[-1] < smallest:
            raise ValueError(
                f"a network of {chosen[-1]:,} {self.run.config.sizes_in} was asked for, and what a search cannot "
                f"remove has {smallest:,.0f}"
            )
        if self.run.config.target is not None:
            return [min(chosen[0], int(largest))]
        if chosen and chosen[0] > largest:
            raise ValueError(
                f"a network of {chosen[0]:,} {self.run.config.sizes_in} was asked for, and the largest that has grown "
                f"has {largest:,.0f}; search longer or with a shorter entry_time, or resume it with smaller sizes"
            )
        return chosen

    def cost(self, point: Point) -> float:
        """Of a network, in what sizes are counted in."""
        cost: float = getattr(point, self.run.config.sizes_in)
        return cost

    def _grown(self) -> list[Point]:
        """The points of the search, but for its start."""
        return self.points[1 : self.run.config.epochs + 1]

    def _add_to_front(self, size: int) -> Point:
        """Thin out a larger network, refit it, and add it to the path."""
        epoch, larger = len(self.points), self._larger(size).snapshot.epoch
        self._slimming = Slimming(
            self.run.supernet(larger), size, self.run.config, self.task, self.batches, FITS * epoch,
            on_fit=self.on_fit, on_step=self._on_step,
        )  # fmt: skip
        if self._slimming_state is not None:
            self._slimming.load_state_dict(self._slimming_state)
        net = self._slimming.run()
        self._slimming = self._slimming_state = None
        return self._record(self._measure(snapshot(net, epoch), net), net)

    def _larger(self, size: int) -> Point:
        """The smallest network with room for one of this size: of the front, else of what has grown."""
        front = self.points[self.run.config.epochs + 1 :]
        grown = [point for point in self._grown() if self.cost(point) >= HEADROOM * size]
        largest = max(self._grown(), key=self.cost)
        best_of_equals = min(grown, key=lambda point: (self.cost(point), -point.headline), default=largest)
        return front[-1] if front else best_of_equals

    def _measure(self, found: Snapshot, net: DagNet) -> Point:
        small = compact(net)
        scores = evaluate(small, self.validation, self.task)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the weights of epoch {found.epoch} are not finite; use a smaller lr")
        return Point(found, scores, small.plan.num_params, total(small.plan, "flops"), self._seconds)

    def _record(self, point: Point, net: DagNet) -> Point:
        """Weights first, then the path that names them and the metrics, then what the search goes on from."""
        folder = self.run.folder
        (folder / SNAPSHOTS).mkdir(exist_ok=True)
        sha256 = save_sparse(net, folder / SNAPSHOTS / f"{point.snapshot.epoch:04}.safetensors")
        self.points.append(replace(point, sha256=sha256))
        self.metrics.append(self._metrics(point, net))
        self._write_path()
        self.checkpoints.save(self._state())
        return self.points[-1]

    def _write_path(self) -> None:
        write_points(self.run.folder / PATH, self.points, self.run.config.identity)
        write_text(self.run.folder / METRICS, "".join(json.dumps(line) + "\n" for line in self.metrics))

    def _state(self) -> State:
        """All that the search goes on from."""
        return {
            "config": self.run.config.identity,
            "data": self.data,
            "seconds": self._seconds,
            "points": json.dumps([point.to_dict() for point in self.points]),
            "metrics": json.dumps(self.metrics),
            "growth": self._growth.state_dict(),
            "controller": None if self._controller is None else self._controller.state_dict(),
            "slimming": None if self._slimming is None else self._slimming.state_dict(),
        }

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

    def _restore(self, state: State) -> None:
        """Go on from there; path and metrics are written as they were then."""
        run, folder = self.run, self.run.folder
        config, begun = run.config, SearchConfig.from_yaml(state["config"])
        points = points_of(json.loads(state["points"]))
        in_growth = len(points) <= begun.epochs + 1 and state["slimming"] is None
        if config.identity != begun.identity and not (in_growth and config.grows_like(begun)):
            raise ValueError(f"{folder} was begun with {_difference(begun.identity, config.identity)}")
        if state["data"] != self.data:
            raise ValueError(f"the data of {folder} ({run.config.data}) are not those that the search began with")
        self._growth.load_state_dict(state["growth"])
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
        self.points, self.metrics = points, json.loads(state["metrics"])
        self._began, self._slimming_state = time.perf_counter() - state["seconds"], state["slimming"]
        write_text(folder / CONFIG, config.to_yaml())
        self._write_path()


def thinned_from_dense(run: Run, size: int, task: Task, batches: Batches, seed: int) -> DagNet:
    """What the front does without any growth: the dense supernet, trained for as long as the search, thinned out.

    Raises:
        ValueError: the supernet is smaller than ``size``.
        FloatingPointError: training diverged.
    """
    config = run.config
    torch.manual_seed(seed)
    net = DagNet(run.blank.plan)
    retrain(net, batches, task.loss, epochs=config.epochs, steps=config.steps)
    return compact(Slimming(net, size, config, task, batches, FITS * (config.epochs + 1)).run())


def _difference(begun: str, now: str) -> str:
    """The first option in which two configurations differ: "lr 0.1, not 0.2"."""
    old, new = (yaml.safe_load(text) for text in (begun, now))
    name = next(name for name in new if old.get(name) != new[name])
    return f"{name} {old.get(name)}, not {new[name]}"


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
        ):
            remove(folder / name)
        (folder / NEXT_CONFIG).replace(folder / CONFIG)
