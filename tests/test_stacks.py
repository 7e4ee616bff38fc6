"""Small tensors that are joined for a step: they move as each would alone, and their states are their own."""

import copy
import io
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from nas import FILTERS, L1, ROWS, WHOLE, AdaBreg, GroupLasso, LinBreg, NonNegativeL1, Rim, SparseGroup, Zero
from nas.penalties import scaled

pytestmark = pytest.mark.usefixtures("float64")

RINGS = SparseGroup(GroupLasso(0.02, Rim(3)), GroupLasso(0.02, Rim(1)))
BLOCKS = SparseGroup(GroupLasso(0.02, ROWS), GroupLasso(0.02, WHOLE))
KINDS = {  # penalty, whether units are joint, shapes of what it sees at once
    "rows": (GroupLasso(0.05, ROWS), False, [(5, 3)]),
    "filters": (GroupLasso(0.05, FILTERS), False, [(4, 2, 3, 3)]),
    "wholes": (GroupLasso(0.05, WHOLE), False, [(4, 3)]),
    "rings": (RINGS, False, [(3, 1, 5, 5)]),
    "entries": (L1(0.05), False, [(7,)]),
    "positive": (NonNegativeL1(0.05), False, [(2, 3)]),
    "free": (Zero(), False, [(1,)]),
    "units": (GroupLasso(0.05, ROWS), True, [(4, 3, 1, 1), (4,)]),
    "blocks": (BLOCKS, True, [(4, 6), (4,)]),
}
OPTIMIZERS = {
    "linbreg": (LinBreg, {}),
    "momentum": (LinBreg, {"momentum": 0.9, "weight_decay": 0.1}),
    "entry": (AdaBreg, {"weight_decay": 0.1}),
    "tensor": (AdaBreg, {"second_moment": "tensor"}),
    "group": (AdaBreg, {"second_moment": "group"}),
}


def set_all(optimizer, key, change):
    for group in optimizer.param_groups:
        group[key] = change(group[key])


@torch.no_grad()
def halve_first(optimizer):
    optimizer.param_groups[0]["params"][0].mul_(0.5)


def take_apart(optimizer):
    for state in optimizer.state.values():
        state.update({key: value.clone() for key, value in state.items()})
    optimizer.adopt()


def replace_first_group(optimizer):
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.005}


def restore(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file))


CHANGES = {
    "nothing": lambda optimizer: None,
    "one rate": lambda optimizer: optimizer.param_groups[0].update(lr=0.005),
    "all rates": lambda optimizer: set_all(optimizer, "lr", lambda lr: 0.9 * lr),
    "strength": lambda optimizer: set_all(optimizer, "penalty", lambda penalty: scaled(penalty, 1.5)),
    "delta": lambda optimizer: set_all(optimizer, "delta", lambda delta: 0.7),
    "weights": halve_first,
    "restored": restore,
    "another group": replace_first_group,
    "reread": lambda optimizer: optimizer.reread(),
    "states of their own": take_apart,
}


def built(name, kinds, seed):
    kind, options = OPTIMIZERS[name]
    generator, groups = torch.Generator().manual_seed(seed), []
    for penalty, joint, shapes in map(KINDS.get, kinds):
        params = [Parameter(torch.randn(shape, generator=generator).relu()) for shape in shapes]
        groups.append({"params": params, "penalty": penalty, "joint": joint})
    return kind(groups, lr=0.01, **options)


def path(name, kinds, changes, seed):
    """Weights and states after every step; a gradient is missing now and then."""
    optimizer, found = built(name, kinds, seed), []
    generator = torch.Generator().manual_seed(seed)
    for change in changes:
        CHANGES[change](optimizer)
        for k, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn(p.shape, generator=generator)
            if torch.rand((), generator=generator) < 0.02 or change == "one rate" and k == 1:
                p.grad = None
        optimizer.step()
        states = [dict(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]
        weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        found.append((weights, copy.deepcopy(states)))
    return found


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3),
    st.lists(st.sampled_from(list(CHANGES)), min_size=3, max_size=8),
    st.integers(0, 99),
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stack_moves_as_its_members_would(name, kinds, changes, seed):
    kinds = [kind for kind in kinds for _ in range(3)]
    together = path(name, kinds, changes, seed)
    with patch.object(OPTIMIZERS[name][0], "_moves_entries", False):
        alone = path(name, kinds, changes, seed)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_call_does_for_all(name):
    optimizer = built(name, ["units", "rows"] * 4, 0)
    for _ in range(3):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [list(tensor.shape) for tensor in optimizer._stacks.states] == [[16, 3, 1, 1], [16], [20, 3]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_refused_gradient_moves_no_member(name):
    optimizer = built(name, ["units"] * 3, 0)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for bad in (0.0, 0.0, torch.nan):
        before = copy.deepcopy(([p.detach() for p in params], [optimizer.state[p] for p in params]))
        for p in params:
            p.grad = torch.full_like(p, 1.0 if p is not params[-1] else 1.0 + bad)
        if bad != 0:
            with pytest.raises(FloatingPointError, match="parameter 1 of group 2 has NaN"):
                optimizer.step()
        else:
            optimizer.step()
    after = [p.detach() for p in params], [optimizer.state[p] for p in params]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_of_a_model_that_was_moved_to_another_type(name, dtype):
    found = []
    for joined in (True, False):
        with patch.object(OPTIMIZERS[name][0], "_moves_entries", joined):
            optimizer = built(name, ["units", "blocks"] * 3, 0)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for k in range(5):
                for p in params:
                    p.data = p.data.to(torch.float32 if k == 3 else dtype)
                    p.grad = torch.ones_like(p)
                optimizer.step()
        found.append([p.detach() for p in params])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_that_is_restored_goes_on_bit_for_bit(name):
    """Whatever gradients are missing, and whenever it was stored."""
    kinds = [kind for kind in ("units", "rows", "wholes") for _ in range(3)]
    torch.testing.assert_close(*(path(name, kinds, [c] * 20, 1) for c in ("nothing", "restored")), rtol=0, atol=0)


def test_members_are_copied_and_stored_with_their_states():
    optimizer = built("tensor", ["units"] * 3, 0)
    for _ in range(3):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.ones_like(p)
        optimizer.step()
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        for p in (p for group in each.param_groups for p in group["params"]):
            p.grad = torch.ones_like(p)
        each.step()
    stored = [each.state_dict()["state"] for each in (optimizer, twin)]
    torch.testing.assert_close(stored[0], stored[1], rtol=0, atol=0)
    assert {float(state["step"]) for state in stored[0].values()} == {4.0}
