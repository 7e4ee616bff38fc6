"""p = prox(z, step) if and only if (z - p) / step is a subgradient of J at p."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas import FILTERS, KERNELS, L1, WHOLE, GroupLasso, Groups, LogSum, NonNegativeL1, Nuclear, SparseGroup, Zero
from nas.groups import ROWS, along, join_rows, num_units, split_rows, unit_norms, unit_size

SHAPE = (4, 3, 2, 2)
LAYOUTS = [
    *(Groups(over=axes) for axes in ((2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 2, 3), (1,), (0,), (), None)),
    *(Groups(over=(0, 1), block=block) for block in ((2, 3), (4, 1))),
    Groups(over=(3, 0), block=(1, 2)),
]
PENALTIES = [
    Zero(),
    L1(0.3),
    *(GroupLasso(0.3, groups) for groups in LAYOUTS),
    GroupLasso(0.3, FILTERS, rms=False),
    *(SparseGroup(L1(0.2), GroupLasso(0.3, groups)) for groups in (*LAYOUTS[:2], LAYOUTS[-1])),
    *(SparseGroup(GroupLasso(0.2, KERNELS), GroupLasso(0.1, groups)) for groups in (FILTERS, WHOLE)),
    SparseGroup(GroupLasso(0.2, FILTERS), GroupLasso(0.05, WHOLE, rms=False)),
    Nuclear(0.3),
    NonNegativeL1(0.3),
]

pytestmark = pytest.mark.usefixtures("float64")


def random_weight(seed, zero_rows=()):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    weight[list(zero_rows)] = 0
    return weight


def assert_subgradient(penalty, subgradient, p):
    """J(y) >= J(p) + <subgradient, y - p> at points chosen to expose a wrong scale, direction or group."""
    probes = [torch.zeros_like(p), 2 * p, p + subgradient]
    for seed in range(5):
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        probes += [p + radius * direction for radius in (1e-3, 0.1, 1.0, 10.0)]
    for y in probes:
        assert penalty.value(y) >= penalty.value(p) + (subgradient * (y - p)).sum() - 1e-10


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@given(seed=st.integers(0, 10**6), step=st.floats(1e-2, 5), scale=st.floats(1e-2, 10))
def test_prox_residual_is_a_subgradient(penalty, seed, step, scale):
    z = scale * random_weight(seed)
    p = penalty.prox(z, step)
    assert_subgradient(penalty, (z - p) / step, p)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@given(seed=st.integers(0, 10**6), rows=st.sets(st.integers(0, 3)))
def test_subgradient_is_one_and_vanishes_on_dead_groups(penalty, seed, rows):
    weight = random_weight(seed, rows)
    weight = weight.abs() if isinstance(penalty, NonNegativeL1) else weight
    subgradient = penalty.subgradient(weight)
    assert_subgradient(penalty, subgradient, weight)
    if getattr(penalty, "groups", ROWS).over == (1, 2, 3):
        assert not subgradient[list(rows)].any()


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("delta", [0.5, 1.0, 4.0])
def test_dual_start_gives_the_weights_back(penalty, delta):
    weight = random_weight(8, zero_rows=(1,))
    weight = weight.abs() if isinstance(penalty, NonNegativeL1) else weight
    dual = weight / delta + penalty.subgradient(weight)
    torch.testing.assert_close(penalty.prox(delta * dual, delta), weight, rtol=0, atol=1e-14)


def test_soft_threshold_T1():
    assert L1(1.0).prox(torch.tensor([3, -0.5, 1, -2.0]), 1.0).tolist() == [2, 0, 0, -1]


def test_group_prox_T8():
    z = torch.tensor([[3, 4], [0.3, 0.4], [0.0, 0.0]])
    p = GroupLasso(1.0, ROWS).prox(z, 1.0)
    torch.testing.assert_close(p, torch.tensor([[2.151472, 2.868629], [0, 0], [0, 0]]), rtol=0, atol=1e-6)
    assert (z - p)[0].norm().item() == pytest.approx(2**0.5)  # Moreau: what is cut off a survivor is the threshold


def test_sparse_group_T12():
    z = torch.tensor([[3.0, -4.0, 0.5]])
    l1, group = L1(1.0), GroupLasso(1 / 3**0.5, ROWS)  # both thresholds are 1
    expected = torch.tensor([[1.445300, -2.167950, 0]])
    torch.testing.assert_close(SparseGroup(l1, group).prox(z, 1.0), expected, rtol=0, atol=1e-6)
    reverse = l1.prox(group.prox(z, 1.0), 1.0)
    torch.testing.assert_close(reverse, torch.tensor([[1.402978, -2.203970, 0]]), rtol=0, atol=1e-6)


def test_nuclear_T13():
    torch.testing.assert_close(
        Nuclear(1.5).prox(torch.diag(torch.tensor([3.0, 1])), 1.0), torch.diag(torch.tensor([1.5, 0]))
    )


def test_nuclear_leaves_null_directions_free():
    subgradient = Nuclear(2.0).subgradient(torch.outer(torch.tensor([1.0, 2, 0]), torch.tensor([3.0, 0, 4])))
    assert torch.linalg.matrix_rank(subgradient) == 1
    assert torch.linalg.svdvals(subgradient)[0].item() == pytest.approx(2)


def test_negative_weights_cost_infinitely_much():
    assert NonNegativeL1(0.5).value(torch.tensor([1.0, 2.0])) == 1.5
    assert NonNegativeL1(0.5).value(torch.tensor([1.0, -1e-9])) == float("inf")


def test_group_of_one_entry_is_l1():
    weight = random_weight(3)[..., :1, :1]
    group = GroupLasso(0.3, Groups(over=(2, 3)))
    torch.testing.assert_close(group.prox(weight, 2.0), L1(0.3).prox(weight, 2.0))
    torch.testing.assert_close(group.value(weight), L1(0.3).value(weight))


@given(rows=st.integers(1, 5), columns=st.integers(0, 4), seed=st.integers(0, 99))
def test_rows_of_units_round_trip(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in ((rows, columns, 3, 3), (rows,), (rows, 2))]
    joined = join_rows(tensors)
    assert joined.shape == (rows, 9 * columns + 3)
    assert all(torch.equal(a, b) for a, b in zip(split_rows(joined, tensors), tensors, strict=True))


@given(
    units=st.integers(1, 4),
    outer=st.integers(1, 3),
    inner=st.integers(1, 3),
    taken=st.integers(-3, 3).filter(bool),
    seed=st.integers(0, 99),
)
def test_units_of_several_slices_round_trip(units, outer, inner, taken, seed):
    taken, count = max(-outer, min(outer, taken)), outer * units * inner
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in ((count, 2, 3), (2, count), (count,), (units, 2))]
    axes = [(0, outer, inner, taken), (1, outer, inner, taken), (0, outer, inner, taken), 0]
    joined = join_rows(tensors, axes)
    assert joined.shape == (units, abs(taken) * inner * (6 + 2 + 1) + 2) == (units, unit_size(tensors, axes))
    part = torch.arange(count) // (inner * units)
    place = (torch.arange(count) // inner % units, part < taken if taken > 0 else part >= outer + taken)
    for i in range(units):
        chosen = (place[0] == i) & place[1]
        own = [tensors[0][chosen], tensors[1][:, chosen].T, tensors[2][chosen], tensors[3][i]]
        assert torch.equal(joined[i], torch.cat([each.flatten() for each in own]))
    torch.testing.assert_close(unit_norms(tensors, axes), joined.norm(dim=1))
    again = split_rows(joined, tensors, axes, rest=tensors)
    assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True))
    zeroed = [
        torch.where(along(torch.zeros(units), p, axis).bool(), p, 0) for p, axis in zip(tensors, axes, strict=True)
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(split_rows(0 * joined, tensors, axes, rest=tensors), zeroed, strict=True)
    )


@pytest.mark.parametrize(
    "axis", [(0, 2, 1, 1), (0, 1, 4, 1), (2, 1, 1, 1), (0, 3, 1, 4), (0, 3, 1, -4), (0, 3, 1, 0), (0, 1, 0, 1), 2, -1]
)
def test_units_that_do_not_fit_a_tensor_are_refused(axis):
    with pytest.raises(ValueError, match="no units lie along .* in a tensor of shape"):
        num_units(torch.zeros(3, 3), axis)


@pytest.mark.parametrize("groups", LAYOUTS, ids=repr)
@given(seed=st.integers(0, 10**6))
def test_groups_are_a_partition(groups, seed):
    """Every entry is in one group; norms, means, activity and size agree with the entries of each group."""
    weight = random_weight(seed) * random_weight(seed + 1).gt(0)
    shape = groups.norms(weight).shape
    number = torch.arange(float(shape.numel())).reshape(shape)
    belongs = groups.spread(number, weight)  # the number of its group, for every entry
    for index, norm, mean, active in zip(
        number.flatten(),
        groups.norms(weight).flatten(),
        groups.means(weight).flatten(),
        groups.active(weight).flatten(),
        strict=True,
    ):
        entries = weight[belongs == index]
        assert len(entries) == groups.size(weight)
        torch.testing.assert_close(norm, entries.norm())
        torch.testing.assert_close(mean, entries.abs().mean())
        assert active == entries.any()
    assert sum(int((belongs == index).sum()) for index in number.flatten()) == weight.numel()


def test_activity_is_exact():
    weight = torch.zeros(2, 3, 2, 2, dtype=torch.float32)
    weight[1, 0, 0, 0] = 1e-30  # its norm underflows
    assert Groups(over=(1, 2, 3)).active(weight).flatten().tolist() == [False, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-1.0), r"L1\(lam=...\) must be a finite number >= 0, got -1.0"),
        (lambda: Nuclear(-1.0), r"Nuclear\(lam=...\) must be a finite number >= 0, got -1.0"),
        (lambda: NonNegativeL1(float("inf")), r"NonNegativeL1\(lam=...\) must be .* got inf"),
        (lambda: GroupLasso(float("nan"), ROWS), r"GroupLasso\(lam=...\) must be .* got nan"),
        (lambda: Groups(over=(0, 1), block=(2,)), r"Groups\(block=\(2,\)\) must have one size >= 1 for each axis"),
        (lambda: Groups(over=(0,), block=(0,)), r"block=\(0,\)\) must have one size >= 1"),
        (lambda: Groups(over=(0, 1), block=(2, 3)).norms(torch.zeros(4, 4)), r"block=\(2, 3\)\) does not fit .*4, 4"),
        (lambda: LogSum(1.0, contrast=1.0), r"LogSum\(contrast=...\) must be a finite number > 1, got 1.0"),
        (lambda: LogSum(1.0, groups=Groups((0,), (2,))), r"LogSum\(groups=...\) takes no blocks, got block=\(2,\)"),
        (lambda: Groups(over=(1, 1)), "must name each axis once"),
        (lambda: Groups(over=(-1,)), "must name each axis once"),
        (lambda: ROWS.norms(torch.zeros(3)), r"does not fit a tensor of shape \(3,\)"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
