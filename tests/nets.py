"""Random networks with random units, rows, weights and gates set to zero."""

import torch
from hypothesis import strategies as st

from nas.models import DagNet, Node, Plan, Skip, conv_skip_autoencoder, skip_autoencoder


@st.composite
def sparse_nets(draw):
    """A recipe or a random plan in which much is dead, in double precision; with a seed for its inputs."""
    seed = draw(st.integers(0, 2**31))
    make = draw(st.sampled_from([_conv, _fully_connected, _vectors, _dense]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make(draw).double()
        _kill(net, *(draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])) for _ in range(3)))
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
        nodes.append(Node(name, width, edges, skips, activation="right_relu"))
        units[name] = width
    nodes[-1] = Node("out", 2, {list(units)[-2]: 3})
    return DagNet(Plan(2, tuple(nodes), patch=1))


@torch.no_grad()
def _kill(net, units, weights, gates):
    for members in net.unit_parameters().values():
        members[-1].normal_()
        dead = torch.rand(len(members[-1])) < units
        for p in members:
            p[dead] = 0
            if p.ndim > 1:
                p[torch.rand(p.shape[:2]) < weights] = 0
    for vector in net.gate_parameters().values():
        vector.normal_()
        vector[torch.rand(len(vector)) < gates] = 0


def _input_shape(net):
    return (3, net.plan.channels, 5, 6) if net.plan.patch is not None else (3, net.plan.channels)
