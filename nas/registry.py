"""Named things that can be chosen by an option, those of this package and those that a user registers."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


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
            ValueError: there is none.
        """
        if name not in self:
            raise ValueError(
                f"unknown {self.kind} {name!r}; there are: {', '.join(sorted(self))}, and those that you register"
            )
        return self[name]


def import_registrations(source: str) -> None:
    """Run a module of the user's, which registers what is in it; a second time nothing happens.

    Args:
        source: a file whose name ends in .py, or a module that Python finds.

    Raises:
        ValueError: it does not exist, or running it fails.
    """
    try:
        if source.endswith(".py"):
            _import_file(Path(source).resolve())
        else:
            importlib.import_module(source)
    except Exception as problem:  # whatever the user's module raises
        raise ValueError(f"cannot import {source}: {type(problem).__name__}: {problem}") from problem


def _import_file(file: Path) -> None:
    name = str(file)  # of the module: files of equal names in two folders are two modules
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # both are found by the suffix .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
