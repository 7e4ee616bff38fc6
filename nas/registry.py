"""Named things that can be chosen by an option, those of this package and those that a user registers."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
IMPORTED: list[ModuleType] = []  # the modules of the user's, in order


class Unknown(ValueError):
    """Nothing of this name is registered."""


class Registry(dict[str, T]):
    """Things by name.

    Args:
        kind: what they are called in messages, such as "task".
        things: the first ones.
    """

    def __init__(self, kind: str, things: dict[str, T]) -> None:
        super().__init__(things)
        self.kind = kind

    def register(self, name: str, thing: T) -> None:
        """Add ``thing``.

        Raises:
            ValueError: the name is taken, or is no identifier.
        """
        if not name.isidentifier():
            raise ValueError(f"the name of a {self.kind} must be an identifier, got {name!r}")
        if name in self:
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name")
        self[name] = thing

    def find(self, name: str) -> T:
        """The thing of this name.

        Raises:
            Unknown: there is none.
        """
        if name not in self:
            raise Unknown(
                f"unknown {self.kind} {name!r}; there are: {', '.join(sorted(self))}, and those that you register "
                "(--import FILE.py)"
            )
        return self[name]


def import_registrations(source: str) -> None:
    """Run a module of the user's, which registers what is in it, or defines models; a second time nothing happens.

    Args:
        source: a file whose name ends in .py, or a module that Python finds.

    Raises:
        ValueError: it does not exist, or running it fails.
    """
    try:
        module = _import_file(Path(source).resolve()) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as problem:  # whatever the user's module raises
        file = str(Path(source).resolve())
        raise ValueError(f"cannot import {source}: {described(problem, file)}") from problem
    if module not in IMPORTED:
        IMPORTED.append(module)


def imported(name: str) -> Any | None:
    """What the user's modules define under this name, the last one first; None if none does."""
    return next((vars(module)[name] for module in reversed(IMPORTED) if name in vars(module)), None)


def described(problem: BaseException, file: str) -> str:
    """A problem with its kind, and the line of the file that it came through, if it did."""
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
    return f"{type(problem).__name__}: {problem}" + (f" (line {lines[-1]})" if lines else "")


def _import_file(file: Path) -> ModuleType:
    name = str(file)  # of the module: files of equal names in two folders are two modules
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # both are found by the suffix .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    module.__package__, module.__spec__ = "", None  # as of a script: the dot in the name is none of a package
    sys.path.insert(0, str(file.parent))  # so that it may import the files beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
