"""The engine: one search in its run folder, from the start through growth to the front."""

import copy
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, count, islice
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from nas import param_groups, sparse_start
from nas.bregman import Bregman
from nas.files import alone, write_text
from nas.models.alive_only import alive_only
from nas.models.compact import alive_plan, compact
from nas.models.dag import DagNet
from nas.models.price import prices, total
from nas.penalised import Penalised
from nas.penalties import scaled, strengths
from nas.search import optimizers, ranks
from nas.search.callbacks.callback import Callback
from nas.search.callbacks.loggers import MetricsFile
from nas.search.callbacks.surroundings import SurroundingsFile
from nas.search.checkpoints import EVERY, Checkpoints, State
from nas.search.compute import Compute, device_of, on_device
from nas.search.config import AUTO, SearchConfig
from nas.search.data.batches import Batches
from nas.search.front import Slimming, steps_of_slimming, without_groups
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Point, points_of, save_sparse, write_points
from nas.search.retrain import retrain
from nas.search.run import CHECKPOINTS, CONFIG, PATH, SNAPSHOTS, Run, begun
from nas.search.stopping import Budget, growth_is_over
from nas.search.tasks.task import Task, evaluate
from nas.steering import EARLIEST, LamController, calibrate

TRIAL_STEPS, TRIAL_FRACTION = 200, 0.1  # of the trial that chooses lam
HEADROOM = 1.5  # a network of the front is thinned out from one with so many times its size, if there is one
STEERING = 16  # steps between two changes of lam
FITS = 1000  # epochs of data between two networks of the front
AUTO_SIZES = 1.0, 0.5, 0.25  # of the size that has grown


class Search:
    """One search in its folder; iterate over it to let it run.

    Everything that can be wrong with the options or the data is found before the folder is touched. From then until the
    iteration ends, or `close`, no other process may write there. Of several ranks (`nas.search.ranks`), which search
    together, the first one writes, and tells the callbacks.

    Args:
        run: the folder and the options; `Search.run` has those options too that the data determine.
        resume: continue the search that the folder holds instead of starting a new one.
        force: replace a run that the folder holds.
        download: fetch a data set that is missing.
        checkpoint_every: seconds between two checkpoints within an epoch, > 0.
        compute: where and how; the trials that choose lam and steps are in single precision.
        callbacks: what is told of the search on its way, from here to its end.
        hours: what the search may take, > 0, with what an earlier process has taken. It stops growing early enough for
            the front, for which at most half of the time is kept; refits are shortened if need be, and networks left
            out for which no time is left. By default it takes what it takes, and is the same every time.

    Attributes:
        callbacks: these, after those that keep metrics.jsonl and surroundings.jsonl; more may be added.
        compute: the same, with the name of the device.
        computed: how the process before this one computed, in words; None if there was none.

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
        compute: Compute = Compute(),
        callbacks: Iterable[Callback] = (),
        hours: float | None = None,
    ) -> None:
        if hours is not None and not 0 < hours < math.inf:
            raise ValueError(f"hours must be > 0, got {hours}")
        self._budget = None if hours is None else Budget(3600 * hours, lambda: self._seconds)
        if download:
            ranks.on_first(lambda: run.data(download=True) and None)
        data = run.data(download=download)
        self.task = run.task(data)
        run = self.run = Run(run.folder, run.config.with_outputs(self.task.num_outputs))
        config = run.config
        self.checkpoints = Checkpoints(run.folder / CHECKPOINTS, every=checkpoint_every)
        self.validation = run.validation(data)
        run.test(data)  # what is wrong with the test pictures is said now, not after the search
        batches, self.data = run.batches(data, config.seed), data.fingerprint()
        self.net = copy.deepcopy(run.blank)
        if not config.kind.dense:  # on the CPU, so that it is the same start everywhere
            sparse_start(self.net, config.density, seed=config.seed, batch=next(batches(0))[0])
        device = device_of(compute.place(self.net))
        self.batches, self.compute = on_device(batches, device), replace(compute, device=str(device))
        self.computed: str | None = None
        self.dear = {} if config.currency is None else prices(self.net.plan, config.currency)
        self.optimizer = self._make_optimizer()
        self.points: list[Point] = []
        self.metrics: list[dict[str, Any]] = []
        self.callbacks: list[Callback] = [MetricsFile(), SurroundingsFile(), *callbacks]
        self._began = time.perf_counter()
        self._slimming: Slimming | None = None
        self._slimming_state: Mapping[str, Any] | None = None
        with ExitStack() as held:
            state = self._resumed(held) if resume else None
            self._prepare_growth(state)
            if state is None:
                start = self._measure(snapshot(self.found, 0), self.found)
                if not resume:
                    held.enter_context(ranks.by_first(begun(run, force)))
                self._record(start, self.found)
            ranks.on_first(self._start)
            held.push(self._end)
            self._held = held.pop_all()

    def _resumed(self, held: ExitStack) -> State | None:
        """The state that an earlier process left; None if it was killed before there was any."""
        held.enter_context(ranks.by_first(alone(self.run.folder)))
        state = self.checkpoints.newest()
        if state is None and ranks.on_first(lambda: (self.run.folder / PATH).exists() and len(self.run.points()) > 1):
            raise ValueError(f"there is no checkpoint in {self.checkpoints.folder}, so that the search cannot go on")
        return state

    def close(self) -> None:
        """End the search here, and let others write in the folder."""
        self._held.close()

    def _start(self) -> None:
        for each in self.callbacks:
            each.on_start(self)

    def _end(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        for each in self.callbacks if ranks.is_first() else ():
            each.on_end(self, problem)

    def _prepare_growth(self, state: State | None = None) -> None:
        """What trains; in the given state of an earlier process, if any."""
        config = self.run.config
        if state is None and config.entry_time == AUTO:
            self._calibrate()
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=config.epochs * config.steps)
        self._controller = None if config.target is None else self._steered_to(config.target)
        self._growth = search(
            self.net, self.batches, self.optimizer, self.task.loss, scheduler=self.scheduler, on_step=self._on_step,
            compute=self.compute, coarse=config.coarse,
        )  # fmt: skip
        if state is not None:
            self._restore(state)
        else:
            self._growth.check()

    def _make_optimizer(self) -> Penalised:
        config, scale = self.run.config, self.run.config.gate_scale
        groups = param_groups(self.net, lam=1.0, lr=1.0, gate_lam=scale, gate_lr=scale, prices=self.dear)
        entry_time = TRIAL_STEPS * (config.coarse + 1) if config.entry_time == AUTO else self.entry_time
        pairs = islice(chain.from_iterable(map(self.batches, count(1))), optimizers.TRIAL_STEPS)
        start = optimizers.Start(
            self.net, groups, pairs, self.task.loss, config.learning_rate,
            math.nan if entry_time is None else entry_time / (config.coarse + 1), config.second_moment,
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
            return (config.coarse + 1) * self.lam / config.learning_rate
        if config.entry_time is None and config.kind.entry_time is not None:
            return (config.coarse + 1) * config.kind.entry_time
        return config.entry_time

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
            total=full, every=math.ceil(STEERING / (self.run.config.coarse + 1)), lam_max=math.inf, shrink=True,
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
        with self._held:
            while not self._is_grown():
                found, net = next(self._growth), self.found
                seen = found if net is self.net else snapshot(net, found.epoch, found.loss)
                yield self._record(self._measure(seen, net), net)
                self._on_step()
            sizes = self.sizes()
            for k in range(len(self.front), len(sizes)):
                budget = self._budget and self._budget.part(len(sizes) - k)
                if budget is not None and self.front and not budget.left:
                    return
                yield self._add_to_front(sizes[k], budget)
                self._on_step()

    def _is_grown(self) -> bool:
        return self._slimming_state is not None or growth_is_over(self.points, self.run.config) or self._must_stop()

    def _must_stop(self) -> bool:
        """Whether another epoch of growth, as long as the last, would take the time that the front needs."""
        if self._budget is None or len(self.points) < 2:
            return False
        epoch, config = self.points[-1].seconds - self.points[-2].seconds, self.run.config
        sizes, cost, steps = self.sizes(), max(map(self.cost, self._grown())), 0
        for size in sizes:
            steps += steps_of_slimming(cost, size, config)
            cost = size
        front = min(steps * epoch / config.steps, self._budget.end / 2)
        return self._budget.left < epoch + front

    def stop(self) -> None:
        """Let the search write a checkpoint after its present step, and end with `Stopped`; for handlers of signals."""
        self.checkpoints.stop()

    def _on_step(self) -> None:
        self.checkpoints.keep(self._state)

    def _on_fit(self, params: int) -> None:
        for each in self.callbacks if ranks.is_first() else ():
            each.on_trial(params)

    @property
    def _seconds(self) -> float:
        """By the clock of the first rank."""
        return ranks.on_first(lambda: time.perf_counter() - self._began)

    def sizes(self) -> list[int]:
        """What the networks of the front may cost, the largest first; within `hours` at most what has grown.

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
        if self._budget is not None or self.front:
            return sorted({min(size, int(largest)) for size in chosen}, reverse=True)
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
        return [point for point in self.points[1:] if not point.snapshot.in_front]

    @property
    def front(self) -> list[Point]:
        """The networks of the front, so far as they are there."""
        return [point for point in self.points if point.snapshot.in_front]

    def _add_to_front(self, size: int, budget: Budget | None) -> Point:
        """Thin out a larger network, refit it, and add it to the path."""
        epoch, larger = len(self.points), self._larger(size).snapshot.epoch
        net = ranks.on_first(lambda: self.run.supernet(larger))
        self._slimming = Slimming(
            net, size, self.run.config, self.task, self.batches, FITS * epoch,
            on_fit=self._on_fit, on_step=self._on_step, compute=self.compute, budget=budget,
        )  # fmt: skip
        if self._slimming_state is not None:
            self._slimming.load_state_dict(self._slimming_state)
        net = self._slimming.run()
        self._slimming = self._slimming_state = None
        return self._record(self._measure(snapshot(net, epoch), net), net)

    def _larger(self, size: int) -> Point:
        """The smallest network with room for one of this size: of the front, else of what has grown."""
        grown = [point for point in self._grown() if self.cost(point) >= HEADROOM * size]
        largest = max(self._grown(), key=self.cost)
        best_of_equals = min(grown, key=lambda point: (self.cost(point), -point.headline), default=largest)
        return self.front[-1] if self.front else best_of_equals

    def _measure(self, found: Snapshot, net: DagNet) -> Point:
        small = compact(net)
        scores = evaluate(small, self.validation, self.task)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the weights of epoch {found.epoch} are not finite; use a smaller lr")
        return Point(found, scores, small.plan.num_params, total(small.plan, "flops"), self._seconds)

    def _record(self, point: Point, net: DagNet) -> Point:
        """Weights first, then the path that names them, the callbacks, and what the search goes on from."""
        sha256 = ranks.on_first(lambda: self._write_snapshot(point, net))
        self.points.append(replace(point, sha256=sha256))
        self.metrics.append(self._metrics(point, net))
        ranks.on_first(self._write_path)
        if len(self.points) > 1:
            ranks.on_first(self._tell)
        self.checkpoints.save(self._state())
        return self.points[-1]

    def _write_snapshot(self, point: Point, net: DagNet) -> str:
        folder = self.run.folder / SNAPSHOTS
        folder.mkdir(exist_ok=True)
        return save_sparse(net, folder / f"{point.snapshot.epoch:04}.safetensors")

    def _write_path(self) -> None:
        write_points(self.run.folder / PATH, self.points, self.run.config.identity)

    def _tell(self) -> None:
        """What the last point brought, to all callbacks."""
        (before, point), line = self.points[-2:], self.metrics[-1]
        units, epoch = before.snapshot.units, point.snapshot.epoch
        for each in self.callbacks:
            if point.snapshot.in_front:
                each.on_network(point, line)
                continue
            for node, alive in point.snapshot.units.items():
                if born := tuple(sorted({*alive} - {*units[node]})):
                    each.on_birth(epoch, node, born)
                if died := tuple(sorted({*units[node]} - {*alive})):
                    each.on_death(epoch, node, died)
            each.on_epoch(point, line)

    def _state(self) -> State:
        """All that the search goes on from."""
        return {
            "config": self.run.config.to_yaml(),
            "data": self.data,
            "compute": str(self.compute),
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
        in_growth = not points[-1].snapshot.in_front and state["slimming"] is None
        if config.identity != begun.identity and not (in_growth and config.grows_like(begun)):
            raise ValueError(f"{folder} was begun with {begun.difference(config)}")
        if state["data"] != self.data:
            raise ValueError(f"the data of {folder} ({run.config.data}) are not those that the search began with")
        try:
            self._growth.load_state_dict(state["growth"])
        except (RuntimeError, ValueError, KeyError) as problem:  # sizes or names that are not those of this network
            raise ValueError(f"the checkpoint of {folder} is of another network: {_first_line(problem)}") from None
        if self._controller is not None:
            self._controller.load_state_dict(state["controller"])
        self.computed = state.get("compute")
        self.points, self.metrics = points, json.loads(state["metrics"])
        self._began, self._slimming_state = time.perf_counter() - state["seconds"], state["slimming"]
        ranks.on_first(lambda: write_text(folder / CONFIG, config.to_yaml()))
        ranks.on_first(self._write_path)


def thinned_from_dense(
    run: Run, size: int, task: Task, batches: Batches, seed: int, compute: Compute = Compute()
) -> DagNet:
    """What the front does without any growth: the dense supernet, trained for as long as the search, thinned out.

    Raises:
        ValueError: the supernet is smaller than ``size``.
        FloatingPointError: training diverged.
    """
    config = run.config
    torch.manual_seed(seed)
    net = DagNet(run.blank.plan)
    retrain(net, batches, task.loss, epochs=config.epochs, steps=config.steps, compute=compute)
    return compact(Slimming(net, size, config, task, batches, FITS * (config.epochs + 1), compute=compute).run())


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
