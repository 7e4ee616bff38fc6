"""Random networks of plain operations: extraction is exact on them, or they are refused, and nothing else happens.

    python -m benchmarks.graphs --count 10000
    python -m benchmarks.graphs --seed 4711            one of them, with what its forward does

Networks take one to three inputs and do a dozen things with whatever was there before: layers (some of them twice),
normalisations, activations, changes in place, sums and products, slices, concatenations, reductions, reshapes. The
units that `coupled_units` finds are set to zero in part, and so is, in a copy, any part of any tensor. What `extract`
returns must compute the same, also on a batch that it has not seen, and what is dead must be gone.
"""

import argparse
import copy
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import coupled_units, settle_norms
from nas.analysis import extract
from nas.groups import Members, num_units, slices, unit_axes

Operation = Callable[..., Tensor]
EXACT = 1e-9  # largest difference of outputs in double precision, relative to the largest output if that is above 1
LARGEST = 1e4  # largest output; behind larger ones round-off is all there is
LENGTH = 9  # how many operations come before the heads, at most
NONE = "has no layer whose channels can be units"


class RandomGraph(nn.Module):
    """A network that a seed determines.

    Args:
        seed: of all choices.
        length: how many operations come before the heads, at most.
    """

    def __init__(self, seed: int, length: int = LENGTH) -> None:
        super().__init__()
        self.choose = random.Random(seed)
        torch.manual_seed(seed)
        shapes = [(3, 4, 4), self.choose.choice([(3, 4, 4), (6,), (4, 4, 4)]), (5,)][: self.choose.choice([1, 1, 2, 3])]
        self.inputs = tuple(torch.randn(2, *shape) for shape in shapes)
        self.steps: list[tuple[str, Operation, tuple[int, ...]]] = []
        self.layers = nn.ModuleList()
        self.stored = nn.ParameterList()
        self.buffers_: list[Tensor] = []
        values = [x.clone() for x in self.inputs]
        singles = [x[:1].clone() for x in self.inputs]
        for _ in range(length):
            self._grow(values, singles)
        self.leaves = [k for k in range(len(values)) if not any(k in read for _, _, read in self.steps)]
        if self.choose.random() < 0.15:
            self.leaves.append(self.choose.randrange(len(values)))
        self.raw = [k for k in self.leaves if self.choose.random() < 0.06]
        self.heads = nn.ModuleList(self._head(values[k]) for k in self.leaves)
        self.double()
        self.inputs = tuple(x.double() for x in self.inputs)

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for _, operation, read in self.steps:
            values.append(operation(*(values[k] for k in read)))
        heads = [head(values[k]) for head, k in zip(self.heads, self.leaves, strict=True)]
        total = torch.stack([y.flatten(1).sum(1) for y in heads], 1)
        return (total, {"heads": heads, "raw": [values[k] for k in self.raw]}) if self.raw else total

    def __deepcopy__(self, memo: dict[int, Any]) -> "RandomGraph":
        """Operations hold the layers of this network by their numbers: they are given the copy."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            new.__dict__[name] = value if name == "steps" else copy.deepcopy(value, memo)
        new.steps = [(name, _bound(operation, new), read) for name, operation, read in self.steps]
        return new

    def _grow(self, values: list[Tensor], singles: list[Tensor]) -> None:
        """One more operation, if it can be computed of two examples and of one."""
        kind = self.choose.choice(KINDS)
        first = self.choose.choice([self.choose.randrange(len(values)), len(values) - 1])
        try:
            name, operation, read = kind(self, values, first)
            both, one = [x.clone() for x in values], [x.clone() for x in singles]
            both.append(operation(*(both[k] for k in read)))
            one.append(operation(*(one[k] for k in read)))
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            return
        shape = tuple(both[-1].shape)
        if 2 <= len(shape) <= 5 and shape[0] == 2 and both[-1].numel() < 4000 and one[-1].shape == (1, *shape[1:]):
            values[:], singles[:] = both, one
            self.steps.append((name, operation, read))

    def add(self, layer: nn.Module) -> Operation:
        self.layers.append(layer)
        return Layer(self, len(self.layers) - 1)

    def keep(self, *shape: int) -> int:
        self.stored.append(nn.Parameter(torch.randn(*shape)))
        return len(self.stored) - 1

    def _head(self, x: Tensor) -> nn.Module:
        return nn.Conv2d(x.shape[1], 2, 1) if x.ndim == 4 else nn.Linear(x.shape[-1], 2)

    def _mixing(self, x: Tensor, width: int) -> nn.Module:
        """A layer that reads all channels of a tensor."""
        channels, bias = x.shape[1], self.choose.random() < 0.6
        if x.ndim == 4:
            size = self.choose.choice([1, 1, 3])
            kind: Any = self.choose.choice([nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d])
            return kind(channels, width, size, padding=self.choose.choice([0, size // 2]), bias=bias)  # type: ignore[no-any-return]
        if x.ndim == 3 and self.choose.random() < 0.5:
            return nn.Conv1d(channels, width, 1, bias=bias)
        return nn.Linear(x.shape[-1], width, bias=bias)


class Layer:
    """A layer of a network, by its number."""

    def __init__(self, net: RandomGraph, number: int) -> None:
        self.net, self.number = net, number

    def __call__(self, x: Tensor) -> Tensor:
        return self.net.layers[self.number](x)  # type: ignore[no-any-return]


class Stored:
    """A function of a tensor and of one that a network holds."""

    def __init__(self, net: RandomGraph, number: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.net, self.number, self.function = net, number, function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, self.net.stored[self.number])


def _bound(operation: Operation, net: RandomGraph) -> Operation:
    if isinstance(operation, Layer | Stored):
        operation = copy.copy(operation)
        operation.net = net
    return operation


Choice = tuple[str, Operation, tuple[int, ...]]


def mixing(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    return "layer", net.add(net._mixing(values[k], net.choose.choice([4, 6]))), (k,)


def again(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    return "layer again", Layer(net, net.choose.randrange(len(net.layers))), (k,)


def grouped(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    channels = values[k].shape[1]
    groups = net.choose.choice([channels, channels, 2])
    kind, width = net.choose.choice([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d]), channels * net.choose.choice([1, 1, 2])
    layer = kind(channels, width, 3, padding=1, groups=groups, bias=bool(k % 2))
    return "grouped layer", net.add(layer), (k,)


def normalised(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    x, choose = values[k], net.choose
    channels, affine = x.shape[1], choose.random() < 0.8
    batch = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.ndim]
    layer = choose.choice(
        [
            batch(channels, affine=affine),
            batch(channels, affine=affine, track_running_stats=choose.random() < 0.7),
            nn.GroupNorm(choose.choice([1, 2, channels]), channels, affine=affine),
            nn.LayerNorm(x.shape[choose.choice([1, -1]) :], elementwise_affine=affine),
            nn.InstanceNorm2d(channels, affine=affine),
        ]
    )
    return type(layer).__name__, net.add(layer), (k,)


def activated(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    channels = values[k].shape[1]
    layers = [
        *(nn.GELU(), nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Softplus(), nn.Hardswish(inplace=True)),
        *(nn.LeakyReLU(0.1, inplace=True), nn.PReLU(), nn.PReLU(channels), nn.Dropout(0.1), nn.Softmax(dim=1)),
        *(nn.ELU(), nn.Tanh(), nn.Hardtanh(0.1, 1), nn.GLU(1), nn.Softmax(dim=-1), nn.Identity()),
    ]
    layer = net.choose.choice(layers)
    return type(layer).__name__, net.add(layer), (k,)


def pooled(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    layers = [
        *(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2)),
        *(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.ZeroPad2d((0, 1, 1, 0)), nn.ConstantPad2d(1, 0.3)),
        *(nn.MaxPool1d(3, 1, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Flatten(), nn.Flatten(2), nn.Unfold(2)),
        *(
            nn.LPPool2d(2, 2),
            nn.ChannelShuffle(2),
            nn.Unflatten(1, (2, -1)),
            nn.Upsample(scale_factor=2, mode="bicubic"),
        ),
    ]
    layer = net.choose.choice(layers)
    return type(layer).__name__, net.add(layer), (k,)


def functional(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    name = net.choose.choice(list(ONE))
    return name, ONE[name], (k,)


def of_two(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    name = net.choose.choice([*TWO, "sum", "sum", "cat", "cat", "sum in place"])
    fitting = [j for j, x in enumerate(values) if x.shape == values[k].shape and j != k]
    j = net.choose.choice(fitting if fitting and net.choose.random() < 0.8 else range(len(values)))
    return name, TWO[name], (k, j)


def of_a_stored_tensor(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    x = values[k]
    channels, rest = x.shape[1], [1] * (x.ndim - 2)
    name, shape = net.choose.choice(
        [
            *(("times a gate", (1,)), ("times gates", (channels, *rest)), ("plus shifts", (channels, *rest))),
            *(("plus a map", tuple(x.shape[1:])), ("F.conv2d", (4, channels, 1, 1)), ("F.linear", (4, x.shape[-1]))),
            *(("matmul", (x.shape[-1], 4)), ("F.batch_norm", (channels,)), ("einsum", (channels, 4))),
            *(
                ("einsum of the last", (4, x.shape[-1])),
                ("einsum that moves", (channels, 4)),
                ("addmm", (4, x.shape[-1])),
            ),
            *(("embedding", (2, 4)), ("places", tuple(x.shape[-2:]))),
        ]
    )
    return name, Stored(net, net.keep(*shape), STORED[name]), (k,)


def of_a_layer(net: RandomGraph, values: Sequence[Tensor], k: int) -> Choice:
    """What forwards read of layers beside calling them."""
    layer = Layer(net, net.choose.randrange(len(net.layers)))
    name = net.choose.choice(["its mean weight", "its width", "its bias"])
    return name, OfLayer(layer.net, layer.number, name), (k,)


class OfLayer(Layer):
    def __init__(self, net: RandomGraph, number: int, what: str) -> None:
        super().__init__(net, number)
        self.what = what

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self.net.layers[self.number]
        if self.what == "its mean weight":
            return x + layer.weight.mean()  # type: ignore[no-any-return]
        if self.what == "its width":
            return x * len(layer.weight) ** -0.5  # type: ignore[no-any-return]
        return x + layer.bias.view(1, -1, *[1] * (x.ndim - 2))  # type: ignore[no-any-return]


def _in_place(function: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        function(x)
        return x

    return apply


ONE: dict[str, Operation] = {
    "relu in place": torch.relu_,
    "F.leaky_relu in place": lambda x: F.leaky_relu_(x, 0.1),
    "a slice in place": _in_place(lambda x: x[:, :2].mul_(3)),
    "a slice set": _in_place(lambda x: x[:, 1:].fill_(0.2)),
    "a chunk in place": _in_place(lambda x: x.chunk(2, 1)[0].add_(1)),
    "transposed in place": _in_place(lambda x: x.transpose(1, -1).mul_(0.5)),
    "detached in place": _in_place(lambda x: x.detach().add_(1)),
    "flattened in place": _in_place(lambda x: x.flatten(1).tanh_()),
    "out": lambda x: torch.add(x, 1, out=x),
    "times a number": lambda x: x.mul_(0.7),
    "plus a number": lambda x: x + 0.3,
    "one minus": lambda x: 1 - x,
    "square": lambda x: x * x,
    "clamp": lambda x: x.clamp(0.1, 2),
    "where": lambda x: torch.where(x > 0.2, x, 0.1 * x),
    "masked": lambda x: x.masked_fill(x < 0, 0.1),
    "mean of positions": lambda x: x.mean((2, 3)),
    "mean of positions kept": lambda x: x * x.mean((2, 3), keepdim=True),
    "mean of channels": lambda x: x - x.mean(1, keepdim=True),
    "sum of channels": lambda x: x.sum(1, keepdim=True),
    "largest channel": lambda x: x.amax(1, keepdim=True),
    "largest": lambda x: x.max(2)[0],
    "deviation": lambda x: x / (x.var((2, 3), keepdim=True) + 1),
    "norm": lambda x: F.normalize(x, dim=1),
    "cumsum": lambda x: x.cumsum(1),
    "sorted": lambda x: x.sort(1)[0],
    "slice": lambda x: x[:, 1:],
    "half": lambda x: x[:, : x.shape[1] // 2],
    "every second": lambda x: x[:, ::2],
    "one channel": lambda x: x[:, 1],
    "a row": lambda x: x[:, :, 1],
    "chosen": lambda x: x[:, [2, 0]],
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 1, 0])),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "F.glu": F.glu,
    "gate": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, x.shape[1] - 1], 1)[1],
    "unbind": lambda x: x.unbind(1)[0] + x.unbind(1)[1],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "flatten": lambda x: x.flatten(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "pictures": lambda x: x.transpose(1, 2).unflatten(2, (4, 4)),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "view": lambda x: x.view(len(x), -1, 2),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "back": lambda x: x.permute(0, 3, 1, 2),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "unsqueeze both": lambda x: x[:, :, None, None],
    "squeeze": lambda x: x.squeeze(),
    "expand": lambda x: x.expand(-1, 4, *x.shape[2:]),
    "repeat": lambda x: x.repeat(1, 2, *[1] * (x.ndim - 2)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "pad channels": lambda x: F.pad(x, (0, 0) * (x.ndim - 2) + (1, 1)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "batch": lambda x: x.flatten(0, 1).unflatten(0, x.shape[:2]),
    "constant": lambda x: x - torch.linspace(0.1, 0.4, x.shape[1]).view(1, -1, *[1] * (x.ndim - 2)),
    "like": lambda x: x + torch.ones_like(x),
    "own": lambda x: x * x.shape[1] ** -0.5,
}
TWO: dict[str, Operation] = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - 2 * y,
    "product": lambda x, y: x * y,
    "gated": lambda x, y: x * torch.sigmoid(y),
    "scaled": lambda x, y: x * y[:, :, None, None].sigmoid(),
    "sum in place": lambda x, y: x.add_(y),
    "product in place": lambda x, y: x.mul_(y),
    "copy": lambda x, y: x.copy_(y),
    "maximum": torch.maximum,
    "quotient": lambda x, y: x / (1 + y.square()),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "cat beside": lambda x, y: torch.cat([x, y], -1),
    "stack": lambda x, y: torch.stack([x, y], 1).sum(1),
    "stacked": lambda x, y: torch.stack([x, y], 2).flatten(1, 2),
    "matmul": lambda x, y: x @ y.transpose(-1, -2),
    "einsum": lambda x, y: torch.einsum("nchw,nchw->nc", x, y),
    "where": lambda x, y: torch.where(x > y, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
}
STORED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times a gate": lambda x, p: x * p,
    "times gates": lambda x, p: x * p,
    "plus shifts": lambda x, p: x + p,
    "plus a map": lambda x, p: x + p,
    "F.conv2d": F.conv2d,
    "F.linear": F.linear,
    "matmul": torch.matmul,
    "F.batch_norm": lambda x, p: F.batch_norm(x, None, None, p, p, training=True),
    "einsum": lambda x, p: torch.einsum("nc...,cd->nd...", x, p),
    "einsum of the last": lambda x, p: torch.einsum("...c,dc->...d", x, p),
    "einsum that moves": lambda x, p: torch.einsum("cd,ncij->nijd", p, x),
    "addmm": lambda x, p: torch.addmm(p[:, 0], x.flatten(0, -2), p.t()).unflatten(0, x.shape[:-1]),
    "embedding": lambda x, p: F.embedding((x > 0).long(), p),
    "places": lambda x, p: x + F.embedding(torch.arange(len(p)), p),
}
KINDS = [
    *[mixing] * 9,
    *(again, grouped, normalised, normalised, activated, activated, activated, pooled, pooled),
    *[functional] * 5,
    *[of_two] * 4,
    *(of_a_stored_tensor, of_a_stored_tensor, of_a_layer),
]


# What must hold


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Every tensor is away from zero, the statistics too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.5))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)


@torch.no_grad()
def kill(units: dict[str, Members], generator: torch.Generator) -> dict[str, Tensor]:
    """Set half of the units of every layer to zero, all but one at most; the masks of what is alive."""
    alive = {}
    for layer, members in units.items():
        size = num_units(members[0], unit_axes(members)[0])
        alive[layer] = torch.rand(size, generator=generator) >= 0.5
        alive[layer][torch.randint(size, (1,), generator=generator)] = True
        for p, axis in zip(members, unit_axes(members), strict=True):
            slices(p, axis)[~alive[layer]] = 0
    return alive


@torch.no_grad()
def zero_some(model: nn.Module, generator: torch.Generator) -> None:
    """Set some rows, columns and entries of parameters to zero, whatever they belong to."""
    for p in model.parameters():
        for axis in range(min(p.ndim, 2)):
            p.movedim(axis, 0)[torch.rand(p.shape[axis], generator=generator) < 0.3] = 0


class Failure(AssertionError):
    """What must not happen."""


def check(seed: int, length: int = LENGTH) -> str:
    """What became of the network of a seed, with so many operations at most: "units", "no unit", "not finite", or
    "untraceable".

    Raises:
        Failure: it was accepted, and something is wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    net = RandomGraph(seed, length)
    other = copy.deepcopy(net)
    answer, units = "units", {}
    try:
        units = coupled_units(net, net.inputs, strict=False)
    except ValueError as problem:
        if "cannot trace" in str(problem) or "cannot compute" in str(problem):
            return "untraceable"
        if NONE not in str(problem):
            raise
        answer = "no unit"
    randomise(net, generator)
    other.load_state_dict(net.state_dict())
    alive = kill(units, generator)
    settle_norms(net, units)
    zero_some(other, generator)
    if not (_is_tame(net) and _is_tame(other)):
        return "not finite"
    small = _extracted(net, generator)
    held, names = dict(small.named_parameters()), {id(p): name for name, p in net.named_parameters()}
    for layer, members in units.items():
        for p, axis in zip(members, unit_axes(members), strict=True):
            if num_units(held[names[id(p)]], axis) != int(alive[layer].sum()):
                raise Failure(f"{names[id(p)]} keeps dead units of {layer}")
    _extracted(other, generator)
    return answer


def _tensors(outputs: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(outputs) if isinstance(each, Tensor)]


@torch.no_grad()
def _is_tame(net: RandomGraph) -> bool:
    found = _tensors(net.eval()(*(x.clone() for x in net.inputs)))
    return all(bool((y.abs() < LARGEST).all()) for y in found)


@torch.no_grad()
def _extracted(net: RandomGraph, generator: torch.Generator) -> nn.Module:
    before = [x.clone() for x in net.inputs]
    small, certificate = extract(net.eval(), [tuple(x[0] for x in net.inputs)])
    if not all(map(torch.equal, before, net.inputs)):
        raise Failure("the inputs are changed")
    unseen = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in net.inputs]
    expected, found = (_tensors(each(*(x.clone() for x in unseen))) for each in (net, small))
    for y, z in zip(expected, found, strict=True):
        if y.shape != z.shape:
            raise Failure(f"the extracted network returns {tuple(z.shape)} for {tuple(y.shape)}")
        difference = _largest(y - z)
        if y.isfinite().all() and not difference <= EXACT * max(1.0, _largest(y)):
            raise Failure(f"the extracted network differs by {difference:.1e}, certified {certificate.holds}")
    if not certificate.holds:
        raise Failure(f"the certificate does not hold: {certificate.max_abs_float64:.1e}")
    return small


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--length", type=int, default=LENGTH, help="operations before the heads, at most (%(default)s)")
    parser.add_argument("--seed", type=int, help="only this one, with what its network does")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.seed is not None:
        net = RandomGraph(given.seed, given.length)
        for k, (name, _, read) in enumerate(net.steps, len(net.inputs)):
            print(f"{k:>3}  {name} of {', '.join(map(str, read))}")
        print(net.layers, net.heads, net.leaves, net.raw, check(given.seed, given.length), sep="\n")
        return
    counts: Counter[str] = Counter()
    began = time.process_time()
    for seed in range(given.first, given.first + given.count):
        try:
            counts[check(seed, given.length)] += 1
        except Exception as problem:
            counts["wrong" if isinstance(problem, Failure) else "crashed"] += 1
            place = traceback.extract_tb(problem.__traceback__)[-1]
            print(f"seed {seed}: {type(problem).__name__}: {problem} ({place.name}:{place.lineno})", flush=True)
    print(f"{given.count} networks, {time.process_time() - began:.0f} s:", dict(counts))


if __name__ == "__main__":
    main()
