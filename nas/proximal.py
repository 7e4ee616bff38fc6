"""Proximal gradient methods: the baseline that Bregman iterations differ from, and regularised dual averaging."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from nas.groups import Axis
from nas.penalised import MovedGroups, Penalised, convex, gradient, start_weights, state_dtype
from nas.penalties import LogSum, Penalty, Zero
from nas.reading import readings, write_prox


class ProxSGD(Penalised):
    """Proximal stochastic gradient descent, the baseline that Bregman iterations differ from (JMLR 23(192), eq. 7).

        p <- prox(p - lr * gradient, lr)                  prox of J

    It has no memory: what is awake pays lr * lam in every step, so that weights are biased towards zero.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        penalty: Penalty | LogSum = Zero(),
        joint: bool | Sequence[Axis] = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "penalty": penalty, "joint": joint})

    def _step_groups(self, groups: MovedGroups, gathered: MovedGroups) -> None:
        for group, moved in groups:
            members = group["params"] if group["joint"] else moved
            states = [self.state[p] for p in members]
            start_weights(group["penalty"], members, states)
            for p in moved:
                p.add_(gradient(p), alpha=-group["lr"])
            penalty, factors = convex(group["penalty"], states)
            steps = [group["lr"] * factor for factor in factors]
            write_prox(readings(penalty, members, steps, members, group["joint"]))


class XRDA(Penalised):
    """Regularised dual averaging with momentum and adaptive weights (Siegel, Chen, Zhang, Xu, arXiv 2008.09661).

    With d the gradient plus ``weight_decay * p``, s = lr, a = averaging, c the weights of `LogSum` (1 for any other
    penalty) and b(t) = exp(-s / t):

        mean      <- b(weight_time) * mean + (1 - b(weight_time)) * magnitudes of p          c = weights(mean)
        threshold <- a * threshold + s * c
        dual      <- a * dual + (1 - a) * p
        velocity  <- b(time) * velocity + (1 - b(time)) * d
        dual      <- dual - s * velocity
        p         <- prox(dual, threshold)                prox of J

    ``averaging=0`` is proximal SGD with momentum, ``averaging=1`` regularised dual averaging: dual and threshold
    accumulate for ever. The method starts from a dense network, and its authors train for 160 to 1000 epochs while lr
    falls to 0 and averaging rises to 1.

    Takes the options of `Penalised`, too.

    Other args:
        averaging: a in [0, 1].
        time: time scale of the velocity in units of lr, > 0; 9.5 is a momentum of 0.9 at lr=1.
        weight_time: time scale of the magnitudes, likewise.
        weight_decay: at least 0, part of the gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        penalty: Penalty | LogSum = Zero(),
        joint: bool | Sequence[Axis] = False,
        averaging: float = 0.0,
        time: float = 9.5,
        weight_time: float = 9.5,
        weight_decay: float = 0.0,
    ) -> None:
        times = {"averaging": averaging, "time": time, "weight_time": weight_time}
        super().__init__(params, {"lr": lr, "penalty": penalty, "joint": joint, "weight_decay": weight_decay, **times})

    def reweight(self) -> None:
        """Nothing to do: the weights are renewed at every step."""

    def _step_groups(self, groups: MovedGroups, gathered: MovedGroups) -> None:
        for group, moved in groups:
            members = group["params"] if group["joint"] else moved
            for p in members:
                self._step_dual(p, group)
            penalty = group["penalty"].majoriser if isinstance(group["penalty"], LogSum) else group["penalty"]
            thresholds = [self.state[p]["threshold"] for p in members]
            duals = [self.state[p]["dual"] for p in members]
            write_prox(readings(penalty, duals, thresholds, members, group["joint"]))

    def _step_dual(self, p: Tensor, group: dict[str, Any]) -> None:
        lr, averaging, keep = group["lr"], group["averaging"], math.exp(-group["lr"] / group["time"])
        state, wide = self.state[p], p.to(state_dtype(p))
        if "dual" not in state:
            state["dual"], state["velocity"] = wide.clone(), torch.zeros_like(wide)
            state["threshold"] = torch.zeros((), dtype=wide.dtype, device=p.device)
        elif state["dual"].dtype != wide.dtype or state["dual"].device != wide.device:  # the model was moved
            state.update({key: value.to(wide) for key, value in state.items()})
        state["threshold"] = averaging * state["threshold"] + lr * self._weights(wide, state, group)
        state["dual"].lerp_(wide, 1 - averaging)
        state["velocity"].mul_(keep)
        if p.grad is not None:
            state["velocity"].add_(gradient(p).add(p, alpha=group["weight_decay"]), alpha=1 - keep)
        state["dual"].add_(state["velocity"], alpha=-lr)

    def _weights(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | float:
        penalty: Penalty | LogSum = group["penalty"]
        if not isinstance(penalty, LogSum):
            return 1.0
        magnitudes, keep = penalty.groups.means(p), math.exp(-group["lr"] / group["weight_time"])
        mean = state.setdefault("mean", torch.zeros_like(magnitudes)).mul_(keep).add_(magnitudes, alpha=1 - keep)
        weights: Tensor = penalty.weights(mean, penalty.groups.size(p)) * (mean.max() > 0)
        return weights
