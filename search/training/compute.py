"""Where and how a training computes: on which device, in which precision, and whether torch compiles it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nas.search.data.batches import Batches
from nas.search.training import ranks

AUTO, CPU, SINGLE, HALF = "auto", "cpu", "fp32", "fp16"
PRECISIONS = {SINGLE: torch.float32, "bf16": torch.bfloat16, HALF: torch.float16}

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """Where and how a training computes.

    It is no part of what determines a run (`nas.search.SearchConfig`): what was begun on one device can go on on
    another, though not bit for bit. Whatever the precision of forward and loss, weights, duals, the state of
    optimisers, scores and certificates are in single or double precision.

    Attributes:
        device: such as "cpu", "cuda", "cuda:1" or "mps"; "auto" becomes the accelerator, or the CPU where there is
            none. None: where the network is.
        precision: of forward and loss: "fp32", or by autocast "bf16" or "fp16". Under "fp16" the loss is scaled, so
            that small gradients are not lost, and a step whose gradients overflow is left out.
        compile: let `torch.compile` translate each network that is trained. It is computed densely then.

    Raises:
        ValueError: a device that is not there, or a precision that there is not, or not on this device.
    """

    device: str | None = None
    precision: str = SINGLE
    compile: bool = False

    def __post_init__(self) -> None:
        if self.device == AUTO:
            object.__setattr__(self, "device", devices()[:2][-1])
        if self.device not in (None, *devices()):
            raise ValueError(f"device must be {_listed([AUTO, *devices()])} on this machine, got {self.device!r}")
        if self.precision not in (known := precisions(self.device)):
            where = "" if self.device is None else f" on {self.device}"
            raise ValueError(f"precision must be {_listed(known)}{where}, got {self.precision!r}")

    def __str__(self) -> str:
        """Such as "cuda:0 in bf16, compiled, 4 ranks"."""
        precision = "" if self.precision == SINGLE else f" in {self.precision}"
        together = "" if ranks.size() == 1 else f", {ranks.size()} ranks"
        return f"{self.device}{precision}{', compiled' if self.compile else ''}{together}"

    def place(self, net: Net) -> Net:
        """``net``, moved to the device in place."""
        return net if self.device is None else net.to(self.device)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Within it forward and loss are computed in the precision."""
        return nullcontext() if self.precision == SINGLE else torch.autocast(device.type, PRECISIONS[self.precision])

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """What scales the loss; under another precision than fp16 it does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == HALF)

    def compiled(self, net: nn.Module) -> Callable[[Tensor], Tensor]:
        """What computes the output of ``net``, which goes on to hold the weights."""
        return torch.compile(net) if self.compile else net


def devices() -> list[str]:
    """Names of what there is on this machine: the CPU, then the kind of its accelerator, then each of these."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return [CPU]
    kind = accelerator.type
    return [CPU, kind, *(f"{kind}:{k}" for k in range(torch.accelerator.device_count()))]


def precisions(device: str | None = None) -> list[str]:
    """Names of those that a device has. CUDA computes in bf16 from compute capability 8 on."""
    place = torch.device(device or CPU)
    is_old = place.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(place)[0] < 8
    return [name for name in PRECISIONS if not (is_old and name == "bf16")]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """In evaluation mode, for a while."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def device_of(net: nn.Module) -> torch.device:
    """Where the parameters of ``net`` are; the CPU if it has none."""
    return next((p.device for p in net.parameters()), torch.device(CPU))


def on_device(batches: Batches, device: torch.device) -> Batches:
    """The same batches, moved to a device."""

    def moved(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches(epoch):
            yield _moved(x, device), _moved(y, device)

    return moved


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """To CUDA from page-locked memory, so that nobody waits for the copy."""
    if device.type == "cuda" and x.device.type == CPU:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def on_cpu(state: Any) -> Any:
    """The same plain data with all tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return type(state)(map(on_cpu, state)) if isinstance(state, list | tuple) else state


def _listed(names: list[str]) -> str:
    """Such as "auto, cpu or cuda"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
