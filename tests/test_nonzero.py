import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.nonzero import any_over, masked_rows, nonzero


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool])
def test_nonzero_is_a_comparison_with_zero(dtype):
    x = torch.tensor([0.0, -0.0, 1.0, -2.0, 1e-7, 5e-324, math.nan, math.inf])
    x = x[:4].to(dtype) if not dtype.is_floating_point else x.to(dtype)
    assert torch.equal(nonzero(x), x.ne(0))


@given(st.lists(st.integers(0, 4), min_size=3, max_size=3), st.integers(0, 2**31), st.booleans())
def test_masks_of_any_shape(shape, seed, keepdim):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    for dim in (0, 2, (0, 1), (1, 2), (0, 1, 2)):
        assert torch.equal(any_over(mask, dim, keepdim), mask.any(dim, keepdim))
        assert torch.equal(any_over(mask.transpose(0, 2), dim, keepdim), mask.transpose(0, 2).any(dim, keepdim))
    rows = mask[:, 0].any(1) if shape[1] else torch.zeros(shape[0], dtype=torch.bool)
    assert torch.equal(masked_rows(mask.flatten(1), rows), mask.flatten(1) & rows[:, None])
