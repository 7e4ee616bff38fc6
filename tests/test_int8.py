"""ONNX files in 8-bit integers: how far off they may be, and what is measured of it."""

import sys

import pytest
import torch
from torch.nn import functional as F

from nas.analysis.export.int8 import export_int8, int8_loss
from nas.models import DagNet, Edge, Node, Plan
from nas.models.traced.network import Origin, TracedNet
from nas.search import Denoise, Picture, held_out
from tests.nets import SUPERNETS
from tests.test_own_models import UNet

ONE = Plan(1, (Node("out", 1, (Edge("in", 3),), activation="identity"),), patch=1)


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


def filled(net, std=0.1):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=std)
    return net.eval()


def test_what_lies_on_the_grid_of_the_integers_is_exact(tmp_path):
    net = filled(DagNet(ONE), std=0.0)
    with torch.no_grad():
        net.named_nodes()["out"].edges["in"][0, 0, 1, 1] = 1.0
    x = torch.arange(256).reshape(1, 1, 16, 16) / 255
    file = export_int8(net, tmp_path / "net.onnx", [x[0]])
    torch.testing.assert_close(file(x), x, rtol=0, atol=1e-6)


def test_a_convolution_is_off_by_no_more_than_its_steps_allow(tmp_path):
    """By half a step of input and output, and a whole one of the weights, whose range has a step that is no number."""
    net = filled(DagNet(ONE), std=1.0)
    [weight] = net.named_nodes()["out"].edges.values()
    x = torch.rand(1, 1, 40, 40)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        y = net(x)
    span = max(y.max(), 0) - min(y.min(), 0)
    steps = torch.tensor(1 / 255), weight.abs().max() / 63, span / 255  # input, weights, output
    inputs = F.conv2d(F.pad(x, (1, 1, 1, 1)), torch.ones(1, 1, 3, 3))  # sum of the nine pixels
    bound = weight.abs().sum() * steps[0] / 2 + inputs * steps[1] + 9 * steps[0] * steps[1] + steps[2]
    off = (export_int8(net, tmp_path / "net.onnx", [x[0]])(x) - y).abs()
    assert (off <= bound).all()
    assert off.max() > 0  # it is not exact


@pytest.mark.parametrize("name", ["U-Net", "scales", "mixed", "bottleneck"])
def test_recipes_compute_nearly_the_same(name, tmp_path):
    net = filled(SUPERNETS[name]())
    x = torch.rand(3, 1, 36, 28)
    with torch.no_grad():
        y = net(x)
    off = export_int8(net, tmp_path / "net.onnx", list(x))(x) - y
    assert off.norm() <= 0.1 * y.norm()


@pytest.mark.parametrize("told", [False, True])
def test_modules_of_somebody_else_with_pictures_of_any_size(told, tmp_path):
    """Of sides that are no multiples of four, too; with the level of the noise behind the picture or without."""
    module = UNet(extra=int(told)).eval()
    net = TracedNet(module, Origin("unet", {}, 1, int(told), torch.rand(2, 1 + told, 16, 16))).eval()
    task = Denoise((5.0, 55.0) if told else 25.0)
    examples = held_out([Picture(f"{k}", torch.rand(1, 25 + k, 30)) for k in range(3)], task)
    file = export_int8(net, tmp_path / "net.onnx", [example.observed for example in examples])
    loss = int8_loss(net, file, examples, task)
    assert list(loss.conditions) == (["sigma 15", "sigma 25", "sigma 50"] if told else [])
    for exact, int8 in [(loss.exact, loss.int8), *loss.conditions.values()]:
        assert int8["psnr"] == pytest.approx(exact["psnr"], abs=1.0)
        assert int8["psnr"] != exact["psnr"]


def test_the_same_network_loses_nothing():
    net, task = filled(SUPERNETS["separable"]()), Denoise(25.0)
    loss = int8_loss(net, net, held_out([Picture("a", torch.rand(1, 20, 24))], task), task)
    assert loss.exact == loss.int8


def test_sizes_that_a_module_is_tied_to_are_named(tmp_path):
    class Tied(UNet):
        def forward(self, x):
            return super().forward(x) * torch.ones(16, 16)

    net = TracedNet(Tied().eval(), Origin("tied", {}, 1, 0, torch.rand(2, 1, 16, 16))).eval()
    file = export_int8(net, tmp_path / "net.onnx", [torch.rand(1, 16, 16)])
    assert file(torch.rand(1, 1, 16, 16)).shape == (1, 1, 16, 16)
    (tmp_path / "net.onnx").write_text("as it was")
    with pytest.raises(ValueError, match="does not compute inputs of 1 x 1 x 20 x 24 numbers"):
        export_int8(net, tmp_path / "net.onnx", [torch.rand(1, 20, 24)])
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "as it was"


@pytest.mark.parametrize(
    ("pictures", "name", "message"),
    [
        (0, "net.onnx", "int8 needs pictures to calibrate on, and there are none"),
        (1, "net.py", r"must be named \*.onnx, got"),
        (1, "nowhere/net.onnx", "nowhere is no folder in which files can be written"),
    ],
)
def test_bad_arguments(pictures, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_int8(DagNet(ONE), tmp_path / name, [torch.rand(1, 8, 8)] * pictures)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install 'bregman-nas\[onnx\]'"):
        export_int8(DagNet(ONE), tmp_path / "net.onnx", [torch.rand(1, 8, 8)])
    assert not list(tmp_path.iterdir())
