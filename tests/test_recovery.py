"""What Bregman iterations find: sparse solutions of linear systems, in inverse scale order, and growing networks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from nas import L1, AdaBreg, GroupLasso, LinBreg, ProxSGD, sparse_start
from nas.groups import ENTRIES, ROWS

pytestmark = pytest.mark.usefixtures("float64")
EQUATIONS, UNKNOWNS = 30, 80


def planted(seed, live, columns=1):
    """A matrix with normalised columns, an unknown with few live rows, and the right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(EQUATIONS, UNKNOWNS, generator=generator)
    matrix /= matrix.norm(dim=0)
    solution = torch.zeros(UNKNOWNS, columns)
    rows = torch.randperm(UNKNOWNS, generator=generator)[:live]
    signs = 2.0 * torch.randint(2, (live, columns), generator=generator) - 1
    solution[rows] = signs * (1 + torch.rand(live, columns, generator=generator))
    return matrix, solution, matrix @ solution


def solve(matrix, right, penalty, *, delta=1.0, steps=3000, **options):
    """The limit of linearised Bregman iterations on |A x - b|^2 / 2, from zero."""
    x = nn.Parameter(torch.zeros(UNKNOWNS, right.shape[1]))
    lr = 1 / (delta * torch.linalg.matrix_norm(matrix, ord=2).item() ** 2)
    optimizer = LinBreg([x], lr=lr, penalty=penalty, delta=delta, **options)
    for _ in range(steps):
        x.grad = matrix.T @ (matrix @ x.detach() - right)
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize(("seed", "delta", "momentum"), [(0, 1.0, 0.0), (1, 5.0, 0.0), (2, 1.0, 0.8)])
def test_basis_pursuit_recovers_the_planted_solution(seed, delta, momentum):
    matrix, solution, right = planted(seed, live=5)
    x = solve(matrix, right, L1(20.0), delta=delta, momentum=momentum)
    assert torch.equal(x.abs() > 1e-8, solution != 0)
    torch.testing.assert_close(x, solution, rtol=0, atol=1e-6)

    halves = torch.cat([matrix, -matrix], dim=1)  # x = u - v with u, v >= 0
    program = linprog([1.0] * 2 * UNKNOWNS, A_eq=halves.numpy(), b_eq=right[:, 0].numpy())
    u, v = torch.from_numpy(program.x).split(UNKNOWNS)
    torch.testing.assert_close(x[:, 0], u - v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_group_lasso_recovers_planted_rows(seed):
    matrix, solution, right = planted(seed, live=4, columns=3)
    x = solve(matrix, right, GroupLasso(10.0, ROWS))
    assert torch.equal(x.norm(dim=1) > 1e-8, solution.norm(dim=1) != 0)
    torch.testing.assert_close(x, solution, rtol=0, atol=1e-6)


def test_strong_enough_is_exact():
    """Above a threshold neither lam nor delta changes the limit, and below it the limit is less sparse."""
    matrix, solution, right = planted(0, live=5)
    for lam, delta in ((5.0, 1.0), (20.0, 1.0), (1.0, 10.0)):
        torch.testing.assert_close(solve(matrix, right, L1(lam), delta=delta), solution, rtol=0, atol=1e-6)
    assert (solve(matrix, right, L1(0.01)).abs() > 1e-8).sum() > 5


@given(
    rms=st.lists(st.floats(0.1, 3), min_size=2, max_size=6, unique=True).map(lambda r: sorted(r, reverse=True)),
    columns=st.sampled_from([1, 4, 50]),
    lam=st.floats(0.1, 1),
)
def test_groups_enter_in_inverse_scale_order(rms, columns, lam):
    """A group enters at step floor(lam / (lr * rms of its gradient)) + 1, whatever its size."""
    lr, theta = 0.02, nn.Parameter(torch.zeros(len(rms), columns))
    slope = torch.randn(len(rms), columns, generator=torch.Generator().manual_seed(columns))
    slope *= torch.tensor(rms)[:, None] / slope.square().mean(dim=1, keepdim=True).sqrt()
    optimizer = LinBreg([theta], lr=lr, penalty=GroupLasso(lam, ROWS))
    entry = torch.zeros(len(rms))
    for k in range(1, math.floor(lam / (lr * 0.1)) + 3):
        theta.grad = slope.clone()
        optimizer.step()
        entry += k * ((entry == 0) & theta.detach().ne(0).any(dim=1))
    assert (entry > 0).all()
    assert (entry.diff() >= 0).all()
    expected = torch.tensor([math.floor(lam / (lr * r)) + 1 for r in rms])
    assert ((entry - expected).abs() <= 1).all()  # a sum of k steps is rounded
    clear = torch.tensor([abs(lam / (lr * r) - round(lam / (lr * r))) > 1e-6 for r in rms])
    assert torch.equal(entry[clear], expected[clear].to(entry))


def regression(kind, penalty, lr, density, steps=600):
    """Part of the hidden weights that is alive after every step, and the losses."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 1))
    weight = net[0].weight
    groups = [{"params": [weight], "penalty": penalty}, {"params": [net[0].bias, *net[2].parameters()]}]
    if density < 1:
        sparse_start(net, density, groups=groups)
    optimizer = kind(groups, lr=lr)
    x = torch.randn(256, 10)
    y = torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    alive, losses = [ENTRIES.active(weight).double().mean().item()], []
    for _ in range(steps):
        chosen = torch.randint(256, (32,))
        optimizer.zero_grad()
        loss = (net(x[chosen]) - y[chosen]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        alive.append(ENTRIES.active(weight).double().mean().item())
    return torch.tensor(alive), torch.tensor(losses)


@pytest.mark.parametrize(("kind", "lr", "lam"), [(LinBreg, 0.05, 0.1), (AdaBreg, 0.004, 0.4)])
def test_bregman_grows_from_its_sparse_start_B1(kind, lr, lam):
    alive, losses = regression(kind, L1(lam), lr, density=0.05)
    assert alive[0] == pytest.approx(0.05)
    sixths = alive[1:].reshape(6, 100).mean(dim=1)
    assert (sixths.diff() >= 0).all()
    assert 0.05 < alive[-1] < 0.7
    assert losses[-100:].mean() < 0.8 * losses[:20].mean()


def test_prox_sgd_falls_from_its_dense_start_B1():
    alive, _ = regression(ProxSGD, L1(0.01), lr=0.05, density=1.0)
    assert alive[0] == 1
    sixths = alive[1:].reshape(6, 100).mean(dim=1)
    assert (sixths.diff() < 0).all()
    assert alive[-1] < 0.7
