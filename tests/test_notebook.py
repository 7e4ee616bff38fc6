"""In a notebook runs, networks, topologies and certificates show themselves; the tutorial runs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import pytest
import torch

from nas.analysis import extract, topology
from nas.analysis.notebook import load_ipython_extension
from nas.models import conv_skip_autoencoder
from nas.search import Run, Search, SearchConfig

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


@pytest.fixture
def shown():
    """What IPython would show of an object; None: its text."""
    kinds = {}
    formatter = SimpleNamespace(for_type=kinds.__setitem__)
    load_ipython_extension(SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter})))
    return lambda thing: kinds[type(thing)](thing)


def test_networks_topologies_and_certificates(shown):
    torch.manual_seed(0)
    net = conv_skip_autoencoder(depth=2, width=4)
    with torch.no_grad():
        for tensor in net.unit_parameters()["n1"]:
            tensor[:3] = 0
    compact, certificate = extract(net)
    params = [sum(p.numel() for p in each.parameters()) for each in (compact, net)]
    assert f"{params[0]:,} of {params[1]:,} parameters" in shown(net)
    assert ">1 of 4<" in shown(net) and ">1 of 4<" in shown(topology(net))
    assert "The certificate holds" in shown(certificate)
    assert "does <b>not</b> hold" in shown(replace(certificate, max_abs_float64=1.0))
    assert shown(nx.DiGraph()) is None and shown(topology(net, "unit")) is None


def test_a_run_names_its_networks_and_its_name_is_shown_not_run(shown, data_root, tmp_path):
    options = {"model": "conv_skip_autoencoder", "model_options": {"depth": 2, "width": 4}, "density": 0.7}
    config = SearchConfig(
        data="folder", data_root=data_root, epochs=2, steps=4, batch=2, crop=16, sizes="150", fit=2, refit=1, **options
    )
    run = Run(tmp_path / "<script>alert(1)", config)
    assert "not begun" in shown(run)
    engine = Search(run)
    next(iter(engine))
    engine.close()
    assert "epoch 1 of 2" in shown(run)
    for _ in Search(run, resume=True):
        pass
    html = shown(Run.open(run.folder))
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert html.count("recommended") == 1 and "dB" in html and "<svg" in html


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_the_same_kinds_of_things(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    before = [kinds(cell) for cell in notebook.cells]
    monkeypatch.setenv("PYTHONPATH", str(TUTORIAL.parents[1]))
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, coalesce_streams=True)
    client.execute()
    assert [kinds(cell) for cell in notebook.cells] == before
    assert sum(["text/html", "text/plain"] in each for each in before) == 5


def kinds(cell):
    return [sorted(output.get("data", [output.output_type])) for output in cell.get("outputs", [])]


def test_importing_the_package_in_a_notebook_is_enough(tmp_path):
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import nas; from nas.models import mlp; net = mlp(4, widths=(3,), patch=None)")
data, _ = shell.display_formatter.format(shell.user_ns["net"])
print("parameters are alive" in data["text/html"])
"""
    pytest.importorskip("IPython")
    environment = os.environ | {"IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("True", "", 0)
