"""The processes that torchrun started: how they find each other, and how one notices that another has gone."""

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

BEAT, LOST = 2.0, 20.0  # seconds between two signs of life, and without one until a rank counts as lost
GRACE = 5.0  # seconds that the others wait for rank 0 to say why all end
PATIENCE = timedelta(days=365)  # of a rank that waits for others that are alive
ADVICE = "what was written stays; go on with nas resume"


class RankError(Exception):
    """Another rank has ended or cannot be reached, or the ranks are no longer the same."""


@contextmanager
def together() -> Iterator[None]:
    """An exchange between the ranks.

    Raises:
        RankError: it does not come about.
    """
    try:
        yield
    except RuntimeError:  # of the backend: a connection is closed
        raise RankError(f"another rank has ended or cannot be reached; {ADVICE}") from None


class Launch:
    """This process among those that torchrun started: the process group, and a thread that watches over the others.

    A process that dies breaks its connections, so that on a CPU the next exchange fails at once. The thread sees the
    rest, such as a machine that is gone, a process that no longer moves, or a GPU that waits for a dead one.

    Raises:
        RankError: the others cannot be reached.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available() and (gpu := int(os.environ.get("LOCAL_RANK", 0))) < torch.cuda.device_count():
            torch.cuda.set_device(gpu)
        try:
            self.store, self.rank, self.size = next(rendezvous("env://"))
            self.store.add(self._beats(self.rank), 1)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=self.store, rank=self.rank, world_size=self.size, timeout=PATIENCE,
            )  # fmt: skip
        except RuntimeError as problem:
            reason = str(problem).splitlines()[0]
            raise RankError(f"the {os.environ['WORLD_SIZE']} processes do not reach each other: {reason}") from None
        self._ended, watch = (
            threading.Event(),
            threading.Thread(target=self._watch, args=[self.store.clone()], daemon=True),
        )
        watch.start()
        atexit.register(self._stop, watch)

    def end(self) -> None:
        """All ranks are at their end."""
        self._ended.set()
        dist.destroy_process_group()

    def comes_first(self) -> bool:
        """Whether nobody else has come here; others than rank 0 wait for it a while."""
        until = time.monotonic() + (GRACE if self.rank else 0)
        try:
            while time.monotonic() < until and not self.store.check(["said"]):
                time.sleep(0.05)
            return bool(self.store.add("said", 1) == 1)
        except RuntimeError:  # the store has gone, with rank 0 or what started it
            return True

    def _stop(self, watch: threading.Thread) -> None:
        """A thread that Python ends within torch would abort the process."""
        self._ended.set()
        watch.join(GRACE)

    def _watch(self, store: Any) -> None:
        others = [k for k in range(self.size) if k != self.rank]
        heard = dict.fromkeys(others, (b"", time.monotonic()))
        while not self._ended.wait(BEAT):
            try:
                store.add(self._beats(self.rank), 1)
                beats = store.multi_get([self._beats(k) for k in others])
            except RuntimeError:
                if not self._ended.wait(BEAT):
                    self._give_up("what started the processes")
                return
            now = time.monotonic()
            for k, beat in zip(others, beats, strict=True):
                if beat != heard[k][0]:
                    heard[k] = beat, now
                elif now - heard[k][1] > LOST:
                    self._give_up(f"rank {k}")

    def _give_up(self, who: str) -> None:
        """End this process, in which the main thread may be waiting for ever."""
        if self.comes_first():
            os.write(2, f"\nnas: {who} has not been heard of for {LOST:.0f} s; {ADVICE}\n".encode())
        os._exit(2)

    @staticmethod
    def _beats(rank: int) -> str:
        return f"beats/{rank}"
