"""The architecture as a test: imports point one way, and every package is where it is said to be."""

import ast
import os
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["nas", "models", "search", "analysis"]  # each may import itself and what stands to its left
# of nas.search, likewise
ROOMS = ["data", "training", "tasks", "runs", "callbacks", "engine", "retraining", "sweep", "zoo"]
WIRING = ROOT / "nas" / "__main__.py"  # like nas/cli/, which is no layer, it imports from all of them
FILES = [
    file
    for layer in LAYERS
    for file in sorted((ROOT / layer).rglob("*.py"))
    if file != WIRING and "cli" not in file.parts
]


def layers_imported(source):
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            assert first not in LAYERS[1:], f"import nas.{first}, not {first}"
            if first == "nas":
                found.add(rest[0] if rest and rest[0] in LAYERS else "nas")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_left(file):
    layer = LAYERS.index(file.relative_to(ROOT).parts[0])
    assert not layers_imported(file.read_text()) & set(LAYERS[layer + 1 :])


def test_the_rule_can_fail():
    source = "from nas.search.training.loop import search\nimport nas.models.dag\nfrom nas import L1"
    assert layers_imported(source) == {"search", "models", "nas"}


def rooms_imported(source):
    """Rooms of nas.search, but for what only the types of arguments need."""
    tree = ast.parse(source)
    typing = {child for node in tree.body if isinstance(node, ast.If) for child in ast.walk(node)}
    modules = [
        [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in typing
    ]
    return {name.split(".")[2] for name in chain.from_iterable(modules) if name.startswith("nas.search.")}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_search_import_those_to_their_left(room):
    assert (ROOT / "search" / room / "__init__.py").is_file()
    for file in sorted((ROOT / "search" / room).rglob("*.py")):
        assert rooms_imported(file.read_text()) <= set(ROOMS[: ROOMS.index(room) + 1]), file


def test_search_is_rooms_and_nothing_else():
    assert sorted(file.parent.name for file in (ROOT / "search").glob("*/__init__.py")) == sorted(ROOMS)
    assert [file.name for file in (ROOT / "search").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("name", LAYERS[1:])
def test_folders_are_linked_into_the_package(name):
    link = ROOT / "nas" / name
    if link.is_symlink():
        assert os.readlink(link) == f"../{name}"
    else:  # git wrote no links here
        assert not link.exists() or link.read_text() == f"../{name}"


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for file in (ROOT / layer).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(name if name.startswith("nas") else f"nas.{name}" for name in found)


def run(command, cwd, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_user_may_have_a_models_folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("mine = True\n")
    (tmp_path / "script.py").write_text(
        "import models, nas.models, nas.search, nas.analysis\n"
        "assert models.mine and nas.models.DagNet.__module__ == 'nas.models.dag'\n"
    )
    result = run(["script.py"], tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_checkout_without_links_works(tmp_path):
    for layer in LAYERS:
        for file in [*(ROOT / layer).rglob("*.py"), *(ROOT / layer).rglob("*.pyi")]:
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file.read_text())
    result = run(["-c", "import nas.search; print(nas.search.__file__)"], tmp_path, PYTHONPATH="")
    assert result.stdout.strip() == str(tmp_path / "search" / "__init__.py"), result.stderr


def test_import_is_light(tmp_path):
    heavy = {
        "matplotlib", "torchvision", "skimage", "PIL", "tifffile", "graphviz", "jinja2", "jsonargparse", "hypothesis",
    }  # fmt: skip
    script = f"import sys, nas, nas.models, nas.search, nas.analysis; print(sorted({heavy!r} & set(sys.modules)))"
    result = run(["-c", script], tmp_path)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_importing_it_takes_little_longer_than_importing_torch():
    """Processor time, so that other work on the machine does not count; the least of three."""
    script = "import time, torch; t = time.process_time(); from nas import AdaBreg; print(time.process_time() - t)"
    command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    times = [float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(times) < 0.3
