"""The engine: one search in its run folder, from the start through growth to the front."""

import copy
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from nas import sparse_start
from nas.files import alone, write_text
from nas.models.network import compacted, cost, num_params
from nas.models.traced.graph import first_line
from nas.search.callbacks.callback import Callback
from nas.search.callbacks.loggers import MetricsFile
from nas.search.callbacks.surroundings import SurroundingsFile
from nas.search.engine.front import check_sizes, larger, sizes_of_front, steps_of_front
from nas.search.engine.growing import Growing
from nas.search.engine.slimming import FITS, Slimming
from nas.search.engine.stopping import Budget, growth_is_over
from nas.search.runs.config import SearchConfig
from nas.search.runs.path import Point, front_of, points_of, save_sparse, write_points
from nas.search.runs.run import CHECKPOINTS, CONFIG, PATH, SNAPSHOTS, Run, begun
from nas.search.tasks.task import evaluate
from nas.search.training import ranks
from nas.search.training.checkpoints import EVERY, Checkpoints, State
from nas.search.training.compute import Compute, device_of, on_device
from nas.search.training.loop import Snapshot, snapshot


class Search:
    """One search in its folder; iterate over it to let it run.

    Everything that can be wrong with the options or the data is found before the folder is touched. From then until the
    iteration ends, or `close`, no other process may write there. Of several ranks (`nas.search.training.ranks`), which
    search together, the first one writes, and tells the callbacks.

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
        config, self._config = run.config, run.config.to_yaml()
        self.checkpoints = Checkpoints(run.folder / CHECKPOINTS, every=checkpoint_every)
        self.validation = run.validation(data)
        run.test(data)  # what is wrong with the test pictures is said now, not after the search
        batches, self.data = run.batches(data, config.seed), data.fingerprint()
        self.net = copy.deepcopy(run.blank)
        self.computed: str | None = None
        self.points: list[Point] = []
        self.metrics: list[dict[str, Any]] = []
        self.callbacks: list[Callback] = [MetricsFile(), SurroundingsFile(), *callbacks]
        self._began = time.perf_counter()
        self._slimming: Slimming | None = None
        self._slimming_state: Mapping[str, Any] | None = None
        with ExitStack() as held:
            state = self._resumed(held) if resume else None
            if not config.kind.dense:  # on the CPU, so that it is the same start everywhere
                sparse_start(self.net, config.density, seed=config.seed, batch=next(batches(0))[0])
            device = device_of(compute.place(self.net))
            self.batches, self.compute = on_device(batches, device), replace(compute, device=str(device))
            self.growing = Growing(
                self.net, config, self.task, self.batches, resumed=state is not None, on_step=self._on_step,
                compute=self.compute,
            )  # fmt: skip
            if state is not None:
                check_sizes(run)
                self._restore(state)
            else:
                found = self.growing.found
                start = self._measure(snapshot(found, 0), found)
                check_sizes(run)
                if not resume:
                    held.enter_context(ranks.by_first(begun(run, force)))
                self._record(start, found)
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
        with ExitStack() as ending:  # of all of them, also where one raises
            for each in reversed(self.callbacks if ranks.is_first() else []):
                ending.callback(each.on_end, self, problem)

    def __iter__(self) -> Iterator[Point]:
        """Search on to the last epoch, then make the front; each point is on disk before it is yielded.

        Raises:
            Stopped: after `stop`; a checkpoint was written.
            FloatingPointError: training diverged; the last good state is on disk.
        """
        with self._held:
            while not self._is_grown():
                seen, net = next(self.growing)
                yield self._record(self._measure(seen, net), net)
                self._on_step()
            sizes = self._sizes()
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
        steps = steps_of_front(self.points, self._sizes(), config)
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

    def _sizes(self) -> list[int]:
        return sizes_of_front(self.run, self.points, limited=self._budget is not None)

    @property
    def front(self) -> list[Point]:
        """The networks of the front, so far as they are there."""
        return front_of(self.points)

    def _add_to_front(self, size: int, budget: Budget | None) -> Point:
        """Thin out a larger network, refit it, and add it to the path."""
        epoch, start = len(self.points), larger(self.points, size, self.run.config)
        net = ranks.on_first(lambda: self.run.supernet(start.snapshot.epoch))
        self._slimming = Slimming(
            net, size, self.run.config, self.task, self.batches, FITS * epoch,
            on_fit=self._on_fit, on_step=self._on_step, compute=self.compute, budget=budget,
        )  # fmt: skip
        if self._slimming_state is not None:
            self._slimming.load_state_dict(self._slimming_state)
        net = self._slimming.run()
        self._slimming = self._slimming_state = None
        return self._record(self._measure(snapshot(net, epoch), net), net)

    def _measure(self, found: Snapshot, net: nn.Module) -> Point:
        small = compacted(net)
        scores = evaluate(small, self.validation, self.task)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the weights of epoch {found.epoch} are not finite; use a smaller lr")
        return Point(found, scores, num_params(small), cost(small, "flops"), self._seconds)

    def _record(self, point: Point, net: nn.Module) -> Point:
        """Weights first, then the path that names them, the callbacks, and what the search goes on from."""
        sha256 = ranks.on_first(lambda: self._write_snapshot(point, net))
        self.points.append(replace(point, sha256=sha256))
        self.metrics.append(self._metrics(point, net))
        ranks.on_first(self._write_path)
        if len(self.points) > 1:
            ranks.on_first(self._tell)
        self.checkpoints.save(self._state())
        return self.points[-1]

    def _write_snapshot(self, point: Point, net: nn.Module) -> str:
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
            "config": self._config,
            "data": self.data,
            "compute": str(self.compute),
            "seconds": self._seconds,
            "points": json.dumps([point.to_dict() for point in self.points]),
            "metrics": json.dumps(self.metrics),
            **self.growing.state_dict(),
            "slimming": None if self._slimming is None else self._slimming.state_dict(),
        }

    def _metrics(self, point: Point, net: nn.Module) -> dict[str, Any]:
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
            "lam": self.growing.lam,
            "lr": self.growing.scheduler.get_last_lr()[0],
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
            self.growing.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as problem:  # sizes or names that are not those of this network
            raise ValueError(f"the checkpoint of {folder} is of another network: {first_line(problem)}") from None
        self.computed = state.get("compute")
        self.points, self.metrics = points, json.loads(state["metrics"])
        self._began, self._slimming_state = time.perf_counter() - state["seconds"], state["slimming"]
        ranks.on_first(lambda: write_text(folder / CONFIG, self._config))
        ranks.on_first(self._write_path)
