"""Which parameters of a model are penalised, and how: the parameter groups of an optimiser."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from nas.groups import ROWS, WHOLE, Groups, unit_axes
from nas.penalised import seen, unit_sets
from nas.penalties import L1, GroupLasso, LogSum, Penalty, SparseGroup, Zero, groups_of, rings, strengths

ROW_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Selector = str | type[nn.Module] | tuple[str, ...]
Rule = Penalty | LogSum | Mapping[str, Any]


def unit_parameters(model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
    """The tensors that hold the units, by layer; slice i of all tensors of a layer is its unit i.

    A model that has a method ``unit_parameters`` is asked (the supernets of `nas.models`). Of any other model the
    units are the rows (filters) of its linear and convolution modules, each with its bias, and with the shift of the
    batch normalisation that follows it in an `nn.Sequential`; the last one is left out, and so are layers that are
    frozen or whose weights are computed. The model has to be an `nn.Sequential` that ends with one of them;
    `nas.coupled_units` looks into the graph of any other.

    Raises:
        ValueError: the model is no such chain.
    """
    if hasattr(model, "unit_parameters"):
        return model.unit_parameters()  # type: ignore[operator, no-any-return]
    shifts = _shifts(model)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, ROW_MODULES)]
    if layers and _last_layer(model) is not layers[-1][1]:
        raise ValueError(
            f"which layers of {type(model).__name__} put out its results is not to be seen from its modules, since it "
            "has a forward of its own; give units=nas.coupled_units(model, batch)"
        )
    return {name: [*m.parameters(), *shifts.get(name, ())] for name, m in layers[:-1] if _is_trained(m)}


def _last_layer(model: nn.Module) -> nn.Module | None:
    """The layer that puts out the results of a chain; None where the order of the modules says nothing."""
    while isinstance(model, nn.Sequential):
        with_layers = [child for child in model if any(isinstance(m, ROW_MODULES) for m in child.modules())]
        model = with_layers[-1]
    return model if isinstance(model, ROW_MODULES) else None


def _is_trained(module: nn.Module) -> bool:
    """Whether the weight of a module is a parameter that moves: neither frozen, nor computed from others, nor lazy."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.requires_grad and not nn.parameter.is_lazy(weight)


def _shifts(model: nn.Module) -> dict[str, list[Parameter]]:
    """For each layer with a batch normalisation right behind it in an `nn.Sequential` the shift of that."""
    names = {module: name for name, module in model.named_modules()}
    return {
        names[layer]: [norm.bias]
        for sequence in model.modules()
        if isinstance(sequence, nn.Sequential)
        for layer, norm in zip(list(sequence)[:-1], list(sequence)[1:], strict=True)
        if isinstance(layer, ROW_MODULES) and isinstance(norm, _BatchNorm) and norm.affine
    }


def gate_parameters(model: nn.Module) -> Mapping[str, Parameter]:
    """The scalar skip gates, by layer; empty for a model without a method ``gate_parameters``."""
    return model.gate_parameters() if hasattr(model, "gate_parameters") else {}  # type: ignore[operator]


def whole_units(model: nn.Module) -> Collection[str]:
    """The layers whose units together are one unit, too; none of a model without a method ``whole_units``."""
    return model.whole_units() if hasattr(model, "whole_units") else ()  # type: ignore[operator]


def block_parameters(model: nn.Module) -> Mapping[str, tuple[Parameter, int | None]]:
    """The weights that are units of their own, with the side of the cores of kernels that grow, else None; empty for a
    model without a method ``block_parameters``."""
    return model.block_parameters() if hasattr(model, "block_parameters") else {}  # type: ignore[operator]


def growing_parameters(model: nn.Module) -> Mapping[str, tuple[Parameter, int]]:
    """The weights whose kernels grow by rings, with the side of their cores; empty for a model without a method
    ``growing_parameters``."""
    return model.growing_parameters() if hasattr(model, "growing_parameters") else {}  # type: ignore[operator]


def projection_parameters(model: nn.Module) -> Mapping[str, Parameter]:
    """The matrices of skips around an activation; empty for a model without a method ``projection_parameters``."""
    return model.projection_parameters() if hasattr(model, "projection_parameters") else {}  # type: ignore[operator]


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lam: float | None = None,
    gate_lam: float | None = None,
    gate_lr: float | None = None,
    prices: Mapping[str, float] | None = None,
    units: Mapping[str, Sequence[Parameter]] | None = None,
    rules: Mapping[Selector, Rule] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for the optimisers of this package: what is penalised, and the free rest.

    With ``lam`` the units of the model (filters or neurons with their biases, see `unit_parameters`) are penalised, of
    some layers as a whole, too; its gates; its blocks (each row, and the block as a whole); its projections (each as a
    whole); and the rings of kernels that grow (`nas.rings`). With ``rules`` you say what is, for any model; rules come
    first, and the first that selects a parameter has it:

        param_groups(model, lr=1e-3, rules={
            "head.*": Zero(),                                           names of parameters, * and ? as in a shell
            nn.Conv2d: GroupLasso(0.1, KERNELS),                        the weights of a kind of module
            nn.Linear: {"penalty": L1(0.01), "lr": 1e-2},               options of their own
            ("conv1.weight", "conv2.weight"): GroupLasso(0.1, ROWS),    one unit: slice i of all these tensors
        })

    Norms, biases and the last linear or convolution layer are free unless a name selects them. A weight that several
    layers share belongs to the first.

    Args:
        model: a supernet of `nas.models` or any other module.
        lr: learning rate of the units and of the free parameters, > 0.
        lam: strength of the group lasso on the units, >= 0.
        gate_lam: strength of the l1 penalty on the gates, >= 0; 5 * lam by default.
        gate_lr: learning rate of the gates, > 0; 5 * lr by default. A useful gate is near 1 and a useful weight near
            0.05, so that gates need the larger step, and as large a threshold for the same entry time.
        prices: by the name of a parameter group a factor on its lam: the dearer a group, the later it wakes; of nested
            groups name + ".whole" is that of the larger ones (`nas.models.prices`). 1 where there is none.
        units: by layer the tensors whose i-th slices are its unit i, as from `nas.coupled_units`; those of
            `unit_parameters` by default.
        rules: penalty, or a mapping with "penalty" and further options of the optimiser, by selector.

    Returns:
        One group per layer with units, one for all gates, one per block, projection and growing kernel, one per rule,
        one for the rest (without penalty), each with a "name" and its parameters with their names. Every parameter of
        the model is in exactly one of them.

    Raises:
        ValueError: neither ``lam`` nor ``rules``, no units, a model of which it is not to be seen what it puts out
            (`unit_parameters`) without ``units``, ``units`` without ``lam`` or of another model, a rule that
            selects nothing (or only what rules before it have), a unit of which a rule before it has a part, an
            unknown name.
    """
    if lam is None and not rules:
        raise ValueError("param_groups needs lam=... or rules=..., else nothing is penalised")
    names = {id(p): name for name, p in model.named_parameters()}
    _check_units(units, lam, names)
    taken: set[int] = set()
    groups: list[dict[str, Any]] = []

    def add(name: str, members: Sequence[Parameter], options: Mapping[str, Any]) -> None:
        taken.update(map(id, members))
        groups.append({"params": [(names[id(p)], p) for p in members], "name": name, "lr": lr, **options})

    for selector, rule in (rules or {}).items():
        found = _select(model, selector)
        selected = [p for p in found if id(p) not in taken]
        if isinstance(selector, tuple) and len(selected) < len(found):
            raise ValueError(f"param_groups: a rule before {_label(selector)!r} has a part of this unit")
        if not selected:
            raise ValueError(f"param_groups: the rule {_label(selector)!r} selects no parameter that is still free")
        options = rule if isinstance(rule, Mapping) else {"penalty": rule}
        add(_label(selector), selected, {"joint": isinstance(selector, tuple), **options})
    if lam is not None:
        strength = {name: lam * price for name, price in (prices or {}).items()}
        together = whole_units(model)
        for name, members in (unit_parameters(model) if units is None else units).items():
            pairs = zip(members, unit_axes(members), strict=True)
            kept = [pair for pair in pairs if id(pair[0]) not in taken]  # a rule, or a layer with the same weight
            left, axes = [p for p, _ in kept], tuple(axis for _, axis in kept)
            if any(p.ndim > 1 for p in left) or (left and all(p.ndim == 1 for p in members)):  # biases of units alone
                rows = GroupLasso(strength.get(name, lam), ROWS)
                whole = GroupLasso(strength.get(f"{name}.whole", lam), WHOLE)
                add(
                    name,
                    left,
                    {
                        "penalty": SparseGroup(rows, whole) if name in together else rows,
                        "joint": axes if any(axis != 0 for axis in axes) else True,
                    },
                )
        if gates := [p for p in gate_parameters(model).values() if id(p) not in taken]:
            penalty = L1((5 * lam if gate_lam is None else gate_lam) * (prices or {}).get("gates", 1.0))
            add("gates", gates, {"lr": 5 * lr if gate_lr is None else gate_lr, "penalty": penalty, "joint": False})
        for name, nested, p in _penalised_weights(model, lam, strength):
            if id(p) not in taken:
                add(name, [p], {"penalty": nested, "joint": False})
    if not groups:
        raise ValueError(
            f"param_groups: {type(model).__name__} has no linear or convolution layer besides its last one, which is "
            "never penalised"
        )
    if free := [p for p in model.parameters() if id(p) not in taken]:
        add("free", free, {"penalty": Zero(), "joint": False})
    return groups


def _penalised_weights(
    model: nn.Module, lam: float, strength: Mapping[str, float]
) -> Iterator[tuple[str, Penalty, Parameter]]:
    """Blocks, projections and kernels that grow, by name, with their penalties."""
    for name, (weight, core) in block_parameters(model).items():
        part: Any = GroupLasso(strength.get(name, lam), Groups(over=tuple(range(1, weight.ndim))))
        if core is not None:
            part = SparseGroup(rings(strength.get(name, lam), weight.shape[-1], smallest=core, per="channel"), part)
        yield name, SparseGroup(part, GroupLasso(strength.get(f"{name}.whole", lam), WHOLE)), weight
    for name, matrix in projection_parameters(model).items():
        yield name, GroupLasso(strength.get(name, lam), WHOLE), matrix
    for name, (weight, core) in growing_parameters(model).items():
        yield name, rings(strength.get(name, lam), weight.shape[-1], smallest=core), weight


def _check_units(units: Mapping[str, Sequence[Parameter]] | None, lam: float | None, names: Mapping[int, str]) -> None:
    if units is not None and lam is None:
        raise ValueError("param_groups(units=...) needs lam=..., the strength of the penalty on the units")
    if foreign := [name for name, members in (units or {}).items() if any(id(p) not in names for p in members)]:
        raise ValueError(f"param_groups(units=...): {foreign[0]!r} has a tensor that is no parameter of the model")


def _select(model: nn.Module, selector: Selector) -> list[Parameter]:
    named = dict(model.named_parameters())
    if isinstance(selector, tuple):
        if unknown := [name for name in selector if name not in named]:
            raise ValueError(f"param_groups: {type(model).__name__} has no parameter {unknown[0]!r}")
        return [named[name] for name in selector]
    if isinstance(selector, str):
        return [p for name, p in named.items() if fnmatchcase(name, selector)]
    if not isinstance(selector, type):
        raise ValueError(
            f"param_groups: a rule selects by name, by a class of modules or by a tuple of names, got {selector!r}"
        )
    last = next((m.weight for m in reversed(list(model.modules())) if isinstance(m, ROW_MODULES)), None)
    weights = [getattr(m, "weight", None) for m in model.modules() if isinstance(m, selector)]
    chosen = [p for p in weights if isinstance(p, Parameter) and p.ndim > 1 and p is not last]
    return list({id(p): p for p in chosen}.values())  # a tied weight counts once


def _label(selector: Selector) -> str:
    if isinstance(selector, str):
        return selector
    return " + ".join(selector) if isinstance(selector, tuple) else selector.__name__


def describe(groups: Sequence[Mapping[str, Any]]) -> str:
    """A table of what is regularised and how.

    Args:
        groups: from `param_groups`, or ``optimizer.param_groups``.

    Returns:
        One line per group: name, penalty, number of groups of the penalty x entries of one, lam, lr, and the entry
        time: the number of steps after which the first sleeping groups can wake under AdaBreg (each entry with a second
        moment of its own).
    """
    lines = [("name", "penalty", "groups x entries", "lam", "lr", "entry time")]
    for k, group in enumerate(groups):
        penalty, joint, lr = group.get("penalty", Zero()), group.get("joint", False), group.get("lr")
        tensors = [seen([p.detach() for p in members], joint) for members in unit_sets(group)]
        sizes = sorted({groups_of(penalty).size(tensor) for tensor in tensors} or {0})
        count = sum(groups_of(penalty).active(tensor).numel() for tensor in tensors)
        times = [1 / (lr * gauge) for gauge in _gauges_of_ones(penalty, tensors) if lr and gauge > 0]
        lines.append(
            (
                str(group.get("name", k)),
                "free" if isinstance(penalty, Zero) else type(penalty).__name__ + (" on units" if joint else ""),
                f"{count} x {sizes[0]}" + (f"..{sizes[-1]}" if len(sizes) > 1 else ""),
                ", ".join(f"{lam:g}" for lam in strengths(penalty)),
                "" if lr is None else f"{lr:g}",
                f"{min(times):.0f}" if times else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _gauges_of_ones(penalty: Any, tensors: Sequence[Tensor]) -> list[float]:
    """How much nearer to waking the fastest group of each tensor comes if every entry of its dual moves by 1."""
    if not hasattr(penalty, "gauge"):
        return []
    return [penalty.gauge(torch.ones_like(tensor)).max().item() for tensor in tensors if tensor.numel()]
