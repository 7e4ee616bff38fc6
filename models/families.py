"""Networks that one designs by hand, each as wide as a number of parameters allows."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise

from nas.models.plan import DEPTHWISE, INPUT, MAX_SIZE, OUTPUT, POINTWISE, Edge, Node, Plan, Skip

HAND_MADE = (
    "chain1", "chain2", "chain3", "chain5", "chain7", "residual2", "residual3", "residual5",
    "separable3k5", "separable8k5", "separable4k7", "separable5k7",
)  # fmt: skip
NARROWEST, DEEPEST = 2, 100


def chain(like: Plan, depth: int, width: int) -> Plan:
    """``depth`` hidden layers one after the other, 3 x 3 convolutions or matrices.

    Args:
        like: a plan whose input and output the network has: channels, patches, offset, outputs, residual or not, ...
        depth: number of hidden layers, >= 1.
        width: units of each.
    """
    names = [INPUT, *(f"n{k}" for k in range(1, depth + 1))]
    return _finished(like, [Node(name, width, (_edge(like, source),)) for source, name in pairwise(names)])


def residual(like: Plan, blocks: int, width: int) -> Plan:
    """A trunk with blocks t + A2 relu(A1 t + b) of two 3 x 3 convolutions, or matrices; arguments as of `chain`."""
    nodes = [_stem(like, width)]
    for k in range(1, blocks + 1):
        nodes += [Node(f"h{k}", width, (_edge(like, f"t{k - 1}"),)), _sum(k, width, _edge(like, f"h{k}"))]
    return _finished(like, nodes)


def separable(like: Plan, blocks: int, kernel: int, width: int, *, scales: Sequence[int] = (0,)) -> Plan:
    """A trunk with blocks t + P2 relu(P1 D t + b), D depthwise with this ``kernel``, P1 and P2 pointwise, all of one
    width; the blocks have these ``scales`` in turn, as in `nas.models.separable_autoencoder`. Other arguments as of
    `chain`. Convolutional plans only."""
    nodes = [_stem(like, width)]
    for k, level in zip(range(1, blocks + 1), cycle(scales), strict=False):
        depthwise, within = Edge(f"t{k - 1}", kernel, DEPTHWISE), Edge(f"d{k}", 1, POINTWISE)
        nodes += [
            Node(f"d{k}", width, (depthwise,), activation="identity", searched=False, bias=False, level=level),
            Node(f"h{k}", width, (within,), level=level),
            _sum(k, width, Edge(f"h{k}", 1, POINTWISE)),
        ]
    return _finished(like, nodes)


def _scaled(like: Plan, blocks: int, kernel: int, digits: int, width: int) -> Plan:
    return separable(like, blocks, kernel, width, scales=(0, *map(int, str(digits))))


FAMILIES: dict[str, tuple[Callable[..., Plan], str]] = {
    r"chain(1)": (chain, "chain of one hidden layer"),
    r"chain(\d+)": (chain, "chain of {0} hidden layers"),
    r"residual(\d+)": (residual, "{0} residual blocks"),
    r"separable(\d+)k(\d*[13579])": (separable, "{0} separable blocks {1}x{1}"),
    r"separable(\d+)k(\d*[13579])s0([1-9]+)": (_scaled, "{0} separable blocks {1}x{1} at scales 0{2}"),
}


def hand_made(name: str, like: Plan, width: int) -> Plan:
    """The network that a ``name`` such as "chain3", "residual2", "separable5k7" (5 blocks, 7 x 7) or "separable6k3s012"
    (of the scales 0, 1 and 2 in turn) stands for.

    Raises:
        ValueError: no family has this name.
    """
    build, _, numbers = _parsed(name)
    return build(like, *map(int, numbers), width)


def describe(name: str) -> str:
    """What a name stands for, such as "chain of 3 hidden layers"; errors as of `hand_made`."""
    _, text, numbers = _parsed(name)
    return text.format(*numbers)


def widest(name: str, like: Plan, params: int) -> Plan | None:
    """The member of a family that is as wide as ``params`` parameters allow; None where not even 2 units per layer
    fit, or the family makes no sense for vectors.

    Raises:
        ValueError: no family has this name.
    """
    build, *_ = _parsed(name)
    if build in (separable, _scaled) and not like.is_convolutional:
        return None
    widths = range(NARROWEST, MAX_SIZE)
    fitting = bisect_right(widths, params, key=lambda width: hand_made(name, like, width).num_params)
    return hand_made(name, like, widths[fitting - 1]) if fitting else None


def _parsed(name: str) -> tuple[Callable[..., Plan], str, tuple[str, ...]]:
    for pattern, (build, text) in FAMILIES.items():
        if (found := re.fullmatch(pattern, name)) and int(found[1]) in range(1, DEEPEST + 1):
            return build, text, found.groups()
    raise ValueError(f"there is no network {name!r}; write chain3, residual2 or separable5k7 (5 blocks, 7 x 7)")


def _edge(like: Plan, source: str) -> Edge:
    return Edge(source, 3 if like.is_convolutional else None)


def _stem(like: Plan, width: int) -> Node:
    return Node("t0", width, (_edge(like, INPUT),), activation="identity", bias=False)


def _sum(k: int, width: int, edge: Edge) -> Node:
    """The trunk behind block ``k``, whose last layer is ``edge``."""
    trunk = (Skip(f"t{k - 1}", trunk=True),)
    return Node(f"t{k}", width, (edge,), trunk, activation="identity", searched=False, tied="t0", bias=False)


def _finished(like: Plan, nodes: list[Node]) -> Plan:
    last = _edge(like, nodes[-1].name)
    out = Node(OUTPUT, like.units[OUTPUT], (last,), activation="identity", searched=False)
    levels = max(node.level for node in nodes)
    return Plan(like.channels, (*nodes, out), like.patch, like.offset, like.residual, like.pooled, levels, like.extra)
