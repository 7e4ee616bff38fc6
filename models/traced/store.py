"""A module of somebody else in files, without pickle: how it is made, and the tensors that it has now."""

import importlib
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.utils._pytree import tree_leaves

from nas.files import write_bytes, write_text
from nas.models.traced.graph import unwrap
from nas.models.traced.shrink import held_by, numbers_in, resize

Numbers = Mapping[str, Mapping[str, Any]]  # by submodule and attribute
CONFIG, WEIGHTS = "module.json", "model.safetensors"


def save_module(model: nn.Module, folder: Path | str, factory: str, options: Mapping[str, Any] | None = None) -> None:
    """Write a module, for instance one that `nas.analysis.extract` made smaller, so that `load_module` restores it.

    Args:
        model: the module.
        folder: where module.json and model.safetensors are written; it is made if it is missing.
        factory: what makes the module at its full size, as "package.module:function" or "path/to/file.py:Class".
        options: keyword arguments of the factory, of plain data.

    Raises:
        ValueError: the factory does not exist or fails, or makes a module of other parts; options are no plain data.
        OSError: the folder cannot be written.
    """
    model = unwrap(model)
    made = filled(_make(factory, dict(options or {})), _tensors(model), factory)
    write_module(model, Path(folder), factory, options or {}, other_numbers(made, model))


def write_module(
    model: nn.Module, folder: Path, factory: str, options: Mapping[str, Any], numbers: Numbers = MappingProxyType({})
) -> None:
    """`save_module`, without a look at what the factory makes, in which ``numbers`` are others."""
    try:
        held = {"numbers": dict(numbers)} if numbers else {}
        text = json.dumps({"factory": factory, "options": dict(options), **held}, indent=2)
    except TypeError as problem:
        raise ValueError(f"save_module(options=...) must be plain data: {problem}") from None
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, save(_tensors(model)))
    write_text(folder / CONFIG, text + "\n")


def load_module(folder: Path | str) -> nn.Module:
    """The module that `save_module` wrote, in evaluation mode. Its factory is called, nothing is unpickled.

    Raises:
        ValueError: the files are damaged, or the factory makes something else by now.
        OSError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    tensors, numbers = read_module(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        factory, options = str(config["factory"]), dict(config["options"])
    except (ValueError, KeyError, TypeError) as problem:
        raise _damaged(folder, problem) from None
    return filled(_make(factory, options), tensors, factory, numbers).eval()


def read_module(folder: Path) -> tuple[dict[str, torch.Tensor], Numbers]:
    """What `write_module` wrote of the weights, and of the numbers that modules hold.

    Raises:
        ValueError: they are damaged.
        OSError: a file is missing or cannot be read.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    try:
        numbers = {str(path): dict(held) for path, held in dict(json.loads(text).get("numbers", {})).items()}
        if not all(type(each) is int for each in tree_leaves(numbers)):
            raise ValueError("the numbers of its modules are no integers")
        return load_file(folder / WEIGHTS), numbers
    except (ValueError, TypeError, AttributeError, SafetensorError) as problem:
        raise _damaged(folder, problem) from None


def other_numbers(model: nn.Module, other: nn.Module) -> Numbers:
    """By submodule the numbers that another copy of a module holds in their place."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        theirs = numbers_in(other.get_submodule(path))
        if changed := {name: theirs[name] for name, own in numbers_in(module).items() if theirs.get(name, own) != own}:
            found[path] = changed
    return found


def _damaged(folder: Path, problem: Exception) -> ValueError:
    return ValueError(f"the module in {folder} is damaged: {' '.join(str(problem).split())}")


def _make(factory: str, options: dict[str, Any]) -> nn.Module:
    place, _, name = factory.rpartition(":")
    try:
        if place.endswith(".py"):
            known = sys.modules.get(str(Path(place).resolve()))  # as `nas.registry` imports files
            made = (runpy.run_path(place) if known is None else vars(known))[name](**options)
        else:
            made = getattr(importlib.import_module(place), name)(**options)
    except Exception as problem:  # whatever the code of somebody else raises
        raise ValueError(f"{factory} makes no module: {type(problem).__name__}: {problem}") from None
    if not isinstance(made, nn.Module):
        raise ValueError(f"{factory} makes no module, but {type(made).__name__}")
    return made


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _held_once(model).items()}


def _held_once(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the state of a module; what has several names once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def filled(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], factory: str, numbers: Numbers = MappingProxyType({})
) -> nn.Module:
    """The module with tensors of other sizes, and numbers, put into it, in place.

    Raises:
        ValueError: it has other parts; ``factory`` is said to have made it.
    """
    held = held_by(model)
    expected = _held_once(model)
    extra = {name for name in tensors.keys() - expected.keys() if not name.endswith("bias")}  # constants make biases
    extra |= {f"{path}.{name}" for path, name in _unknown(model, numbers)}
    if other := sorted(extra | (expected.keys() - tensors.keys())):
        raise ValueError(f"{factory} makes a module of other parts: they differ in {other[0]}")
    for name, new in tensors.items():
        old = held.get(name)
        owners = [each for each, tensor in held.items() if tensor is old] if old is not None else [name]
        value = new if old is not None and not isinstance(old, nn.Parameter) else nn.Parameter(new)
        if isinstance(value, nn.Parameter):
            value.requires_grad_(old is None or old.requires_grad)
        for each in owners:
            place, _, attribute = each.rpartition(".")
            setattr(model.get_submodule(place), attribute, value)
    for module in model.modules():
        resize(module)
    for path, changed in numbers.items():
        held_numbers = numbers_in(model.get_submodule(path))
        for attribute, number in changed.items():
            setattr(model.get_submodule(path), attribute, type(held_numbers[attribute])(number))
    return model


def _unknown(model: nn.Module, numbers: Numbers) -> list[tuple[str, str]]:
    """The submodules and attributes that a module lacks."""
    held = {path: numbers_in(module) for path, module in model.named_modules()}
    return [(path, name) for path, changed in numbers.items() for name in changed if name not in held.get(path, {})]
