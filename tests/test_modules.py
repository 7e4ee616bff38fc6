"""The whole road for a module of somebody else: units, extraction, graph, picture, cost, time, files, export."""

import copy
import json
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.analysis import cost, draw, export, extract, latency, structure, topology
from nas.models import load_module, save_module
from tests.test_coupled import with_dead_units


class Denoiser(nn.Module):
    """A residual network of two separable blocks."""

    def __init__(self, width=6, blocks=2):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False), nn.Conv2d(width, 2 * width, 1)),
                *(nn.GELU(), nn.Conv2d(2 * width, width, 1)),
            )
            for _ in range(blocks)
        )

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return x + self.last(y)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(4, 5)
        self.heads = nn.ModuleList(nn.Linear(5, size) for size in (2, 3))

    def forward(self, x, y):
        z = F.gelu(self.a(x) + self.b(y))
        return {"one": self.heads[0](z), "two": self.heads[1](z)}


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


FORMATS = {"net.py": "python", "net.pt2": "torch-export"}
X = torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found():
    """A network, the one without its dead units, and what is alive of each layer."""
    torch.manual_seed(0)
    net = Denoiser()
    _, alive = with_dead_units(net, X, 0.6)
    small, certificate = extract(net, [X[0]])
    assert certificate.holds
    return net, small, {name: int(mask.sum()) for name, mask in alive.items()}


def test_the_graph_has_what_is_alive(found):
    net, small, alive = found
    graph = topology(net, inputs=X)
    widths = {name: data["alive"] for name, data in graph.nodes(data=True)}
    trunk = alive["first"]
    assert widths == {
        **{"in": 1, "first": trunk, "last": 1, "out": 1},
        **{f"blocks.{k}.{j}": trunk for k in (0, 1) for j in (0, 3)},
        **{f"blocks.{k}.1": alive[f"blocks.{k}.1"] for k in (0, 1)},
    }
    assert graph.nodes["first"] | {"norm": 0} == {"kind": "hidden", "layer": 1, "alive": trunk, "total": 6, "norm": 0}
    assert set(graph.predecessors("last")) == {"first", "blocks.0.3", "blocks.1.3"}
    assert set(graph.predecessors("out")) == {"in", "last"}
    arc = graph.edges["first", "blocks.0.0"]
    assert (arc["operation"], arc["shape"], arc["gate"]) == ("5x5 depthwise", f"{trunk}x1x5x5", 0.0)
    assert arc["norm"] == pytest.approx(float(small.blocks[0][0].weight.detach().norm()))
    assert dict(topology(small, inputs=X).nodes(data="alive")) == widths


def test_its_structure_and_its_picture(found, tmp_path):
    graph = topology(found[0], inputs=X)
    seen = structure(graph)
    assert (seen.depth, seen.shortest, seen.bottleneck) == (9, 1, 1)
    assert seen.skips == {("in", "out"): 1.0, ("last", "out"): 1.0}
    for suffix in (".svg", ".dot", ".png"):
        draw(graph, tmp_path / f"net{suffix}")
    assert "blocks.0.1" in (tmp_path / "net.svg").read_text(encoding="utf-8")


def test_its_cost_and_time(found):
    net, small, alive = found
    trunk, hidden = alive["first"], [alive[f"blocks.{k}.1"] for k in (0, 1)]
    products = 2 * 9 * trunk + sum(25 * trunk + 2 * trunk * h for h in hidden)
    assert cost(small, inputs=X[:1]).flops == 2 * products * 9 * 11
    assert cost(small, inputs=X).params == sum(p.numel() for p in small.parameters())
    (timed,) = latency(net, small, inputs=X, seconds=0.01)
    assert timed.shape == (2, 1, 9, 11) and timed.speed_up > 0


@pytest.mark.parametrize("name", ["net.py", "net.pt2", "net.onnx"])
def test_exports_are_the_same_function_for_any_batch(found, name, tmp_path):
    if name.endswith("onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    formats = {"py": "python", "pt2": "torch-export", "onnx": "onnx"}
    assert export(found[1], tmp_path / name, formats[name.partition(".")[2]], inputs=X) < 1e-6
    if name.endswith("py"):
        names: dict = {"__name__": "exported"}
        exec((tmp_path / name).read_text(encoding="utf-8"), names)
        loaded = names["load"](tmp_path / "net.safetensors")
    elif name.endswith("pt2"):
        loaded = torch.export.load(tmp_path / name).module()
    else:
        return
    x = torch.rand(5, 1, 9, 11)
    torch.testing.assert_close(loaded(x), found[1].eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["net.py", "net.pt2"])
def test_several_inputs_and_outputs_are_exported(name, tmp_path):
    torch.manual_seed(0)
    inputs = (torch.rand(3, 3), torch.rand(3, 4))
    assert (
        export(TwoInputs(), tmp_path / name, "python" if name.endswith("py") else "torch-export", inputs=inputs) < 1e-6
    )


class Given(nn.Module):
    """What it returns is computed by a function of a layer and its inputs, as many as there are."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, *inputs):
        return self.function(self.layer, *inputs)


def in_half(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def test_any_number_of_inputs_is_exported(tmp_path):
    net = Given(lambda layer, x, y, z: layer(x * y + z))
    inputs = (torch.rand(4, 3), torch.rand(4, 3), torch.rand(()))
    for name in ("net.py", "net.pt2"):
        assert export(net, tmp_path / name, FORMATS[name], inputs=inputs) < 1e-6


def test_one_example_is_exported_for_any_batch_whatever_its_precision(tmp_path, capfd):
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()
    assert export(net, tmp_path / "net.pt2", "torch-export", inputs=torch.rand(1, 3).double()) < 1e-6
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.rand(5, 3)).shape == (5, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (
            lambda layer, x: Pair(layer(x), x),
            "net.pt2",
            "a file of the format torch-export cannot hold Given: Can't ser",
        ),
        (lambda layer, x: (layer(x), "text"), "net.pt2", "a file of the format torch-export cannot hold Given: We ran"),
        (in_half, "net.py", "the format python cannot hold a region of another precision"),
        (lambda layer, x: layer(x) if x.sum() > 0 else x, "net.py", "torch.export cannot trace Given: Could not guard"),
    ],
)
def test_what_a_format_cannot_hold_is_said_in_one_line(function, name, message, tmp_path, capfd):
    with pytest.raises(ValueError, match=message) as caught:
        export(Given(function), tmp_path / name, FORMATS[name], inputs=torch.rand(2, 3))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (lambda layer, x: layer(x).kthvalue(2).values, "it has no operator for aten.kthvalue"),
        (lambda layer, x: layer(x) if x.sum() > 0 else x, "Could not guard"),
    ],
)
def test_the_cause_is_said_of_what_onnx_cannot_hold(function, cause, tmp_path, capfd):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=f"^a file of the format onnx cannot hold Given: {cause}[^\\n]*$") as caught:
        export(Given(function), tmp_path / "net.onnx", "onnx", inputs=torch.rand(2, 3))
    assert "step" not in str(caught.value) and "ONNX" not in str(caught.value)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "inputs", [(torch.rand(2, 3), torch.rand(2, 4)), {"x": torch.rand(2, 3), "y": torch.rand(2, 4)}]
)
def test_modules_of_several_inputs_are_timed(inputs):
    net = TwoInputs()
    [timed] = latency(net, net, inputs=inputs, seconds=0)
    assert timed.shape == (2, 3) and timed.rounds >= 3
    with pytest.raises(ValueError, match="TwoInputs cannot compute inputs of float32"):
        latency(net, net, inputs=torch.rand(2, 3))


def test_a_module_comes_back_from_its_files_at_its_size(found, tmp_path):
    _, small, _ = found
    save_module(small, tmp_path, "tests.test_modules:Denoiser", {"width": 6})
    back = load_module(tmp_path)
    assert type(back) is Denoiser and torch.equal(back(X), small.eval()(X))
    assert [(m.in_channels, m.out_channels, m.groups) for m in back.modules() if isinstance(m, nn.Conv2d)] == [
        (m.in_channels, m.out_channels, m.groups) for m in small.modules() if isinstance(m, nn.Conv2d)
    ]
    assert json.loads((tmp_path / "module.json").read_text(encoding="utf-8"))["options"] == {"width": 6}
    assert {path.name for path in tmp_path.iterdir()} == {"module.json", "model.safetensors"}


def test_a_bias_that_took_up_a_constant_and_ties_come_back(tmp_path):
    net = torch.nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4, bias=False), nn.GELU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
    small, _ = extract(net, [torch.rand(3)])
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), "
        "nn.Linear(4, 4, bias=False), nn.GELU(), nn.Linear(4, 2))\n",
        encoding="utf-8",
    )
    save_module(small, tmp_path / "net", f"{tmp_path / 'mine.py'}:make")
    back, x = load_module(tmp_path / "net"), torch.rand(5, 3)
    assert back[0].out_features == 3 and torch.equal(back(x), small(x))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests.test_modules:Missing", "tests.test_modules:Missing makes no module: AttributeError"),
        ("json:dumps", "json:dumps makes no module: TypeError"),
        ("tests.test_modules:copy.deepcopy", "makes no module"),
        ("tests.test_modules:TwoInputs", "tests.test_modules:TwoInputs makes a module of other parts"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(found, factory, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_module(found[1], tmp_path, factory)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "attempt",
    [
        lambda net, path: topology(net),
        lambda net, path: topology(net, "unit", inputs=X),
        lambda net, path: cost(net),
        lambda net, path: latency(net, copy.deepcopy(net)),
        lambda net, path: export(net, path / "net.py", "python"),
    ],
)
def test_inputs_are_asked_for(found, attempt, tmp_path):
    with pytest.raises(ValueError, match="Denoiser is no DagNet; give inputs=..., one batch"):
        attempt(found[0], tmp_path)
