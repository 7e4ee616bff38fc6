"""A network that was exported answers as it did here, without anything of ours."""

import runpy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from nas.analysis import export
from nas.analysis.export.export import FORMATS, WRITERS
from nas.analysis.export.source import ACTIVATION_CODE, named_tensors, source_code
from nas.models import DagNet, Edge, Node, Plan, Skip, compact, conv_skip_autoencoder, skip_autoencoder
from nas.models.dag import ACTIVATIONS
from tests.nets import full, sparse_nets

UNALIGNED = Plan(
    1,
    (
        Node("n1", 3, full({"in": 3})),
        Node(
            "n2",
            6,
            full({"in": 1, "n1": 3}),
            (Skip("n1", (0, 2), (1, 5)), Skip("in", None, (0, 1, 2, 4))),
            rows=(0, 3, 4),
        ),
        Node("n3", 6, full({}), (Skip("n2"),), rows=()),
        Node("n4", 2, full({})),
        Node("out", 4, full({"n3": 3, "n4": 1}), activation="identity"),
    ),
    patch=2,
    offset=0.5,
    residual=True,
)


def filled(net):
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


OPERATIONS = Plan(
    1,
    (
        Node(
            "n1",
            6,
            (Edge("in", 3, take=(0, 3), put=(1, 2, 5)), Edge("in", 5, "depthwise", put=(0, 1, 2, 4))),
            bias=False,
        ),
        Node("n2", 6, (Edge("n1", 7, "depthwise"), Edge("n1", 1, "pointwise")), level=1),
        Node(
            "n3",
            5,
            (Edge("n2", 3, "depthwise", take=(0, 1, 3), put=(0, 2, 3)), Edge("n1", 3, put=(1,))),
            rows=(0, 1, 2, 4),
        ),
        Node("out", 4, (Edge("n3", 1, "pointwise", put=(0, 2, 3)),), activation="identity", bias=False),
    ),
    patch=2,
    residual=True,
    levels=1,
)

NETS = {
    "unaligned": lambda: DagNet(UNALIGNED),
    "operations": lambda: DagNet(OPERATIONS),
    "colour": lambda: conv_skip_autoencoder(3, depth=2, width=4, patch=1, residual=False),
    "patches": lambda: skip_autoencoder(1, depth=2, patch=3, offset=0.5),
    "vectors": lambda: skip_autoencoder(5, depth=2, patch=None),
}


def load_onnx(file):
    session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


LOAD = {
    "python": lambda file: runpy.run_path(str(file))["load"](),
    "torch-export": lambda file: torch.export.load(file).module(),
    "onnx": load_onnx,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, while it loads its files
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETS)
def test_any_batch_and_picture_size(name, format, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    net = filled(NETS[name]())
    file = tmp_path / f"net{FORMATS[format]}"
    assert export(net, file, format) <= 1e-5
    assert not any(b".py" in each.read_bytes() for each in tmp_path.iterdir() if each.suffix in (".pt2", ".onnx"))
    loaded = LOAD[format](file)
    patch = net.plan.patch
    multiple = (patch or 0) * 2**net.plan.levels
    least = 1 if format != "torch-export" or multiple == 1 else multiple + 1
    sizes = [()] if patch is None else [(least, least), (least + 5, 2 * least), (21, 16), (12, 18)]
    for batch in (1, 7):
        for size in sizes:
            x = torch.rand(batch, net.plan.inputs, *size)
            torch.testing.assert_close(loaded(x), net(x), rtol=1e-5, atol=1e-5)
    if format == "torch-export" and multiple > 1:  # the limit that docs/export.md states
        with pytest.raises(AssertionError, match="Guard failed"):
            loaded(torch.rand(2, net.plan.inputs, multiple, 4 * multiple))
    if format == "onnx" and patch is not None:
        graph = pytest.importorskip("onnx").load(file).graph
        for value, name in ((graph.input[0], "x"), (graph.output[0], "y")):
            axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            assert (value.name, axes) == (name, ["batch", net.plan.inputs, "height", "width"])


@settings(max_examples=60)
@given(case=sparse_nets())
def test_source_computes_the_same_in_double_precision(case):
    for net in (case[0], compact(case[0])):
        names = {"__file__": "model.py", "__name__": "model"}
        exec(source_code(net.plan), names)
        model = names["Model"]().double()
        model.load_state_dict(named_tensors(net))
        torch.testing.assert_close(model(case[1]), net(case[1]), rtol=1e-12, atol=1e-12)


def test_source_needs_nothing_of_ours_and_is_formatted(tmp_path):
    plan = Plan(
        1,
        (
            *(Node(f"n{k}", 300, full({"in": 3})) for k in range(5)),
            Node("wide", 300, full({f"n{k}": 1 for k in range(5)}), tuple(Skip(f"n{k}") for k in range(5))),
            Node("part", 300, full({}), (Skip("wide", tuple(range(0, 300, 2)), tuple(range(150))),), rows=()),
            Node("out", 1, full({"part": 1})),
        ),
        patch=1,
    )
    nets = {"a": filled(NETS["unaligned"]()), "b": filled(NETS["vectors"]()), "c": filled(DagNet(plan))}
    for name, net in nets.items():
        export(net, tmp_path / f"{name}.py", "python")
        text = (tmp_path / f"{name}.py").read_text()
        assert max(map(len, text.splitlines())) <= 120
        script = f"import sys, torch, {name}; print({name}.load()(torch.zeros({[1, net.plan.inputs, 8, 8]})).shape)"
        if net.plan.patch is None:
            script = script.replace(", 8, 8]", "]")
        script += "\nprint({m.split('.')[0] for m in sys.modules} & {'nas', 'networkx', 'onnx'})"
        result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={}, capture_output=True, text=True)
        assert result.stdout.endswith("\nset()\n"), result.stdout + result.stderr
    formatted = [sys.executable, "-m", "ruff", "format", "--diff", "--isolated", "--line-length=120", "."]
    result = subprocess.run(formatted, cwd=tmp_path, capture_output=True, text=True)
    if "No module named ruff" in result.stderr:
        pytest.skip("ruff is not installed")
    assert result.returncode == 0, result.stdout


def test_every_activation_has_its_source():
    assert set(ACTIVATION_CODE) == set(ACTIVATIONS)


def test_names_that_would_be_confused_are_refused():
    nodes = (
        Node("a", 1, full({"in": 1})),
        Node("a_b", 1, full({"a": 1})),
        Node("c", 1, full({"a_b": 1})),
        Node("b_c", 1, full({"a": 1, "c": 1})),
        Node("out", 1, full({"b_c": 1})),
    )
    with pytest.raises(ValueError, match="ambiguous"):
        source_code(Plan(1, nodes, patch=1))


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_differs_is_refused_and_leaves_nothing(format, tmp_path, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnxscript")

    def wrong(net):
        return {name: tensor + 0.01 for name, tensor in named_tensors(net).items()}

    monkeypatch.setattr(sys.modules[export.__module__], "named_tensors", wrong)
    kept = tmp_path / f"net{FORMATS[format]}"
    kept.write_text("as it was")
    with pytest.raises(ValueError, match=r"^the export differs from the network by \d.\de[+-]\d\d, more than"):
        export(filled(NETS["unaligned"]()), kept, format)
    assert [file.name for file in tmp_path.iterdir()] == [kept.name]
    assert kept.read_text() == "as it was"


def test_a_network_that_is_not_finite_is_refused(tmp_path):
    net = filled(NETS["vectors"]())
    with torch.no_grad():
        net.nodes["out"].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="differs from the network by nan"):
        export(net, tmp_path / "net.py", "python")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("net.txt", "text", "unknown format 'text'; there are: python, torch-export, onnx"),
        ("net.txt", "python", r"must be named \*.py, got"),
        ("nowhere/net.py", "python", "nowhere is no folder in which files can be written"),
        ("net.py", "python", "net.safetensors is a folder"),
    ],
)
def test_bad_arguments(name, format, message, tmp_path):
    (tmp_path / "net.safetensors").mkdir()
    with pytest.raises(ValueError, match=message):
        export(filled(NETS["vectors"]()), tmp_path / name, format)
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install 'bregman-nas\[onnx\]'"):
        export(filled(NETS["vectors"]()), tmp_path / "net.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_is(tmp_path):
    net = filled(NETS["vectors"]()).double().train()
    export(net, tmp_path / "net.py", "python")
    assert net.training
    assert {p.dtype for p in net.parameters()} == {torch.float64}


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_error_that_names_the_file_and_leaves_nothing(format, tmp_path, monkeypatch):
    """A limit on the size of files stands in for it; torch and safetensors abort there, or raise what is no OSError."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
    resource = pytest.importorskip("resource", reason="no limits of POSIX")
    limits, write = resource.getrlimit(resource.RLIMIT_FSIZE), WRITERS[format]

    def write_little(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return write(*given)

    monkeypatch.setitem(WRITERS, format, write_little)
    path = tmp_path / f"net{FORMATS[format]}"
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            export(filled(NETS["unaligned"]()), path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
