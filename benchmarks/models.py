"""Which models that other people wrote can be searched, and what extraction does with them.

    python -m benchmarks.models                     all models of models.txt beside this file whose packages are there
    python -m benchmarks.models --out models.jsonl timm:resnet10t deepinv

Words after the options choose models by what their lines begin with. `coupled_units` accepts a model whole if all its
layers with channels of their own are units, in part (strict=False) if some stay dense. Then half of the units of every
layer are set to zero, normalisations are given the statistics of a batch, so that the outputs are numbers of ordinary
size, and extraction has to remove what is zero. Every model is tried in a process of its own, which has a limited time
and memory. Printed are the layers with units, parameters before and after, the difference of the outputs in double
precision, the seconds that `coupled_units` and `extract` took the processor, and why a model is not accepted whole; at
last how many models had which answer, and the commonest reasons.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.analysis import extract
from nas.groups import Members
from nas.models.traced.graph import Example
from nas.models.traced.units import every_other, find_units, kill, stir
from nas.search.data.vision import import_torchvision

LIST = Path(__file__).with_suffix(".txt")
PACKAGES = ("timm", "segmentation_models_pytorch", "deepinv.models", "spandrel", "monai.networks.nets", "basicsr.archs")
MOST = 150e6  # parameters; larger models are left out
PATIENCE = 120  # seconds of the processor for one model
MEMORY = 10 << 30  # bytes for one model
SIDE = 96  # of the pictures for models of timm that take any size


@dataclass
class Verdict:
    """What became of a model.

    Attributes:
        answer: "whole", "part", "no unit", "untraceable", "wrong", "crashed", "too large", "absent" or "out of time".
        reason: why it is not whole.
        layers: with units.
        before, after: parameters.
        difference, single: of the outputs in double and in single precision, relative to the largest; the first one
            tells whether extraction is wrong.
        found, extracted: seconds of the processor for `coupled_units` and for `extract`.
    """

    name: str
    answer: str
    reason: str = ""
    layers: int = 0
    before: int = 0
    after: int = 0
    difference: float = 0.0
    single: float = 0.0
    found: float = 0.0
    extracted: float = 0.0

    def __str__(self) -> str:
        numbers = f"{self.layers:>4} {self.before:>9} {self.after:>9} {self.difference:6.0e} {self.single:6.0e}"
        return f"{self.answer:<12}{self.name:<44}{numbers} {self.found:6.1f} {self.extracted:6.1f} s  {self.reason}"


def build(line: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of the list, and two examples of its inputs."""
    name, sizes, options = (*line.split(maxsplit=2), "", "")[:3]
    place, _, attribute = name.partition(":")
    given: dict[str, Any] = json.loads(options or "{}")
    if place == "timm":
        import timm  # type: ignore[import-not-found, unused-ignore]

        model: nn.Module = timm.create_model(attribute, pretrained=False, **given)
        config: Any = model.pretrained_cfg
        side = config["input_size"][-1] if config.get("fixed_input_size") else SIDE
        sizes = sizes or f"3x{side}x{side}"
    elif place == "torchvision":
        from torchvision import models

        model = models.get_model(attribute, weights=None, **given)
    else:
        model = getattr(importlib.import_module(place), attribute)(**given)
    shapes = [[int(side) for side in size.split("x")] if size != "-" else [] for size in sizes.split(",")]
    return model, tuple(torch.rand(2, *shape) for shape in shapes)


def judge(line: str) -> Verdict:
    torch.manual_seed(0)
    verdict = Verdict(line.split()[0], "absent")
    try:
        model, inputs = build(line)
    except ImportError as problem:
        verdict.reason = str(problem)
        return verdict
    verdict.before = sum(p.numel() for p in model.parameters())
    if verdict.before > MOST:
        verdict.answer = "too large"
        return verdict
    units = _find(model, inputs, verdict)
    if not units:
        return verdict
    stir(model)
    batch = tuple(torch.cat([torch.rand(x.shape), torch.randn(x.shape)]) for x in inputs)
    kill(model, units, every_other(units), Example.of(batch))
    began = time.process_time()
    small, certificate = extract(model, [tuple(x[0] for x in inputs)])
    verdict.extracted = time.process_time() - began
    verdict.after = sum(p.numel() for p in small.parameters())
    verdict.difference, verdict.single = certificate.max_rel_float64, certificate.max_rel_float32
    if not verdict.difference <= certificate.tolerance_float64 or verdict.after >= verdict.before:
        verdict.answer = "wrong"
    return verdict


def _find(model: nn.Module, inputs: tuple[Tensor, ...], verdict: Verdict) -> Mapping[str, Members]:
    """The units of a model, as `coupled_units` finds them; what is known of it is written down."""
    began = time.process_time()
    try:
        units, problems, dense = find_units(model, Example.of(inputs))
    except ValueError as problem:
        verdict.answer, verdict.reason = "untraceable", str(problem)
        return {}
    verdict.found, verdict.layers = time.process_time() - began, len(units)
    verdict.answer = "no unit" if not units else "part" if problems else "whole"
    verdict.reason = next(iter([*problems, *([] if units else dense)]), "")
    return units


def _work(line: str, answers: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    try:
        verdict = judge(line)
    except Exception as problem:  # is to be seen in the table
        said = next(iter(str(problem).splitlines()), "")
        verdict = Verdict(line.split()[0], "crashed", f"{type(problem).__name__}: {said}")
    answers.send(verdict)


def ask(line: str) -> Verdict:
    """What becomes of a model in a process of its own."""
    context = multiprocessing.get_context("fork")
    answers, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(line, theirs))
    worker.start()
    theirs.close()
    try:
        return answers.recv()  # type: ignore[no-any-return]
    except EOFError:
        worker.join()
        return Verdict(line.split()[0], "out of time", f"the process ended with {worker.exitcode}")
    finally:
        worker.join()


def kind(reason: str) -> str:
    """A reason without the names of layers."""
    reason = re.sub(r" in [\w.]+(?=,| in place)", "", reason)
    return re.sub(r"(?<=channels of )[\w.]+|\b[\w.]*\.[\w.]+\b|\b\d+\b", "*", reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="what lines of the list begin with; all by default")
    parser.add_argument("--out", type=Path, help="a file for one line of JSON for each model")
    given = parser.parse_args()
    torchvision = import_torchvision()
    sys.modules["torchvision.transforms.functional_tensor"] = torchvision.transforms.functional  # basicsr asks for it
    for package in ("torch.export", *PACKAGES):  # once, for all
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    listed = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    chosen = [line for line in listed if line.startswith(tuple(given.names or [""]))]
    verdicts = []
    for line in chosen or given.names:
        verdicts.append(ask(line))
        print(verdicts[-1], flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(verdicts[-1])) + "\n")
    counts = Counter(each.answer for each in verdicts)
    print(", ".join(f"{count} {answer}" for answer, count in counts.most_common()))
    for reason, count in Counter(kind(each.reason) for each in verdicts if each.reason).most_common():
        print(f"{count:>5}  {reason}")


if __name__ == "__main__":
    main()
