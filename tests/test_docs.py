"""The documentation is true: its examples run, and what they print is what stands there."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

from tests.test_penalties import assert_subgradient

OPTIONAL = "accelerate", "lightning_fabric", "ray"  # that examples show how to work with
DOCS = Path(__file__).resolve().parents[1] / "docs"


def examples(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


def run(example):
    for name in OPTIONAL:
        if re.search(rf"^(import|from) {name}\b", example, re.M):
            pytest.importorskip(name)
    names = {"__name__": "example"}
    exec(compile(example, "example", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("page", "index"), [(page.name, k) for page in sorted(DOCS.glob("*.md")) for k in range(len(examples(page.name)))]
)
def test_examples_run(page, index, capsys):
    run(examples(page)[index])
    printed = capsys.readouterr().out.strip()
    indented = [line.strip() for line in (DOCS / page).read_text(encoding="utf-8").splitlines()]
    for line in printed.splitlines():
        assert line.strip() in indented


@pytest.mark.parametrize(
    "module",
    ["nas.penalties", "nas.bregman", "nas.init", "nas.models.recipes", "nas.analysis.topology",
     "nas.analysis.extraction.extract"],
)  # fmt: skip
def test_examples_of_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0 and results.failed == 0


def test_every_module_with_examples_is_tested():
    root = DOCS.parent
    files = [file for name in ("nas", "models", "search", "analysis") for file in (root / name).rglob("*.py")]
    with_examples = {file.stem for file in files if ">>> " in file.read_text(encoding="utf-8")}
    marks = test_examples_of_docstrings_run.pytestmark
    assert with_examples == {name.rpartition(".")[2] for mark in marks for name in mark.args[1]}


@pytest.mark.usefixtures("float64")
def test_the_penalty_of_your_own_is_one():
    names = run(examples("penalties.md")[1])
    penalty = names["RowMax"](0.3)
    zeros = 0
    for seed in range(20):
        z = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        for step in (0.1, 1.0, 10.0):
            p = penalty.prox(z, step)
            assert_subgradient(penalty, (z - p) / step, p)
            assert_subgradient(penalty, penalty.subgradient(p), p)
            zeros += int((~p.any(dim=1)).sum())
    assert zeros > 0


@pytest.mark.usefixtures("float64")
def test_the_penalty_of_your_own_works_in_an_optimiser():
    names = run(examples("penalties.md")[1])
    weight, target = torch.nn.Parameter(torch.zeros(5, 4)), torch.arange(5.0)[:, None] * torch.tensor([1.0, -1, 0.5, 0])
    optimizer = names["LinBreg"]([weight], lr=0.1, penalty=names["RowMax"](0.3))
    for _ in range(400):
        weight.grad = weight.detach() - target
        optimizer.step()
    torch.testing.assert_close(weight.detach(), target, atol=1e-3, rtol=0)
    optimizer.param_groups[0]["penalty"] = names["RowMax"](0.6)
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before)
