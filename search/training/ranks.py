"""Ranks: several processes that train one network together, each on its share of every batch.

All ranks run the same program with the same seeds: each draws the whole batch and takes its share, the gradients are
averaged, and each does the same step. So weights, duals and data are those of a single process, to round-off. Rank 0
alone writes; what it finds or cannot do there, all ranks know. What has to be decided together (when to stop, when to
write a checkpoint) is. Outside `joined`, and with a single process, every function here does nothing out of the
ordinary.

Gradients are averaged in one go after the backward pass and not by `torch.nn.parallel.DistributedDataParallel`. That
expects a gradient for each parameter in each step, whereas the parameters that take part change as a network grows
(`nas.models.alive_only`) and the front is made by short fits of many networks, each of which it would have to wrap and
broadcast anew. What it gains, averaging while the backward pass goes on, is little for networks as small as these.
"""

import hashlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from nas.search.data.batches import Batches
from nas.search.training.launch import ADVICE, PATIENCE, Launch, RankError, together

LAUNCHED = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"  # what torchrun tells each process

A = TypeVar("A")
B = TypeVar("B")
Outcome = tuple[Any, Exception | None]  # what was returned, or raised


class _Ranks(NamedTuple):
    rank: int = 0
    size: int = 1
    cpu: Any = None  # the process group for what is on the CPU; what is on a GPU goes by the default one


_ranks = _Ranks()
_launch: Launch | None = None


def size() -> int:
    """How many processes train together; 1 outside `joined`."""
    return _ranks.size


def is_first() -> bool:
    """Whether this is rank 0, which writes and prints."""
    return _ranks.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within it the processes that torchrun started train together; nothing happens in a process that it did not start.

    A process group that is there already, such as that of Lightning Fabric or Accelerate, is used. At the end all wait
    for each other. On a machine with GPUs each rank takes one of its own.

    Raises:
        RankError: the others cannot be reached.
    """
    global _ranks, _launch
    if not dist.is_initialized():
        if not all(os.environ.get(name) for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
            yield
            return
        _launch = Launch()
    with together():
        cpu = dist.new_group(backend="gloo", timeout=PATIENCE)
    _ranks = _Ranks(dist.get_rank(), dist.get_world_size(), cpu)
    try:
        yield
        with together():
            dist.barrier(cpu)
        if _launch is not None:
            _launch.end()
            _launch = None
    finally:
        _ranks = _Ranks()


def are_launched() -> bool:
    """Whether torchrun started this process and others, within `joined`."""
    return _launch is not None


def speaks() -> bool:
    """Whether this rank, which ends with a problem, is to say so: rank 0 if it ends too, else the first to come here.

    It can no longer be ended by SIGTERM then, which torchrun sends to what is left.
    """
    if _launch is None:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return _launch.comes_first()


def check_divides(batch: int) -> None:
    """Raise ValueError if the ranks cannot share a batch equally."""
    if batch % _ranks.size:
        raise ValueError(
            f"a batch of {batch} cannot be shared equally by {_ranks.size} processes; choose a batch that is a "
            f"multiple of {_ranks.size}, or another --nproc-per-node"
        )


def check_device(kind: str) -> None:
    """Raise ValueError if the ranks cannot compute on this device, such as "cpu", "cuda" or "cuda:1"."""
    if _ranks.size == 1 or kind == "cpu":
        return
    if kind != "cuda":
        raise ValueError(f"several processes compute on the cpu, or on cuda with a GPU each, not on {kind}")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > gpus:
        raise ValueError(f"{here} processes on a machine need as many GPUs, and there are {gpus}; or use --device cpu")


def shares(batches: Batches) -> Batches:
    """Of each batch the part that this rank computes: of n samples the n / `size` that come at its turn.

    Raises:
        ValueError: when it is iterated over, if a batch cannot be shared equally.
    """

    def shared(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches(epoch):
            check_divides(len(x))
            share = len(x) // _ranks.size
            own = slice(_ranks.rank * share, (_ranks.rank + 1) * share)
            yield x[own], y[own]

    return shared


def average(parameters: Iterable[Parameter], loss: Tensor) -> Tensor:
    """Put the mean over the ranks in the place of every gradient, and return that of the loss, a scalar.

    Which parameters have a gradient must not depend on the data.
    """
    if _ranks.size == 1:
        return loss.detach()
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([part.flatten() for part in (*gradients, loss.detach())])
    _all_reduce(flat, dist.ReduceOp.SUM)
    *means, mean = flat.div_(_ranks.size).split([part.numel() for part in (*gradients, loss)])
    for gradient, part in zip(gradients, means, strict=True):
        gradient.copy_(part.view_as(gradient))
    averaged: Tensor = mean.reshape(loss.shape)
    return averaged


def agreed(*flags: bool) -> list[bool]:
    """Of each flag, whether it is set on any rank."""
    if _ranks.size == 1:
        return list(flags)
    together = torch.tensor(flags, dtype=torch.uint8)
    _all_reduce(together, dist.ReduceOp.MAX)
    return together.bool().tolist()


def on_first(do: Callable[[], A]) -> A:
    """What ``do`` returns on rank 0, or raises there; the others do not call it and get the same."""
    if _ranks.size == 1:
        return do()
    outcome = [_outcome(do) if is_first() else (None, None)]
    with together():
        dist.broadcast_object_list(outcome, src=0, group=_ranks.cpu)
    result: A = _opened(outcome[0])
    return result


@contextmanager
def by_itself() -> Iterator[None]:
    """Within it this process works as if there were no other ranks, whatever it calls."""
    global _ranks
    before, _ranks = _ranks, _Ranks()
    try:
        yield
    finally:
        _ranks = before


@contextmanager
def by_first(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Rank 0 enters the context; what it raises there all raise."""
    with ExitStack() as held:
        on_first(lambda: held.enter_context(context) and None)
        yield


def spread(measure: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> list[B]:
    """``measure(items)``, one result per item, where each rank measures a part of them and all get all results."""
    if _ranks.size == 1:
        return list(measure(items))
    begin, end = (len(items) * k // _ranks.size for k in (_ranks.rank, _ranks.rank + 1))
    outcomes: list[Outcome] = _gathered(_outcome(lambda: measure(items[begin:end])))
    return [each for outcome in outcomes for each in _opened(outcome)]


def spread_apart(do: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """``do`` of each item. Every rank takes as many of them, one after the other, and works by itself meanwhile (what
    ``do`` raises is raised on that rank alone); in the end all get all results.

    Args:
        do: takes long; what it returns can be pickled.
        items: the same on all ranks.
    """
    if _ranks.size == 1:
        return [do(item) for item in items]
    rank, size = _ranks.rank, _ranks.size
    with by_itself():
        own = [do(item) for item in items[rank::size]]
    every = _gathered(own)
    return [every[k % size][k // size] for k in range(len(items))]


def check_same(when: str, state: Callable[[], Any]) -> None:
    """Compare all tensors in plain data between the ranks.

    Args:
        when: part of the sentence.
        state: makes the plain data; not called where there is one process.

    Raises:
        RankError: one of them differs in a bit, on any rank.
    """
    if _ranks.size == 1:
        return
    digest = hashlib.sha256()
    for part in _bytes(state()):
        digest.update(part)
    first, *others = _gathered(digest.hexdigest())
    if different := [str(k) for k, each in enumerate(others, 1) if each != first]:
        raise RankError(
            f"{when} the weights or duals of rank {', '.join(different)} are not those of rank 0: the machines do not "
            f"compute alike, or the training depends on something else than its seed; {ADVICE}"
        )


def _all_reduce(tensor: Tensor, operation: Any) -> None:
    with together():
        dist.all_reduce(tensor, operation, group=_ranks.cpu if tensor.device.type == "cpu" else None)


def _gathered(own: A) -> list[A]:
    """What each rank brings."""
    every = [own] * _ranks.size
    with together():
        dist.all_gather_object(every, own, group=_ranks.cpu)
    return every


def _outcome(do: Callable[[], Any]) -> Outcome:
    """What it returns or raises; it may use all that is here, without the other ranks."""
    try:
        with by_itself():
            return do(), None
    except Exception as problem:
        return None, problem


def _opened(outcome: Outcome) -> Any:
    result, problem = outcome
    if problem is not None:
        raise problem
    return result


def _bytes(state: Any) -> Iterator[bytes]:
    """Of all tensors in plain data."""
    if isinstance(state, Tensor):
        yield state.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _bytes(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _bytes(value)
