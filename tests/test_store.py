"""Networks in a folder: what was saved comes back, light and fast; what was damaged or tampered with is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nas.models import DagNet, Edge, Node, Plan, Skip, compact, conv_skip_autoencoder, load
from nas.models.store import fingerprint
from tests.nets import full, sparse_nets

ROOT = Path(__file__).resolve().parents[1]
PLAN = Plan(
    1,
    (
        Node("n1", 3, full({"in": 3})),
        Node(
            "n2",
            3,
            (*full({"n1": 1}), Edge("n1", 3, "depthwise", take=(0, 2))),
            (Skip("n1", (0,), (2,)),),
            (0, 1),
            bias=False,
        ),
        Node("out", 4, full({"n2": 3})),
    ),
    patch=2,
    offset=0.5,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a network, and the bytes of its two files."""
    folder = tmp_path_factory.mktemp("stored")
    torch.manual_seed(0)
    DagNet(PLAN).save_pretrained(folder)
    return folder, {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@settings(max_examples=30)
@given(case=sparse_nets(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_any_network_comes_back_in_its_precision(tmp_path_factory, case, dtype):
    net = compact(case[0]).to(dtype)
    folder = tmp_path_factory.mktemp("net") / "made" / "by save_pretrained"
    net.save_pretrained(str(folder))
    again = load(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert again.plan == net.plan
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in net.state_dict().items())
    assert next(again.parameters()).dtype == dtype


def test_loading_imports_torch_and_safetensors_only(stored):
    script = (
        "import sys, torch, safetensors.torch; before = set(sys.modules); from nas.models import load; "
        f"load({str(stored[0])!r}); print(sorted(name for name in set(sys.modules) - before if name.count('.') < 2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = set(re.findall(r"'([^']*)'", result.stdout))
    assert "nas.models" in loaded
    heavy = {
        *("networkx", "matplotlib", "skimage", "torchvision", "jsonargparse", "yaml", "tqdm", "graphviz", "PIL"),
        *("scipy", "onnx", "onnxruntime", "torch._dynamo", "nas.search", "nas.analysis", "nas.cli"),
    }
    assert not loaded & heavy


def damaged(folder, stored, name, content):
    for each, original in stored[1].items():
        (folder / each).write_bytes(content if each == name else original)
    with pytest.raises(ValueError, match=r"^the network in .* is damaged: [^\n]+$") as problem:
        load(folder)
    return str(problem.value)


def changed(**changes):
    """The plan with other values, at paths such as nodes__0__units; ... leaves a key out."""
    data = json.loads(json.dumps(PLAN.to_dict()))
    for path, value in changes.items():
        *way, last = (int(step) if step.isdigit() else step for step in path.split("__"))
        place = data
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("", "Expecting value"),
        ("[]", "this is not the plan of a network"),
        ("null", "this is not the plan of a network"),
        ('"' + "x" * 40, "Unterminated string"),
        ("[" * 100_000, "recursion"),
        ("{" + '"channels": 1, "channels": 1}', "a key stands twice"),
        ("1" * 10_000, "Exceeds the limit"),
        (changed(residual=...), "Plan has the keys"),
        (changed(nodes__0__rows=...), "'rows'|keys"),
        (changed(nodes__0__searched=...), "Node has the keys"),
        (changed(colour=1), "Plan has the keys"),
        (changed(nodes__1__skips__0__gate=1), "Skip has the keys"),
        (changed(nodes=None), "not the plan"),
        (changed(nodes=[]), "the last node of a plan must be named 'out'"),
        (changed(nodes__0="import os"), "not the plan"),
        (changed(nodes__0__activation="eval"), "unknown activation 'eval'"),
        (changed(nodes__0__activation=["relu"]), "unhashable"),
        (changed(nodes__0__name="keys"), "reads 'n1'"),
        (changed(nodes__0__name="n1)\nimport os"), "an identifier"),
        (changed(nodes__0__name=7), "an identifier"),
        (changed(nodes__0__units=10**9), "must have 1 to 100000 units"),
        (changed(nodes__0__units=99_999), "of different networks|joins"),
        (changed(nodes__0__units=4), "of different networks"),
        (changed(nodes__0__units=3.0), "must have 1 to 100000 units"),
        (changed(nodes__0__units=True), "must have 1 to 100000 units"),
        (changed(nodes__0__edges__0__kernel=99_999), "of different networks"),
        (changed(nodes__0__edges__0__kernel=2), "must be odd"),
        (changed(nodes__0__edges__0__kernel="3"), "must be odd"),
        (changed(nodes__0__edges={"in": 3}), "not the plan"),
        (changed(nodes__0__edges__0__source="out"), "reads 'out', which is not before it"),
        (changed(nodes__1__edges__1__operation="dilated"), "unknown operation 'dilated'"),
        (changed(nodes__1__edges__1__operation=["full"]), "unknown operation"),
        (changed(nodes__1__edges__1__operation="full"), "two edges of node 'n2' have the same name"),
        (changed(nodes__1__edges__1__operation="pointwise"), "is pointwise and has the kernel size 3"),
        (changed(nodes__1__edges__1__take=[0]), "is depthwise and joins 1 to 2"),
        (changed(nodes__1__edges__1__take="02"), "names units that do not exist"),
        (changed(nodes__1__edges__1__put=[[0], [1]]), "names units that do not exist"),
        (changed(nodes__1__edges__1__core=...), "Edge has the keys"),
        (changed(nodes__1__edges__1__core=3), "cannot grow from the core 3"),
        (changed(nodes__1__bias=True), "of different networks"),
        (changed(nodes__1__bias="no"), "bias true or false"),
        (changed(nodes__1__tied="n1"), "cannot be tied to 'n1'"),
        (changed(nodes__1__tied=["n1"]), "unhashable|cannot be tied"),
        (changed(nodes__1__skips__0__trunk=...), "Skip has the keys"),
        (changed(nodes__1__rows=[1, 0]), "the rows of node 'n2' are not units of it"),
        (changed(nodes__1__rows=[0, 1.0]), "the rows of node 'n2' are not units of it"),
        (changed(nodes__1__rows=[0, 2]), ""),
        (changed(nodes__1__skips__0__take=[3]), "names units that do not exist"),
        (changed(nodes__1__skips__0__take=[-1]), "names units that do not exist"),
        (changed(patch=10**6), "patch must be an integer from 1 to 100000"),
        (changed(patch=99_999), "must have as many units"),
        (changed(channels="1"), "channels must be an integer"),
        (changed(offset="0.5"), "offset must be a finite number"),
        (changed(offset=float("nan")), "offset must be a finite number"),
        (changed(offset=10**400), "offset must be a finite number"),
        (changed(residual="no"), "residual must be true or false"),
        (changed(nodes__0__searched=1), "searched true or false"),
    ],
)
def test_tampered_plans_are_refused_in_one_sentence(tmp_path, stored, config, sentence):
    if not sentence:  # other rows of as many: a network like any other
        for name, content in {**stored[1], "config.json": config.encode()}.items():
            (tmp_path / name).write_bytes(content)
        assert load(tmp_path).plan.nodes[1].rows == (0, 2)
        return
    assert re.search(sentence, damaged(tmp_path, stored, "config.json", config.encode()))


def other_tensors(tmp_path, change):
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("nodes.n1.bias"), "of different networks"),
        (lambda t: t.update(more=torch.zeros(1)), "of different networks"),
        (lambda t: t.update({"nodes.n1.bias": torch.zeros(4)}), "of different networks"),
        (lambda t: t.update({"nodes.n1.bias": torch.zeros(3, 1)}), "of different networks"),
        (lambda t: t.update({"nodes.n1.bias": torch.zeros(3, dtype=torch.float64)}), "of one precision"),
        (lambda t: t.update({name: each.int() for name, each in t.items()}), "real floating-point numbers"),
        (lambda t: t.clear(), "of different networks"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, stored, change, sentence):
    (tmp_path / "model.safetensors").write_bytes(stored[1]["model.safetensors"])
    assert sentence in damaged(tmp_path, stored, "model.safetensors", other_tensors(tmp_path, change))


def test_a_huge_plan_does_not_fill_the_memory(tmp_path, stored):
    """Four terabytes of weights by the plan, 1 kB in the file: refused by the sizes alone."""
    nodes = (
        Node("n1", 100_000, full({"in": 3})),
        Node("n2", 100_000, full({"n1": 3})),
        Node("out", 4, full({"n2": 3})),
    )
    config = json.dumps(Plan(1, nodes, patch=2).to_dict()).encode()
    assert "of different networks" in damaged(tmp_path, stored, "config.json", config)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_files_are_refused(tmp_path, stored, name, part):
    content = stored[1][name].rstrip()
    damaged(tmp_path, stored, name, content[: int(part * len(content))])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, stored, name):
    for each, content in stored[1].items():
        if each != name:
            (tmp_path / each).write_bytes(content)
    with pytest.raises(OSError, match=re.escape(name)):
        load(tmp_path)


EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 3)), min_size=1)


@settings(max_examples=400)
@given(name=st.sampled_from(["config.json", "model.safetensors"]), edits=EDITS)
@example(name="model.safetensors", edits=[(0, b"\xff\xff\xff", 3)])
def test_bytes_edited_at_random_load_or_are_refused(tmp_path_factory, stored, name, edits):
    content = stored[1][name]
    for place, inserted, removed in edits:
        at = place % max(1, len(content))
        content = content[:at] + inserted + content[at + removed :]
    folder = tmp_path_factory.getbasetemp()
    for each, original in stored[1].items():
        (folder / each).write_bytes(content if each == name else original)
    try:
        net = load(folder)
    except ValueError as problem:
        assert "\n" not in str(problem)
    else:
        assert net(torch.rand(1, 1, 5, 4)).shape == (1, 1, 5, 4)


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_every_changed_bit_of_a_weight_changes_the_fingerprint(tmp_path_factory, stored, place, bit):
    original, files = stored
    content = bytearray(files["model.safetensors"])
    begin = 8 + int.from_bytes(content[:8], "little")  # the tensors follow on the header, whose length comes first
    content[begin + place % (len(content) - begin)] ^= 1 << bit
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_bytes(files["config.json"])
    (folder / "model.safetensors").write_bytes(content)
    assert fingerprint(load(folder)) != fingerprint(load(original))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.sampled_from(["in", "n1", "keys", "out", "", "a.b"])
)


@settings(max_examples=400)
@given(data=st.data())
def test_values_edited_at_random_load_or_are_refused(tmp_path_factory, stored, data):
    """The same on the level of JSON: any value replaced by any other, or left out."""
    config = json.loads(stored[1]["config.json"])
    place = config
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=3), VALUES))
            break
        place = place[key]
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(stored[1]["model.safetensors"])
    try:
        net = load(folder)
    except ValueError as problem:
        assert "\n" not in str(problem)
    else:
        y = None if net.plan.patch is None else net(torch.rand(1, net.plan.inputs, 5, 4))
        assert y is None or y.shape[-2:] == ((1, net.plan.units["out"]) if net.plan.pooled else (5, 4))


def test_what_a_failed_save_leaves_is_the_old_network(tmp_path, monkeypatch):
    net = conv_skip_autoencoder(depth=1, width=2)
    net.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    write = Path.write_bytes

    def fails(path, data):
        write(path, b"half")
        raise OSError(28, "disk full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        net.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
