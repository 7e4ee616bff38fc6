"""Ready-made supernets. Each recipe is one function that returns a `DagNet`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from nas.models.dag import DagNet
from nas.models.plan import DEPTHWISE, INPUT, MAX_LEVELS, MAX_SIZE, OUTPUT, POINTWISE, Edge, Node, Plan, Skip
from nas.registry import Registry


def conv_skip_autoencoder(
    channels: int = 1,
    *,
    depth: int = 5,
    width: int | Sequence[int] = 32,
    levels: int = 0,
    projections: bool = False,
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

    With ``levels`` the first nodes halve the resolution one after the other and the last ones double it again, as in a
    U-Net; gates join nodes of one resolution, here those of depth 5 and levels 2:

        in --> n1 _______________gate_______________ n5 --> out
                 \--> n2 _________gate_________ n4 --/
                         \-------> n3 -------/

    A square of ``patch`` x ``patch`` pixels becomes channels, without loss (`torch.nn.functional.pixel_unshuffle`),
    so that a convolution sees ``patch`` times further at the same cost; the output undoes it.

    Args:
        channels: of the picture: 1 for grey, 3 for colour.
        depth: number of hidden nodes, >= 1.
        width: number of filters of each hidden node, >= 1; or one for every node, such as [32, 16, 8, 16, 32] for a
            bottleneck.
        levels: how often the resolution is halved, at most (depth - 1) / 2.
        projections: a skip with a matrix (1 x 1 convolution) between all hidden nodes, and from the input, where the
            widths or resolutions differ.
        kernel: side of the convolution kernels, odd.
        patch: side of the squares that become channels, >= 1.
        residual: add the picture to the output.
        offset: grey value that is 0 inside the network; pictures lie in [0, 1].

    Raises:
        ValueError: a size out of range.

    Examples:
        >>> import torch
        >>> from nas.models import conv_skip_autoencoder
        >>> net = conv_skip_autoencoder(depth=3, width=8)
        >>> net(torch.zeros(1, 1, 32, 48)).shape
        torch.Size([1, 1, 32, 48])
        >>> net.plan.units
        {'in': 4, 'n1': 8, 'n2': 8, 'n3': 8, 'out': 4}
    """
    name = "conv_skip_autoencoder"
    _check_positive(name, channels=channels, depth=depth, kernel=kernel, patch=patch)
    widths = _widths(name, width, depth)
    _check_levels(name, levels, depth)
    at = [min(k, levels, depth - 1 - k) for k in range(depth)]
    nodes = _chain(channels * patch**2, widths, kernel, projections=projections, levels=at)
    out = replace(nodes[-1], activation="identity", searched=False, projections=())
    if residual:
        out = replace(out, skips=())
    return DagNet(Plan(channels, (*nodes[:-1], out), patch, offset, residual, levels=levels))


def skip_autoencoder(
    channels: int = 1,
    *,
    depth: int = 5,
    width: int | Sequence[int] | None = None,
    projections: bool = False,
    patch: int | None = 28,
    offset: float = 0.0,
) -> DagNet:
    r"""Fully connected layers with a gate on every skip (Bungert et al., arXiv 2106.02479).

        x_(l+1) = relu(W_l x_l + b_l) + sum_(j <= l) s_lj x_j,      l = 0 .. depth          x_(depth+1) is the output

    Works on flattened patches: a 28 x 28 patch is one MNIST picture; a larger picture is cut into patches that do not
    overlap. The neurons of the output are units like all others.

    Args:
        channels: of the picture; the number of features where ``patch`` is None.
        depth: number of hidden nodes, >= 0.
        width: number of neurons of each hidden node, or one for every node; by default all are as wide as the input.
            Gates join nodes of equal width.
        projections: a skip with a matrix between all nodes of different width.
        patch: side of the patches; None for an input of vectors (B, channels).
        offset: value of the input that is 0 inside the network.

    Raises:
        ValueError: a size out of range.
    """
    side = 1 if patch is None else patch
    _check_sizes("skip_autoencoder", 0, depth=depth)
    _check_positive("skip_autoencoder", channels=channels, patch=side)
    inputs = channels * side**2
    widths = _widths("skip_autoencoder", inputs if width is None else width, depth)
    return DagNet(Plan(channels, _chain(inputs, widths, None, projections=projections), patch, offset))


def mlp(
    channels: int = 1,
    *,
    widths: Sequence[int] = (200, 80),
    outputs: int | None = None,
    patch: int | None = 28,
    offset: float = 0.0,
) -> DagNet:
    r"""Fully connected layers one after the other; neurons are the units. The output is linear.

        in --> n1 --> n2 --> out

    Args:
        channels, patch, offset: as in `skip_autoencoder`.
        widths: number of neurons of each hidden node.
        outputs: number of classes, or of numbers to predict: the network returns (B, outputs), without the offset;
            None: as many as inputs, a picture for a picture.

    Raises:
        ValueError: a size out of range.
    """
    plan = _dense("mlp", channels, widths, None, outputs, patch, offset)
    nodes = [replace(node, edges=node.edges[-1:]) for node in plan.nodes]
    return DagNet(replace(plan, nodes=tuple(nodes)))


def dense_mlp(
    channels: int = 1,
    *,
    widths: Sequence[int] = (32, 32),
    outputs: int | None = None,
    patch: int | None = None,
    offset: float = 0.0,
) -> DagNet:
    r"""Every earlier layer feeds every later one through its own block of weights (as in DenseNet).

        in --A--> n1 --A--> n2 --A--> out          n_l = relu( sum_(j < l) A_lj n_j + b_l )
          \\         \\_________A_________/ /
           \\______A_____/          /
            \\___________A__________/

    Units are the neurons and the blocks A_lj that skip a layer (j < l - 1), which start at zero. A row of A_l runs
    across blocks, and a block across rows, so that no proximal operator of both is known in closed form. What is
    penalised is nested instead (`nas.SparseGroup`), and its operator exact: each row of the block from the layer
    before, with its bias; each row of a block that skips, and this block as a whole,

        J = lam sum_l [ sum_i sqrt(n) |(A_(l,l-1) b_l)_i| + sum_(j<l-1) ( sum_i sqrt(n) |A_lj,i| + sqrt(N) |A_lj| ) ]

    with n and N the sizes of a row and of a block, so that blocks wake after neurons. A neuron is dead when its rows
    in all blocks are.

    Args:
        channels, patch, offset: as in `skip_autoencoder`.
        widths: number of neurons of each hidden node.
        outputs: as in `mlp`.

    Raises:
        ValueError: a size out of range.
    """
    return DagNet(_dense("dense_mlp", channels, widths, None, outputs, patch, offset))


def dense_conv(
    channels: int = 1,
    *,
    depth: int = 5,
    growth: int | Sequence[int] = 12,
    outputs: int | None = None,
    kernel: int = 3,
    patch: int = 1,
    residual: bool = False,
    offset: float = 0.0,
) -> DagNet:
    r"""The convolutional version of `dense_mlp`: a DenseNet block (Bungert et al., arXiv 2106.02479).

        picture --> in --conv--> n1 --conv--> n2 --conv--> n3 --conv--> out --> picture, or logits

    with a convolution of its own, a block that starts at zero, between any two nodes that are further apart. What
    DenseNet concatenates is summed here: a convolution of concatenated pictures is the sum of the convolutions of
    each. As a classifier the means of "out" over all positions are the logits, so that pictures may have any size.

    Args:
        channels: of the picture: 1 for grey, 3 for colour.
        depth: number of hidden nodes, >= 1.
        growth: number of filters of each hidden node, or one for every node.
        outputs: number of classes; None for a picture.
        kernel: side of the convolution kernels, odd.
        patch, residual, offset: as in `conv_skip_autoencoder`; a classifier cannot be residual.

    Raises:
        ValueError: a size out of range.
    """
    _check_positive("dense_conv", depth=depth, kernel=kernel)
    widths = _widths("dense_conv", growth, depth)
    plan = _dense("dense_conv", channels, widths, kernel, outputs, patch, offset)
    return DagNet(replace(plan, residual=residual))


def separable_autoencoder(
    channels: int = 1,
    *,
    depth: int = 6,
    width: int | Sequence[int] = 32,
    hidden: int | Sequence[int] = 48,
    kernel: int | Sequence[int] = 7,
    core: int | None = 3,
    levels: int = 0,
    scales: int | Sequence[int] = 0,
    patch: int = 2,
    residual: bool = True,
    offset: float = 0.5,
) -> DagNet:
    r"""Residual blocks of depthwise and pointwise convolutions, t_k = t_(k-1) + P2 relu(P1 D t_(k-1) + b).

        picture --> in --3x3--> t0 ----------(+)--> t1 ----------(+)--> t2 --3x3--> out --(+)--> picture
               \                  \--d1--h1--/        \--d2--h2--/                       /
                \_______________________________________________________________________/

    Searched are the channels of the trunk (channel i of all t_k is one unit), the hidden units h_k, each block as a
    whole, and the kernels of the depthwise convolutions d_k, which start as ``core`` x ``core`` and grow by rings.

    With ``levels`` the blocks in the middle work at half the resolution, as in a U-Net: means over 2 x 2 pixels of the
    trunk lead down to a trunk of their own through a pointwise edge, and back up, each pixel repeated, likewise.

    With ``scales`` there is one trunk of full resolution, and a block of scale s sees means of the trunk over 2^s x 2^s
    pixels; what it adds is repeated for all of these. Blocks of higher scales see farther and compute 4^s times less.

    Args:
        channels, patch, residual, offset: as in `conv_skip_autoencoder`.
        depth: number of blocks, >= 1.
        width: channels of the trunk, or of the trunk of every level, the finest first.
        hidden: units of each block, or one number for every block.
        kernel: largest side of the depthwise kernels, odd, or one for every block.
        core: side that the kernels start with; None, or where it is not smaller than the kernel: they don't grow.
        levels: how often the resolution is halved, at most (depth - 1) / 2.
        scales: scale of the blocks, 0 to 10; several are taken in turn: with (0, 1, 2) every third block works at a
            quarter of the resolution. Not beside ``levels``.

    Raises:
        ValueError: a size out of range.
    """
    name = "separable_autoencoder"
    _check_positive(name, channels=channels, depth=depth, patch=patch, **({} if core is None else {"core": core}))
    _check_levels(name, levels, depth)
    hidden, kernels = _sizes(name, "hidden", hidden, depth), _sizes(name, "kernel", kernel, depth)
    widths = _sizes(name, "width", width, levels + 1)
    scales = _checked_scales(name, scales, levels)
    trunk = _Trunk(widths, channels * patch**2)
    for k, (units, side) in enumerate(zip(hidden, kernels, strict=True)):
        trunk.go_to(min(k, levels, depth - 1 - k))
        trunk.add_block(units, side, core if core is not None and core < side else None, scales[k % len(scales)])
    return DagNet(Plan(channels, trunk.finished(), patch, offset, residual, levels=levels + max(scales)))


class _Trunk:
    """The nodes of `separable_autoencoder`, one after the other. Each level has a trunk: its first and last node."""

    def __init__(self, widths: Sequence[int], inputs: int) -> None:
        self.widths, self.inputs = widths, inputs
        stem = Node("t0", widths[0], (Edge(INPUT, 3),), activation="identity", bias=False)
        self.nodes, self.level, self.blocks = [stem], 0, 0
        self.first, self.last = {0: "t0"}, {0: "t0"}

    def go_to(self, level: int) -> None:
        """Lead the trunk one level down or up, if need be."""
        if level > self.level:
            self._add(f"down{level}", level, Edge(self.last[self.level], 1, POINTWISE), begins=True)
        elif level < self.level:
            self._add(f"up{level}", level, Edge(self.last[self.level], 1, POINTWISE))
        self.level = level

    def add_block(self, hidden: int, kernel: int, core: int | None, scale: int) -> None:
        self.blocks += 1
        k, first, last = self.blocks, self.first[self.level], self.last[self.level]
        level, width = self.level + scale, self.widths[self.level]
        depthwise = Edge(last, kernel, DEPTHWISE, core=core)
        self.nodes.append(
            Node(
                f"d{k}", width, (depthwise,),
                activation="identity", searched=False, tied=first, bias=False, level=level,
            )
        )  # fmt: skip
        within = Edge(f"d{k}", 1, POINTWISE)
        self.nodes.append(Node(f"h{k}", hidden, (within,), activation="right_relu", whole=True, level=level))
        self._add(f"t{k}", self.level, Edge(f"h{k}", 1, POINTWISE))

    def finished(self) -> tuple[Node, ...]:
        self.go_to(0)
        last = Edge(self.last[0], 3)
        return *self.nodes, Node(OUTPUT, self.inputs, (last,), activation="identity", searched=False)

    def _add(self, name: str, level: int, edge: Edge, *, begins: bool = False) -> None:
        """A node of the trunk at this level, to which the edge adds something."""
        first = None if begins else self.first[level]
        skips = () if begins else (Skip(self.last[level], trunk=True),)
        self.nodes.append(
            Node(
                name, self.widths[level], (edge,), skips,
                activation="identity", searched=begins, tied=first, bias=False, level=level,
            )
        )  # fmt: skip
        self.first.setdefault(level, name)
        self.last[level] = name


def mixed_autoencoder(
    channels: int = 1,
    *,
    depth: int = 5,
    width: int = 24,
    kernel: int = 7,
    core: int = 3,
    patch: int = 2,
    residual: bool = True,
    offset: float = 0.5,
) -> DagNet:
    r"""Three operations compete between neighbours, and a gate sits on every possible skip.

        in --3x3--> n1 ==pointwise, full 3x3, depthwise==> n2 ==pointwise, full 3x3, depthwise==> n3 --3x3--> out

    The units are the rows of the pointwise edges with their biases; full and depthwise edges are blocks, which start
    at zero: each row (channel) and the edge as a whole is a group; the depthwise kernels grow by rings, channel by
    channel, from ``core`` to ``kernel``.

    Args:
        channels, patch, residual, offset: as in `conv_skip_autoencoder`.
        depth: number of hidden nodes, >= 1.
        width: units of each hidden node.
        kernel: largest side of the depthwise kernels, odd.
        core: side with which they begin, odd, < kernel.

    Raises:
        ValueError: a size out of range.
    """
    name = "mixed_autoencoder"
    _check_positive(name, channels=channels, depth=depth, width=width, kernel=kernel, core=core, patch=patch)
    inputs, nodes = channels * patch**2, []
    for k in range(1, depth + 1):
        before = INPUT if k == 1 else f"n{k - 1}"
        operations = (
            Edge(before, 1, POINTWISE), Edge(before, 3, block=True), Edge(before, kernel, DEPTHWISE, True, core)
        )  # fmt: skip
        skips = tuple(Skip(f"n{j}") for j in range(1, k))
        nodes.append(Node(f"n{k}", width, (Edge(before, 3),) if k == 1 else operations, skips, activation="right_relu"))
    skips = () if residual else (Skip(INPUT),)
    out = Node(OUTPUT, inputs, (Edge(f"n{depth}", 3),), skips, activation="identity", searched=False)
    return DagNet(Plan(channels, (*nodes, out), patch, offset, residual))


RECIPES: Registry[Callable[..., DagNet]] = Registry(
    "model",
    {
        "conv_skip_autoencoder": conv_skip_autoencoder,
        "skip_autoencoder": skip_autoencoder,
        "dense_mlp": dense_mlp,
        "dense_conv": dense_conv,
        "mlp": mlp,
        "separable_autoencoder": separable_autoencoder,
        "mixed_autoencoder": mixed_autoencoder,
    },
)


def register_recipe(name: str, recipe: Callable[..., nn.Module]) -> None:
    """Let ``recipe`` be chosen by ``model: name``.

    Args:
        name: an identifier.
        recipe: makes a `DagNet`, or a module that can be traced, from the number of channels and options. Where one is
            named ``outputs``, a task with classes fills in their number.

    Raises:
        ValueError: the name is taken, or is no identifier.
    """
    RECIPES.register(name, recipe)  # type: ignore[arg-type]  # of a user's: any module; ours are all plans


def _chain(
    inputs: int, widths: Sequence[int], kernel: int | None, *, projections: bool, levels: Sequence[int] = ()
) -> tuple[Node, ...]:
    """A chain of edges to an output as wide as the input, with a skip from every node to every later one: a gate
    where width and level are the same, else, if wanted, a projection."""
    sizes = {INPUT: (inputs, 0)}
    hidden = ((f"n{k}", size) for k, size in enumerate(zip(widths, levels or [0] * len(widths), strict=True), 1))
    nodes: list[Node] = []
    for name, size in [*hidden, (OUTPUT, sizes[INPUT])]:
        skips = tuple(Skip(source) for source, other in sizes.items() if other == size)
        others = tuple(source for source, other in sizes.items() if other != size) if projections else ()
        nodes.append(
            Node(
                name, size[0], (Edge(list(sizes)[-1], kernel),), skips,
                activation="right_relu", projections=others, level=size[1],
            )
        )  # fmt: skip
        sizes[name] = size
    return tuple(nodes)


def _dense(
    recipe: str, channels: int, widths: Sequence[int], kernel: int | None, outputs: int | None, patch: int | None,
    offset: float,
) -> Plan:  # fmt: skip
    """Edges from every node to every later one, those that skip a node as blocks; the output is linear."""
    side = 1 if patch is None else patch
    widths = _widths(recipe, widths, len(widths) if isinstance(widths, Sequence) else 1)
    _check_positive(recipe, channels=channels, patch=side, **({} if outputs is None else {"outputs": outputs}))
    inputs = channels * side**2
    sources = [INPUT]
    nodes: list[Node] = []
    for name, units in [*((f"n{k}", width) for k, width in enumerate(widths, 1)), (OUTPUT, outputs or inputs)]:
        edges = tuple(Edge(source, kernel, block=source != sources[-1]) for source in sources)
        nodes.append(Node(name, units, edges, activation="right_relu"))
        sources.append(name)
    nodes[-1] = replace(nodes[-1], activation="identity", searched=False)
    return Plan(channels, tuple(nodes), patch, offset, pooled=outputs is not None)


def _widths(recipe: str, widths: int | Sequence[int], depth: int) -> list[int]:
    return _sizes(recipe, "width", widths, depth)


def _sizes(recipe: str, name: str, sizes: int | Sequence[int], count: int) -> list[int]:
    """One size for each of ``count`` places."""
    sizes = list(sizes) if isinstance(sizes, Sequence) else [sizes] * count
    for size in sizes:
        _check_positive(recipe, **{name: size})
    if len(sizes) != count:
        raise ValueError(f"{recipe}({name}=...) takes {count} numbers, got {len(sizes)}")
    return sizes


def _check_levels(recipe: str, levels: int, depth: int) -> None:
    if not isinstance(levels, int) or not 0 <= levels <= (depth - 1) // 2:
        raise ValueError(f"{recipe}(levels=...) must be an integer from 0 to (depth - 1) / 2, got {levels} for {depth}")


def _checked_scales(recipe: str, scales: int | Sequence[int], levels: int) -> list[int]:
    scales = list(scales) if isinstance(scales, Sequence) else [scales]
    if not scales or not all(type(scale) is int and 0 <= scale <= MAX_LEVELS for scale in scales):
        raise ValueError(f"{recipe}(scales=...) must be integers from 0 to {MAX_LEVELS}, got {scales}")
    if levels and any(scales):
        raise ValueError(f"{recipe} takes levels or scales, not both; got levels {levels} and scales {scales}")
    return scales


def _check_positive(recipe: str, **sizes: int) -> None:
    _check_sizes(recipe, 1, **sizes)


def _check_sizes(recipe: str, least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or not least <= size <= MAX_SIZE:
            raise ValueError(f"{recipe}({name}=...) must be an integer from {least} to {MAX_SIZE}, got {size}")
