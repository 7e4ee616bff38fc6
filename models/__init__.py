"""Networks that can be searched: the DAG supernetwork, its recipes, and the compact network inside one."""

from nas.models.alive import Alive, find_alive
from nas.models.alive_only import alive_only
from nas.models.classics import (
    CLASSICS,
    RightReLU,
    fashion_convnet,
    mnist_mlp,
    resnet18,
    resnet20,
    resnet56,
    vgg13,
    vgg16,
)
from nas.models.compact import compact
from nas.models.dag import DagNet, right_relu
from nas.models.plan import Edge, Node, Plan, Skip
from nas.models.price import prices, total
from nas.models.reach import reach
from nas.models.recipes import (
    RECIPES,
    conv_skip_autoencoder,
    dense_conv,
    dense_mlp,
    mixed_autoencoder,
    mlp,
    register_recipe,
    separable_autoencoder,
    skip_autoencoder,
)
from nas.models.store import load
from nas.models.traced.store import load_module, save_module

__all__ = [
    "CLASSICS",
    "RECIPES",
    "Alive",
    "DagNet",
    "Edge",
    "Node",
    "Plan",
    "RightReLU",
    "Skip",
    "alive_only",
    "compact",
    "conv_skip_autoencoder",
    "dense_conv",
    "dense_mlp",
    "fashion_convnet",
    "find_alive",
    "load",
    "load_module",
    "mixed_autoencoder",
    "mlp",
    "mnist_mlp",
    "prices",
    "reach",
    "register_recipe",
    "resnet18",
    "resnet20",
    "resnet56",
    "right_relu",
    "save_module",
    "separable_autoencoder",
    "skip_autoencoder",
    "total",
    "vgg13",
    "vgg16",
]
