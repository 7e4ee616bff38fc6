"""What users register: by functions, and by --import on the command line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from nas.cli import main
from nas.models import RECIPES, conv_skip_autoencoder, register_recipe
from nas.registry import import_registrations, imported
from nas.search import Denoise, Restoration, SearchConfig, pictures, register_data, register_task
from nas.search.data.sources import SOURCES
from nas.search.runs.learnt import TASKS

ROOT = Path(__file__).resolve().parents[1]
MINE = """
from dataclasses import dataclass

import torch

from nas.models import conv_skip_autoencoder, register_recipe
from nas.search import Picture, Pictures, Restoration, register_data, register_task


@dataclass(frozen=True)
class Drop(Restoration):
    missing: float = 0.5

    def observe(self, clean, generator):
        return clean * (torch.rand(clean.shape, generator=generator) >= self.missing)


def stripes(root, download, channels):
    x = torch.arange(400.0).reshape(1, 20, 20)
    waves = [Picture(f"w{k}", 0.5 + 0.5 * torch.sin(x / (k + 2))) for k in range(5)]
    return Pictures(waves[:3], waves[3:4], waves[4:])


def small(channels=1, *, width=4):
    return conv_skip_autoencoder(channels, depth=1, width=width)


register_task("drop", Drop)
register_data("stripes", stripes)
register_recipe("small", small)
"""
OPTIONS = [
    "--task=drop", "--task_options={missing: 0.3}", "--data=stripes", "--model=small",
    "--epochs=1", "--sizes=none", "--price=none", "--steps=10", "--batch=2", "--crop=16", "--entry-time=50",
]  # fmt: skip


@pytest.mark.parametrize(
    ("register", "thing", "kind", "taken"),
    [
        (register_recipe, conv_skip_autoencoder, "model", "skip_autoencoder"),
        (register_task, Denoise, "task", "deblur"),
        (register_data, pictures, "data", "mnist"),
    ],
)
def test_nothing_is_overwritten(register, thing, kind, taken):
    register("mine", thing)
    for name in ("mine", taken):
        with pytest.raises(ValueError, match=f"there is a {kind} '{name}' already; choose another name"):
            register(name, thing)
    with pytest.raises(ValueError, match=f"the name of a {kind} must be an identifier, got 'my own'"):
        register("my own", thing)


def test_what_is_registered_can_be_configured():
    with pytest.raises(ValueError, match="unknown model 'mine'; there are: .*, and those that you register"):
        SearchConfig(model="mine")
    register_recipe("mine", conv_skip_autoencoder)
    assert SearchConfig(model="mine", model_options={"depth": 2}).build().plan == conv_skip_autoencoder(depth=2).plan


def test_an_option_without_a_default_is_asked_for():
    @dataclass(frozen=True)
    class Darken(Restoration):
        factor: float

        def observe(self, clean, generator):
            return self.factor * clean

    register_task("darken", Darken)
    data = pictures()
    with pytest.raises(ValueError, match="darken needs the option 'factor'"):
        SearchConfig(task="darken").make_task(data)
    with pytest.raises(ValueError, match="darken has no option 'by'; its options are factor"):
        SearchConfig(task="darken", task_options={"by": 2}).make_task(data)
    assert SearchConfig(task="darken", task_options={"factor": 0.5}).make_task(data) == Darken(0.5)


def test_a_recipe_may_be_any_callable():
    register_recipe("narrow", partial(conv_skip_autoencoder, width=3))
    config = SearchConfig(model="narrow", model_options={"depth": 2})
    assert config.build().plan == conv_skip_autoencoder(depth=2, width=3).plan


def test_a_file_is_imported_once(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from nas.models import RECIPES, register_recipe\nregister_recipe(f'r{len(RECIPES)}', print)\n")
    before = set(RECIPES)
    import_registrations(str(file))
    import_registrations(str(file))
    assert len(set(RECIPES) - before) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot import .*mine.py: FileNotFoundError"),
        ("1 / 0", "cannot import .*mine.py: ZeroDivisionError: division by zero"),
        ("a b", "cannot import .*mine.py: SyntaxError"),
        ("import sys\nsys.exit(3)", r"cannot import .*mine.py: SystemExit: 3 \(line 2\)"),
        (
            "from .nets import net",
            "cannot import .*mine.py: ImportError: attempted relative import with no known parent",
        ),
        (
            "from nas.models import register_recipe\nregister_recipe('skip_autoencoder', print)",
            "cannot import .*mine.py: ValueError: there is a model 'skip_autoencoder' already",
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_every_time(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            import_registrations(str(file))
    with pytest.raises(ValueError, match="cannot import no.such.module: ModuleNotFoundError"):
        import_registrations("no.such.module")


def test_a_file_may_import_the_files_beside_it(tmp_path):
    (tmp_path / "beside_mine.py").write_text("number = 3\n")
    (tmp_path / "mine.py").write_text("from beside_mine import number as number_beside_mine\n")
    before = list(sys.path)
    import_registrations(str(tmp_path / "mine.py"))
    assert imported("number_beside_mine") == 3 and sys.path == before


def nas(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nas", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_import_on_the_command_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    found = nas("search", "--import=mine.py", *OPTIONS, "--out=run", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "drop with small by adabreg on stripes, Drop(missing=0.3)" in found.stdout
    assert json.loads(found.stdout.splitlines()[-1])["psnr_noisy"] > 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["task"], config["task_options"]) == ("drop", {"missing": 0.3})
    assert main(["show", str(tmp_path / "run")]) == 2  # in this process nothing was registered
    assert (
        "unknown task 'drop'; there are: classify, deblur, denoise, inpaint, superresolve, and those that"
        in capsys.readouterr().err
    )


def test_a_module_is_imported_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my_small_model.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_small_model", raising=False)
    import_registrations("my_small_model")
    assert {"drop", "stripes", "small"} <= {*RECIPES, *SOURCES, *TASKS}


def test_every_verb_takes_import_before_or_after_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    own = ["--import", "mine.py"]
    assert main(["search", *own, *OPTIONS, "--out=run"]) == 0
    assert main([*own, "show", "run"]) == 0
    assert main(["extract", "run", "--no-latency", *own]) == 0
    assert main(["retrain", "run", "--epochs=1", *own]) == 0
    assert main(["denoise", *own, "run", "run/pictures/w4-noisy.png", "-o", "out.png"]) == 0
    assert main(["search", "--import"]) == 2
    assert "nas: argument --import: expected one argument" in capsys.readouterr().err


def test_no_configuration_imports_anything(tmp_path, monkeypatch, capsys):
    """An ``import`` in a YAML file or in the folder of a run is refused, and what it names does not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("open('executed', 'w')\n" + MINE)
    (tmp_path / "options.yaml").write_text("import: mine.py\nepochs: 1\n")
    assert main(["search", "--config=options.yaml", "--out=run"]) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(SearchConfig().to_yaml() + "import: [mine.py]\n")
    assert main(["show", "run"]) == 2
    (tmp_path / "run" / "config.yaml").write_text(SearchConfig().to_yaml().replace("task: denoise", "task: mine.py"))
    assert main(["show", "run"]) == 2
    assert not (tmp_path / "executed").exists()
    assert "import" in capsys.readouterr().err.splitlines()[0]


def test_help_names_import(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--import FILE.py|MODULE" in capsys.readouterr().out
