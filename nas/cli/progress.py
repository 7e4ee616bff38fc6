"""Progress on one line of a terminal; elsewhere, such as in a file, a line for every step."""

import sys
from typing import Any

from tqdm import tqdm


def progress_line(total: int, *, initial: int = 0, unit: str = "epoch", **options: Any) -> Any:
    """A bar of tqdm, in standard error."""
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(total=total, initial=initial, unit=unit, **options)


class _Lines(tqdm):  # type: ignore[type-arg]
    """Writes a line when a step is done or something else is to be said; nothing before."""

    def __init__(self, **options: Any) -> None:
        self._said: tuple[Any, ...] = ()
        line = "{n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}] {desc}{postfix}"
        super().__init__(**{**options, "bar_format": line, "mininterval": 0, "miniters": 1, "delay": 0, "leave": False})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = (self.n, self.desc, self.postfix)
        begun = self.n > self.initial or self.postfix is not None
        if msg is None and begun and now != self._said:
            self._said = now
            self.fp.write(f"{self}\n")
            self.fp.flush()
