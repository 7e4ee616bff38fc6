"""Neural architecture search by Bregman iterations: tensors, groups, penalties and optimisers."""

from pathlib import Path

# In a checkout nas.models, nas.search and nas.analysis are links to folders of the repository root. A clone
# without symbolic links (or a zip download) has none: then Python looks for them in the root itself.
if __name__ == "nas" and not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from nas.bregman import AdaBreg, Bregman, LinBreg
from nas.coupled import coupled_units, settle_norms
from nas.groups import CHANNELS, COLUMNS, ENTRIES, FILTERS, KERNELS, ROWS, WHOLE, Groups, Rim
from nas.init import check_start, sparse_start
from nas.parameters import describe, param_groups
from nas.penalties import L1, GroupLasso, LogSum, NonNegativeL1, Nuclear, Penalty, SparseGroup, Zero, rings
from nas.proximal import XRDA, ProxSGD
from nas.split_lbi import SplitLBI

__version__ = "0.1.0"
__all__ = [
    "CHANNELS",
    "COLUMNS",
    "ENTRIES",
    "FILTERS",
    "KERNELS",
    "L1",
    "ROWS",
    "WHOLE",
    "XRDA",
    "AdaBreg",
    "Bregman",
    "GroupLasso",
    "Groups",
    "LinBreg",
    "LogSum",
    "NonNegativeL1",
    "Nuclear",
    "Penalty",
    "ProxSGD",
    "Rim",
    "SparseGroup",
    "SplitLBI",
    "Zero",
    "check_start",
    "coupled_units",
    "describe",
    "param_groups",
    "rings",
    "settle_norms",
    "sparse_start",
]
