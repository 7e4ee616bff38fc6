"""What ``nas`` exports; `nas.__init__` imports each name when it is first asked for."""

from .bregman import AdaBreg, Bregman, LinBreg
from .groups import CHANNELS, COLUMNS, ENTRIES, FILTERS, KERNELS, ROWS, WHOLE, Groups, Rim
from .init import check_start, sparse_start
from .models.traced.units import coupled_units, settle_norms
from .parameters import describe, param_groups
from .penalties import L1, GroupLasso, LogSum, NonNegativeL1, Nuclear, Penalty, SparseGroup, Zero, rings
from .proximal import XRDA, ProxSGD
from .search.zoo.shipped import load
from .split_lbi import SplitLBI

__version__: str
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
    "load",
    "param_groups",
    "rings",
    "settle_norms",
    "sparse_start",
]
