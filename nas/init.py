"""Sparse start: a few live units per layer, and the check that the whole network can learn from them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from nas.groups import Axis, num_units, slices
from nas.outputs import tensors_in
from nas.parameters import param_groups
from nas.penalised import axes_of, penalised_sets, seen
from nas.penalties import NonNegativeL1, groups_of

DRAWS = 20
SKIPS = dict.fromkeys(("gates", "*.edges.*", "*.projections.*"), 0.0)  # names of parameter groups, and their density
SCALES = 0.1, 10.0  # how far the signals of a sparse start may be from those of the dense one

ParamGroups = Sequence[Mapping[str, Any]]
Batch = Tensor | Sequence[Any] | Mapping[str, Any]  # of one tensor, of several arguments, or of arguments by name


def sparse_start(
    model: nn.Module,
    density: float | Mapping[str, float] = 0.1,
    *,
    groups: ParamGroups | None = None,
    variance: Literal["he", "xavier"] = "he",
    bias: float = 0.0,
    seed: int = 0,
    batch: Batch | None = None,
) -> None:
    """Keep a random part of the penalised groups, zero the others and all skips, in place.

    The weights of the live groups are drawn from a zero-mean normal distribution whose variance is that of the dense
    start divided by the density: this keeps the scale of signals (JMLR 23(192), section 4.1). At least one group per
    tensor (or per layer of joint units) lives, unless its density is 0. What is not penalised, or in no group (the
    middle of kernels with a `nas.Rim`), stays as it is.

    Args:
        model: a supernet, or any module.
        density: part of the groups alive at the start, in (0, 1]; or one for each kind, by names of parameter groups:
            ``{"features.*": 0.03, "gates": 0, "*": 0.1}``, where the first that fits counts. A plain number stands
            for ``{"gates": 0, "*.edges.*": 0, "*.projections.*": 0, "*": density}``: no skips, blocks or rings.
        groups: what is penalised, from `param_groups` or ``optimizer.param_groups``; by default the units and gates
            of ``param_groups(model, lam=...)``.
        variance: "he", 2 / fan_in, or "xavier", 2 / (fan_in + fan_out).
        bias: biases of live units, and free biases of penalised layers, are drawn uniformly from
            (0, bias / sqrt(fan_in)); with 0 the former start at 0 and the latter stay as they are.
        seed: the same seed gives the same start.
        batch: if given, draw again (up to 20 times) until `check_start` accepts the start on this batch, and until
            the signals of every layer are between 0.1 and 10 times those of the dense start: a path of few rectified
            units can be live and yet silent on all data.

    Raises:
        ValueError: ``density`` out of range or naming no group, or no draw that is accepted.

    Examples:
        Two of the eight filters of the first node live.

        >>> from nas import sparse_start
        >>> from nas.models import conv_skip_autoencoder
        >>> net = conv_skip_autoencoder(depth=3, width=8)
        >>> sparse_start(net, density=0.25)
        >>> int(net.nodes["n1"].edges["in"].flatten(1).any(dim=1).sum())
        2
    """
    groups = param_groups(model, lam=1.0, lr=1.0) if groups is None else groups
    densities = _densities(density, groups)
    draw = _Draw(model, groups, variance, bias)
    dense = None
    if batch is not None:
        draw({name: 1.0 if d else 0.0 for name, d in densities.items()}, torch.Generator().manual_seed(seed))
        dense = _scales(model, batch, groups)
    generator = torch.Generator().manual_seed(seed)
    for left in reversed(range(DRAWS)):
        draw(densities, generator)
        if batch is None or dense is None:
            return
        try:
            _check_scales(dense, _scales(model, batch, groups))
            check_start(model, batch, groups=groups)
            return
        except ValueError:
            if not left:
                raise


def _densities(density: float | Mapping[str, float], groups: ParamGroups) -> dict[str, float]:
    """The density of every group of parameters, by name."""
    if not isinstance(density, Mapping) and not 0 < density <= 1:
        raise ValueError(f"sparse_start(density=...) must lie in (0, 1], got {density}")
    rules = density if isinstance(density, Mapping) else {**SKIPS, "*": density}
    if outside := [value for value in rules.values() if not 0 <= value <= 1]:
        raise ValueError(f"sparse_start(density=...): a density must lie in [0, 1], got {outside[0]}")
    names = [str(group.get("name", k)) for k, group in enumerate(groups)]
    if isinstance(density, Mapping) and (
        idle := [rule for rule in rules if not any(fnmatchcase(name, rule) for name in names)]
    ):
        raise ValueError(
            f"sparse_start(density=...): {idle[0]!r} names no parameter group; there are: {', '.join(names)}"
        )
    return {name: next((value for rule, value in rules.items() if fnmatchcase(name, rule)), 1.0) for name in names}


class _Draw:
    """Draws the weights of all penalised groups of a model anew."""

    def __init__(self, model: nn.Module, groups: ParamGroups, variance: str, bias: float) -> None:
        if variance not in ("he", "xavier"):
            raise ValueError(f"sparse_start(variance=...) must be 'he' or 'xavier', got {variance!r}")
        if not 0 <= bias < math.inf:
            raise ValueError(f"sparse_start(bias=...) must be a finite number >= 0, got {bias}")
        self.groups, self.variance, self.bias = groups, variance, bias
        penalised = {id(p) for _, _, members in penalised_sets(groups) for p in members}
        pairs = [(getattr(module, "weight", None), getattr(module, "bias", None)) for module in model.modules()]
        self.scales = {id(weight) for weight, _ in pairs if isinstance(weight, Parameter) and weight.ndim == 1}
        self.sums_edges = hasattr(model, "whole_units")  # a plan: all weights of a node add up to one signal
        self.free_biases = [
            (bias, weight[0].numel())
            for weight, bias in pairs
            if isinstance(weight, Parameter) and weight.ndim > 1 and id(weight) in penalised
            if isinstance(bias, Parameter) and id(bias) not in penalised
        ]

    @torch.no_grad()
    def __call__(self, densities: Mapping[str, float], generator: torch.Generator) -> None:
        for name, group, members in penalised_sets(self.groups):
            axes = axes_of(group.get("joint", False), len(members))
            if axes is None:
                self._draw_tensor(members[0], group["penalty"], densities[name], generator)
            else:
                self._draw_units(members, axes, densities[name], generator)
        if self.bias:
            for bias, fan_in in self.free_biases:
                bias.copy_(self._draw_bias(bias, fan_in, generator))

    def _draw_tensor(self, p: Tensor, penalty: Any, density: float, generator: torch.Generator) -> None:
        if p.numel() == 0:
            return
        groups = groups_of(penalty)
        live = groups.active(torch.ones_like(p, device="cpu"))
        grouped = ~groups.spread(torch.zeros_like(live), p)
        if density == 0:
            p.masked_fill_(grouped.to(p.device), 0)
            return
        chosen = _choose(live.numel(), density, generator)
        live = torch.zeros_like(live).flatten().index_fill(0, chosen, True).reshape(live.shape)
        fan_in, fan_out = (p[0].numel(), p.numel() // p.shape[1]) if p.ndim > 1 else (1, 1)
        mask = groups.spread(live, p)
        if id(p) in self.scales:
            p.mul_(mask.to(p.device))
            return
        drawn = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        drawn = drawn.abs() if isinstance(penalty, NonNegativeL1) else drawn
        drawn = drawn * mask * self._std(fan_in, fan_out) * math.sqrt(live.numel() / len(chosen))
        p.copy_(torch.where(grouped, drawn, p.cpu()))

    def _draw_units(
        self, members: Sequence[Tensor], axes: Sequence[Axis], density: float, generator: torch.Generator
    ) -> None:
        count = num_units(members[0], axes[0])
        live = _choose(count, density, generator)
        together = sum(p[0].numel() for p in members if p.ndim > 1)
        for p, axis in zip(members, axes, strict=True):
            drawn = p.cpu().clone()
            rows = slices(drawn, axis)
            before = rows[live]
            rows.zero_()
            fan_in = p[0].numel() if p.ndim > 1 and not self.sums_edges else together
            if p.ndim > 1:
                scale = self._std(fan_in, p.numel() // p.shape[1]) * math.sqrt(count / max(1, len(live)))
                rows[live] = torch.randn(len(live), *rows.shape[1:], generator=generator, dtype=p.dtype) * scale
            elif id(p) in self.scales:
                rows[live] = before
            elif self.bias:
                rows[live] = self._draw_bias(before, fan_in, generator)
            p.copy_(drawn)

    def _draw_bias(self, bias: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
        return torch.rand(bias.shape, generator=generator, dtype=bias.dtype) * self.bias / math.sqrt(max(1, fan_in))

    def _std(self, fan_in: int, fan_out: int) -> float:
        return math.sqrt(2 / max(1, fan_in if self.variance == "he" else fan_in + fan_out))


def _choose(count: int, density: float, generator: torch.Generator) -> Tensor:
    """The indices of a random part of ``count`` groups, at least one unless the density is 0."""
    number = max(1, int(density * count)) if density > 0 else 0
    return torch.randperm(count, generator=generator)[:number]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics are as before afterwards: those of a start that is only tried are no data."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])


@torch.no_grad()
def _scales(model: nn.Module, batch: Batch, groups: ParamGroups) -> dict[str, float]:
    """For every module that holds penalised parameters how strongly its live outputs vary over the batch."""
    penalised = {id(p) for _, _, members in penalised_sets(groups) for p in members}
    scales: dict[str, float] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                std = output.std(dim=0) if len(output) > 1 else torch.zeros_like(output)  # of one nothing varies
                scales[name] = std[std > 0].square().mean().sqrt().item() if std.any() else 0.0

        return module.register_forward_hook(record)

    handles = [
        watch(name, module)
        for name, module in model.named_modules()
        if any(id(p) in penalised for p in module.parameters())
    ]
    try:
        with buffers_kept(model):
            _outputs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return scales


def _check_scales(dense: Mapping[str, float], sparse: Mapping[str, float]) -> None:
    for name, scale in sparse.items():
        if dense[name] > 0 and not SCALES[0] <= scale / dense[name] <= SCALES[1]:
            raise ValueError(
                f"the start is out of scale: the signals of {name or 'the output'} are {scale / dense[name]:.2g} times "
                f"those of the dense start, accepted are {SCALES[0]} to {SCALES[1]}; start with a larger density or "
                "another seed"
            )


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The floating-point tensors among what a model returns for a copy of a batch, which it may change."""
    given: Any = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, batch)
    if isinstance(given, Mapping):
        found = model(**given)
    else:
        found = model(given) if isinstance(given, Tensor) else model(*given)
    return [y for y in tensors_in(found) if y.is_floating_point()]


def check_start(model: nn.Module, batch: Batch, *, groups: ParamGroups | None = None) -> None:
    """Refuse a start from which some layer could never wake.

    One batch must give a finite output that depends on the input, and a finite non-zero gradient in every layer that
    is penalised, on a sleeping group where the layer has any: behind an ordinary ReLU, whose slope at 0 is 0,
    a unit whose weights and bias are zero would sleep for ever. The gradients of the model are left at None.

    Args:
        model: the sparsely started network.
        batch: of at least two different samples: a tensor, a tuple of arguments or a mapping of keyword arguments.
        groups: what is penalised, as in `sparse_start`.

    Raises:
        ValueError: naming what is dead, and what to change.
    """
    groups = param_groups(model, lam=1.0, lr=1.0) if groups is None else groups
    advice = "start with a larger density or another seed"
    with buffers_kept(model):
        outputs = _outputs(model, batch)
        if not outputs:
            raise ValueError(f"check_start: {type(model).__name__} must return tensors of floating-point numbers")
        if not all(y.isfinite().all() for y in outputs):
            raise ValueError(f"the start is unstable: the output on one batch is not finite; {advice}")
        by_sample = [y for y in outputs if y.ndim]  # a loss has no batch axis
        if by_sample and not any(len(y) > 1 for y in by_sample):
            raise ValueError("check_start needs a batch of at least two different samples, got one")
        if by_sample and not any((y - y[:1]).any() for y in by_sample):
            raise ValueError(f"the start is dead: the output does not depend on the input; {advice}")
        generator = torch.Generator().manual_seed(0)
        probes = [torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device) for y in outputs]
        total = sum((y * probe).sum() for y, probe in zip(outputs, probes, strict=True) if y.requires_grad)
        if isinstance(total, Tensor):
            total.backward()  # a direction in which no gradient vanishes by chance
    names = {id(p): name for name, p in model.named_parameters()}
    grown = [names[id(p)] for p in model.parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if grown:
        model.zero_grad(set_to_none=True)
        raise ValueError(
            f"the start is unstable: the gradient of {grown[0]} is not finite, as behind many normalisations of "
            f"channels that sleep, each of which multiplies it by 1 / sqrt(eps); {advice}"
        )
    dead, asleep = [], []
    for name, group, members in penalised_sets(groups):
        name = name if group.get("joint", False) else names[id(members[0])]
        if not any(p.grad is not None and bool(p.grad.any()) for p in members):
            dead.append(name)
        elif not _can_wake(members, group):
            asleep.append(name)
    model.zero_grad(set_to_none=True)
    if dead:
        raise ValueError(f"the start is dead: no gradient reaches {', '.join(dead)}; {advice}")
    if asleep:
        raise ValueError(
            f"no sleeping unit of {', '.join(asleep)} can wake: its activation needs a slope at 0 that is not 0, "
            f"as GELU and nas.models.right_relu have"
        )


def _can_wake(members: Sequence[Tensor], group: Mapping[str, Any]) -> bool:
    """Whether a gradient reaches a group that is zero, if there is one."""
    joint, groups = group.get("joint", False), groups_of(group["penalty"])
    gradient = seen([torch.zeros_like(p) if p.grad is None else p.grad for p in members], joint)
    asleep = ~groups.active(seen(members, joint))
    return not asleep.any() or bool((asleep & groups.active(gradient)).any())
