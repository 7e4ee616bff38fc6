"""Bregman iterations: any torch optimiser acts on a dual variable, and a proximal operator reads off the weights."""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, SparseAdam
from torch.optim.optimizer import ParamsT

from nas.groups import ENTRIES, Axis
from nas.penalised import (
    RANGES,
    MovedGroups,
    Penalised,
    Range,
    check_ranges,
    convex,
    gradient,
    seen,
    start_weights,
    state_dtype,
    unit_sets,
    unseen,
)
from nas.penalties import LogSum, Penalty, Zero, groups_of, strength_ratio
from nas.reading import Mark, Reading, Sleeping, mark, readings, write_prox
from nas.second_moments import fit_second_moment, shared_rms, sharing, step_moments
from nas.stacks import Stacks

OURS = {"dual", "weights"}  # entries of the state that are not the rule's


class Bregman(Penalised):
    """Mirror descent for the elastic-net penalty J(p) + |p|^2 / (2 delta) (JMLR 23(192), eqs. 1 to 6).

        dual <- dual - rule(gradient)               one step of any torch optimiser, with the dual as its parameter
        p    <- prox(delta * dual, delta)           prox of J

    The dual starts at p / delta + subgradient of J at p, so that the first prox gives p back.
    Groups that are zero stay *exactly* zero until their dual leaves the unit ball of J.

        Bregman(params, torch.optim.Muon, lr=0.02, penalty=Nuclear(0.1))

    If weights, penalty or delta are changed from outside (a checkpoint, pruning by hand, an average of weights, a
    new ``lam`` in a parameter group), the duals follow at the next step, see `resync`.

    Takes the options of `Penalised` and of the rule, too.

    Other args:
        lr: step on the dual variable.
        delta: positive; scales the weights of the groups that are awake, not which ones are.
        weight_decay: at least 0, decoupled: dual <- dual - lr * weight_decay * p. Only what is awake decays.

    Args:
        params: as in torch.
        rule: a class of torch optimisers whose step needs no closure. With ``Zero()`` and ``delta=1`` the result is
            this optimiser (with weight decay if its own is decoupled, as AdamW's is).

    Raises:
        ValueError: as `Penalised`, ``rule`` is no class of torch optimisers, or needs a closure or sparse gradients.
    """

    _beside_rule: ClassVar[tuple[str, ...]] = ()  # options of a subclass that are not the rule's
    _moves_entries: ClassVar[bool] = False  # each by itself, so that tensors can be joined

    def __init__(
        self,
        params: ParamsT,
        rule: type[Optimizer],
        *,
        penalty: Penalty | LogSum = Zero(),
        delta: float = 1.0,
        joint: bool | Sequence[Axis] = False,
        **options: Any,
    ) -> None:
        check_ranges(type(self).__name__, options, self._ranges())
        if not isinstance(rule, type) or not issubclass(rule, Optimizer):
            raise ValueError(f"{type(self).__name__}(rule=...) must be a class of torch optimisers, got {rule!r:.80}")
        if rule is SparseAdam or _needs_closure(rule):
            raise ValueError(
                f"{type(self).__name__}(rule=...) must step dense gradients without a closure, which "
                f"{rule.__name__} does not"
            )
        self._rule_type: Any = rule
        beside = {name: options.pop(name) for name in self._beside_rule}
        takes_decay = "weight_decay" in inspect.signature(rule).parameters
        decay = {} if takes_decay else {"weight_decay": options.pop("weight_decay", 0.0)}
        self._rule_options = options
        self._rule: Optimizer = rule([torch.zeros(1, 1)], **options)  # steps the duals, and keeps state for them
        self._applied: list[tuple[Penalty | LogSum, float]] = []  # what the duals of each group were made with
        self._written: dict[int, Mark] = {}  # how each parameter was left, by its id
        self._storages: dict[int, torch.UntypedStorage] = {}  # where; kept, so that no other is put in their place
        self._sleeping = Sleeping()
        own = {"penalty": penalty, "delta": delta, "joint": joint}
        defaults = {**self._rule.defaults, **decay, **beside, **own}
        self._stacks = Stacks(defaults)
        super().__init__(params, defaults)

    def _ranges(self) -> dict[str, Range]:
        """The options that we judge; those of a rule are its own matter."""
        return {key: RANGES[key] for key in ("lr", "delta", "weight_decay")}

    def _check_options(self, options: Mapping[str, Any]) -> None:
        check_ranges(type(self).__name__, options, self._ranges())
        super()._check_options({key: value for key, value in options.items() if key in ("penalty", "joint")})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; refuses unknown keys, values out of range and parameters that the penalty doesn't fit."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._rule_type([{"params": list(group["params"]), **self._options(group)}], **self._rule_options)
        except Exception:  # the rule can't step such parameters
            self.param_groups.pop()
            raise
        self._applied.append(_made_with(group))

    def state_dict(self) -> dict[str, Any]:
        """Plain data only: a penalty is stored as its name and numbers, so that `torch.load` accepts the file."""
        self.resync()  # the stored duals belong to the stored penalties
        self._stacks.expire()  # so that this goes on as what is restored from here, bit for bit
        return super().state_dict()

    @torch.no_grad()
    def resync(self) -> None:
        """Let the duals follow what was changed from outside, without moving the weights.

        With v the dual, w the weights for which it stood and p = v - w / delta, a subgradient of J at w:

        * where a group's weights are unchanged, p stays, multiplied by lam' / lam if only the strength has changed;
        * where they have changed, and under another kind of penalty, p starts afresh (zero on sleeping groups);
        * v = w' / delta' + p.

        Every step does so where it sees a change. It can't see one made in place behind torch's back, as in
        ``p.data.mul_(mask)``: call this method after it. (What was and stays zero is not written in a step.)
        """
        self._written.clear()
        self._sleeping.clear()
        for index in range(len(self.param_groups)):
            self._resync_group(index)

    @torch.no_grad()
    def reread(self) -> None:
        """The other way round: keep the duals, and let the weights follow a changed penalty or delta.

        A larger lam then shrinks what is awake, and the weakest groups fall asleep.
        """
        for index in range(len(self.param_groups)):
            self._check_settings(index)
        self._applied = [_made_with(group) for group in self.param_groups]
        sets = [(group, members) for group in self.param_groups for members in unit_sets(group)]
        self._read_weights(
            [(g, members) for g, members in sets if all("dual" in self.state.get(p, ()) for p in members)]
        )

    @torch.no_grad()
    def reweight(self) -> None:
        """Renew the weights of every `LogSum` penalty from the parameters as they are now; the duals follow."""
        self.resync()
        for group in self.param_groups:
            if isinstance(group["penalty"], LogSum):
                started = [p for p in group["params"] if "dual" in self.state.get(p, ())]
                for p in started:
                    state = self.state[p]
                    old, w = state.pop("weights"), p / group["delta"]
                    start_weights(group["penalty"], [p], [state])
                    state["dual"].copy_(w + (state["dual"] - w) * (state["weights"] / old))
                self._read_weights([(group, started)])  # the same but for round-off

    def adopt(self, params: Iterable[Tensor] | None = None) -> None:
        """Take the present weights and state of these parameters (all by default) as belonging to each other."""
        self._stacks = Stacks(self.defaults)
        for p in self.state if params is None else params:
            state = self.state[p]
            if "dual" in state:
                self._note_written([p])
                self._rule.state[state["dual"]] = _of_rule(state)

    def at_count(self, state: Mapping[str, Any], count: float, group: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a parameter of this group that stands for the same after another number of steps."""
        return dict(state)

    def expected_direction(self, p: Tensor) -> Tensor:
        """What the rule is expected to move the dual of ``p`` by at first, divided by lr: entries of +-1 for rules
        that normalise the gradient, as Adam does. Needs a gradient where it depends on it."""
        return torch.ones_like(p, dtype=state_dtype(p))

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of the rule; weight decay is ours, since the rule would decay the dual."""
        options = {key: group[key] for key in self._rule.defaults}
        return {**options, "weight_decay": 0.0} if "weight_decay" in options else options

    def _restored(self) -> None:
        self._rule = self._rule_type([torch.zeros(1, 1)], **self._rule_options)
        self._applied = [_made_with(group) for group in self.param_groups]
        self._written, self._storages, self._sleeping = {}, {}, Sleeping()
        self._stacks = Stacks(self.defaults)
        self._pass_states()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_rule_type": self._rule_type, "_rule_options": self._rule_options, "_applied": self._applied}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._applied = state.get("_applied", self._applied)

    def _gathered(self, groups: MovedGroups) -> MovedGroups:
        if not self._moves_entries:
            return groups
        if not self._stacks.hold(groups, self.state):
            self._stacks.make(groups, self.state)
            self._pass_states()
        return self._stacks.gathered()

    def _step_groups(self, groups: MovedGroups, gathered: MovedGroups) -> None:
        for index, group in enumerate(self.param_groups):
            if self._applied[index] != _made_with(group):
                self._resync_group(index)
        for group, moved in groups:
            if not self._as_written(_seen_at_once(group, moved)):
                for members in unit_sets(group, moved):
                    self._resync(members, group, _made_with(group))
                    self._start(members, group)
        self._step_duals(gathered)
        self._write_weights([(group, _seen_at_once(group, moved)) for group, moved in gathered])
        self._stacks.scatter()
        for group, moved in groups:
            self._note_written(_seen_at_once(group, moved))

    def _check_settings(self, index: int) -> None:
        """Raise ValueError if a penalty or delta that was set from outside does not do."""
        group = self.param_groups[index]
        if self._applied[index] != _made_with(group):
            self._check_options(group)
            for members in unit_sets(group):
                groups_of(group["penalty"]).check(seen(members, group["joint"]))

    def _resync_group(self, index: int) -> None:
        group = self.param_groups[index]
        self._check_settings(index)
        for members in unit_sets(group):
            self._resync(members, group, self._applied[index])
        self._applied[index] = _made_with(group)

    def _start(self, members: Sequence[Tensor], group: dict[str, Any]) -> None:
        """dual = p / delta + subgradient of J at p, for tensors that have no dual yet."""
        states = [self.state[p] for p in members]
        if all("dual" in state for state in states):
            return
        wide = [p.to(state_dtype(p)) for p in members]
        start_weights(group["penalty"], members, states)
        if not group["penalty"].value(seen(wide, group["joint"])).isfinite():
            raise ValueError(
                f"{type(self).__name__}: {group['penalty']} is infinite at the weights of parameter group "
                f"{group.get('name', self.param_groups.index(group))!r}; start where it is finite"
            )
        penalty, factors = convex(group["penalty"], states)
        fresh = unseen(penalty.subgradient(seen(wide, group["joint"])), wide, group["joint"])
        for p, w, state, factor, subgradient in zip(members, wide, states, factors, fresh, strict=True):
            state["dual"] = w / group["delta"] + factor * subgradient
            self._note_written([p])
            alone = {"params": [state["dual"]], **self._options(group)}
            prepared = self._rule_type([alone], **self._rule_options)
            self._rule.state.update(prepared.state)  # of rules that make their state at once
        self._stacks.expire()

    def _step_duals(self, groups: MovedGroups) -> None:
        """dual <- dual - rule(gradient), in place; one call of the rule for all groups of equal options."""
        stepped = []
        alike: dict[tuple[Any, ...], list[Tensor]] = {}  # duals by the options of their rule
        for group, moved in groups:
            options = tuple(tuple(v) if isinstance(v, list) else v for v in self._options(group).values())
            duals = alike.setdefault(options, [])
            for p, state in self._decayed(moved, group):
                dual = state["dual"]
                dual.grad = _laid_out_like(dual, gradient(p))
                duals.append(dual)
                stepped.append((state, dual))
        names = tuple(self._rule.defaults)
        self._rule.param_groups = [
            {"params": duals, **dict(zip(names, options, strict=True))} for options, duals in alike.items()
        ]
        _step_alone(self._rule)
        for state, dual in stepped:
            dual.grad = None
            state.update(self._rule.state[dual])

    def _decayed(self, moved: Sequence[Tensor], group: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Parameters with their state, after dual <- dual - lr * weight_decay * p in place."""
        pairs = [(p, self._state(p)) for p in moved]
        if group["weight_decay"] != 0:
            for p, state in pairs:
                state["dual"].add_(p, alpha=-group["lr"] * group["weight_decay"])
        return pairs

    def _read_weights(self, groups: MovedGroups) -> None:
        """p <- prox(delta * dual, delta), in place, noted as ours."""
        self._write_weights(groups)
        for _, params in groups:
            self._note_written(params)

    def _write_weights(self, groups: MovedGroups) -> None:
        write_prox(
            [
                reading
                for group, params in groups
                for reading in self._readings(params, params, group["penalty"], group["delta"], group["joint"])
            ],
            self._sleeping,
        )

    def _state(self, p: Tensor) -> dict[str, Any]:
        """Of a parameter, or of a tensor of a stack."""
        own = self._stacks.states.get(p)
        return self.state[p] if own is None else own

    def _type_of_state(self, p: Tensor) -> torch.dtype:
        """That of the dual, which does not follow where a model is moved to another type."""
        state = self._state(p)
        return state["dual"].dtype if "dual" in state else state_dtype(p)

    def _pass_states(self) -> None:
        """The rule is to go on from these."""
        self._rule.state.clear()
        for state in [*self.state.values(), *self._stacks.states.values()]:
            if "dual" in state and (entries := _of_rule(state)):
                self._rule.state[state["dual"]] = entries

    def _note_written(self, params: Sequence[Tensor]) -> None:
        """The weights are what their duals say."""
        for p in params:
            before, now = self._written.get(id(p)), mark(p)
            if before is None or before[1] != now[1]:
                self._storages[id(p)] = p.untyped_storage()
            self._written[id(p)] = now

    def _as_written(self, params: Sequence[Tensor]) -> bool:
        """Whether all of these weights have a dual, and nothing but a step of ours has written into them since."""
        written, state = self._written, self.state
        return all(written.get(id(p)) == mark(p) and "dual" in state[p] for p in params)

    def _readings(
        self,
        params: Sequence[Tensor],
        out: Sequence[Tensor],
        penalty: Penalty | LogSum,
        delta: float,
        joint: bool | Sequence[Axis],
    ) -> list[Reading]:
        states = [self._state(p) for p in params]
        penalty, factors = convex(penalty, states)
        scaled = [state["dual"] if delta == 1 else delta * state["dual"] for state in states]
        return readings(penalty, scaled, [delta * factor for factor in factors], out, joint)

    def _resync(
        self, members: Sequence[Tensor], group: dict[str, Any], applied: tuple[Penalty | LogSum, float]
    ) -> None:
        """See `resync`; for tensors that the penalty sees at once, whose duals were made with ``applied``."""
        old_penalty, old_delta = applied
        if not all("dual" in self.state.get(p, ()) for p in members):
            return
        same, joint = applied == _made_with(group), group["joint"]
        if same and self._as_written(members):
            return
        states = [self.state[p] for p in members]
        stood_for = [torch.empty_like(state["dual"]) for state in states]
        write_prox(self._readings(members, stood_for, old_penalty, old_delta, joint))
        changed = [w.to(p.dtype) != p for w, p in zip(stood_for, members, strict=True)]
        if same and not any(bool(c.any()) for c in changed):
            self._note_written(members)
            return
        ratio = strength_ratio(old_penalty, group["penalty"])
        if ratio is None:
            for state in states:
                state.pop("weights", None)  # of another kind of penalty
        start_weights(group["penalty"], members, states)
        penalty, factors = convex(group["penalty"], states)
        groups, whole = groups_of(group["penalty"]), seen(changed, joint)
        changed = unseen(groups.spread(groups.active(whole), whole, rest=whole), changed, joint, rest=changed)
        wide = [p.to(w.dtype) for p, w in zip(members, stood_for, strict=True)]
        fresh = unseen(penalty.subgradient(seen(wide, joint)), wide, joint)
        for state, old, new, factor, subgradient, moved in zip(
            states, stood_for, wide, factors, fresh, changed, strict=True
        ):
            kept = factor * subgradient
            if ratio is not None:
                kept = torch.where(moved, kept, ratio * (state["dual"] - old / old_delta))
            state["dual"].copy_(torch.where(moved, new, old) / group["delta"] + kept)
        self._read_weights([(group, list(members))])  # the same but for round-off


def _needs_closure(rule: type[Optimizer]) -> bool:
    closure = inspect.signature(rule.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _step_alone(rule: Optimizer) -> None:
    """A step that is part of ours: the hooks for steps of all optimisers are called for ours alone."""
    step: Any = type(rule).step
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(rule)


class LinBreg(Bregman):
    """Linearised Bregman iteration, with momentum if wanted (JMLR 23(192), eqs. 4 and 5 of Algorithms 1 and 2).

        mean <- momentum * mean + (1 - momentum) * gradient          the gradient itself without momentum
        dual <- dual - lr * mean

    With ``Zero()`` and without momentum it is SGD with learning rate ``delta * lr``. The mean starts at 0, unlike the
    buffer of `torch.optim.SGD`, which starts at the first gradient; and it is a mean, so that the step is not
    1 / (1 - momentum) times as large as without momentum.

    Examples:
        What matters more wakes earlier, and is not shrunk once it is awake; the last target is too small to wake yet.

        >>> import torch
        >>> from nas import L1, LinBreg
        >>> weight, target = torch.nn.Parameter(torch.zeros(3)), torch.tensor([4.0, 1.0, 0.01])
        >>> optimizer = LinBreg([weight], lr=0.1, penalty=L1(1.0))
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (0.5 * (weight - target).square().sum()).backward()
        ...     optimizer.step()
        >>> weight.detach().round(decimals=2)
        tensor([4., 1., 0.])
    """

    _moves_entries = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        *,
        penalty: Penalty | LogSum = Zero(),
        delta: float = 1.0,
        joint: bool | Sequence[Axis] = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        fused = not foreach if fused is None else fused
        options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "fused": fused}
        options |= {"foreach": foreach, "maximize": maximize}
        super().__init__(params, SGD, penalty=penalty, delta=delta, joint=joint, **options)

    def _ranges(self) -> dict[str, Range]:
        return RANGES

    def expected_direction(self, p: Tensor) -> Tensor:
        """The gradient."""
        return torch.zeros_like(p) if p.grad is None else gradient(p).to(state_dtype(p))

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**super()._options(group), "dampening": group["momentum"]}

    def _step_duals(self, groups: MovedGroups) -> None:
        for group, moved in groups:
            for p in moved if group["momentum"] != 0 else ():
                dual = self._state(p)["dual"]
                state = self._rule.state[dual]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(dual)
        super()._step_duals(groups)


class AdaBreg(Bregman):
    """Bregman iteration with Adam's direction (JMLR 23(192), Algorithm 3).

        mean   <- beta1 * mean + (1 - beta1) * gradient
        square <- beta2 * square + (1 - beta2) * mean of gradient^2 over what shares a second moment
        dual   <- dual - lr * (mean / (1 - beta1^t)) / (sqrt(square / (1 - beta2^t)) + eps)

    A unit whose gradient keeps its sign wakes after about ``lam / lr`` steps, whatever its size: between 70 and
    2000 is healthy, below 20 everything wakes at once. Plain Adam (a second moment of every entry) divides out how
    large the gradient of a group is, so that the consistency of signs alone decides what wakes. With one second moment
    for each tensor, groups of larger gradients wake sooner: after about ``lam / lr * (rms of the gradient over the
    tensor) / (rms over the group)`` steps.

    Takes the options of `Bregman`, too.

    Other args:
        second_moment: what shares one second moment.
            "entry": nothing, each entry has its own: Adam (fused).
            "tensor": each tensor, also within joint units.
            "group": each group of the penalty (entries under `Zero` and `L1`, the middle of a `nas.Rim` by entries
                too), or each joint unit, over all its tensors that have a gradient, whatever the penalty.
            If it is changed on the way, and so the number of second moments, they go on from their mean.
    """

    _beside_rule = ("second_moment",)
    _moves_entries = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        penalty: Penalty | LogSum = Zero(),
        delta: float = 1.0,
        joint: bool | Sequence[Axis] = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        second_moment: Literal["entry", "group", "tensor"] = "entry",
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        fused = not foreach if fused is None else fused
        options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": fused}
        options |= {"foreach": foreach, "maximize": maximize, "capturable": capturable}
        self._grads_and_roots: list[tuple[list[Tensor], list[Tensor]]] = []  # of what shares second moments, in a step
        own = {"penalty": penalty, "delta": delta, "joint": joint, "second_moment": second_moment}
        super().__init__(params, Adam, **own, **options)  # type: ignore[arg-type]

    def _ranges(self) -> dict[str, Range]:
        return RANGES

    def expected_direction(self, p: Tensor) -> Tensor:
        """The gradient divided by its root mean square over what shares a second moment; ones without a gradient, and
        where each entry has its own."""
        group = next(group for group in self.param_groups if any(p is q for q in group["params"]))
        groups = sharing(group)
        if groups == ENTRIES or p.grad is None:
            return super().expected_direction(p)
        moved = [q for q in group["params"] if q.grad is not None]
        grads = [gradient(q).to(state_dtype(q)) for q in moved]
        [(g, rms)] = [(g, rms) for q, g, rms in zip(moved, grads, shared_rms(group, grads), strict=True) if q is p]
        return torch.where(rms > 0, groups.cut(g) / rms, 0.0).reshape(p.shape)

    def _totals(self, groups: MovedGroups) -> Tensor:
        """Of what shares a second moment its rms, which a step needs anyway."""
        by_entry, shared = _by_sharing(groups)
        self._grads_and_roots = []
        for group, moved in shared:
            grads = [gradient(p).to(self._type_of_state(p)) for p in moved]
            self._grads_and_roots.append((grads, shared_rms(group, grads)))
        totals = [root.flatten() for _, roots in self._grads_and_roots for root in roots]
        totals += [super()._totals(by_entry)] if by_entry else []
        return torch.cat([total.to(totals[0].device) for total in totals])

    def at_count(self, state: Mapping[str, Any], count: float, group: Mapping[str, Any]) -> dict[str, Any]:
        """With moments that are the same without their bias, moment / (1 - beta^t)."""
        if "step" not in state:
            return dict(state)
        betas = dict(zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True))
        factors = {key: (1 - beta**count) / (1 - beta ** state["step"].item()) for key, beta in betas.items()}
        moments = {key: factor * state[key] for key, factor in factors.items()}
        return {**state, **moments, "step": torch.full_like(state["step"], count)}

    def _restored(self) -> None:
        for group in self.param_groups:
            group.setdefault("second_moment", "entry")  # of a file older than this option
        self._grads_and_roots = []
        super()._restored()

    def _step_duals(self, groups: MovedGroups) -> None:
        by_entry, shared = _by_sharing(groups)
        for _, moved in by_entry:
            for p in moved:
                dual = self._state(p)["dual"]
                self._fit_second_moment(self._rule.state[dual], dual)
        if by_entry:
            super()._step_duals(by_entry)
        alike = defaultdict(list)
        for (group, moved), read in zip(shared, self._grads_and_roots, strict=True):
            options, cut = (group["lr"], *group["betas"], group["eps"], group["maximize"]), sharing(group).cut
            for (_, own), g, rms in zip(self._decayed(moved, group), *read, strict=True):
                state = self._moments(own, like=rms)
                if "others" in state:  # what shares it elsewhere, see `nas.restriction`
                    rms = rms.square().mul_(state["share"]).add_(state["others"]).sqrt_()
                alike[(*options, g.dtype, g.device)].append((state, g, rms, cut(own["dual"]), cut(state["exp_avg"])))
        self._grads_and_roots = []
        for (lr, beta1, beta2, eps, maximize, *_), moves in alike.items():
            states, grads, roots, duals, means = map(list, zip(*moves, strict=True))
            scales = step_moments(states, grads, roots, (beta1, beta2), eps)
            torch._foreach_addcdiv_(duals, means, scales, value=lr if maximize else -lr)

    def _moments(self, own: dict[str, Any], like: Tensor) -> dict[str, Any]:
        """What Adam keeps for the dual of this state of ours, with second moments shaped like ``like``."""
        dual = own["dual"]
        state: dict[str, Any] = self._rule.state[dual]
        if not state:
            count = torch.zeros((), dtype=torch.float32, device=dual.device)
            state.update(step=count, exp_avg=torch.zeros_like(dual), exp_avg_sq=torch.zeros_like(like))
        self._fit_second_moment(state, like)
        own.update(state)
        return state

    def _fit_second_moment(self, state: dict[str, Any], like: Tensor) -> None:
        if fit_second_moment(state, like):
            self._stacks.expire()


def _by_sharing(groups: MovedGroups) -> tuple[MovedGroups, MovedGroups]:
    """Those where each entry has its own second moment, and the others."""
    by_entry, shared = MovedGroups(), MovedGroups()
    for pair in groups:
        (by_entry if sharing(pair[0]) == ENTRIES else shared).append(pair)
    return by_entry, shared


def _seen_at_once(group: dict[str, Any], moved: list[Tensor]) -> list[Tensor]:
    """What the penalties of the parameters that have a gradient see."""
    return group["params"] if group["joint"] else moved


def _of_rule(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in OURS}


def _made_with(group: dict[str, Any]) -> tuple[Penalty | LogSum, float]:
    return group["penalty"], group["delta"]


def _laid_out_like(dual: Tensor, grad: Tensor) -> Tensor:
    """``grad`` in the type and with the strides of ``dual``: torch's fused kernels walk through memory as if they
    were equal."""
    if grad.dtype == dual.dtype and grad.stride() == dual.stride():
        return grad
    return torch.empty_like(dual).copy_(grad)
