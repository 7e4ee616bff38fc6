"""A search finds the network that made the data (the large cases are in benchmarks/planted.py)."""

import re

import pytest
import torch

from benchmarks.planted import CASES, Found, dense, find, main, make_teacher
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "5"], r"teacher and student must be as many numbers, .*, got \[5\] and \[32, 32\]"),
        (["--teacher", "5", "40"], r"the teacher's from 1 to the student's, got \[5, 40\] and \[32, 32\]"),
        (["--seeds", "3"], "--seeds: must be two whole numbers such as 0-9, the smaller first, got '3'"),
        (["--seeds", "3-1"], "got '3-1'"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(options, message, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        main(["--cases", "dense_mlp", *options])
    assert re.search(message, capsys.readouterr().err)


def test_a_teacher_with_too_many_parts_is_refused(monkeypatch):
    monkeypatch.setattr("benchmarks.planted.DRAWS", 3)
    with pytest.raises(ValueError, match="in none of 3 random teachers every part matters; ask for fewer neurons"):
        make_teacher(dense(teacher=(200,), student=(200,)), 0)
