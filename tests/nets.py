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
    mlp,
    skip_autoencoder,
)  # fmt: skip


def full(kernels):
    """Full edges, from the side of their kernels by source."""
    return tuple(Edge(source, kernel) for source, kernel in kernels.items())


@st.composite
def sparse_nets(draw):
    """A recipe or a random plan in which much is dead, biases grouped or free, in double precision; with inputs."""
    seed = draw(st.integers(0, 2**31))
    make = draw(st.sampled_from([_conv, _fully_connected, _vectors, _dense, *RANDOM_RECIPES.values()]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make(Random(seed) if make in RANDOM_RECIPES.values() else draw).double()
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
    for members in net.unit_parameters().values():
        members[-1].normal_()
        dead = torch.rand(len(members[-1])) < units
        for p in members[:-1] if free_bias else members:
            p[dead] = 0
        for p in members[:-1]:
            p[torch.rand(p.shape[:2]) < weights] = 0
    for vector in net.gate_parameters().values():
        vector.normal_()
        vector[torch.rand(len(vector)) < gates] = 0
    for block in net.block_parameters().values():
        torch.nn.init.normal_(block, std=(2 / block[0].numel()) ** 0.5)
        block[torch.rand(len(block)) < units] = 0
        block[torch.rand(block.shape[:2]) < weights] = 0
        block *= torch.rand(()) >= gates
    for matrix in net.projection_parameters().values():
        matrix.normal_(std=matrix.shape[1] ** -0.5)
        matrix[torch.rand(len(matrix)) < units / 2] = 0
        matrix[torch.rand(matrix.shape) < weights / 2] = 0
        matrix *= torch.rand(()) >= gates / 2


def _input_shape(net):
    return (3, net.plan.channels, 5, 6) if net.plan.patch is not None else (3, net.plan.channels)


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


RANDOM_RECIPES = {
    "conv_skip_autoencoder": _random_conv,
    "skip_autoencoder": _random_fully_connected,
    "a U-Net": _random_u_net,
    "a bottleneck": _random_bottleneck,
    "dense_mlp": _random_dense_mlp,
    "dense_conv": _random_dense_conv,
    "mlp": _random_mlp,
}


def random_weights(net, seed=0):
    """In double precision, all weights and biases normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net.double()
