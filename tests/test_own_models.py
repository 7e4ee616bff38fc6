"""A module of one's own, searched the whole way through the command line; what is wrong with it is said first."""

import inspect
import json
import re
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas import registry
from nas.cli import main
from nas.groups import num_units, slices
from nas.models import load_module, network, save_module
from nas.models.build import Factory
from nas.models.traced.network import EVERYWHERE, Origin, TracedNet
from nas.registry import import_registrations
from nas.search import Run, Search
from nas.search.runs.config import SearchConfig
from nas.search.tasks.tiles import restore_in_tiles
from tests.searches import quick

SEPARABLE = """from torch import nn


class my_net(nn.Module):
    def __init__(self, channels=1, *, width=8, blocks=2):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 5, padding=2, groups=width), nn.Conv2d(width, 2 * width, 1), nn.GELU(),
                nn.Conv2d(2 * width, width, 1),
            )
            for _ in range(blocks)
        )

    def forward(self, x):
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return x - self.last(y)
"""
CHAIN = "from torch import nn\n\ndef my_net():\n    return nn.Sequential({}, nn.Conv2d(4, 1, 1))\n"
QUICK = [
    "--model=my_net", "--data=folder", "--epochs=2", "--steps=20", "--batch=2", "--crop=16", "--entry-time=45",
    "--lr=0.01", "--density=0.5", "--fit=4", "--refit=1", "--sizes=200",
]  # fmt: skip


class UNet(nn.Module):
    """Two levels, batch normalisation, concatenations; with room for channels beside the picture."""

    def __init__(self, channels=1, extra=0, width=4):
        super().__init__()
        self.channels = channels
        self.down = nn.ModuleList(
            [
                nn.Conv2d(channels + extra, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, 2 * width, 4 * width))
        self.up = nn.ModuleList([nn.Conv2d(6 * width, 2 * width, 3, padding=1), nn.Conv2d(3 * width, width, 1)])
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x):
        states = [x]
        for layer, norm in zip(self.down, self.norms, strict=True):
            states.append(F.gelu(norm(layer(states[-1]))))
        y = states.pop()
        for layer in self.up:
            y = F.gelu(layer(torch.cat([F.interpolate(y, scale_factor=2), states.pop()], dim=1)))
        return x[:, : self.channels] + self.out(y)


class Squeezed(nn.Module):
    """Sees the mean of the whole picture."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.squeeze, self.last = (
            nn.Conv2d(1, width, 3, padding=1),
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x):
        y = F.gelu(self.first(x))
        return x + self.last(y * self.squeeze(y.mean((2, 3), keepdim=True)).sigmoid())


class Classifier(nn.Module):
    def __init__(self, channels=1, outputs=3, width=6):
        super().__init__()
        self.conv, self.head = (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Linear(width * 16, outputs),
        )  # of 8 x 8 pixels

    def forward(self, x):
        return self.head(F.avg_pool2d(F.gelu(self.conv(x)), 2).flatten(1))


class Kinds(nn.Module):
    """Gated linear units, a sum over channels, groups and single channels of transposed layers."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.gated = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 16, 3, 2, 1)
        self.matrix = nn.Parameter(torch.randn(6, 8) / 3)
        self.up = nn.ConvTranspose2d(8, 12, 2, 2, groups=4)
        self.depth, self.last = nn.ConvTranspose2d(6, 6, 3, 2, 1, 1, groups=6), nn.Conv2d(18, 1, 1)

    def forward(self, x):
        y = F.glu(self.gated(F.gelu(self.first(x))), 1)
        z = F.gelu(torch.einsum("bchw,oc->bohw", y, self.matrix))
        return x - self.last(torch.cat([F.gelu(self.up(y)), F.gelu(self.depth(z))], 1))


def traced(module, *, channels=1, extra=0, side=16):
    torch.manual_seed(0)
    example = torch.rand(2, channels + extra, side, side, generator=torch.Generator().manual_seed(0))
    return TracedNet(module, Origin("", {}, channels, extra, example)).eval()


def separable(tmp_path, text=SEPARABLE):
    file = tmp_path / "my.py"
    file.write_text(text)
    return file


def killed(net, share, seed):
    """A part of all units is zero, with new running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        for members in net.unit_parameters().values():
            dead = torch.rand(num_units(members[0], members.axes[0]), generator=generator) < share
            for p, axis in zip(members, members.axes, strict=True):
                slices(p, axis)[dead] = 0
    network.settle(net)
    return net


@pytest.fixture(scope="module")
def found(data_root, tmp_path_factory):
    """The file of a module, and the folder of a search of it."""
    place = tmp_path_factory.mktemp("own")
    file = separable(place)
    assert main(["search", f"--import={file}", f"--data-root={data_root}", *QUICK, f"--out={place / 'run'}"]) == 0
    yield file, place / "run"
    registry.IMPORTED.clear()


def nas(found, verb, *words, capsys=None):
    file, run = found
    code = main([verb, f"--import={file}", str(run), *map(str, words)])
    return code if capsys is None else (code, capsys.readouterr())


# The road


def test_the_search_leaves_a_path_and_a_front(found):
    import_registrations(str(found[0]))
    run = Run.open(found[1])
    points = run.points()
    assert [point.snapshot.epoch for point in points] == [0, 1, 2, 3]
    assert points[-1].snapshot.in_front and points[-1].params <= 200
    assert set(points[0].snapshot.units) == {"first", "blocks.0.1", "blocks.1.1"}
    for point in points:
        small = network.compacted(run.supernet(point.snapshot.epoch))
        assert network.num_params(small) == point.params == network.cost(small, "params")
        assert network.cost(small, "flops") == pytest.approx(point.flops)


def test_the_road_to_the_end(found, capsys):
    """Drawn, extracted with a certificate, verified, exported, retrained, used."""
    _, run = found
    code, said = nas(found, "show", "--film", capsys=capsys)
    assert code == 0
    assert "first        " in said.out and "5x5 depthwise" in said.out
    for name in ("topology.svg", "topology.json", "growth.svg", "growth.gif"):
        assert (run / name).stat().st_size > 0
    assert "<svg" in (run / "topology.svg").read_text() and "blocks.0.1" in (run / "topology.svg").read_text()

    code, said = nas(found, "extract", capsys=capsys)
    assert code == 0 and "the certificate holds" in said.out
    certificate = json.loads((run / "compact" / "certificate.json").read_text())["certificate"]
    assert certificate["holds"] and certificate["max_abs_float64"] < 1e-10
    assert nas(found, "verify") == 0

    pytest.importorskip("onnxruntime")
    assert nas(found, "export", "--format=onnx") == 0
    assert nas(found, "export", "--format=onnx", "--int8") == 0
    assert nas(found, "export", "--format=python") == 0

    code, said = nas(found, "retrain", "--epochs=1", capsys=capsys)
    assert code == 0 and "retrained network" in said.out
    assert nas(found, "front") == 0
    assert nas(found, "report") == 0
    page = (run / "report.html").read_text()
    assert "blocks.0.1" in page and "The certificate holds" in page and "depthwise kernels" in page

    picture = run.parent / "noisy.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 21), np.uint8)).save(picture)
    assert nas(found, "denoise", picture, "--out", picture.with_name("clean.png")) == 0
    with Image.open(picture.with_name("clean.png")) as clean:
        assert clean.size == (21, 33)


def test_the_network_of_a_run_is_a_module_of_its_class(found):
    nas(found, "extract", "--no_latency")
    import_registrations(str(found[0]))
    run, x = Run.open(found[1]), torch.rand(1, 1, 17, 19)
    searched = run.supernet(run.choose().snapshot.epoch)
    module = load_module(found[1] / "compact")
    assert type(module).__name__ == "my_net"
    torch.testing.assert_close(module(x), searched(x), atol=1e-6, rtol=0)


def test_an_exported_network_takes_pictures_of_any_size(found):
    onnxruntime = pytest.importorskip("onnxruntime")
    nas(found, "extract", "--no_latency")
    nas(found, "export", "--format=onnx", "--epoch=2")
    import_registrations(str(found[0]))
    x = torch.rand(3, 1, 40, 13)
    session = onnxruntime.InferenceSession(found[1] / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    [y] = session.run(["y"], {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), Run.open(found[1]).supernet(2)(x), atol=1e-5, rtol=0)


def test_a_search_goes_on_bit_for_bit(data_root, tmp_path):
    import_registrations(str(separable(tmp_path)))
    config = quick(data_root, model="my_net", epochs=2, steps=10, sizes="200", fit=4, refit=1, entry_time=45.0)
    whole = list(Search(Run(tmp_path / "whole", config)))
    begun = Search(Run(tmp_path / "parts", config))
    list(islice(begun, 1))
    begun.close()
    rest = list(Search(Run(tmp_path / "parts", config), resume=True))
    assert [point.scores for point in rest] == [point.scores for point in whole[1:]]
    assert [point.sha256 for point in rest] == [point.sha256 for point in whole[1:]]


def test_batch_normalisation_and_levels_of_noise(data_root, tmp_path):
    """A U-Net that is told the level: pictures of any size, with a certificate."""
    file = tmp_path / "unet.py"
    text = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
    source = inspect.getsource(UNet)
    file.write_text(text + source)
    import_registrations(str(file))
    config = quick(
        data_root, model="UNet", epochs=2, steps=10, sizes="500", fit=4, refit=1, entry_time=45.0, sigma="5:55"
    )
    points = list(Search(Run(tmp_path / "run", config)))
    assert points[-1].params <= 500
    assert main(["extract", f"--import={file}", str(tmp_path / "run"), "--no_latency"]) == 0


def test_a_classifier_takes_pictures_of_one_size(tmp_path, capsys):
    file = tmp_path / "classes.py"
    file.write_text("import torch.nn.functional as F\nfrom torch import nn\n\n\n" + inspect.getsource(Classifier))
    generator = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True)
        for k in range(30):
            pixels = generator.integers(0, 99, (8, 8), np.uint8)
            pixels[:, 2 * label : 2 * label + 2] += 100
            Image.fromarray(pixels).save(folder / f"{k:02}.png")
    run = tmp_path / "run"
    words = ["search", f"--import={file}", "--model=Classifier", "--task=classify", "--data=class_folder", *QUICK[2:]]
    words += [f"--data-root={tmp_path / 'data'}", "--sizes=none", f"--out={run}"]
    assert main(words) == 2
    assert "Classifier cannot compute inputs of float32 (2, 1, 16, 16)" in (said := capsys.readouterr().err)
    assert "it is traced on pictures of 16 x 16 pixels (--crop)" in said
    assert main([*words, "--crop=8"]) == 0
    for verb in ("extract", "verify", "show", "report"):
        assert main([verb, f"--import={file}", str(run)]) == 0
    assert main(["denoise", f"--import={file}", str(run), str(folder / "00.png")]) == 2
    net = traced(Classifier(), side=8)
    assert network.input_shape(net, 5, 64) == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="cannot restore a picture"):
        network.sight(net)


# What is known of a module


class Broken(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.no_such_thing)


@pytest.mark.parametrize(("make", "inputs"), [(Broken, 1), (nn.Conv2d, 3)])
def test_the_side_of_crops_is_named_only_where_it_matters(make, inputs):
    factory, options = Factory("Own", make, registered=False), {"in_channels": inputs, "out_channels": 1}
    with pytest.raises(ValueError, match="cannot compute inputs of float32") as caught:
        factory.build(1, 0, options | {"kernel_size": 3}, 16)
    assert "--crop" not in str(caught.value)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [UNet, Squeezed, Classifier, Kinds])
def test_what_is_alive_costs_what_the_compact_network_does(make, seed):
    net = killed(traced(make(), side=8), (0.2, 0.5, 0.8, 1.0)[seed % 4], seed)
    small = network.compacted(net)
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(small(x), net(x), atol=1e-5, rtol=1e-5)
    assert network.num_params(small) == network.cost(small, "params")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        small(x)
    assert network.cost(small, "flops") == pytest.approx(counter.get_total_flops() / 2 / x.numel())
    for currency in ("params", "flops"):
        alive, left = network.alive_cost(net, currency), network.cost(small, currency)
        read = all(mask.any() for mask in network.find(net).units.values())
        assert alive == pytest.approx(left) if read else alive >= left
    assert network.alike(small, network.compacted(net)) and not network.alike(net, small)


def test_sizes_and_groups_come_back_from_files(tmp_path):
    small = network.compacted(killed(traced(Kinds()), 0.5, 1)).module
    save_module(small, tmp_path, "tests.test_own_models:Kinds")
    back, x = load_module(tmp_path), torch.rand(2, 1, 16, 16)
    assert torch.equal(back(x), small(x)) and 1 < small.up.groups < 4
    for a, b in zip(back.modules(), small.modules(), strict=True):
        assert all(getattr(a, size, 0) == getattr(b, size, 0) for size in ("in_channels", "out_channels", "groups"))


def test_prices_grow_with_what_a_unit_adds():
    net = traced(UNet())
    prices = network.prices(net, "params")
    assert set(prices) == set(network.widths(net))
    added = {}
    for layer in net.unit_parameters():
        one_less = traced(UNet())
        with torch.no_grad():
            for p in one_less.unit_parameters()[layer]:
                p[0] = 0
        added[layer] = network.cost(net, "params") - network.alive_cost(one_less, "params")
    mean = sum(added[layer] * n for layer, n in network.widths(net).items()) / sum(network.widths(net).values())
    assert prices == {layer: pytest.approx(min(2.0, max(0.5, (each / mean) ** 0.5))) for layer, each in added.items()}


@pytest.mark.parametrize(("height", "width", "side"), [(61, 50, 8), (33, 70, 16), (5, 3, None)])
def test_tiles_leave_no_seam(height, width, side):
    net = traced(UNet())
    x = torch.rand(1, height, width)
    with torch.no_grad():
        torch.testing.assert_close(restore_in_tiles(net, x, side), net(x[None])[0], atol=1e-5, rtol=0)


def test_how_far_a_module_sees():
    assert network.sight(traced(nn.Conv2d(1, 1, 5, padding=2))).reach == 2
    dilated = nn.Sequential(nn.Conv2d(1, 2, 3, padding=3, dilation=3), nn.ReLU(), nn.Conv2d(2, 1, 1))
    assert network.sight(traced(dilated)).reach == 3
    assert network.sight(traced(UNet())).grain == 4
    assert network.sight(traced(Squeezed())).reach == EVERYWHERE
    x = torch.rand(1, 40, 30)
    net = traced(Squeezed())
    with torch.no_grad():
        torch.testing.assert_close(restore_in_tiles(net, x, 8), net(x[None])[0])


def test_new_weights_and_copies():
    net = traced(UNet())
    again, other = network.renewed(net, 1), network.renewed(net, 2)
    assert torch.equal(again.module.out.weight, network.renewed(net, 1).module.out.weight)
    assert not torch.equal(again.module.out.weight, other.module.out.weight)
    assert network.alike(again, net)


# What is wrong is said first


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n1 / 0\n", r"cannot import .*my\.py: ZeroDivisionError: division by zero \(line 2\)"),
        ("a b\n", r"cannot import .*my\.py: SyntaxError"),
        ("", "unknown model 'my_net'; there are: .*; my.py defines none of this name"),
        ("my_net = 3\n", "my_net is int; it must be a function or class that makes a network"),
        (
            "from torch import nn\nmy_net = nn.Linear(1, 1)\n",
            "my_net is a network; it must be a function or class that makes a network, so that each seed has",
        ),
        (
            "from torch import nn\n\ndef my_net(depth):\n    return nn.Linear(1, 1)\n",
            r"my_net \(my\.py, line 3\) needs the argument depth; give it by --model-options '\{depth: \.\.\.\}'",
        ),
        (
            "def my_net():\n    return missing\n",
            r"my_net \(my\.py, line 1\) fails: NameError: name 'missing' is not defined \(line 2\)",
        ),
        ("def my_net():\n    return [1]\n", r"my_net \(my\.py, line 1\) makes no network, but list"),
        (
            "from torch import nn\n\nclass my_net(nn.Module):\n    def forward(self, x):\n        return x, x\n",
            "my_net must return one tensor, got tuple",
        ),
        (
            "from torch import nn\n\ndef my_net():\n    return nn.Conv2d(3, 3, 1)\n",
            r"Conv2d cannot compute inputs of float32 \(2, 1, 16, 16\)",
        ),
        (
            "from torch import nn\n\ndef my_net():\n    return nn.Conv2d(1, 1, 1)\n",
            "Conv2d has no layer whose channels can be units",
        ),
        (
            CHAIN.format("nn.Conv2d(1, 4, 1), nn.ReLU()"),
            "can wake: its activation needs a slope at 0",
        ),
        (
            CHAIN.format("nn.Conv2d(1, 4, 3), nn.GELU()"),
            "the network returns",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_before_anything_is_written(text, sentence, data_root, tmp_path, capsys):
    registry.IMPORTED.clear()
    file = separable(tmp_path, text)
    out = tmp_path / "run"
    assert main(["search", f"--import={file}", f"--data-root={data_root}", *QUICK, f"--out={out}"]) == 2
    problem = capsys.readouterr().err
    assert re.search(sentence, problem), problem
    assert problem.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("bias", [0, 3])
def test_a_start_that_is_worse_than_no_network_is_said(data_root, tmp_path, capsys, bias):
    file = separable(tmp_path)
    last = "self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)\n"
    start = (
        f"{8 * ' '}nn.init.normal_(self.last.weight, std=1e-3)\n{8 * ' '}nn.init.constant_(self.last.bias, {bias})\n"
    )
    file.write_text(file.read_text().replace(last, last + start))
    words = ["search", f"--import={file}", f"--data-root={data_root}", *QUICK, f"--out={tmp_path / 'run'}"]
    assert main([*words, "--epochs=1", "--sizes=none"]) == 0
    assert ("that is worse than no network" in capsys.readouterr().out) == bool(bias)


def test_options_are_those_of_the_factory(data_root, tmp_path, capsys):
    file = separable(tmp_path)
    words = ["search", f"--import={file}", f"--data-root={data_root}", *QUICK, f"--out={tmp_path / 'run'}"]
    assert main([*words, "--model-options={size: 3}"]) == 2
    assert "my_net has no option 'size'; its options are width, blocks" in capsys.readouterr().err
    assert main([*words, "--sigma=5:55"]) == 2
    assert (
        "the task has 1 channel beside the picture; my_net (my.py, line 4) needs an argument" in capsys.readouterr().err
    )
    import_registrations(str(file))
    net = SearchConfig(model="my_net", model_options={"width": 6, "blocks": 1}, channels=3).build()
    assert net.module.first.weight.shape == (6, 3, 3, 3)
    assert network.widths(net) == {"first": 6, "blocks.0.1": 12}


def test_what_stays_dense_is_said(data_root, tmp_path, capsys):
    text = SEPARABLE.replace("return x - self.last(y)", "y = y.softmax(dim=1)\n        return x - self.last(y)")
    file = separable(tmp_path, text)
    words = [*QUICK, "--sizes=none", "--epochs=1", f"--data-root={data_root}", f"--out={tmp_path / 'run'}"]
    assert main(["search", f"--import={file}", *words]) == 0
    assert "not searched: the channels of first stay, since softmax needs all of them" in capsys.readouterr().out


def test_other_verbs_say_that_the_file_is_needed(found, capsys):
    registry.IMPORTED.clear()
    assert main(["show", str(found[1])]) == 2
    assert re.search(r"nas show: .*run: unknown model 'my_net'; .* \(--import FILE\.py\)", capsys.readouterr().err)


def test_only_plans_are_rewound(found, capsys):
    nas(found, "extract", "--no_latency")
    code, said = nas(found, "retrain", "--epochs=1", "--rewind_epoch=1", capsys=capsys)
    assert code == 2 and "only a network that is a plan is rewound" in said.err
