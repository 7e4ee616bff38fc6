"""The network that an option names: a recipe, or what a file of the user's defines."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.models.dag import DagNet
from nas.models.recipes import RECIPES
from nas.models.traced.network import Origin, TracedNet
from nas.registry import IMPORTED, Unknown, described, imported

# Topologies by name that are no supernets: those of the networks that come with the package (`nas.search.zoo`)
TOPOLOGIES: dict[str, Callable[..., DagNet]] = {}
CHANNELS, EXTRA = "channels", "extra"  # what a factory is told, if it has arguments of these names


@dataclass(frozen=True)
class Factory:
    """What makes a network.

    Attributes:
        name: that it is chosen by.
        make: a registered recipe or topology, or a function or class of an imported file.
        registered: whether it is the former; then the channels of a picture are its first argument, however it is
            called.
    """

    name: str
    make: Callable[..., Any]
    registered: bool

    @classmethod
    def find(cls, name: str) -> "Factory":
        """The recipe or topology of this name, or what an imported file defines under it.

        Raises:
            ValueError: there is none.
        """
        if name in TOPOLOGIES:
            return cls(name, TOPOLOGIES[name], registered=True)
        if name in RECIPES or not IMPORTED:
            return cls(name, RECIPES.find(name), registered=True)
        if (own := imported(name)) is None:
            files = ", ".join(Path(module.__file__ or module.__name__).name for module in IMPORTED)
            raise Unknown(
                f"unknown model {name!r}; there are: {', '.join(sorted(RECIPES))}; {files} defines none of this name"
            )
        if isinstance(own, nn.Module) or not callable(own):
            raise ValueError(
                f"{name} is {'a network' if isinstance(own, nn.Module) else type(own).__name__}; it must be a function "
                "or class that makes a network, so that each seed has its own weights"
            )
        return cls(name, own, registered=False)

    @property
    def options(self) -> list[str]:
        """Names of the arguments that a user may choose."""
        return [name for name in list(self._parameters)[int(self.registered) :] if name not in (CHANNELS, EXTRA)]

    @property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def build(self, channels: int, extra: int, options: Mapping[str, Any], side: int) -> nn.Module:
        """The network: a `DagNet`, or a `TracedNet` of what else was made.

        Args:
            channels: of a picture.
            extra: channels of the input behind those.
            options: see `options`.
            side: of the pictures on which a module is traced.

        Raises:
            ValueError: it is none, or cannot be made, run or traced.
        """
        given = dict(options)
        if EXTRA in self._parameters:
            given[EXTRA] = extra
        if CHANNELS in self._parameters:
            given[CHANNELS] = channels
        made = self._made(channels, given)
        if isinstance(made, DagNet):
            return DagNet(made.plan.with_extra(extra)) if extra and EXTRA not in given else made
        if not isinstance(made, nn.Module):
            raise ValueError(f"{self} makes no network, but {type(made).__name__}")
        if extra and EXTRA not in given:
            raise ValueError(
                f"the task has {extra} channel{'s' if extra > 1 else ''} beside the picture; {self} needs an argument "
                f"{EXTRA} that says how many its input has"
            )
        source = f"{getattr(self.make, '__module__', '')}:{getattr(self.make, '__qualname__', self.name)}"

        def traced(side: int) -> TracedNet:
            example = torch.rand(2, channels + extra, side, side, generator=torch.Generator().manual_seed(0))
            return TracedNet(made, Origin(source, given, channels, extra, example))

        try:
            return traced(side)
        except ValueError as problem:
            if _but_for_side(problem, side) == _complaint(traced, 2 * side):
                raise
            raise ValueError(f"{problem}; it is traced on pictures of {side} x {side} pixels (--crop)") from None

    def _made(self, channels: int, given: Mapping[str, Any]) -> Any:
        if self.registered:
            return self.make(channels, **{name: value for name, value in given.items() if name != CHANNELS})
        needed = [name for name, p in self._parameters.items() if p.default is p.empty and name not in given]
        if needed:
            raise ValueError(
                f"{self} needs the argument {needed[0]}; give it by --model-options '{{{needed[0]}: ...}}'"
            )
        try:
            return self.make(**given)
        except Exception as problem:  # whatever the code of somebody else raises
            raise ValueError(f"{self} fails: {described(problem, self._file)}") from None

    def __str__(self) -> str:
        """Such as "my_net (my.py, line 3)"."""
        if self.registered:
            return self.name
        try:
            _, line = inspect.getsourcelines(self.make)
        except (OSError, TypeError):
            return self.name
        return f"{self.name} ({Path(self._file).name}, line {line})"

    @property
    def _file(self) -> str:
        return inspect.getsourcefile(self.make) or ""


def _complaint(make: Callable[[int], Any], side: int) -> str:
    """Why something cannot be made for pictures of this side; empty if it can."""
    try:
        make(side)
    except ValueError as problem:
        return _but_for_side(problem, side)
    return ""


def _but_for_side(problem: ValueError, side: int) -> str:
    return str(problem).replace(f"{side}, {side}", "")
