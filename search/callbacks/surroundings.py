"""What a search was computed with: versions and the machine, in surroundings.jsonl."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nas import __version__
from nas.files import read_lines, write_text
from nas.search.callbacks.callback import Callback
from nas.search.runs.run import SURROUNDINGS, Run

if TYPE_CHECKING:
    from nas.search.engine.search import Search

PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "networkx", "safetensors")
CPUS = Path("/proc/cpuinfo")  # where there is one


class SurroundingsFile(Callback):
    """Keeps surroundings.jsonl; part of every search.

    A line says since which epoch ("epoch") it was computed so: with other versions, or on another machine, than before.
    """

    def on_start(self, search: "Search") -> None:
        begun = len(search.points) - 1
        lines = read_surroundings(search.run) if begun else []
        line = {**surroundings(), "computed on": str(search.compute)}
        if not lines or {**line, "epoch": lines[-1]["epoch"]} != lines[-1]:
            lines.append({"epoch": begun, **line})
        write_text(search.run.folder / SURROUNDINGS, "".join(json.dumps(each) + "\n" for each in lines))


def surroundings() -> dict[str, str]:
    """Versions by package, and the machine, as it is now."""
    found = {"nas": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = f"cores: {os.cpu_count()}, threads: {torch.get_num_threads()}"
    return {**found, "machine": f"{platform.system()} {platform.machine()}, {_processor()}{cores}"}


def _processor() -> str:
    """Its name and a comma, where that is known."""
    try:
        lines = CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, " if names else ""


def read_surroundings(run: Run) -> list[dict[str, object]]:
    """The lines of surroundings.jsonl; those that are damaged are left out. None of a run that has no such file."""
    return [line for line in read_lines(run.folder / SURROUNDINGS) if isinstance(line.get("epoch"), int)]
