"""What people ask about in public when they prune models: right, or refused in a sentence."""

import pytest

from benchmarks.threads import SITUATIONS, attempt


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_a_situation_is_right_or_refused(situation):
    assert attempt(situation)
