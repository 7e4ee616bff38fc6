"""What a search is to learn: the task that its options mean, for the pictures that there are."""

import inspect
from collections.abc import Mapping
from typing import Any

from nas.registry import Registry
from nas.search.data.dataset import Pictures
from nas.search.data.sources import NOISY_PAIRS, PAIRS
from nas.search.runs.options import AUTO, NONE, check_options
from nas.search.tasks.classification import Classify
from nas.search.tasks.degradations import Deblur, Inpaint, SuperResolve
from nas.search.tasks.noise import Denoise, parse_sigma
from nas.search.tasks.task import Task
from nas.search.tasks.unclean import Neighbours, NoiseToNoise, Paired, Recorrupted, Unclean

GIVEN, UNKNOWN, DENOISE = "given", "unknown", "denoise"
PAIRED: dict[str, type[Task]] = {PAIRS: Paired, NOISY_PAIRS: NoiseToNoise}  # what denoising is on these data
TASKS: Registry[type[Task]] = Registry(
    "task",
    {"denoise": Denoise, "deblur": Deblur, "inpaint": Inpaint, "superresolve": SuperResolve, "classify": Classify},
)


def register_task(name: str, task: type[Task]) -> None:
    """Let ``task`` be chosen by ``task: name``.

    Args:
        name: an identifier.
        task: a subclass of `Task` such as `Restoration` or `Classify`, a frozen dataclass whose fields are its options.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    TASKS.register(name, task)


def find_task(task: str, data: str, clean: str, sigma: str | float) -> type[Task]:
    """The task of this name; of denoising that for the kind of pictures that there are."""
    kind = TASKS.find(task)
    if task != DENOISE or (clean != NONE and data not in PAIRED):
        return kind
    if data in PAIRED:
        return PAIRED[data]
    return Neighbours if sigma == UNKNOWN else Recorrupted


def check_learnt(task: str, data: str, clean: str, sigma: str | float) -> None:
    """Raise ValueError if task, sigma and whether there are clean pictures do not go together."""
    if clean not in (GIVEN, NONE):
        raise ValueError(f"clean must be {GIVEN} or {NONE}, got {clean!r}")
    if clean == NONE and task == DENOISE and data in PAIRED:
        raise ValueError(f"clean {NONE} goes with single pictures, not with the data {data}")
    if clean == NONE and not issubclass(find_task(task, data, clean, sigma), Unclean):
        raise ValueError(f"clean {NONE} goes with the task {DENOISE} alone, got {task}")
    if sigma in (AUTO, UNKNOWN):
        if clean != NONE:
            raise ValueError(f"sigma {sigma} goes with clean {NONE}; noise is added to clean pictures")
    elif isinstance(sigma, str) and isinstance(parse_sigma(sigma), tuple) and clean == NONE:
        raise ValueError(f"a range of sigma needs clean pictures, got {sigma} with clean {NONE}")


def make_task(
    name: str, kind: type[Task], task_options: Mapping[str, Any], sigma: str | float, data: Pictures | None
) -> Task:
    """A task for a data set, which gives it the fields that are no options (`Task.from_data`), if it has such.

    Args:
        name: of the task.
        kind: what it is (`find_task`).
        task_options: its options.
        sigma: of the noise; auto is estimated of the data.
        data: the data set.

    Raises:
        ValueError: unknown or missing options, options out of range, or data that do not suit the task.
    """
    parameters = inspect.signature(kind).parameters
    given: dict[str, Any] = {} if data is None else {name: getattr(data, name) for name in kind.from_data}
    if "sigma" in parameters:
        given["sigma"] = _read_sigma(sigma, data)
    options = {name: parameter.default for name, parameter in parameters.items() if name not in given}
    check_options(name, task_options, options)
    for option, default in options.items():
        if default is inspect.Parameter.empty and option not in task_options:
            raise ValueError(f"{name} needs the option {option!r}")
    try:
        return kind(**given, **task_options)
    except TypeError as problem:  # a comparison of numbers and text, say
        raise ValueError(f"{name} does not take {dict(task_options)}: {problem}") from None


def _read_sigma(sigma: str | float, data: Pictures | None) -> float | tuple[float, float]:
    """As a task takes it; estimated of the data, if it is to be."""
    if sigma == AUTO:
        assert data is not None
        return data.sigma
    return parse_sigma(sigma) if isinstance(sigma, str) else sigma
