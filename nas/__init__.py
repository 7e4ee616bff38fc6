"""Neural architecture search by Bregman iterations: tensors, groups, penalties and optimisers."""

from pathlib import Path

# In a checkout nas.models, nas.search and nas.analysis are links to folders of the repository root. A clone
# without symbolic links (or a zip download) has none: then Python looks for them in the root itself.
if __name__ == "nas" and not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from nas.groups import Groups
from nas.init import check_start, sparse_start
from nas.optimizers import AdaBreg, LinBreg, ProxSGD
from nas.parameters import param_groups
from nas.penalties import L1, GroupLasso, NonNegativeL1, Nuclear, Penalty, SparseGroup, Zero

__version__ = "0.1.0"
__all__ = [
    "L1",
    "AdaBreg",
    "GroupLasso",
    "Groups",
    "LinBreg",
    "NonNegativeL1",
    "Nuclear",
    "Penalty",
    "ProxSGD",
    "SparseGroup",
    "Zero",
    "check_start",
    "param_groups",
    "sparse_start",
]
