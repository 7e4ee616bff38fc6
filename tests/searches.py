"""Searches that take seconds, on the folder of small pictures of conftest.py."""

from nas.search import SearchConfig

COMMON = {
    "data": "folder", "model": "separable_autoencoder", "batch": 2, "crop": 16, "density": 0.5, "lr": 0.01,
}  # fmt: skip


def quick(data_root, **options):
    """The options of one; those that are named instead of the usual."""
    return SearchConfig(data_root=data_root, **{**COMMON, **options})
