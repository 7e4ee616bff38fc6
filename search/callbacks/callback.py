"""Callbacks: what a search tells on its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.search.engine.search import Search
    from nas.search.runs.path import Point

Line = Mapping[str, Any]  # of metrics.jsonl: numbers by name, "epoch" among them; None where there is no number


class Callback:
    """What a search calls on its way; a subclass overrides what it wants to know of, the rest does nothing.

    What is told of is in the run folder already, but for the checkpoint: what a search that is killed has told since
    its last one it tells again when it goes on. A callback changes nothing of the search; its exceptions end it. Of
    several ranks (`nas.search.training.ranks`) the first one tells its callbacks.
    """

    def on_start(self, search: Search) -> None:
        """The search begins, with the start as its only point, or goes on from all of ``search.points``."""

    def on_birth(self, epoch: int, node: str, units: tuple[int, ...]) -> None:
        """Within this epoch of the growth these units of a node woke."""

    def on_death(self, epoch: int, node: str, units: tuple[int, ...]) -> None:
        """Within this epoch of the growth these units of a node died."""

    def on_epoch(self, point: Point, line: Line) -> None:
        """An epoch of the growth is done; after its births and deaths."""

    def on_trial(self, params: int) -> None:
        """On the way to a network of the front one with so many parameters was tried: groups were removed, and the
        rest was fitted."""

    def on_network(self, point: Point, line: Line) -> None:
        """A network of the front is done."""

    def on_end(self, search: Search, problem: BaseException | None) -> None:
        """The search has come to its end, or was ended by ``problem``: `Stopped`, an error, a signal."""
