"""Networks that leave the house: plain PyTorch, torch.export and ONNX, each run and compared before it counts.

All formats of a `DagNet` come from one translation, the Python source of `nas.analysis.export.source`: the others are
traced from it. Those of any other module come from its graph of primitive operations.
"""

import copy
import inspect
import io
import os
import re
import runpy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from nas.analysis.export.module_source import write_module_source
from nas.analysis.export.source import named_tensors, source_code
from nas.files import naming, write_bytes, write_text
from nas.models.dag import DagNet
from nas.models.traced.graph import Example, Inputs, call, copied, first_line, silence, unwrap
from nas.models.traced.network import TracedNet
from nas.outputs import unpack_outputs

Network = Callable[..., Any]
TOLERANCE = 1e-5  # largest difference of an output; relative to the largest output where that is above 1


@contextmanager
def _in_one_line(failure: str) -> Iterator[None]:
    """What torch warns of and logs inside is not heard, and what it refuses is said in one line."""
    try:
        with silence():
            yield
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # of many kinds
        raise ValueError(f"{failure}: {_cause(problem)}") from None


def _cause(problem: BaseException) -> str:
    """What is wrong, without what torch.onnx says of its own steps."""
    while type(problem).__module__.startswith("torch.onnx") and problem.__cause__ is not None:
        problem = problem.__cause__
    said = first_line(problem)
    unknown = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", said)
    return f"it has no operator for {unknown[1]}" if unknown else said


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        net: in single precision, on the CPU, in evaluation mode.
        plain: the same without this package.
        axes: for each input by number the axes that may have any size, with their names.
        cases: inputs on which the export is compared; the first is the one to trace with.
    """

    net: nn.Module
    plain: nn.Module
    axes: tuple[dict[int, str], ...]
    cases: Sequence[tuple[Tensor, ...]]

    def program(self) -> torch.export.ExportedProgram:
        """The graph of primitive operations, without paths on this machine."""
        size = Dim.DYNAMIC if isinstance(self.net, DagNet) else Dim.AUTO
        axes = tuple(dict.fromkeys(each, size) for each in self.axes)
        with _in_one_line(f"torch.export cannot trace {type(self.net).__name__}"):
            program = torch.export.export(self.plain, self.cases[0], dynamic_shapes=_by_argument(self.plain, axes))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program


def export(net: nn.Module, path: Path, format: str, *, inputs: Inputs | None = None) -> float:
    """Write ``net`` in single precision as ``path``, for machines without this package.

    What was written is loaded again and compared with ``net`` on random inputs, of a `DagNet` of several batch and
    picture sizes; only then it takes its place. On failure nothing changes.

    Args:
        net: any network, left as it is.
        path: of the suffix in `FORMATS`, in an existing folder. Existing files are replaced.
        format: "python" (source, and its weights in a .safetensors file beside it), "torch-export" or "onnx".
        inputs: one batch for a module that is no `DagNet`: a tensor or a tuple of tensors. The batch may have any size
            later on unless the module says something else.

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        ValueError: an unknown format, a suffix that does not fit it, a difference above `TOLERANCE`, packages that
            ONNX needs are not installed, or a module that is no `DagNet` comes without inputs or cannot be traced.
        OSError: the folder cannot be written.
    """
    files = files_of(path, format)
    check_writable(files)
    subject = (
        _dag(net) if isinstance(net, DagNet) else _traced(net) if isinstance(net, TracedNet) else _module(net, inputs)
    )
    with naming(path), tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as place:
        written = [Path(place) / file.name for file in files]
        difference = _compare(subject, WRITERS[format](subject, *written))
        for new, file in reversed(list(zip(written, files, strict=True))):  # the weights before their source
            new.replace(file)
    return difference


def files_of(path: Path, format: str) -> list[Path]:
    """The files that `export` writes: ``path``, and for "python" the weights beside it.

    Raises:
        ValueError: an unknown format, or a suffix that does not fit it.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    if path.suffix != FORMATS[format]:
        raise ValueError(f"a file of the format {format} must be named *{FORMATS[format]}, got {path}")
    return [path, path.with_suffix(".safetensors")] if format == "python" else [path]


def check_writable(files: Sequence[Path]) -> None:
    """Raise ValueError unless files of these names can be written."""
    if not os.access(files[0].parent, os.W_OK):
        raise ValueError(f"{files[0].parent} is no folder in which files can be written")
    if folders := [file for file in files if file.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder; choose another file")


def write_python(subject: Subject, path: Path, weights: Path) -> Network:
    """Source of plain torch, and its weights. Returns what the source loads."""
    if isinstance(subject.net, DagNet):
        path.write_text(source_code(subject.net.plan), encoding="utf-8")
        write_bytes(weights, save(named_tensors(subject.net)))
    else:
        write_module_source(subject.program(), path, weights)
    loaded: Network = runpy.run_path(str(path))["load"](weights)
    return loaded


def write_torch_export(subject: Subject, path: Path) -> nn.Module:
    """A program for `torch.export.load`; of a `DagNet` for any batch, and pictures with sides larger than the patch."""
    program = subject.program()
    with _in_one_line(f"a file of the format torch-export cannot hold {type(subject.net).__name__}"):
        buffer = io.BytesIO()  # torch aborts the process where the disk is full
        torch.export.save(program, buffer)
        write_bytes(path, buffer.getvalue())
        return torch.export.load(path).module()


def write_onnx(subject: Subject, path: Path) -> Network:
    """An ONNX file with the input "x" (of several "x0", "x1", ...) and the output "y" (likewise).

    Raises:
        ValueError: the packages that this needs are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise ValueError(f"the format onnx needs {problem.name}; pip install 'bregman-nas[onnx]'") from None
    names = [_numbered(letter, count) for letter, count in (("x", len(subject.axes)), ("y", len(_outputs(subject))))]
    with _in_one_line(f"a file of the format onnx cannot hold {type(subject.net).__name__}"):
        program = torch.onnx.export(
            subject.plain,
            subject.cases[0],
            dynamo=True,
            dynamic_shapes=_by_argument(subject.plain, subject.axes),
            input_names=names[0],
            output_names=names[1],
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # as above
        program.save(path, external_data=False)
        return load_onnx(path)


def load_onnx(path: Path) -> Network:
    """What an ONNX file of `export` computes on the CPU, as a list of its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*given: Tensor) -> list[Tensor]:
        found = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
        return [torch.from_numpy(each) for each in found]

    return run


FORMATS = {"python": ".py", "torch-export": ".pt2", "onnx": ".onnx"}  # and the suffix of its file
WRITERS: dict[str, Callable[..., Network]] = {
    "python": write_python,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
}


def _dag(net: DagNet) -> Subject:
    net = copy.deepcopy(net).float().cpu().eval()
    generator = torch.Generator().manual_seed(0)
    cases = [(net.plan.offset + torch.randn(shape, generator=generator),) for shape in _shapes(net)]
    axes = {0: "batch"} if net.plan.patch is None else {0: "batch", 2: "height", 3: "width"}
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "model.safetensors"
        source = Path(place) / "model.py"
        write_text(source, source_code(net.plan))
        write_bytes(weights, save(named_tensors(net)))
        plain = runpy.run_path(str(source))["load"](weights)
    return Subject(net, plain, (axes,), cases)


def _traced(net: TracedNet) -> Subject:
    """The module itself, for pictures whose sides are multiples of its grain: of any size, unless its operations are
    tied to one."""
    module, (batch, channels, *sides) = copied(net.module).float().eval(), net.origin.example.shape
    shapes, grain = [(batch, channels, *sides)], net.anatomy.grain
    if net.restores:
        shapes.append((1, channels, sides[0] + grain, sides[1] + 3 * grain))
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.rand(shape, generator=generator),) for shape in shapes]
    any_size = Subject(module, module, ({0: "batch", 2: "height", 3: "width"},), cases)
    return any_size if net.restores and _takes_all(any_size) else Subject(module, module, ({0: "batch"},), cases[:1])


def _takes_all(subject: Subject) -> bool:
    """Whether one graph computes all cases."""
    try:
        program = subject.program().module()
        return all(len(program(*case)) for case in subject.cases)
    except Exception:  # of many kinds: sizes that the graph is tied to
        return False


def _are_tensors(example: Example) -> bool:
    return not example.kwargs and all(isinstance(x, Tensor) for x in example.args)


def _module(net: nn.Module, inputs: Inputs | None) -> Subject:
    name = type(net).__name__
    if inputs is None or not _are_tensors(example := Example.of(inputs)):
        raise ValueError(f"export: {name} is no DagNet; give inputs=..., one batch: a tensor or a tuple of tensors")
    net = copied(unwrap(net)).float().eval()
    unpack_outputs(net)
    example = example.map(lambda x: (x.float() if x.is_floating_point() else x).cpu())
    call(net, example)  # says what is wrong with the inputs
    if all(x.ndim and len(x) == 1 for x in example.args):  # torch.export would take a size of 1 for a constant
        with suppress(ValueError):
            call(net, doubled := example.map(lambda x: torch.cat([x, x])))
            example = doubled
    given = example.args
    generator = torch.Generator().manual_seed(0)
    random = tuple(torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in given)
    return Subject(
        net, net, tuple({0: f"batch{k or ''}"} if x.ndim else {} for k, x in enumerate(given)), [given, random]
    )


def _by_argument(net: nn.Module, axes: tuple[dict[int, Any], ...]) -> dict[str, Any]:
    """Of each argument of a forward, of which one may take any number of inputs."""
    return dict(inspect.signature(net.forward).bind(*axes).arguments)


def _shapes(net: DagNet) -> list[tuple[int, ...]]:
    """Inputs of several batch sizes, and of picture sizes that are multiples of the patch and that are not."""
    channels = net.plan.inputs
    if net.plan.patch is None:
        return [(batch, channels) for batch in (3, 1, 8)]
    patch = net.plan.patch * 2**net.plan.levels
    sides = [(3 * patch + 1, 5 * patch), (patch + 1, 2 * patch), (8 * patch, 4 * patch), (5 * patch - 1, 7 * patch + 1)]
    return [(batch, channels, *sizes) for batch, sizes in zip((3, 1, 2, 1), sides, strict=True)]


def _numbered(letter: str, count: int) -> list[str]:
    return [letter] if count == 1 else [f"{letter}{k}" for k in range(count)]


@torch.no_grad()
def _outputs(subject: Subject, case: int = 0) -> list[Tensor]:
    return call(subject.net, Example.of(subject.cases[case]))


@torch.no_grad()
def _compare(subject: Subject, exported: Network) -> float:
    """Largest absolute difference of the outputs."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for case, inputs in enumerate(subject.cases):
        found = [each for each in tree_leaves(exported(*inputs)) if isinstance(each, Tensor)]
        pairs += zip(_outputs(subject, case), found, strict=True)
    difference = max(float((y - z).abs().max()) for y, z in pairs)
    allowed = TOLERANCE * max(1.0, *(float(y.abs().max()) for y, _ in pairs))
    if not difference <= allowed:  # NaN is no agreement either
        raise ValueError(f"the export differs from the network by {difference:.1e}, more than {allowed:.0e}")
    return difference
