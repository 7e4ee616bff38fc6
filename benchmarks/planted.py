"""Planted topologies: does a search find the network that made the data?

A small random teacher of a recipe makes targets from random inputs, with noise of a tenth of their standard deviation;
a larger student of the same recipe searches. Of each found network are printed its skips against the teacher's
(precision and recall), its neurons per node, and its test loss as a multiple of the noise floor. "Found" means: the
skips are the teacher's and the neurons of every node are within 10 %, or the network has no more parameters than the
teacher; and the test loss is within 5 % of the floor.

    python -m benchmarks.planted --cases dense_mlp --seeds 0-9 --algorithms adabreg+polish
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.polish import polish
from benchmarks.rewrites import REWRITES
from benchmarks.surgery import blocks_of
from nas import AdaBreg, LinBreg, param_groups, sparse_start
from nas.models import DagNet, compact, dense_conv, dense_mlp, find_alive, skip_autoencoder
from nas.search import search

NOISE, MATTERS = 0.1, 0.02  # part of the standard deviation; part of the variance that every teacher's part makes
GAIN, OPEN = 1.5, 0.5  # norm of a neuron's weights; how often a skip is there
STEPS = 100  # of an epoch
DRAWS = 1000  # of teachers; the cases here need up to 24

Pair = tuple[Tensor, Tensor]
Slice = tuple[Tensor, int | None]  # the slice of this index, or the whole tensor


@dataclass(frozen=True)
class Case:
    """A teacher and its student.

    Attributes:
        teacher: makes the network of which ``rows`` units per node live; of other nodes all do.
        student: makes the supernet.
        rows: number of living units by node.
        shape: of one input.
        samples, batch: inputs to train on (as many to validate, twice as many to test), and of one batch.
        epochs: of 100 steps.
        starts: so many sparse starts grow; the one with the least validation loss is polished.
        trials: of the polishing.
    """

    teacher: Callable[[], DagNet]
    student: Callable[[], DagNet]
    rows: dict[str, int]
    shape: tuple[int, ...]
    samples: int
    batch: int
    epochs: int
    starts: int = 1
    trials: int = 100


def _check(teacher: Sequence[int], student: Sequence[int]) -> None:
    if len(teacher) != len(student) or not all(1 <= t <= s for t, s in zip(teacher, student, strict=True)):
        raise ValueError(
            f"teacher and student must be as many numbers, the teacher's from 1 to the student's, got {list(teacher)} "
            f"and {list(student)}"
        )


def dense(teacher: Sequence[int] = (5, 4), student: Sequence[int] = (32, 32), epochs: int = 30) -> Case:
    """`dense_mlp` of 6 features and 3 outputs, with these numbers of neurons."""
    _check(teacher, student)
    return Case(
        lambda: dense_mlp(6, widths=teacher, outputs=3),
        lambda: dense_mlp(6, widths=student, outputs=3),
        {}, (6,), 16384, 256, epochs,
    )  # fmt: skip


def convolutions(teacher: Sequence[int] = (3, 2), student: Sequence[int] = (12, 12), epochs: int = 20) -> Case:
    """`dense_conv` on pictures of 8 x 8 pixels, with these numbers of filters."""
    _check(teacher, student)
    return Case(
        lambda: dense_conv(1, depth=len(teacher), growth=teacher),
        lambda: dense_conv(1, depth=len(student), growth=student),
        {}, (1, 8, 8), 256, 16, epochs, trials=60,
    )  # fmt: skip


def skips(teacher: Sequence[int] = (5, 4), student: Sequence[int] = (16, 16), epochs: int = 30) -> Case:
    """`skip_autoencoder` of as many features as the last number of the student says.

    Gates join nodes of equal width, so that the teacher is as wide as the student, but most of its neurons are dead.
    """
    _check(teacher, student)
    *hidden, features = student

    def net() -> DagNet:
        return skip_autoencoder(features, depth=len(hidden), width=hidden, patch=None)

    rows = dict(zip([*(f"n{k}" for k in range(1, len(hidden) + 1)), "out"], teacher, strict=True))
    return Case(net, net, rows, (features,), 16384, 256, epochs, starts=2)


CASES = {"dense_mlp": dense, "dense_conv": convolutions, "skip_autoencoder": skips}
ALGORITHMS = ("adabreg", "linbreg", "adabreg+polish", "linbreg+polish")


@dataclass(frozen=True)
class Found:
    """A found network against its teacher; see the module."""

    precision: float
    recall: float
    neurons: dict[str, tuple[int, int]]  # by node, found and planted
    params: tuple[int, int]
    loss: float
    seconds: float

    @property
    def is_exact(self) -> bool:
        close = all(abs(found - planted) <= 0.1 * planted for found, planted in self.neurons.values())
        same = self.precision == self.recall == 1 and close
        return (same or self.params[0] <= self.params[1]) and self.loss <= 1.05


def make_teacher(case: Case, seed: int) -> DagNet:
    """A teacher whose neurons' weights are orthogonal and in which every unit and every skip matters.

    Raises:
        ValueError: in none of `DRAWS` draws every part matters: there are too many for that.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        net = case.teacher()
        _draw(net, case.rows, generator)
        if _all_matters(net, torch.randn(2048 // math.prod(case.shape[1:]), *case.shape, generator=generator)):
            return net
    raise ValueError(f"in none of {DRAWS} random teachers every part matters; ask for fewer neurons")


@torch.no_grad()
def _draw(net: DagNet, rows: dict[str, int], generator: torch.Generator) -> None:
    for name, node in net.named_nodes().items():
        for p in node.parameters():
            p.zero_()
        units = node.plan.num_rows
        live = torch.randperm(units, generator=generator)[: rows.get(name, units)]
        node.bias[live] = torch.rand(len(live), generator=generator) - 0.5
        for source, weight in node.edges.items():
            if source not in blocks_of(node) or torch.rand((), generator=generator) < OPEN:
                weight[live] = _orthogonal(weight[live], generator) * (GAIN if node.plan.searched else 1)
        for k in range(len(node.gates)):
            size, sign, is_open = torch.rand(3, generator=generator)
            node.gates[k] = (0.5 + size / 2) * (1 if sign < 0.5 else -1) * (is_open < OPEN)


def _orthogonal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Orthogonal rows (columns, where there are more rows) of the mean norm 1."""
    wide = like.flatten(1)
    basis = torch.linalg.qr(torch.randn(max(wide.shape), min(wide.shape), generator=generator))[0]
    rows = basis.T if wide.shape[0] < wide.shape[1] else basis
    scaled: Tensor = rows * math.sqrt(max(1, wide.shape[0] / wide.shape[1]))
    return scaled.reshape(like.shape)


@torch.no_grad()
def _all_matters(net: DagNet, x: Tensor) -> bool:
    y = net(x)
    return all(_changed(net, x, y, slices) >= MATTERS * _variance(y) for slices in _groups(net))


def _changed(net: DagNet, x: Tensor, y: Tensor, slices: list[Slice]) -> float:
    """The variance that is missing while these slices are zero."""
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for tensor, index in slices:
        (tensor if index is None else tensor[index]).zero_()
    missing = _variance(net(x) - y)
    net.load_state_dict(state)
    return missing


def _groups(net: DagNet) -> Iterator[list[Slice]]:
    """The living units and skips, each as slices of tensors."""
    for node in net.named_nodes().values():
        for i in node.bias.nonzero()[:, 0].tolist() if node.plan.searched else ():
            yield [(p, i) for p in (*node.edges.values(), node.bias)]
        for k in node.gates.nonzero()[:, 0].tolist():
            yield [(node.gates, k)]
        for source in blocks_of(node):
            if node.edges[source].any():
                yield [(node.edges[source], None)]


def _variance(y: Tensor) -> float:
    return float((y - y.mean(dim=0)).square().mean())


def find(case: Case, algorithm: str, seed: int) -> Found:
    """Search with a student, and compare what it finds with its teacher."""
    teacher = make_teacher(case, seed)

    @torch.no_grad()
    def pairs(n: int, part: int, noise: float) -> Pair:
        generator = torch.Generator().manual_seed(1000 * seed + part)
        x = torch.randn(n, *case.shape, generator=generator)
        y = teacher(x)
        return x, y + noise * torch.randn(y.shape, generator=generator)

    noise = NOISE * math.sqrt(_variance(pairs(case.samples, 0, 0.0)[1]))
    (x, y), validation = pairs(case.samples, 0, noise), pairs(case.samples, 1, noise)
    test = pairs(2 * case.samples, 2, noise)

    def batches(epoch: int) -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for _ in range(STEPS):
            chosen = torch.randint(len(x), (case.batch,), generator=generator)
            yield x[chosen], y[chosen]

    @torch.no_grad()
    def loss(net: DagNet, pair: Pair) -> float:
        return float(F.mse_loss(net(pair[0]), pair[1])) / noise**2

    began = time.perf_counter()
    grown = [_grown(case, algorithm, seed + 1000 * k, batches) for k in range(case.starts)]
    net = min(grown, key=lambda net: loss(net, validation))
    if algorithm.endswith("+polish"):
        probe = x[: len(x) // 4], y[: len(y) // 4]
        net = polish(
            net, batches, F.mse_loss, lambda net: loss(net, validation), probe, trials=case.trials,
            first_epoch=case.epochs + 1, surgery=REWRITES,
        )[-1].net  # fmt: skip
    seconds = time.perf_counter() - began
    planted, found = _skips(teacher), _skips(net)
    common = len(planted & found)
    alive, expected = _neurons(net), _neurons(teacher)
    return Found(
        precision=common / len(found) if found else 1.0,
        recall=common / len(planted) if planted else 1.0,
        neurons={name: (alive.get(name, 0), n) for name, n in expected.items()},
        params=tuple(sum(p.numel() for p in compact(each).parameters()) for each in (net, teacher)),  # type: ignore[arg-type]
        loss=loss(net, test),
        seconds=seconds,
    )


def _grown(case: Case, algorithm: str, seed: int, batches: Callable[[int], Iterator[Pair]]) -> DagNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = case.student()
    sparse_start(net, 0.1, seed=seed, batch=next(batches(0))[0])
    if algorithm.startswith("adabreg"):
        optimizer: AdaBreg | LinBreg = AdaBreg(param_groups(net, lr=0.005, lam=0.25))  # the first wake after 50 steps
    else:
        optimizer = LinBreg(param_groups(net, lr=0.1, lam=0.5, gate_lr=0.1, gate_lam=0.5), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.epochs * STEPS)
    for _ in islice(search(net, batches, optimizer, F.mse_loss, scheduler=scheduler), case.epochs):
        pass
    return net


def _skips(net: DagNet) -> set[tuple[str, str]]:
    return set(find_alive(net).skips)


def _neurons(net: DagNet) -> dict[str, int]:
    """Neurons that are computed, by searched node."""
    small = compact(net)
    return {node.name: node.num_rows for node in small.plan.nodes if node.searched}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="planted topologies: does a search find the network that made the data?"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=_seeds, default="0-9", help="first and last seed, such as 0-9")
    parser.add_argument("--teacher", nargs="+", type=int, help="other numbers of neurons than the case's own")
    parser.add_argument("--student", nargs="+", type=int, help="likewise")
    options = parser.parse_args(arguments)
    sizes = {key: getattr(options, key) for key in ("teacher", "student") if getattr(options, key)}
    try:
        for name in options.cases:
            case = CASES[name](**sizes)
            for algorithm in options.algorithms:
                results = [_reported(name, case, algorithm, seed) for seed in options.seeds]
                _summarise(name, algorithm, results)
    except ValueError as problem:
        parser.error(str(problem))


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must be two whole numbers such as 0-9, the smaller first, got {text!r}")
    return range(int(first), int(last) + 1)


def _reported(name: str, case: Case, algorithm: str, seed: int) -> Found:
    found = find(case, algorithm, seed)
    neurons = ", ".join(f"{node} {a} of {b}" for node, (a, b) in found.neurons.items())
    print(
        f"{name:<18}{algorithm:<16}seed {seed:<3}{'found' if found.is_exact else '-':<7}skips: precision "
        f"{found.precision:.2f}, recall {found.recall:.2f}; neurons: {neurons}; parameters {found.params[0]} of "
        f"{found.params[1]}; loss / floor {found.loss:.3f}; {found.seconds:.0f} s",
        flush=True,
    )
    return found


def _summarise(name: str, algorithm: str, results: list[Found]) -> None:
    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    exact = sum(found.is_exact for found in results)
    precision, recall = (mean([getattr(found, key) for found in results]) for key in ("precision", "recall"))
    ratio = mean([a / b for found in results for a, b in found.neurons.values()])
    loss, seconds = (mean([getattr(found, key) for found in results]) for key in ("loss", "seconds"))
    print(
        f"{name:<18}{algorithm:<16}{exact} of {len(results)} found; means: skips: precision {precision:.2f}, recall "
        f"{recall:.2f}; neurons / planted {ratio:.2f}; loss / floor {loss:.3f}; {seconds:.0f} s\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
