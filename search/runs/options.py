"""Options of runs: which say what, how sizes are written, what is a seed."""

import re
from collections.abc import Iterable
from typing import Literal

AUTO: Literal["auto"] = "auto"
NONE = "none"
PROBLEM = (
    "task",
    "task_options",
    "data",
    "range",
    "clean",
    "channels",
    "sigma",
)  # options that say what is to be learnt
ROOTS = ("data_root", "val_root", "test_root")  # options that say where the pictures are


def parse_size(text: str) -> int:
    """A number of parameters or of multiply-adds, such as 13500, 14k or 1.5M.

    Raises:
        ValueError: it is no positive number.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kM]?)\s*", text)
    size = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]] if found else 0.0
    if not 1 <= size < 1e12:
        raise ValueError(f"a size must be a positive number such as 13500, 14k or 1.5M, got {text!r}")
    return int(size)


def check_options(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError if something called ``name`` is given an option that it does not know."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known) or 'none'}")


def check_seed(seed: int) -> None:
    """Raise ValueError unless torch's generators take the seed, and the seeds derived from it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and {2**32 - 1}, got {seed}")
