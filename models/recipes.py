"""Ready-made supernets. Each recipe is one function that returns a `DagNet`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nas.models.dag import DagNet
from nas.models.plan import INPUT, MAX_SIZE, OUTPUT, Node, Plan, Skip
from nas.registry import Registry


def conv_skip_autoencoder(
    channels: int = 1,
    *,
    depth: int = 5,
    width: int = 32,
    kernel: int = 3,
    patch: int = 2,
    residual: bool = True,
    offset: float = 0.5,
) -> DagNet:
    r"""Convolutions on whole pictures; filters are the units, and a gate sits on every possible skip.

        picture --> in --conv--> n1 --conv--> n2 --conv--> n3 --conv--> out --(+)--> picture
               \                  \___gate___/ \___gate___/              /
                \                  \__________gate________/             /
                 \_____________________________________________________/

    The output is a correction of the picture, so that an empty network returns the picture as it is. Without
    ``residual`` the way from "in" to "out" gets a gate like all pairs of nodes of equal width.

    A square of ``patch`` x ``patch`` pixels becomes channels, without loss (`torch.nn.functional.pixel_unshuffle`),
    so that a convolution sees ``patch`` times further at the same cost; the output undoes it.

    Args:
        channels: of the picture: 1 for grey, 3 for colour.
        depth: number of hidden nodes, >= 1.
        width: number of filters of each hidden node, >= 1.
        kernel: side of the convolution kernels, odd.
        patch: side of the squares that become channels, >= 1.
        residual: add the picture to the output.
        offset: grey value that is 0 inside the network; pictures lie in [0, 1].

    Raises:
        ValueError: a size out of range.
    """
    _check_positive("conv_skip_autoencoder", channels=channels, depth=depth, width=width, kernel=kernel, patch=patch)
    nodes = _chain(channels * patch**2, [width] * depth, kernel)
    out = replace(nodes[-1], activation="identity", searched=False, skips=() if residual else nodes[-1].skips)
    return DagNet(Plan(channels, (*nodes[:-1], out), patch, offset, residual))


def skip_autoencoder(channels: int = 1, *, depth: int = 5, patch: int | None = 28, offset: float = 0.0) -> DagNet:
    r"""Fully connected layers of equal width with a gate on every skip (Bungert et al., arXiv 2106.02479).

        x_(l+1) = relu(W_l x_l + b_l) + sum_(j <= l) s_lj x_j,      l = 0 .. depth          x_(depth+1) is the output

    Works on flattened patches: a 28 x 28 patch is one MNIST picture; a larger picture is cut into patches that do not
    overlap. The neurons of the output are units like all others.

    Args:
        channels: of the picture; the number of features where ``patch`` is None.
        depth: number of hidden nodes, >= 0.
        patch: side of the patches; None for an input of vectors (B, channels).
        offset: value of the input that is 0 inside the network.
    """
    side = 1 if patch is None else patch
    _check_positive("skip_autoencoder", channels=channels, depth=depth + 1, patch=side)
    width = channels * side**2
    return DagNet(Plan(channels, _chain(width, [width] * depth, None), patch, offset))


RECIPES: Registry[Callable[..., DagNet]] = Registry(
    "model",
    {
        "conv_skip_autoencoder": conv_skip_autoencoder,
        "skip_autoencoder": skip_autoencoder,
    },
)


def register_recipe(name: str, recipe: Callable[..., DagNet]) -> None:
    """Let ``recipe`` be chosen by ``model: name``.

    Args:
        name: an identifier.
        recipe: makes a `DagNet` from the number of channels and keyword-only options with defaults. Where one is
            named ``outputs``, a task with classes fills in their number.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    RECIPES.register(name, recipe)


def _chain(inputs: int, widths: Sequence[int], kernel: int | None) -> tuple[Node, ...]:
    """A chain of edges to an output as wide as the input, with a gate from every node to every later one as wide."""
    units = {INPUT: inputs}
    nodes: list[Node] = []
    for name, width in [*((f"n{k}", width) for k, width in enumerate(widths, 1)), (OUTPUT, inputs)]:
        skips = tuple(Skip(source) for source, n in units.items() if n == width)
        nodes.append(Node(name, width, {list(units)[-1]: kernel}, skips, activation="right_relu"))
        units[name] = width
    return tuple(nodes)


def _check_positive(recipe: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"{recipe}({name}=...) must be an integer from 1 to {MAX_SIZE}, got {size}")
