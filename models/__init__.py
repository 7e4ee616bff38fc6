"""Networks that can be searched: the DAG supernetwork, its recipes, and the compact network inside one."""

from nas.models.alive import Alive, find_alive
from nas.models.compact import compact
from nas.models.dag import DagNet, right_relu
from nas.models.plan import Node, Plan, Skip
from nas.models.recipes import (
    RECIPES,
    conv_skip_autoencoder,
    dense_conv,
    dense_mlp,
    mlp,
    register_recipe,
    skip_autoencoder,
)
from nas.models.store import load

__all__ = [
    "RECIPES",
    "Alive",
    "DagNet",
    "Node",
    "Plan",
    "Skip",
    "compact",
    "conv_skip_autoencoder",
    "dense_conv",
    "dense_mlp",
    "find_alive",
    "load",
    "mlp",
    "register_recipe",
    "right_relu",
    "skip_autoencoder",
]
