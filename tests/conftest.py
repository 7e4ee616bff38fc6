import os

# Before torch starts its threads: small tensors are faster on one, and results don't depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from nas.models import RECIPES
from nas.registry import IMPORTED
from nas.search.data.sources import SOURCES
from nas.search.runs.learnt import TASKS

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("tests")


@pytest.fixture
def float64():
    """Mathematics in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def denormal_numbers():
    """The command line flushes them, and says so to the whole process; hypothesis draws them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def registered():
    """What a test registers is forgotten after it."""
    before, modules = [(registry, dict(registry)) for registry in (RECIPES, SOURCES, TASKS)], list(IMPORTED)
    yield
    IMPORTED[:] = modules
    for registry, things in before:
        registry.clear()
        registry.update(things)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A folder of four small pictures."""
    root = tmp_path_factory.mktemp("data")
    x, y = np.meshgrid(np.arange(28), np.arange(24))
    for k in range(4):
        pixels = 127 + 100 * np.sin(x / (2 + k)) * np.cos(y / (3 + k))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{k}.png")
    return root
