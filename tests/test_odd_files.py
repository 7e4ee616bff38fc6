"""A hundred odd files: each is cleaned as it should be, or refused in one clear sentence."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.odd_files import STEP, extras_of, odd_files, shown_by
from nas.models import conv_skip_autoencoder
from nas.search.tasks.files import DONE, FAILED, Job, denoise_files
from nas.search.tasks.use import denoise_sheet

FILES = odd_files()


@pytest.fixture(scope="module")
def darkening():
    """A network that takes `STEP` from every pixel."""
    net = conv_skip_autoencoder(depth=1, width=1, patch=1)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.named_nodes()["out"].bias.fill_(-STEP)
    return net


def test_there_are_a_hundred():
    assert len(FILES) >= 100
    assert len({odd.name for odd in FILES}) == len(FILES)


@pytest.mark.parametrize("odd", FILES, ids=lambda odd: odd.name)
def test_an_odd_file_is_right_or_refused(odd, darkening, tmp_path):
    source, target = tmp_path / odd.name, tmp_path / "out" / odd.name
    odd.write(source)
    (outcome,) = denoise_files(partial(denoise_sheet, darkening), [Job(source, target)], given=odd.given)
    if odd.sentence:
        assert (outcome.state, target.exists()) == (FAILED, False)
        assert odd.name in str(outcome.problem) and "\n" not in str(outcome.problem)
        assert re.search(odd.sentence, str(outcome.problem))
        return
    assert outcome.problem is None
    assert outcome.state == DONE
    assert odd.note in "; ".join(outcome.notes)
    if odd.light is not None:
        assert_darker(odd, target)
    assert {name: extras_of(target)[name] for name in odd.keeps} == {
        name: extras_of(source)[name] for name in odd.keeps
    }


def assert_darker(odd, target):
    lights, alphas = shown_by(target, odd.white, odd.black)
    assert len(lights) == len(odd.light)
    if odd.alpha is None:
        assert all((alpha == 1).all() for alpha in alphas)
    else:
        assert np.abs(np.stack(alphas) - odd.alpha).max() <= max(odd.tolerance, 1e-6)
    for got, light in zip(lights, odd.light, strict=True):
        rounding = 0.5 / (odd.white - odd.black if odd.white else 65535 if odd.deep else 255)
        expected = (light - STEP).clip(min(0, light.min()), None)
        expected = expected if got.shape == expected.shape else expected.repeat(3, -1)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= odd.tolerance + rounding
