"""A search finds the network that made the data (the large cases are in benchmarks/planted.py)."""

import pytest
import torch

from benchmarks.planted import CASES, Found, dense, find, make_teacher
from nas.models import find_alive

SMALL = dense(teacher=(3,), student=(12,), epochs=10)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_planted_topology_is_found(seed):
    found = find(SMALL, "adabreg+polish", seed)
    assert found.is_exact, found


def test_growth_alone_overshoots():
    grown = find(SMALL, "adabreg", 0)
    assert grown.neurons["n1"][0] > grown.neurons["n1"][1]
    assert not grown.is_exact


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_teachers(case):
    case = case()
    net = make_teacher(case, seed=3)
    alive = find_alive(net)
    for node in net.plan.nodes:
        if node.searched:
            assert int(net.nodes[node.name].bias.ne(0).sum()) == case.rows.get(node.name, node.units)
    assert all(mask.any() for mask in alive.units.values())
    again = make_teacher(case, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


def test_what_counts_as_found():
    def found(precision=1.0, recall=1.0, neurons=(10, 10), loss=1.05, params=(2, 1)):
        return Found(precision, recall, {"n1": neurons}, params, loss, 0.0).is_exact

    assert found() and found(neurons=(11, 10)) and found(neurons=(9, 10))
    assert found(precision=0.5, params=(1, 1)) and not found(precision=0.5, params=(1, 1), loss=1.06)
    assert not (found(precision=0.5) or found(recall=0.5) or found(neurons=(12, 10)) or found(loss=1.06))
