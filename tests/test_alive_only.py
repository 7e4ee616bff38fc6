"""Alive-only computation: the same outputs, gradients and trajectories as those of the dense computation."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nas import AdaBreg, LinBreg, param_groups, sparse_start
from nas.models import DagNet, alive_only, compact, mixed_autoencoder, separable_autoencoder, skip_autoencoder
from nas.models.families import hand_made
from nas.penalties import scaled
from tests.nets import SUPERNETS, random_net, sparse_nets


def results(net, x):
    """The output, and the gradients of a random function of it at the input and at all parameters."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return y.detach(), {"input": torch.zeros_like(x) if x.grad is None else x.grad, **gradients}


def assert_same(ours: Tensor, dense: Tensor, accuracy: float) -> None:
    torch.testing.assert_close(ours, dense, rtol=0, atol=accuracy * max(1.0, dense.abs().max().item()))


def assert_exact(net, x, accuracy=1e-12):
    """Output and gradients with and without; the net is within `alive_only`."""
    liveness, net.liveness = net.liveness, None
    dense_output, dense_gradients = results(net, x)
    net.liveness = liveness
    output, gradients = results(net, x)
    assert_same(output, dense_output, accuracy)
    for name, dense in dense_gradients.items():
        if dense is None or not dense.numel():
            assert gradients[name] is None or not gradients[name].numel(), name
        else:
            assert_same(gradients[name], dense, accuracy)


@given(sparse_nets())
def test_outputs_and_gradients_are_the_dense_ones(pair):
    net, x = pair
    with alive_only(net):
        assert_exact(net, x)


@pytest.mark.parametrize("seed", range(60))
def test_outputs_and_gradients_are_the_dense_ones_in_single_precision(seed):
    net, x = random_net(seed)
    with alive_only(net):
        assert_exact(net, x, 1e-6)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("name", SUPERNETS)
def test_supernets_at_their_sparse_start(name, density):
    torch.manual_seed(0)
    net = SUPERNETS[name]().double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    sparse_start(net, density)
    with alive_only(net):
        assert_exact(net, x)


@pytest.mark.parametrize("make", [AdaBreg, LinBreg])
@pytest.mark.parametrize("name", SUPERNETS)
def test_trajectories_are_the_dense_ones(name, make):
    """50 steps in which units are born and, as the penalty grows, die: weights and duals agree to round-off."""
    torch.manual_seed(0)
    x, y = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64)
    nets = [SUPERNETS[name]().double()]
    sparse_start(nets[0], 0.2)
    nets.append(copy.deepcopy(nets[0]))
    strength, lr = (0.015, 0.002) if make is AdaBreg else (1.5e-4, 0.1)
    optimizers = [make(param_groups(net, lam=strength, lr=lr)) for net in nets]
    counts = []
    with alive_only(nets[0]):
        for step in range(50):
            for net, optimizer in zip(nets, optimizers, strict=True):
                optimizer.zero_grad()
                (net(x) - y).square().mean().backward()
                optimizer.step()
                if step == 35:
                    for group in optimizer.param_groups:
                        group["penalty"] = scaled(group["penalty"], 5.0)
                    optimizer.reread()
            counts.append(sum(int(p.count_nonzero()) for p in nets[1].parameters()))
    assert any(before < after for before, after in pairwise(counts))
    assert any(before > after for before, after in pairwise(counts))
    for (label, ours), dense in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-9, msg=lambda text, label=label: f"{label}: {text}")
        duals = [o.state[p]["dual"] for o, p in zip(optimizers, (ours, dense), strict=True) if p in o.state]
        if duals:
            torch.testing.assert_close(*duals, rtol=0, atol=1e-9)


def in_place(weight, row):
    with torch.no_grad():
        weight[row].fill_(0.3)


def behind_the_back_of_torch(weight, row):
    weight.data[row, 0] = 0.3


def other_storage(weight, row):
    weight.data = weight.data.index_fill(0, torch.tensor([row]), 0.3)


@pytest.mark.parametrize("change", [in_place, behind_the_back_of_torch, other_storage])
@pytest.mark.parametrize("name", SUPERNETS)
def test_whoever_wakes_a_row_it_is_computed(name, change):
    torch.manual_seed(0)
    net = SUPERNETS[name]().double()
    sparse_start(net, 0.1)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with alive_only(net):
        for weight in [p for p in net.parameters() if p.ndim > 1 and len(p) > 1]:
            net(x)
            change(weight, len(weight) // 2)
            assert_exact(net, x)


def test_gates_biases_and_rings_that_wake_are_computed():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    for make in (SUPERNETS["separable"], SUPERNETS["mixed"], SUPERNETS["U-Net"]):
        net = make().double()
        sparse_start(net, 0.1)
        with alive_only(net), torch.no_grad():
            for p in net.parameters():
                net(x)
                if p.numel():
                    p.view(-1)[-1] = 0.5  # of a kernel that grows this is its corner
                    with torch.enable_grad():
                        assert_exact(net, x)


def test_other_weights_are_loaded():
    torch.manual_seed(0)
    net, other = (SUPERNETS["separable"]().double() for _ in range(2))
    sparse_start(net, 0.1)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with alive_only(net):
        net(x)
        net.load_state_dict(other.state_dict())
        torch.testing.assert_close(net(x), other(x), rtol=0, atol=1e-12)  # in another order of sums
    again = copy.deepcopy(net)
    sparse_start(again, 0.1)
    with alive_only(again):
        assert_exact(again, x)


def test_sets_are_made_anew_at_births_and_deaths_only():
    net = SUPERNETS["separable"]()
    sparse_start(net, 0.1)
    with alive_only(net), torch.no_grad():
        before = net.liveness()
        for p in net.parameters():
            p.mul_(1.5)
        assert net.liveness() is before
        net.nodes["h1"].edges["d1_pointwise"][-1] = 1.0
        assert net.liveness() is not before


@pytest.mark.parametrize(("name", "share"), [("fully connected", 0.35), ("separable", 0.6), ("mixed", 0.45)])
def test_most_products_are_left_out(name, share):
    """At a tenth of the units alive, of the multiply-adds of a step."""
    torch.manual_seed(0)
    wide = {
        "fully connected": lambda: skip_autoencoder(depth=4, patch=8),
        "separable": lambda: separable_autoencoder(depth=3, width=40, hidden=60),
        "mixed": lambda: mixed_autoencoder(depth=3, width=40),
    }
    net = wide[name]()
    x = torch.rand(4, 1, 16, 16)
    sparse_start(net, 0.1)

    def products():
        with FlopCounterMode(display=False) as counter:
            net(x).square().mean().backward()
        return counter.get_total_flops()

    dense = products()
    with alive_only(net):
        assert products() < share * dense


def test_gradients_of_one_output_can_be_computed_twice():
    torch.manual_seed(0)
    net = SUPERNETS["separable"]().double()
    sparse_start(net, 0.2)
    with alive_only(net):
        y = net(torch.rand(2, 1, 8, 8, dtype=torch.float64)).square().sum()
        weights = [p for p in net.parameters() if p.numel()]
        first, second = (torch.autograd.grad(y, weights, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def relu_chain():
    return DagNet(hand_made("chain2", SUPERNETS["chain of convolutions"]().plan, 8))


@pytest.mark.parametrize("make", [SUPERNETS["fully connected"], relu_chain])
def test_a_network_that_is_all_alive_is_computed_densely(make):
    net = make()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    with alive_only(net):
        assert not net.liveness()


def test_compact_networks_are_computed_densely():
    net, x = random_net(3)
    small = compact(net)
    with alive_only(small):
        assert torch.equal(small(x), compact(net)(x))


def test_it_ends_with_its_block():
    net = SUPERNETS["fully connected"]()
    with pytest.raises(KeyError), alive_only(net):
        assert net.liveness is not None
        raise KeyError
    assert net.liveness is None


def test_compiled_networks_are_computed_densely():
    torch.manual_seed(0)
    net = SUPERNETS["fully connected"]()
    sparse_start(net, 0.1)
    x = torch.rand(2, 1, 4, 4)
    expected = net(x)
    with alive_only(net):
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_any_number_of_vectors(shape):
    torch.manual_seed(0)
    net = skip_autoencoder(5, depth=2, patch=None).double()
    sparse_start(net, 0.3)
    with alive_only(net):
        assert_exact(net, torch.rand(shape, dtype=torch.float64))


def test_no_pictures_at_all():
    net = separable_autoencoder(depth=2, width=12, hidden=16, kernel=7, patch=1)
    sparse_start(net, 0.2)
    x = torch.zeros(0, 1, 8, 8)
    with alive_only(net):
        y = net(x)
        y.sum().backward()
    assert y.shape == x.shape


@pytest.mark.parametrize("name", SUPERNETS)
def test_other_tensors_can_stand_for_the_parameters(name):
    torch.manual_seed(0)
    net = SUPERNETS[name]().double()
    sparse_start(net, 0.2)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    others = {key: (1.5 * p).detach() for key, p in net.named_parameters()}
    expected = functional_call(net, others, x)
    with alive_only(net):
        assert_same(functional_call(net, others, x), expected, 1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_outside(copied):
    net = SUPERNETS["fully connected"]()
    with alive_only(net):
        assert copied(net).liveness is None


def test_gradients_of_gradients_are_refused():
    torch.manual_seed(0)
    net = SUPERNETS["fully connected"]()
    sparse_start(net, 0.3)
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    with alive_only(net), pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)


def test_autocast_of_the_backward_pass_alone():
    torch.manual_seed(0)
    net = SUPERNETS["separable"]()
    sparse_start(net, 0.2)
    x = torch.rand(2, 1, 8, 8)
    net(x).sum().backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    with alive_only(net):
        y = net(x).sum()
        with torch.autocast("cpu"):
            y.backward()
    for p, dense in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, dense)
