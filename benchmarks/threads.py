"""Situations of people who asked in public about pruned or sparsely trained models, each tried in a few lines.

    python -m benchmarks.threads

Each is a small model with the trouble of the thread, some of its channels set to zero. Either `extract` makes them go,
and the certificate holds, or one clear sentence says why not.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from nas.analysis import extract

PICTURE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
VECTOR = torch.rand(6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(self, *inputs, **named)


@dataclass(frozen=True)
class Situation:
    """What somebody had.

    Attributes:
        about: what people ask about.
        make: makes the model.
        given: an input without the batch axis, as of `extract`.
        zero: by layer the outputs whose weights and biases are set to zero.
        sizes: by parameter the shape that it has afterwards.
        says: what is said instead, a regular expression.
    """

    about: str
    make: Callable[[], nn.Module]
    given: Any = field(default_factory=lambda: PICTURE)
    zero: Mapping[str, Sequence[int]] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    says: str | None = None


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pruned(removed: bool) -> nn.Module:
    first = nn.Linear(6, 8)
    prune.ln_structured(first, "weight", amount=0.5, n=2, dim=0)
    if removed:
        prune.remove(first, "weight")
        first.bias.data[first.weight.any(1).logical_not()] = 0
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 2))


def siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.b((F.gelu(m.a(x)) - F.gelu(m.a(y))).abs())  # type: ignore[no-any-return]


def u_net(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.down(x))
    return m.last(torch.cat([m.up(F.relu(m.deep(y))), x], 1))  # type: ignore[no-any-return]


def excited(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    b, c, _, _ = y.size()
    return m.b(y * m.up(F.relu(m.down(y.mean((2, 3)).view(b, c)))).sigmoid().view(b, c, 1, 1).expand_as(y))  # type: ignore[no-any-return]


def partial(m: Any, x: Tensor) -> Tensor:
    """As in YOLOv8: halves of channels, of which one goes through a block, all concatenated."""
    y = list(m.a(x).chunk(2, 1))
    y.append(F.silu(m.block(y[-1])))
    return m.b(torch.cat(y, 1))  # type: ignore[no-any-return]


def focus(m: Any, x: Tensor) -> Tensor:
    return m.b(F.silu(m.a(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))))  # type: ignore[no-any-return]


def shuffle(m: Any, x: Tensor) -> Tensor:
    return m.b(F.pixel_shuffle(m.a(x), 2))  # type: ignore[no-any-return]


def plain(**options: Any) -> nn.Sequential:
    return nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 3, **options))


def tied() -> nn.Module:
    code, hidden, decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
    decode.weight = code.weight
    return Net(lambda m, x: m.decode(F.gelu(m.hidden(m.code(x)))), code=code, hidden=hidden, decode=decode)


def recurrent() -> nn.Module:
    return Net(lambda m, x: m.b(m.a(x)[0]), a=nn.GRU(6, 5, batch_first=True), b=nn.Linear(5, 2))


def branched(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x)) if x.mean() > 0 else m.b(-m.a(x))  # type: ignore[no-any-return]


def frozen() -> nn.Module:
    net = plain()
    net[0].requires_grad_(False)
    return net


def two() -> dict[str, nn.Module]:
    return {"a": conv(3, 4, 3), "b": conv(4, 2)}


HALF = {"0.weight": (2, 3, 3, 3), "3.weight": (2, 2, 3, 3)}
SITUATIONS = {
    "a concatenation with the raw input": Situation(
        "skips",
        lambda: Net(lambda m, x: m.b(torch.cat([x, F.relu(m.a(x))], 1)), a=nn.Linear(6, 5), b=nn.Linear(11, 2)),
        VECTOR,
        {"a": [1, 3]},
        {"a.weight": (3, 6), "b.weight": (2, 9)},
    ),
    "a skip with a learned scalar": Situation(
        "skips",
        lambda: Net(
            lambda m, x: m.b(m.c(F.relu(m.a(x))) + m.gate * F.relu(m.a(x))),
            a=nn.Linear(6, 5),
            c=nn.Linear(5, 5),
            b=nn.Linear(5, 2),
            gate=nn.Parameter(torch.tensor([0.5])),
        ),
        VECTOR,
        {"a": [0, 2], "c": [0, 2]},
        {"a.weight": (3, 6), "c.weight": (3, 3), "b.weight": (2, 3)},
    ),
    "a residual block of which one summand is zero": Situation(
        "skips",
        lambda: Net(lambda m, x: m.b(m.a(x) + m.c(m.a(x))), a=conv(3, 4), c=conv(4, 4), b=conv(4, 2)),
        zero={"c": [0, 1, 2, 3]},
        sizes={"a.weight": (4, 3, 1, 1), "b.weight": (2, 4, 1, 1)},
    ),
    "zeros that are nowhere a whole channel": Situation(
        "zeros, but no smaller model (pytorch#36214)",
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        VECTOR,
        sizes={"0.weight": (5, 6)},
    ),
    "filters pruned by torch and made permanent": Situation(
        "zeros, but no smaller model", lambda: pruned(True), VECTOR, sizes={"0.weight": (4, 6), "2.weight": (2, 4)}
    ),
    "masks of torch that are not made permanent": Situation(
        "zeros, but no smaller model",
        lambda: pruned(False),
        VECTOR,
        says="cannot be copied, .* as torch.nn.utils.prune.remove does",
    ),
    "filters with a bias that stays": Situation(
        "a bias of its own (pytorch#38598)", lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), VECTOR
    ),
    "filters with the shift of a normalisation": Situation(
        "shifts of normalisations (NNI#2130)", plain, zero={"0": [1]}
    ),
    "filters whose normalisation is zero, too": Situation(
        "shifts of normalisations", plain, zero={"0": [0, 1], "1": [0, 1]}, sizes=HALF
    ),
    "a constant at a border padded with zeros": Situation(
        "borders",
        lambda: nn.Sequential(conv(3, 4), nn.Sigmoid(), conv(4, 2, 3)),
        zero={"0": [1]},
        sizes={"0.weight": (4, 3, 1, 1)},
    ),
    "a layer that dies altogether": Situation(
        "empty layers (NNI#4991)",
        plain,
        zero={"0": [0, 1, 2, 3], "1": [0, 1, 2, 3]},
        sizes={"0.weight": (1, 3, 3, 3), "3.weight": (2, 1, 3, 3)},
    ),
    "a pixel shuffle": Situation(
        "restoration",
        lambda: Net(shuffle, a=conv(3, 8, 3), b=conv(2, 3)),
        zero={"a": [4, 5, 6, 7]},
        sizes={"a.weight": (4, 3, 3, 3), "b.weight": (3, 1, 1, 1)},
    ),
    "a pixel shuffle of which single filters are zero": Situation(
        "restoration",
        lambda: Net(shuffle, a=conv(3, 8, 3), b=conv(2, 3)),
        zero={"a": [1, 6]},
        sizes={"a.weight": (8, 3, 3, 3)},
    ),
    "groups": Situation(
        "other layers",
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 3, groups=2), nn.ReLU(), conv(4, 2)),
        zero={"0": [0, 1], "2": [0, 1]},
        sizes={"0.weight": (2, 3, 1, 1), "2.weight": (2, 2, 3, 3)},
    ),
    "depthwise": Situation(
        "other layers",
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 3, groups=4), conv(4, 2)),
        zero={"0": [3], "2": [3]},
        sizes={"0.weight": (3, 3, 1, 1), "2.weight": (3, 1, 3, 3)},
    ),
    "squeeze and excitation with sizes read": Situation(
        "sizes that forward reads",
        lambda: Net(excited, a=conv(3, 4), down=nn.Linear(4, 2), up=nn.Linear(2, 4), b=conv(4, 2)),
        zero={"a": [2], "down": [0]},
        sizes={"a.weight": (3, 3, 1, 1), "down.weight": (1, 3), "up.weight": (3, 1)},
    ),
    "halves of channels": Situation(
        "parts of channels",
        lambda: Net(partial, a=conv(3, 8), block=conv(4, 4, 3), b=conv(12, 2)),
        zero={"block": [1]},
        sizes={"a.weight": (8, 3, 1, 1), "block.weight": (3, 4, 3, 3), "b.weight": (2, 11, 1, 1)},
    ),
    "slices of the positions": Situation(
        "parts of channels",
        lambda: Net(focus, a=conv(12, 4), b=conv(4, 2)),
        zero={"a": [0]},
        sizes={"b.weight": (2, 3, 1, 1)},
    ),
    "a U-Net": Situation(
        "skips",
        lambda: Net(
            u_net, down=nn.Conv2d(3, 4, 2, 2), deep=conv(4, 5, 3), up=nn.ConvTranspose2d(5, 4, 2, 2), last=conv(7, 3)
        ),
        zero={"down": [1], "deep": [0, 4]},
        sizes={"down.weight": (3, 3, 2, 2), "deep.weight": (3, 3, 3, 3), "up.weight": (3, 4, 2, 2)},
    ),
    "two inputs through one layer": Situation(
        "shared weights",
        lambda: Net(siamese, a=conv(3, 4), b=conv(4, 2)),
        (PICTURE, PICTURE.flip(0)),
        {"a": [2]},
        {"a.weight": (3, 3, 1, 1)},
    ),
    "outputs in a dictionary": Situation(
        "inputs and outputs",
        lambda: Net(lambda m, x: {"y": m.b(m.a(x)), "z": [m.a(x).mean()]}, **two()),
        zero={"a": [2]},
    ),
    "keyword inputs": Situation(
        "inputs and outputs",
        lambda: Net(lambda m, x, mask: m.b(F.relu(m.a(x)) * mask), **two()),
        {"x": PICTURE, "mask": PICTURE[:1]},
        {"a": [0, 3]},
        {"a.weight": (2, 3, 3, 3)},
    ),
    "weights that two layers share": Situation(
        "shared weights", tied, VECTOR, {"hidden": [1]}, {"hidden.weight": (6, 6)}
    ),
    "weight normalisation": Situation(
        "other layers",
        lambda: nn.Sequential(parametrizations.weight_norm(conv(3, 4)), nn.ReLU(), conv(4, 2)),
        sizes={"2.weight": (2, 4, 1, 1)},
    ),
    "layers without a shape": Situation(
        "other layers", lambda: nn.Sequential(nn.LazyConv2d(4, 1), nn.ReLU(), conv(4, 2)), says="run one batch first"
    ),
    "a wrapper for several devices": Situation(
        "wrappers", lambda: nn.DataParallel(plain()), zero={"module.0": [0, 1], "module.1": [0, 1]}, sizes=HALF
    ),
    "a compiled model": Situation(
        "wrappers",
        lambda: torch.compile(plain(), backend="eager"),  # type: ignore[arg-type, return-value]
        zero={"_orig_mod.0": [0, 1], "_orig_mod.1": [0, 1]},
        sizes=HALF,
    ),
    "a frozen layer": Situation("training", frozen, zero={"0": [0, 1], "1": [0, 1]}, sizes=HALF),
    "half precision": Situation(
        "training", lambda: plain().bfloat16(), PICTURE.bfloat16(), zero={"0": [0, 1], "1": [0, 1]}, sizes=HALF
    ),
    "a decision on what is computed": Situation(
        "tracing", lambda: Net(branched, **two()), says="torch.export cannot trace Net: Could not guard on data-dep"
    ),
    "a recurrent network": Situation(
        "other layers", recurrent, torch.rand(4, 6), sizes={"a.weight_hh_l0": (15, 5), "b.weight": (2, 5)}
    ),
    "attention": Situation(
        "other layers",
        lambda: nn.TransformerEncoderLayer(8, 2, 6, batch_first=True),
        torch.rand(5, 8),
        {"linear1": [1, 2]},
        {"linear1.weight": (4, 8), "linear2.weight": (8, 4)},
    ),
    "indices as inputs": Situation(
        "inputs and outputs",
        lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        torch.tensor([1, 4, 4]),
        {"1": [2]},
        {"1.weight": (4, 6), "3.weight": (2, 4)},
    ),
    "a picture of the wrong shape": Situation(
        "inputs and outputs", plain, VECTOR, says=r"cannot compute inputs of float32 \(1, 6\)"
    ),
}


def attempt(situation: Situation) -> str:
    """What comes of a situation, in words.

    Raises:
        AssertionError: something else than what should.
    """
    torch.manual_seed(0)
    model = situation.make()
    for name, channels in situation.zero.items():
        for p in model.get_submodule(name).parameters(recurse=False):
            p.data[list(channels)] = 0
    try:
        small, certificate = extract(model, [situation.given])
    except ValueError as problem:
        said = str(problem)
        assert situation.says and re.search(situation.says, said) and "\n" not in said, said
        return said
    assert situation.says is None and certificate.holds, situation.says
    sizes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert all(sizes[name] == size for name, size in situation.sizes.items()), sizes
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    assert after <= before
    return f"{before} -> {after} parameters, at most {certificate.max_abs_float64:.0e} apart"


def main() -> None:
    wrong = 0
    for name, situation in SITUATIONS.items():
        try:
            answer = attempt(situation)
        except AssertionError as problem:
            answer, wrong = f"WRONG {problem}", wrong + 1
        print(f"{name:<52}{situation.about:<44}{answer}")
    print(f"{len(SITUATIONS) - wrong} of {len(SITUATIONS)} are right, or are refused in a sentence")


if __name__ == "__main__":
    main()
