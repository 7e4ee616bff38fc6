"""The work on a sweep, one trial after the other.

Each trial is an ordinary run folder, ``trial-0007``, beside which ``.trial-0007.lock`` is held by the process that is
at work there. A trial that is under way and whose lock is free was stopped or killed, and the next process goes on with
it, bit for bit.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nas.files import LOCK
from nas.search.engine.search import Search
from nas.search.runs.path import Point
from nas.search.runs.run import Run
from nas.search.sweep.ranges import Choices
from nas.search.sweep.study import naming, open_study, state_of, without_password
from nas.search.sweep.sweep import Sweep, hopeless
from nas.search.training.checkpoints import EVERY
from nas.steering import DeadTraining

STUDY = "study.db"  # of SQLite, in the folder, by default
LOOKS = 0.25, 0.5, 0.75  # parts of the growth after which a trial may be given up
FAILURES = ValueError, FloatingPointError, DeadTraining, RuntimeError, MemoryError  # of one trial; others can go well
FOLDER = "folder"  # attribute of a trial


@dataclass(frozen=True)
class Found:
    """A trial that came to its end.

    Attributes:
        number: of the trial.
        values: by objective.
        options: that were drawn, by name.
        folder: of its run.
    """

    number: int
    values: dict[str, float]
    options: dict[str, Any]
    folder: Path


class Trial:
    """One search of a sweep; iterate over it to let it run, and its end is told to the study.

    Attributes:
        number: in the study.
        options: that were drawn, by name.
        resumed: whether an earlier process had begun it.
        engine: the search; None if it could not begin.
        values: by objective, once it has come to its end.
        problem: why it failed, if it did.
        pruned: whether it was given up.
    """

    def __init__(self, sweeping: "Sweeping", number: int, options: dict[str, Any], resumed: bool) -> None:
        self.number, self.options, self.resumed = number, options, resumed
        self.engine: Search | None = None
        self.values: dict[str, float] | None = None
        self.problem: str | None = None
        self.pruned = False
        self._sweeping = sweeping
        try:
            self.engine = sweeping.begin(self)
        except FAILURES as problem:
            self._fail(problem)

    def __iter__(self) -> Iterator[Point]:
        """Search on; each point is on disk before it is yielded.

        Raises:
            Stopped: as from the engine; a checkpoint was written, and the next process goes on.
            ValueError: the storage cannot be used any more.
        """
        if self.engine is None:
            return
        points = iter(self.engine)
        while (point := self._next(points)) is not None:
            yield point
            if self._sweeping.is_hopeless(self, point):
                self.engine.close()
                self.pruned = True
                self._sweeping.tell(self)
                return
        if self.problem is None:
            self.values = self._sweeping.sweep.values(self._recommended(self.engine))
            self._sweeping.tell(self)

    def _next(self, points: Iterator[Point]) -> Point | None:
        try:
            return next(points, None)
        except FAILURES as problem:
            self._fail(problem)
            return None

    @staticmethod
    def _recommended(engine: Search) -> Point:
        """Its seconds are those of the whole search."""
        return replace(engine.run.choose(), seconds=engine.points[-1].seconds)

    def _fail(self, problem: Exception) -> None:
        """Note why the trial failed; errors that are ours are raised again."""
        too_large = isinstance(problem, MemoryError) or "memory" in str(problem).lower()
        if isinstance(problem, RuntimeError) and not isinstance(problem, DeadTraining) and not too_large:
            raise problem
        self.problem = "the memory of this machine does not suffice" if too_large else str(problem)
        self._sweeping.tell(self)


class Sweeping:
    """Work on a sweep, in this process; iterate over it for one trial after the other.

    Args:
        sweep: what is varied, and what for.
        folder: for the run folders of the trials, and for the study if it has no other storage; made if missing.
        download: fetch a data set that is missing.
        checkpoint_every: seconds between two checkpoints within an epoch, > 0.

    Raises:
        ValueError: Optuna is not there, the storage cannot be used, the study is of another sweep or of something else,
            the folder holds trials of another study, or the data are missing.
    """

    def __init__(self, sweep: Sweep, folder: Path, *, download: bool = False, checkpoint_every: float = EVERY) -> None:
        self.sweep, self.folder = sweep, folder.resolve()
        self._download, self._every = download, checkpoint_every
        if Run.is_in(self.folder):
            raise ValueError(f"{folder} holds a single run; choose another --out")
        run = Run(self.folder, sweep.example)
        run.task(run.data(download=download))
        url = sweep.storage or f"sqlite:///{self.folder / STUDY}"
        self.storage = without_password(url)
        if sweep.storage is None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.study = open_study(url, sweep)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_folder()

    def _check_folder(self) -> None:
        there = [path for path in self.folder.glob("trial-*") if path.name.partition("-")[2].isdigit()]
        num = len(self.study.trials())
        if strange := [path for path in there if int(path.name.partition("-")[2]) >= num]:
            raise ValueError(f"{min(strange)} is of another study; choose another --out")

    def __iter__(self) -> Iterator[Trial]:
        """Trials to work on, until there are as many as wanted; those that others work on are not waited for."""
        while (claimed := self._claim()) is not None:
            number, options, resumed, lock = claimed
            try:
                yield Trial(self, number, options, resumed)
            finally:
                lock.release()

    def _claim(self) -> tuple[int, dict[str, Any], bool, FileLock] | None:
        """A trial that nobody works on, else a new one, with its lock; None if there are enough."""
        with FileLock(self.folder / LOCK), naming(self.storage):
            trials = [each for each in self.study.trials() if each.state.is_finished() or FOLDER in each.user_attrs]
            for each in trials:
                if not each.state.is_finished() and self._folder_of(each).parent == self.folder:
                    lock = self._lock(each.number)
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    if not self.study.trials()[each.number].state.is_finished():
                        return each.number, self._drawn(each.params), True, lock
                    lock.release()  # it came to its end between the first look and the lock
            return None if len(trials) >= self.sweep.trials else self._ask()

    def _ask(self) -> tuple[int, dict[str, Any], bool, FileLock]:
        trial = self.study.begin(self.sweep)
        lock = self._lock(trial.number)
        lock.acquire(timeout=0)
        trial.set_user_attr(FOLDER, str(self._folder(trial.number)))  # from here on others can go on with it
        return trial.number, self._drawn(trial.params), False, lock

    def begin(self, trial: Trial) -> Search:
        """The search of a trial; what is in its folder goes on.

        Raises:
            ValueError: its options do not go together, or not with the data.
        """
        run = Run(self._folder(trial.number), self.sweep.config(trial.options))
        resume = Run.is_in(run.folder)
        return Search(run, resume=resume, download=self._download, checkpoint_every=self._every)

    def tell(self, trial: Trial) -> None:
        """Let the study know what came of a trial.

        Raises:
            ValueError: the storage cannot be used.
        """
        with naming(self.storage):
            if trial.values is not None:
                self.study.complete(trial.number, list(trial.values.values()))
            else:
                self.study.give_up(trial.number, trial.problem)

    def is_hopeless(self, trial: Trial, point: Point) -> bool:
        """Whether a trial is to be given up at this point: at a quarter, a half or three quarters of its growth.

        It is compared with what the others had found at the same part of their growth, so far as their folders can be
        reached from here (`hopeless`).
        """
        assert trial.engine is not None
        looks = {math.ceil(part * trial.engine.run.config.epochs): part for part in LOOKS}
        part, epochs = looks.get(point.snapshot.epoch), trial.engine.run.config.epochs
        if not self.sweep.prune or part is None or point.snapshot.epoch >= epochs or point.snapshot.in_front:
            return False
        others = [each for each in self.study.trials() if each.number != trial.number and state_of(each) != "failed"]
        losses = [self._losses_at(each, part) for each in others if FOLDER in each.user_attrs]
        return hopeless(self.sweep.losses(point), [each for each in losses if each is not None])

    def _losses_at(self, trial: Any, part: float) -> list[float] | None:
        """What a trial had found at a part of its growth; None if it has not got there, or elsewhere."""
        try:
            run = Run.open(self._folder_of(trial))
            epoch = math.ceil(part * run.config.epochs)
            grown = [point for point in run.points() if not point.snapshot.in_front]
            return self.sweep.losses(grown[epoch])
        except (ValueError, OSError, IndexError):
            return None

    def front(self) -> list[Found]:
        """The trials that no other one dominates, the best by the first objective first.

        Raises:
            ValueError: the storage cannot be used.
        """
        with naming(self.storage):
            best = [self._found(each) for each in self.study.study.best_trials]
        sign = -1 if self.sweep.objectives[0] == "score" else 1
        return sorted(best, key=lambda found: sign * found.values[self.sweep.objectives[0]])

    def counts(self) -> dict[str, int]:
        """Numbers of trials that are complete, pruned, failed and running."""
        with naming(self.storage):
            states = [state_of(each) for each in self.study.trials()]
        return {state: states.count(state) for state in ("complete", "pruned", "failed", "running")}

    def _found(self, trial: Any) -> Found:
        values = dict(zip(self.sweep.objectives, trial.values, strict=True))
        return Found(trial.number, values, self._drawn(trial.params), self._folder_of(trial))

    def _drawn(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Values of options from what the study holds."""
        ranges = self.sweep.ranges
        return {
            name: drawn.values[params[name]] if isinstance(drawn, Choices) else params[name]
            for name, drawn in ranges.items()
        }

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:04}"

    def _folder_of(self, trial: Any) -> Path:
        """Where the run of a trial is, or is to be: here, also if the sweep was moved, unless a database that others
        share says that it was begun elsewhere."""
        here = self._folder(trial.number)
        return here if self.sweep.storage is None or here.exists() else Path(trial.user_attrs[FOLDER])

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / f".trial-{number:04}.lock")
