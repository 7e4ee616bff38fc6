"""Ready-made supernets. Each recipe is one function that returns a `DagNet`."""

from collections.abc import Callable

from nas.models.dag import DagNet
from nas.models.plan import INPUT, OUTPUT, Node, Plan, Skip


def conv_skip_autoencoder(
    channels: int = 1, *, depth: int = 5, width: int = 32, kernel: int = 3, patch: int = 2, offset: float = 0.5
) -> DagNet:
    r"""Convolutions on whole pictures; filters are the units, and a gate sits on every possible skip.

        picture --> in --conv--> n1 --conv--> n2 ... --conv--> out --> picture
                     \            \______________/\              ^
                      \____________________________\____________/      gates between nodes of equal width

    A square of ``patch`` x ``patch`` pixels becomes channels, without loss (`torch.nn.functional.pixel_unshuffle`),
    so that a convolution sees ``patch`` times further at the same cost; the output undoes it.

    Args:
        channels: of the picture: 1 for grey, 3 for colour.
        depth: number of hidden nodes, >= 1.
        width: number of filters of each hidden node, >= 1.
        kernel: side of the convolution kernels, odd.
        patch: side of the squares that become channels, >= 1.
        offset: grey value that is 0 inside the network; pictures lie in [0, 1].
    """
    _check_positive("conv_skip_autoencoder", channels=channels, depth=depth, width=width, kernel=kernel, patch=patch)
    return _chain(channels, [width] * depth, kernel, patch, offset, free_output=True)


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
    _check_positive("skip_autoencoder", channels=channels, depth=depth + 1, patch=patch or 1)
    width = channels * (patch or 1) ** 2
    return _chain(channels, [width] * depth, None, patch, offset, free_output=False)


RECIPES: dict[str, Callable[..., DagNet]] = {
    "conv_skip_autoencoder": conv_skip_autoencoder,
    "skip_autoencoder": skip_autoencoder,
}


def _chain(
    channels: int, widths: list[int], kernel: int | None, patch: int | None, offset: float, *, free_output: bool
) -> DagNet:
    """A chain of edges with a gate from every node to every later node of the same width."""
    units = {INPUT: channels * (patch or 1) ** 2}
    nodes: list[Node] = []
    for name, width in [*((f"n{k}", width) for k, width in enumerate(widths, 1)), (OUTPUT, units[INPUT])]:
        free = free_output and name == OUTPUT
        nodes.append(
            Node(
                name,
                width,
                edges={list(units)[-1]: kernel},
                skips=tuple(Skip(source) for source, n in units.items() if n == width),
                activation="identity" if free else "right_relu",
                searched=not free,
            )
        )
        units[name] = width
    return DagNet(Plan(channels, tuple(nodes), patch, offset))


def _check_positive(recipe: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{recipe}({name}=...) must be at least 1, got {size}")
