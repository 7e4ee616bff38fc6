"""Which parameters of a model are penalised, and how: the parameter groups of a Bregman optimiser."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter

from nas.groups import ROWS
from nas.penalties import L1, GroupLasso, Zero

ROW_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def unit_parameters(model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
    """The tensors that hold the units, by layer; slice i of all tensors of a layer is its unit i.

    A model that has a method ``unit_parameters`` is asked (the supernets of `nas.models`). Of any other model the
    units are the rows (filters) of its linear and convolution modules, each with its bias; the last one is left out.
    """
    if hasattr(model, "unit_parameters"):
        return model.unit_parameters()  # type: ignore[operator, no-any-return]
    layers = {name: list(m.parameters()) for name, m in model.named_modules() if isinstance(m, ROW_MODULES)}
    return dict(list(layers.items())[:-1])


def gate_parameters(model: nn.Module) -> Mapping[str, Parameter]:
    """The scalar skip gates, by layer; empty for a model without a method ``gate_parameters``."""
    return model.gate_parameters() if hasattr(model, "gate_parameters") else {}  # type: ignore[operator]


def param_groups(
    model: nn.Module,
    *,
    lam: float,
    lr: float,
    gate_lam: float | None = None,
    gate_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for `LinBreg` and `AdaBreg`: units, skip gates and the free rest.

    Args:
        model: a supernet of `nas.models`, or any module whose linear and convolution rows are to be units.
        lam: strength of the group lasso on the units (weights and bias together), >= 0.
        lr: learning rate of the units and of the free parameters, > 0.
        gate_lam: strength of the l1 penalty on the gates, >= 0; 5 * lam by default.
        gate_lr: learning rate of the gates, > 0; 5 * lr by default. A useful gate is near 1 and a useful weight near
            0.05, so that gates need the larger step, and as large a threshold for the same entry time.

    Returns:
        One group per layer with units, one for the gates, one for the rest (without penalty), each with a "name".
        Every parameter of the model is in exactly one of them.

    Raises:
        ValueError: the model has no units.
    """
    gate_lam = 5 * lam if gate_lam is None else gate_lam
    gate_lr = 5 * lr if gate_lr is None else gate_lr
    units, gates = unit_parameters(model), list(gate_parameters(model).values())
    if not units:
        raise ValueError(
            f"param_groups: {type(model).__name__} has no linear or convolution layer besides its last one, "
            "which is never penalised"
        )
    groups: list[dict[str, Any]] = [
        {"params": list(members), "name": name, "lr": lr, "penalty": GroupLasso(lam, ROWS), "joint": True}
        for name, members in units.items()
    ]
    if gates:
        groups.append({"params": gates, "name": "gates", "lr": gate_lr, "penalty": L1(gate_lam), "joint": False})
    taken = {id(p) for group in groups for p in group["params"]}
    if free := [p for p in model.parameters() if id(p) not in taken]:
        groups.append({"params": free, "name": "free", "lr": lr, "penalty": Zero(), "joint": False})
    return groups
