"""Optuna's part of a sweep: a study in a database, which says what was drawn and what came of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from nas.search.sweep.ranges import Choices, Range
from nas.search.sweep.sweep import Sweep

SWEEP = "nas"  # attribute of a study: what it varies, and what for
PROBLEM = "problem"  # attribute of a trial: why it failed
CONNECTING: dict[str, dict[str, int]] = {  # seconds until the storage is taken not to answer
    "sqlite": {"timeout": 60},
    "postgresql": {"connect_timeout": 10},
    "mysql": {"connect_timeout": 10},
}
ATTEMPTS = 5  # to make Optuna's tables, a second apart, while others make them
MADE_BY_OTHERS = "already exists", "duplicate key", "UNIQUE constraint"  # what databases say then


class Study(NamedTuple):
    """A study of Optuna with its storage."""

    study: Any
    storage: Any

    def trials(self) -> list[Any]:
        """All of them, as they are now."""
        found: list[Any] = self.study.get_trials(deepcopy=False)
        return found

    def complete(self, number: int, values: Sequence[float]) -> None:
        """A trial has come to its end."""
        self.study.tell(number, list(values))

    def give_up(self, number: int, problem: str | None = None) -> None:
        """A trial was given up, or it failed of a problem.

        To Optuna both are pruned: from trials that fail its sampler would learn nothing, and draw the like again.
        """
        from optuna.trial import TrialState

        if problem is not None:
            study = self.storage.get_study_id_from_name(self.study.study_name)
            trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
            self.storage.set_trial_user_attr(trial, PROBLEM, problem)
        self.study.tell(number, state=TrialState.PRUNED)

    def begin(self, sweep: Sweep) -> Any:
        """Draw a new trial.

        The sampler (tree-structured Parzen estimators; the first ten trials are random) is a new one with a seed of its
        own for every trial, so that it does not matter which process draws it.
        """
        from optuna.samplers import TPESampler

        seed = np.random.SeedSequence((sweep.seed, len(self.trials()))).generate_state(1)
        self.study.sampler = TPESampler(seed=int(seed[0]))
        return self.study.ask({name: _distribution(drawn) for name, drawn in sorted(sweep.ranges.items())})


def state_of(trial: Any) -> str:
    """complete, pruned, failed or running."""
    names = {"COMPLETE": "complete", "PRUNED": "failed" if PROBLEM in trial.user_attrs else "pruned"}
    return names.get(trial.state.name, "running")


def open_study(url: str, sweep: Sweep) -> Study:
    """The study of a sweep; a new one, if there is none of this name.

    Raises:
        ValueError: the storage cannot be used, or holds something else under this name.
    """
    storage = without_password(url)
    with naming(storage):
        tables = _storage(url)
        study = _study(tables, sweep)
        begun = study.user_attrs
        if not begun and not study.get_trials(deepcopy=False):
            study.set_user_attr(SWEEP, sweep.identity)
        elif SWEEP not in begun:
            raise ValueError(
                f"the study {sweep.study!r} in {storage} is none of nas sweep; choose another name with study"
            )
        elif begun[SWEEP] != sweep.identity:
            raise ValueError(
                f"the study {sweep.study!r} in {storage} was begun with other "
                f"{_first_difference(begun[SWEEP], sweep.identity)}; choose another name with study"
            )
    return Study(study, tables)


def _study(storage: Any, sweep: Sweep) -> Any:
    import optuna

    directions = ["maximize" if name == "score" else "minimize" for name in sweep.objectives]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(storage=storage, study_name=sweep.study, directions=directions, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _storage(url: str) -> Any:
    """Optuna's tables in the database; several processes may make them at the same time."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    engine = {
        "connect_args": CONNECTING.get(make_url(url).get_backend_name(), {}),
        "poolclass": NullPool,  # no connection stays open, and is cut, during the hours of a search
    }
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=engine)
        except (DBAPIError, StorageInternalError) as problem:
            if attempt == ATTEMPTS - 1 or not any(text in str(problem.__cause__ or problem) for text in MADE_BY_OTHERS):
                raise
            time.sleep(1)
    raise AssertionError


def _distribution(drawn: Range | Choices) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(drawn, Choices):
        return CategoricalDistribution(list(drawn.values))
    if drawn.whole:
        return IntDistribution(drawn.low, drawn.high, log=drawn.log, step=drawn.step or 1)
    return FloatDistribution(drawn.low, drawn.high, log=drawn.log, step=drawn.step)


def without_password(url: str) -> str:
    """The URL as it may be shown.

    Raises:
        ValueError: it is none, or Optuna is not there.
    """
    try:
        import optuna  # noqa: F401
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as problem:
        raise ValueError(f"nas sweep needs {problem.name}; pip install 'bregman-nas[sweep]'") from None
    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        raise ValueError(
            "storage must be a URL such as sqlite:///sweep.db or postgresql+psycopg://user@host/name"
        ) from None


@contextmanager
def naming(storage: str) -> Iterator[None]:
    """What is wrong with the storage becomes a ValueError that names it."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as problem:
        cause = problem.__cause__ if isinstance(problem, StorageInternalError) else problem
        reason = getattr(cause, "orig", None) or cause
        raise ValueError(f"the storage {storage} cannot be used: {' '.join(str(reason).split())}") from None


def _first_difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing in which two sweeps differ: "objectives (score, not params)"."""
    if begun["objectives"] != now["objectives"]:
        return f"objectives ({', '.join(begun['objectives'])}, not {', '.join(now['objectives'])})"
    old, new = begun["search"], now["search"]
    name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"{name} ({old.get(name)}, not {new.get(name)})"
