"""Sparse start: a few live units per layer, and the check that the whole network can learn from them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.groups import ROWS, join_rows
from nas.parameters import gate_parameters, unit_parameters

DRAWS = 20


def sparse_start(model: nn.Module, density: float = 0.1, *, seed: int = 0, batch: Tensor | None = None) -> None:
    """Keep a random part of each layer's units, zero the others and every skip gate, in place.

    The weights of the live units are drawn from a zero-mean normal distribution of variance 2 / (fan_in * density'),
    where density' is the part of the layer that is alive: He's variance divided by the density keeps the scale of
    signals (JMLR 23(192), section 4.1). Biases start at 0. Every layer keeps at least one unit, and a live unit reads
    all units before it, so that there always is a live path from input to output. What is not penalised stays as it is.

    Args:
        model: a supernet, or any module that `nas.parameters.unit_parameters` understands.
        density: part of the units alive at the start, in (0, 1]; at least one per layer.
        seed: the same seed gives the same start.
        batch: if given, draw again (up to 20 times) until `check_start` accepts the start on this batch: a path of
            few rectified units can be live and yet silent on all data.

    Raises:
        ValueError: ``density`` out of range, or no draw that `check_start` accepts.
    """
    if not 0 < density <= 1:
        raise ValueError(f"sparse_start(density=...) must lie in (0, 1], got {density}")
    generator = torch.Generator().manual_seed(seed)
    for left in reversed(range(DRAWS)):
        _draw(model, density, generator)
        try:
            if batch is not None:
                check_start(model, batch)
            break
        except ValueError:
            if not left:
                raise


@torch.no_grad()
def _draw(model: nn.Module, density: float, generator: torch.Generator) -> None:
    for members in unit_parameters(model).values():
        num_units = len(members[0])
        num_live = max(1, int(density * num_units))
        live = torch.randperm(num_units, generator=generator)[:num_live]
        fan_in = sum(p[0].numel() for p in members if p.ndim > 1)
        for p in members:
            rows = torch.zeros(p.shape, dtype=p.dtype)
            if p.ndim > 1:
                drawn = torch.randn(num_live, *p.shape[1:], generator=generator, dtype=p.dtype)
                rows[live] = drawn * math.sqrt(2 / fan_in * num_units / num_live)
            p.copy_(rows)
    for gates in gate_parameters(model).values():
        gates.zero_()


def check_start(model: nn.Module, x: Tensor) -> None:
    """Refuse a start from which some layer could never wake.

    One batch must give a finite output that depends on the input, and a non-zero gradient in every layer that
    holds units or gates, on a sleeping unit where the layer has any: behind an ordinary ReLU, whose slope at 0 is 0,
    a unit whose weights and bias are zero would sleep for ever. The gradients of the model are left at None.

    Args:
        model: the sparsely started network.
        x: one batch, of at least two different samples.

    Raises:
        ValueError: naming what is dead, and what to change.
    """
    advice = "start with a larger density or another seed"
    y = model(x)
    if not y.isfinite().all():
        raise ValueError(f"the start is unstable: the output on one batch is not finite; {advice}")
    if not (y - y[:1]).any():
        raise ValueError(f"the start is dead: the output does not depend on the input; {advice}")
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    (y * probe.to(y.device)).sum().backward()  # a direction in which no gradient vanishes by chance
    gates, units = gate_parameters(model), unit_parameters(model)
    dead = [
        name for name, members in {**units, **{name: [g] for name, g in gates.items()}}.items() if not _moves(members)
    ]
    asleep = [name for name, members in units.items() if name not in dead and not _can_wake(members)]
    model.zero_grad(set_to_none=True)
    if dead:
        raise ValueError(f"the start is dead: no gradient reaches {', '.join(dead)}; {advice}")
    if asleep:
        raise ValueError(
            f"no sleeping unit of {', '.join(asleep)} can wake: its activation needs a slope at 0 that is not 0, "
            f"as GELU and nas.models.right_relu have"
        )


def _moves(members: Sequence[Tensor]) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in members)


def _can_wake(members: Sequence[Tensor]) -> bool:
    """Whether a gradient reaches a unit that is zero, if there is one."""
    asleep = ~ROWS.active(join_rows(members))
    gradients = join_rows([torch.zeros_like(p) if p.grad is None else p.grad for p in members])
    return not asleep.any() or bool((asleep & gradients.ne(0)).any())
