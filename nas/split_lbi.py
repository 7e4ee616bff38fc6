"""Split linearised Bregman iterations: dense weights beside a sparse companion (DessiLBI)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from nas.groups import Axis
from nas.penalised import (
    MovedGroups,
    Penalised,
    convex,
    gradient,
    seen,
    start_weights,
    state_dtype,
    unit_sets,
    unseen,
)
from nas.penalties import LogSum, Penalty, Zero, groups_of
from nas.reading import readings, write_prox

NEVER = torch.iinfo(torch.int32).max


class SplitLBI(Penalised):
    """Dense weights p and a sparse companion tied to them (Fu et al., ICML 2020: DessiLBI; arXiv 1905.09449).

    The loss gains |p - companion|^2 / (2 nu). The weights follow its gradient, with momentum and weight decay d; the
    companion follows a linearised Bregman iteration whose dual integrates (p - companion) / nu:

        p         <- p - kappa * lr * (d + (p - companion) / nu)
        dual      <- dual + lr * (p - companion) / nu                  with the weights before this step
        companion <- prox(kappa * dual, kappa)                         prox of J

    Dual and companion start at 0. The supports of the companion run from simple to complex while p stays dense; the
    order in which groups enter says how important they are. Parameters with penalty ``Zero()`` have no companion:
    p <- p - kappa * lr * d. Stable for kappa * lr * (Lipschitz constant of the gradient + 1 / nu) < 2.

    The authors use `GroupLasso(1, FILTERS, rms=False)` for convolutions and `L1(1)` for matrices; with ``rms=True``
    filters of all sizes have the same chance.

    Takes the options of `Penalised`, too.

    Other args:
        kappa: positive; damping, as delta in `Bregman`.
        nu: positive; strength of the tie, 20 to 1000. A group enters after about nu * lam / (lr * its norm) steps.
        momentum: of the gradient of the loss, in [0, 1).
        dampening: in [0, 1).
        weight_decay: at least 0; for tensors with more than one axis.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        penalty: Penalty | LogSum = Zero(),
        kappa: float = 1.0,
        nu: float = 100.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        joint: bool | Sequence[Axis] = False,
    ) -> None:
        tie = {"kappa": kappa, "nu": nu, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "penalty": penalty, "joint": joint, **tie})

    def _step_groups(self, groups: MovedGroups, gathered: MovedGroups) -> None:
        for group, moved in groups:
            if isinstance(group["penalty"], Zero):
                for p in moved:
                    p.add_(self._direction(p, group), alpha=-group["kappa"] * group["lr"])
            else:
                self._step_tied(group["params"] if group["joint"] else moved, group)

    def _step_tied(self, members: Sequence[Tensor], group: dict[str, Any]) -> None:
        """One step of weights that have a companion."""
        kappa, states = group["kappa"], [self.state[p] for p in members]
        start_weights(group["penalty"], members, states)
        for p, state in zip(members, states, strict=True):
            if "dual" not in state:
                wide = p.to(state_dtype(p))
                state["dual"], state["companion"] = torch.zeros_like(wide), torch.zeros_like(wide)
            gap = (p - state["companion"]) / group["nu"]
            state["dual"].add_(gap, alpha=group["lr"])
            p.add_(self._direction(p, group).add_(gap), alpha=-kappa * group["lr"])
        penalty, factors = convex(group["penalty"], states)
        duals, companions = [kappa * state["dual"] for state in states], [state["companion"] for state in states]
        write_prox(readings(penalty, duals, [kappa * factor for factor in factors], companions, group["joint"]))

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient of the loss with momentum and weight decay, as a new tensor."""
        wide = p.to(state_dtype(p))
        g = torch.zeros_like(wide) if p.grad is None else gradient(p).to(wide.dtype)
        state = self.state[p]
        if group["momentum"] != 0:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = g.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=1 - group["dampening"])
            g = state["momentum_buffer"]
        return g.add(wide, alpha=group["weight_decay"] if p.ndim > 1 else 0.0)

    def masks(self) -> dict[str, Tensor]:
        """For every parameter with a companion, by name: True where its group has entered.

        The winning ticket of an early epoch: put the network back to its initial weights, hand the masks to
        `torch.nn.utils.prune.custom_from_mask`, and train.
        """
        return {
            name: mask
            for unit in self._unit_sets()
            for name, mask in zip(unit.names, unit.spread(unit.active), strict=True)
        }

    def update_prune_order(self, epoch: int) -> None:
        """Note for every group the first ``epoch`` in which its companion is not zero; call it once per epoch."""
        for unit in self._unit_sets():
            never = torch.full(unit.active.shape, NEVER, dtype=torch.int32, device=unit.active.device)
            first = self.state[unit.members[0]].setdefault("first_epoch", never)
            first.masked_fill_(unit.active & (first > epoch), epoch)

    @torch.no_grad()
    def prune_layer_by_order_by_list(self, percent: float, layer_name: str | Sequence[str]) -> None:
        """Zero the weights of the least important groups of a layer, in place.

        Importance is the order of entry: groups that entered earlier are more important, and of those that entered
        in the same epoch (or never) the ones of larger norm.

        Args:
            percent: of the groups of each layer, in [0, 100]; rounded down to whole groups.
            layer_name: name of a parameter or of the module that holds it ("conv3"), or several.

        Raises:
            ValueError: ``percent`` out of range, a name without companion, or an order that was never updated.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"SplitLBI: percent must lie in [0, 100], got {percent}")
        pruned: list[tuple[Tensor, Tensor]] = []
        for layer in [layer_name] if isinstance(layer_name, str) else layer_name:
            found = [unit for unit in self._unit_sets() if {layer, f"{layer}.weight"} & set(unit.names)]
            if not found:
                known = ", ".join(self.masks()) or "none yet (names come from model.named_parameters())"
                raise ValueError(f"SplitLBI: no companion of {layer!r}; there are: {known}")
            for unit in found:
                first = self.state[unit.members[0]].get("first_epoch")
                if first is None:
                    raise ValueError(f"SplitLBI: no order of {layer!r} yet; call update_prune_order(epoch) first")
                kept = _largest(-first, unit.norms, int(first.numel() * percent / 100))
                pruned += zip(unit.members, unit.spread(kept), strict=True)
        for p, mask in pruned:
            p.mul_(mask)

    def _unit_sets(self) -> Iterator["_UnitSet"]:
        """What the penalties see at once, where there are companions."""
        names = {id(p): name for name, p in self._named_parameters()}
        for group in self.param_groups:
            for members in unit_sets(group):
                if all("companion" in self.state.get(p, ()) for p in members):
                    companions = [self.state[p]["companion"] for p in members]
                    yield _UnitSet([names[id(p)] for p in members], members, companions, group)


class _UnitSet:
    """Names and tensors that a penalty sees at once; activity of the companion and norms of the weights by group."""

    def __init__(
        self, names: list[str], members: list[Tensor], companions: list[Tensor], group: dict[str, Any]
    ) -> None:
        self.names, self.members, self._joint = names, members, group["joint"]
        self._groups, self._weight = groups_of(group["penalty"]), seen(members, group["joint"])
        self.active = self._groups.active(seen(companions, group["joint"]))
        self.norms = self._groups.norms(self._weight)

    def spread(self, per_group: Tensor) -> list[Tensor]:
        """The values of the groups, one for each entry of each tensor."""
        return unseen(self._groups.spread(per_group, self._weight), self.members, self._joint, rest=1.0)


def _largest(first: Tensor, second: Tensor, num_dropped: int) -> Tensor:
    """True for all but the ``num_dropped`` smallest entries in lexicographic order of ``(first, second)``."""
    order = second.flatten().argsort(stable=True)
    order = order[first.flatten()[order].argsort(stable=True)]
    kept = torch.ones(first.numel(), dtype=torch.bool, device=first.device)
    kept[order[:num_dropped]] = False
    return kept.reshape(first.shape)
