"""What is written into the weights: only what is awake, and all the same as if everything were."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas import FILTERS, ROWS, AdaBreg, GroupLasso, LinBreg, reading
from nas.reading import Sleeping

SHAPES = {ROWS: [(30, 5), (30,), (5, 30)], FILTERS: [(30, 2, 3, 3)]}
CHANGES = {
    "nothing": lambda p: None,
    "in place": lambda p: p.add_(0.3),
    "other storage": lambda p: setattr(p, "data", p.data + 0.3),
    "half of it zeroed": lambda p: p[::2].zero_(),
}


def path(large, kind, groups, changes, seed):
    """All weights after every step, with random gradients that wake units and put them to sleep."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES[groups]]
    joint = (0, 0, 1) if groups == ROWS else False
    options = {"lr": 0.3, "penalty": GroupLasso(1.0, groups), "joint": joint}
    optimizer, found = kind(params, **options), []
    with patch.object(reading, "LARGE", 0 if large else 10**9), patch.object(reading, "FEW", 0.9), torch.no_grad():
        for change in changes:
            CHANGES[change](params[0])
            loud = (torch.rand(30, generator=generator) < 0.1).float()
            for p in params:
                along = (1, 30) if p.shape == (5, 30) else (30,) + (1,) * (p.ndim - 1)
                p.grad = torch.randn(p.shape, generator=generator) * (0.1 + 20 * loud.reshape(along))
            optimizer.step()
            found.append([p.detach().clone() for p in params])
    return found


@given(
    st.sampled_from([ROWS, FILTERS]),
    st.lists(st.sampled_from(list(CHANGES)), min_size=8, max_size=20),
    st.integers(0, 99),
)
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_what_sleeps_need_not_be_written(kind, groups, changes, seed):
    for few, all_ in zip(*(path(large, kind, groups, changes, seed) for large in (True, False)), strict=True):
        for p, q in zip(few, all_, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
            assert torch.equal(p == 0, q == 0)


def test_only_what_is_or_was_awake_is_written():
    p, sleeping, zero = torch.zeros(4, 3), Sleeping(), torch.tensor([True, True, True, False])
    assert sleeping.awake([p], zero) is None  # nothing is known yet
    sleeping.note([p], zero)
    assert sleeping.awake([p], zero).tolist() == [3]
    assert sleeping.awake([p], torch.tensor([False, False, True, True])).tolist() == [0, 1, 3]
    p[0] = 1
    assert sleeping.awake([p], zero) is None  # somebody else wrote


def test_new_weights_are_seen_also_in_a_place_of_memory_that_became_free():
    shape = (3000, 3000)  # so large that Linux gives the same place again
    p = nn.Parameter(torch.ones(shape))
    optimizer = LinBreg([{"params": [p], "penalty": GroupLasso(0.01, ROWS)}])
    p.grad = torch.zeros(shape)
    optimizer.step()
    p.data = torch.empty(0)
    p.data = torch.full(shape, 2.0)
    optimizer.step()
    torch.testing.assert_close(p, torch.full(shape, 2.0))
