"""The README is true: its example runs, its files exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in example.splitlines() if line]) <= 15
    short = example.replace("steps=128", "steps=3").replace("range(10)", "range(2)")
    assert short.count("steps=3") == 2 and "range(2)" in short
    monkeypatch.chdir(tmp_path)
    exec(compile(short.replace("epochs=10", "epochs=2"), "README.md", "exec"), {})
    assert "Certificate(max_abs_float32=" in capsys.readouterr().out
    assert (tmp_path / "topology.svg").exists()


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_targets_of_the_makefile_are_the_ones_it_names():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
