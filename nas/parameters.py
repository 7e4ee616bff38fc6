"""Which parameters of a model are penalised, and how: the parameter groups of an optimiser."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from nas.groups import ROWS
from nas.penalised import axes_of
from nas.penalties import L1, GroupLasso, LogSum, Penalty, Zero, groups_of, strengths

ROW_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Selector = str | type[nn.Module] | tuple[str, ...]
Rule = Penalty | LogSum | Mapping[str, Any]


def unit_parameters(model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
    """The tensors that hold the units, by layer; slice i of all tensors of a layer is its unit i.

    A model that has a method ``unit_parameters`` is asked (the supernets of `nas.models`). Of any other model the
    units are the rows (filters) of its linear and convolution modules, each with its bias, and with the shift of the
    batch normalisation that follows it in an `nn.Sequential`; the last one is left out.
    """
    if hasattr(model, "unit_parameters"):
        return model.unit_parameters()  # type: ignore[operator, no-any-return]
    shifts = _shifts(model)
    layers = {
        name: [*m.parameters(), *shifts.get(name, ())]
        for name, m in model.named_modules()
        if isinstance(m, ROW_MODULES)
    }
    return dict(list(layers.items())[:-1])


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


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lam: float | None = None,
    gate_lam: float | None = None,
    gate_lr: float | None = None,
    rules: Mapping[Selector, Rule] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for the optimisers of this package: what is penalised, and the free rest.

    With ``lam`` the units of the model (filters or neurons with their biases, see `unit_parameters`) and its skip
    gates are penalised. With ``rules`` you say what is, for any model; rules come first, and the first that selects
    a parameter has it:

        param_groups(model, lr=1e-3, rules={
            "head.*": Zero(),                                           names of parameters, * and ? as in a shell
            nn.Conv2d: GroupLasso(0.1, KERNELS),                        the weights of a kind of module
            nn.Linear: {"penalty": L1(0.01), "lr": 1e-2},               options of their own
            ("conv1.weight", "conv2.weight"): GroupLasso(0.1, ROWS),    one unit: slice i of all these tensors
        })

    Norms, biases and the last linear or convolution layer are free unless a name selects them.

    Args:
        model: a supernet of `nas.models` or any other module.
        lr: learning rate of the units and of the free parameters, > 0.
        lam: strength of the group lasso on the units, >= 0.
        gate_lam: strength of the l1 penalty on the gates, >= 0; 5 * lam by default.
        gate_lr: learning rate of the gates, > 0; 5 * lr by default. A useful gate is near 1 and a useful weight near
            0.05, so that gates need the larger step, and as large a threshold for the same entry time.
        rules: penalty, or a mapping with "penalty" and further options of the optimiser, by selector.

    Returns:
        One group per layer with units, one for the gates, one per rule, one for the rest (without penalty), each
        with a "name" and its parameters with their names. Every parameter of the model is in exactly one of them.

    Raises:
        ValueError: neither ``lam`` nor ``rules``, no units, a rule that selects nothing (or only what rules before it
            have), an unknown name.
    """
    if lam is None and rules is None:
        raise ValueError("param_groups needs lam=... or rules=..., else nothing is penalised")
    names = {id(p): name for name, p in model.named_parameters()}
    taken: set[int] = set()
    groups: list[dict[str, Any]] = []

    def add(name: str, members: Sequence[Parameter], options: Mapping[str, Any]) -> None:
        taken.update(map(id, members))
        groups.append({"params": [(names[id(p)], p) for p in members], "name": name, "lr": lr, **options})

    for selector, rule in (rules or {}).items():
        selected = [p for p in _select(model, selector) if id(p) not in taken]
        if not selected:
            raise ValueError(f"param_groups: the rule {_label(selector)!r} selects no parameter that is still free")
        options = rule if isinstance(rule, Mapping) else {"penalty": rule}
        add(_label(selector), selected, {"joint": isinstance(selector, tuple), **options})
    if lam is not None:
        for name, members in unit_parameters(model).items():
            if not taken.intersection(map(id, members)):
                add(name, members, {"penalty": GroupLasso(lam, ROWS), "joint": True})
        if not groups:
            raise ValueError(
                f"param_groups: {type(model).__name__} has no linear or convolution layer besides its last one, "
                "which is never penalised"
            )
        if gates := [p for p in gate_parameters(model).values() if id(p) not in taken]:
            penalty = L1(5 * lam if gate_lam is None else gate_lam)
            add("gates", gates, {"lr": 5 * lr if gate_lr is None else gate_lr, "penalty": penalty, "joint": False})
    if free := [p for p in model.parameters() if id(p) not in taken]:
        add("free", free, {"penalty": Zero(), "joint": False})
    return groups


def _select(model: nn.Module, selector: Selector) -> list[Parameter]:
    named = dict(model.named_parameters())
    if isinstance(selector, tuple):
        if unknown := [name for name in selector if name not in named]:
            raise ValueError(f"param_groups: {type(model).__name__} has no parameter {unknown[0]!r}")
        return [named[name] for name in selector]
    if isinstance(selector, str):
        return [p for name, p in named.items() if fnmatchcase(name, selector)]
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, ROW_MODULES)), None)
    modules = [m for m in model.modules() if isinstance(m, selector) and m is not last]
    weights = [getattr(m, "weight", None) for m in modules]
    return list({id(p): p for p in weights if isinstance(p, Parameter)}.values())  # a tied weight counts once


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
        time lam / lr: the steps after which the first sleeping groups can wake under AdaBreg.
    """
    lines = [("name", "penalty", "groups x entries", "lam", "lr", "lam / lr")]
    for k, group in enumerate(groups):
        params = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        penalty, axes = group.get("penalty", Zero()), axes_of(group.get("joint", False), len(params))
        if axes is not None:
            layout = [(params[0].shape[axes[0]], sum(p.numel() for p in params) // params[0].shape[axes[0]])]
        else:
            layout = [(p.numel() // groups_of(penalty).size(p), groups_of(penalty).size(p)) for p in params]
        sizes = sorted({size for _, size in layout})
        lams, lr = strengths(penalty), group.get("lr")
        lines.append(
            (
                str(group.get("name", k)),
                "free" if isinstance(penalty, Zero) else type(penalty).__name__ + (" on units" if axes else ""),
                f"{sum(count for count, _ in layout)} x {sizes[0]}" + (f"..{sizes[-1]}" if len(sizes) > 1 else ""),
                ", ".join(f"{lam:g}" for lam in lams),
                "" if lr is None else f"{lr:g}",
                ", ".join(f"{lam / lr:.0f}" for lam in lams) if lr else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
