"""Checkpoints: states of what takes long, from which it goes on after it was stopped, or killed."""

import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nas.files import remove, write_bytes
from nas.search.training import ranks
from nas.search.training.compute import CPU, on_cpu

State = dict[str, Any]  # plain data and tensors
EVERY = 60.0  # seconds
KEPT = 2
DIGITS = 16  # of the digest in the name of a file


class Stopped(Exception):
    """What takes long was asked to stop (`Checkpoints.stop`); its last checkpoint says where it goes on."""


class Checkpoints:
    """The newest states of a run, one file each: NUMBER-DIGEST.pt, where DIGEST begins the SHA-256 of its bytes.

    All tensors in them are on the CPU, wherever they were. Of several ranks (`nas.search.training.ranks`) the first
    one writes and reads; all save, stop and go on together, whichever of them is asked to.

    Args:
        folder: made with the first file.
        every: seconds between two that are saved within an epoch, > 0.

    Raises:
        ValueError: ``every`` out of range.
    """

    def __init__(self, folder: Path, *, every: float = EVERY) -> None:
        if not every > 0:
            raise ValueError(f"checkpoint_every must be > 0 seconds, got {every}")
        self.folder, self.every = folder, every
        self._stopping, self._saved = False, -math.inf

    def stop(self) -> None:
        """Let the next `keep` save and raise; for handlers of signals."""
        self._stopping = True

    def keep(self, state: Callable[[], State]) -> None:
        """Save the state if the last one is `every` seconds old, or if this is to stop.

        Raises:
            Stopped: after `stop`.
        """
        stopping, due = ranks.agreed(self._stopping, time.monotonic() - self._saved >= self.every)
        if stopping or due:
            self.save(state())
        if stopping:
            raise Stopped

    def save(self, state: State) -> None:
        """Write a state; the one before is kept, older ones are removed.

        Raises:
            OSError: it cannot be written; those before stay as they are.
        """
        ranks.on_first(lambda: self._write(state))
        self._saved = time.monotonic()

    def _write(self, state: State) -> None:
        buffer = io.BytesIO()
        torch.save(on_cpu(state), buffer)
        self.folder.mkdir(exist_ok=True)
        older = self._files()
        number = int(older[-1].name.partition("-")[0]) + 1 if older else 1
        name = f"{number:08}-{_digest(buffer.getvalue())}.pt"
        write_bytes(self.folder / name, buffer.getvalue())
        for file in older[: 1 - KEPT]:
            file.unlink(missing_ok=True)

    def newest(self) -> State | None:
        """The newest state; if its file is damaged the one before, with a warning; None if there never was one.

        Raises:
            ValueError: all are damaged.
            OSError: a file cannot be read.
        """
        return ranks.on_first(self._read_newest)

    def _read_newest(self) -> State | None:
        files = self._files()
        for file in reversed(files):
            data = file.read_bytes()
            if file.stem.partition("-")[2] == _digest(data):
                state: State = torch.load(io.BytesIO(data), map_location=CPU, weights_only=True)
                return state
            warnings.warn(f"the checkpoint {file} is damaged and not used", stacklevel=1)
        if files:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; there is nothing to go on from")
        return None

    def clear(self) -> None:
        """Remove all."""
        ranks.on_first(lambda: remove(self.folder))

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-*.pt"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]
