"""Random networks with random units, rows, weights and gates set to zero."""

from random import Random

import torch
from hypothesis import strategies as st

from nas.models import (
    DagNet,
    Edge,
    Node,
    Plan,
    Skip,
    conv_skip_autoencoder,
    dense_conv,
    dense_mlp,
    mixed_autoencoder,
    mlp,
    separable_autoencoder,
    skip_autoencoder,
)
from nas.models.alive import pick
from nas.models.plan import OPERATIONS

SUPERNETS = {
    "chain of convolutions": lambda: conv_skip_autoencoder(depth=3, width=12),
    "U-Net": lambda: conv_skip_autoencoder(depth=3, width=[8, 12, 8], levels=1, projections=True),
    "separable": lambda: separable_autoencoder(depth=2, width=12, hidden=16, kernel=7),
    "separable U-Net": lambda: separable_autoencoder(depth=3, width=[12, 16], hidden=12, kernel=5, levels=1),
    "scales": lambda: separable_autoencoder(depth=3, width=12, hidden=12, kernel=5, scales=(0, 1, 2), patch=1),
    "mixed": lambda: mixed_autoencoder(depth=2, width=12, kernel=5),
    "dense convolutions": lambda: dense_conv(depth=3, growth=8, patch=2, residual=True),
    "fully connected": lambda: skip_autoencoder(depth=3, patch=4),
    "bottleneck": lambda: skip_autoencoder(depth=3, width=[16, 8, 12], projections=True, patch=4),
    "dense layers": lambda: dense_mlp(widths=(24, 16), patch=4),
    "chain of layers": lambda: mlp(widths=(24, 16), patch=4),
}


def full(kernels):
    """Full edges, from the side of their kernels by source."""
    return tuple(Edge(source, kernel) for source, kernel in kernels.items())


@st.composite
def sparse_nets(draw, *, without=()):
    """A recipe or a random plan in which much is dead, biases grouped or free, in double precision; with inputs."""
    seed = draw(st.integers(0, 2**31))
    random = [make for name, make in RANDOM_RECIPES.items() if name not in without]
    make = draw(st.sampled_from([_conv, _fully_connected, _vectors, _dense, *random, *random[-4:]]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make(Random(seed) if make in random else draw).double()
        shares = [draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])) for _ in range(3)]
        _kill(net, *shares, free_bias=draw(st.booleans()))
        inputs = torch.randn(_input_shape(net), dtype=torch.float64)
    return net, inputs


def _conv(draw):
    sizes = {name: draw(st.integers(1, most)) for name, most in (("depth", 4), ("width", 6), ("patch", 2))}
    return conv_skip_autoencoder(draw(st.sampled_from([1, 3])), **sizes, residual=draw(st.booleans()))


def _fully_connected(draw):
    return skip_autoencoder(1, depth=draw(st.integers(0, 4)), patch=draw(st.integers(1, 3)))


def _vectors(draw):
    return skip_autoencoder(draw(st.integers(1, 6)), depth=draw(st.integers(0, 4)), patch=None)


def _dense(draw):
    """Every earlier node feeds every later one; widths differ, and skips where they agree."""
    units, nodes = {"in": 2}, []
    for name in [*(f"n{k}" for k in range(draw(st.integers(0, 3)))), "out"]:
        width = draw(st.integers(1, 4))
        edges = {source: draw(st.sampled_from([1, 3])) for source in units if draw(st.booleans())}
        skips = tuple(Skip(source) for source, n in units.items() if n == width)
        nodes.append(Node(name, width, full(edges), skips, activation="right_relu"))
        units[name] = width
    nodes[-1] = Node("out", 2, full({list(units)[-2]: 3}))
    return DagNet(Plan(2, tuple(nodes), patch=1))


@torch.no_grad()
def _kill(net, units, weights, gates, free_bias=False):
    """Zeros where a search has them, by their shares: rows (of all tied nodes, or of a whole node), weights, rims of
    kernels, blocks, gates and projections. A bias that is free stays when its row dies."""
    dead = {}
    for name, node in net.named_nodes().items():
        plan = node.plan
        if plan.searched or plan.tied is not None:
            dead[name] = torch.rand(plan.num_rows) < (1 if plan.whole and torch.rand(()) < gates / 2 else units)
            _kill_rows(node, dead[plan.tied or name], weights, free_bias)
        if plan.skips and plan.skips[0].trunk and torch.rand(()) < 0.5:
            node.gates.normal_()
            node.gates *= torch.rand(node.gates.shape) >= gates / 2
    for vector in net.gate_parameters().values():
        vector.normal_()
        vector[torch.rand(len(vector)) < gates] = 0
    for block, _ in net.block_parameters().values():
        torch.nn.init.normal_(block, std=(2 / block[:1].numel()) ** 0.5)
        block[torch.rand(len(block)) < units] = 0
        block[torch.rand(block.shape[:2]) < weights] = 0
        block *= torch.rand(()) >= gates
    for weight, core in net.growing_parameters().values():
        for kernel in weight:
            _zero_rim(kernel, core + 2 * int(torch.randint(1 + (weight.shape[-1] - core) // 2, ())))
    for weight in (p for p in net.parameters() if p.ndim == 4 and torch.rand(()) < 0.3):
        _zero_rim(weight, 1 + 2 * int(torch.randint(1 + weight.shape[-1] // 2, ())))
    for matrix in net.projection_parameters().values():
        matrix.normal_(std=matrix.shape[1] ** -0.5)
        matrix[torch.rand(len(matrix)) < units / 2] = 0
        matrix[torch.rand(matrix.shape) < weights / 2] = 0
        matrix *= torch.rand(()) >= gates / 2


def _kill_rows(node, dead, weights, free_bias):
    """Rows of a node, but for blocks, and for the kernels of depthwise edges to tied nodes, which are no units."""
    for edge, weight in node.weighted_edges():
        if not edge.block:
            if node.plan.tied is None or edge.operation != "depthwise":
                weight[pick(dead, edge.put)] = 0
            weight[torch.rand(weight.shape[:2]) < weights] = 0
    if node.plan.bias:
        node.bias.normal_()
        node.bias[dead & (not free_bias)] = 0


def _zero_rim(weight, side):
    """All but the middle of the kernels."""
    rim = (weight.shape[-1] - side) // 2
    middle = weight[..., rim : rim + side, rim : rim + side].clone()
    weight.zero_()
    weight[..., rim : rim + side, rim : rim + side] = middle


def _input_shape(net):
    return (3, net.plan.inputs, 5, 6) if net.plan.patch is not None else (3, net.plan.inputs)


def random_net(seed):
    """A sparse network of any recipe, or a dense one of mixed kernels, with biases grouped or free; and three inputs.

    A free bias stays when its row dies, so that the unit puts out a constant.
    """
    choose = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = choose.choice([*RANDOM_RECIPES.values(), _random_dense])(choose)
        share = [choose.choice([0.0, 0.3, 0.6, 0.9, 1.0]) for _ in range(3)]
        _kill(net, *share, free_bias=choose.random() < 0.5)
        for vector in net.gate_parameters().values():
            vector.data.mul_(0.5)
        x = torch.rand(_input_shape(net))
    return net, x


def _random_conv(choose):
    sizes = {"depth": choose.randint(1, 5), "width": choose.randint(1, 12), "patch": choose.randint(1, 3)}
    variants = {
        "kernel": choose.choice([1, 3, 5]),
        "residual": choose.random() < 0.5,
        "offset": choose.choice([0, 0.5]),
    }
    return conv_skip_autoencoder(choose.choice([1, 3]), **sizes, **variants)


def _random_fully_connected(choose):
    patch = choose.choice([None, 1, 2, 4])
    channels = choose.randint(1, 12) if patch is None else choose.choice([1, 3])
    return skip_autoencoder(channels, depth=choose.randint(0, 5), patch=patch, offset=choose.choice([0.0, 0.5]))


def _random_dense(choose):
    """Every earlier node may feed every later one; widths, kernels and activations differ."""
    kernels = choose.choice([(None,), (1,), (1, 3), (3,), (1, 3, 5)])
    units, nodes = {"in": 4}, []
    for name in [*(f"n{k}" for k in range(choose.randint(0, 5))), "out"]:
        width = 4 if name == "out" else choose.choice([1, 3, 4, 4, 7])
        edges = {source: choose.choice(kernels) for source in units if choose.random() < 0.6}
        skips = tuple(Skip(source) for source, n in units.items() if n == width and choose.random() < 0.7)
        nodes.append(
            Node(name, width, full(edges), skips, activation=choose.choice(["relu", "right_relu", "identity"]))
        )
        units[name] = width
    return DagNet(Plan(1, tuple(nodes), patch=2, residual=choose.random() < 0.5))


def _random_u_net(choose):
    depth = choose.randint(3, 5)
    widths = [choose.randint(1, 6) for _ in range(depth)]
    levels, residual = choose.randint(0, (depth - 1) // 2), choose.random() < 0.5
    return conv_skip_autoencoder(1, depth=depth, width=widths, levels=levels, projections=True, residual=residual)


def _random_bottleneck(choose):
    widths = [choose.randint(1, 6) for _ in range(choose.randint(1, 4))]
    patch = choose.choice([None, 2])
    return skip_autoencoder(
        choose.randint(1, 5) if patch is None else 1, depth=len(widths), width=widths, projections=True, patch=patch
    )


def _random_dense_mlp(choose, recipe=dense_mlp):
    patch, widths = choose.choice([None, 2]), [choose.randint(1, 8) for _ in range(choose.randint(0, 4))]
    channels = choose.randint(1, 6) if patch is None else 1
    return recipe(channels, widths=widths, outputs=choose.choice([None, 1, 3]), patch=patch)


def _random_mlp(choose):
    return _random_dense_mlp(choose, mlp)


def _random_dense_conv(choose):
    outputs, patch = choose.choice([None, 4]), choose.choice([1, 2])
    residual = outputs is None and choose.random() < 0.5
    growth, kernel = choose.randint(1, 6), choose.choice([1, 3])
    return dense_conv(
        choose.choice([1, 3]), depth=choose.randint(1, 4), growth=growth, outputs=outputs, kernel=kernel, patch=patch,
        residual=residual, offset=0.5,
    )  # fmt: skip


def _random_separable(choose):
    depth = choose.randint(1, 4)
    levels = choose.randint(0, min(1, (depth - 1) // 2))
    return separable_autoencoder(
        choose.choice([1, 1, 3]), depth=depth, width=[choose.randint(1, 6) for _ in range(levels + 1)],
        hidden=[choose.randint(1, 6) for _ in range(depth)], kernel=[choose.choice([1, 3, 5, 7]) for _ in range(depth)],
        core=choose.choice([None, 1, 3]), levels=levels, patch=choose.choice([1, 2]), residual=choose.random() < 0.5,
        scales=0 if levels else choose.choice([0, 1, (0, 1), (2, 0, 1)]),
    )  # fmt: skip


def _random_mixed(choose):
    kernel = choose.choice([3, 5, 7])
    sizes = {"depth": choose.randint(1, 4), "width": choose.randint(1, 6), "patch": choose.choice([1, 2])}
    core = choose.choice([size for size in (1, 3, 5) if size < kernel])
    return mixed_autoencoder(choose.choice([1, 3]), **sizes, kernel=kernel, core=core, residual=choose.random() < 0.5)


def _random_operations(choose):
    """Several edges join the same nodes, between some of their units; nodes compute some units, or have no bias."""
    levels = choose.choice([0, 0, 1])
    units, at, nodes = {"in": 4}, {"in": 0}, []
    for name in [*(f"n{k}" for k in range(choose.randint(1, 4))), "out"]:
        width, level = (4, 0) if name == "out" else (choose.choice([2, 3, 4, 4]), choose.randint(0, levels))
        rows = choose.choice([None, None, _subset(choose, width)])
        num_rows = width if rows is None else len(rows)
        sources = choose.sample(list(units), choose.randint(1, min(3, len(units))))
        edges = [
            _random_edge(choose, source, operation, units[source], num_rows)
            for source in sorted(sources, key=list(units).index)
            for operation in choose.sample(OPERATIONS, choose.randint(1, 3))
        ]
        free = set(units) - Node(name, width, tuple(edges)).block_sources
        skips = tuple(Skip(*link) for link in _random_skips(choose, units, at, width, level) if link[0] in free)
        others = [source for source in units if source in free - {skip.source for skip in skips}]
        look = {"activation": choose.choice(["relu", "right_relu", "identity"]), "bias": choose.random() < 0.6}
        projections = tuple(source for source in others if choose.random() < 0.15)
        nodes.append(Node(name, width, tuple(edges), skips, rows, **look, projections=projections, level=level))
        units[name], at[name] = width, level
    return DagNet(Plan(1, tuple(nodes), patch=2, levels=levels, residual=choose.random() < 0.5))


def _random_edge(choose, source, operation, units, rows):
    kernel = 1 if operation == "pointwise" else choose.choice([1, 3, 5])
    if operation == "depthwise":
        count = choose.randint(1, min(units, rows))
        take, put = _subset(choose, units, count), _subset(choose, rows, count)
    else:
        take, put = (choose.choice([None, _subset(choose, n)]) for n in (units, rows))
    return Edge(source, kernel, operation, choose.random() < 0.2, None, take, put)


def _random_skips(choose, units, at, width, level):
    for source, n in units.items():
        if at[source] == level and choose.random() < 0.5:
            count = choose.randint(1, min(n, width))
            same = n == width and choose.random() < 0.6
            yield source, *((None, None) if same else (_subset(choose, n, count), _subset(choose, width, count)))


def _subset(choose, units, count=None):
    """Some of ``units`` units; None if these are all."""
    count = choose.randint(1, units) if count is None else count
    return None if count == units else tuple(sorted(choose.sample(range(units), count)))


def _random_extra(choose):
    """Channels beside the picture."""
    make = choose.choice([_random_conv, _random_u_net, _random_separable, _random_mixed, _random_fully_connected])
    return DagNet(make(choose).plan.with_extra(choose.randint(1, 2)))


RANDOM_RECIPES = {
    "conv_skip_autoencoder": _random_conv,
    "skip_autoencoder": _random_fully_connected,
    "a U-Net": _random_u_net,
    "a bottleneck": _random_bottleneck,
    "dense_mlp": _random_dense_mlp,
    "dense_conv": _random_dense_conv,
    "mlp": _random_mlp,
    "separable_autoencoder": _random_separable,
    "mixed_autoencoder": _random_mixed,
    "operations": _random_operations,
    "extra channels": _random_extra,
}
NOT_PLAIN = ("separable_autoencoder", "mixed_autoencoder", "operations", "extra channels")


def random_weights(net, seed=0):
    """In double precision, all weights and biases normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net.double()
