"""Networks that leave the house: plain PyTorch, torch.export and ONNX, each run and compared before it counts.

All formats come from one translation, the Python source of `nas.analysis.export.source`: the others are traced from it.
"""

import copy
import os
import runpy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from nas.analysis.export.source import named_tensors, source_code
from nas.models.dag import DagNet

Network = Callable[[Tensor], Tensor]
TOLERANCE = 1e-5  # largest difference of an output; relative to the largest output where that is above 1


def export(net: DagNet, path: Path, format: str) -> float:
    """Write ``net`` in single precision as ``path``, for machines without this package.

    What was written is loaded again and compared with ``net`` on random inputs of several batch and picture sizes;
    only then it takes its place. On failure nothing changes.

    Args:
        net: any network, left as it is.
        path: of the suffix in `FORMATS`, in an existing folder. Existing files are replaced.
        format: "python" (source, and its weights in a .safetensors file beside it), "torch-export" or "onnx".

    Returns:
        The largest absolute difference of the outputs.

    Raises:
        ValueError: an unknown format, a suffix that does not fit it, a difference above `TOLERANCE`, or packages that
            ONNX needs are not installed.
        OSError: the folder cannot be written.
    """
    files = files_of(path, format)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent} is no folder in which files can be written")
    if folders := [file for file in files if file.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder; choose another file")
    net = copy.deepcopy(net).float().cpu().eval()
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as place:
        written = [Path(place) / file.name for file in files]
        difference = _compare(net, WRITERS[format](net, *written))
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


def write_python(net: DagNet, path: Path, weights: Path) -> nn.Module:
    """Source of plain torch.nn with literal sizes, and its weights. Returns what the source loads."""
    path.write_text(source_code(net.plan), encoding="utf-8")
    save_file(named_tensors(net), weights)
    model = runpy.run_path(str(path))["load"](weights)
    assert isinstance(model, nn.Module)
    return model


def write_torch_export(net: DagNet, path: Path) -> nn.Module:
    """A program for `torch.export.load`: any batch size, and pictures with sides larger than the patch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own inside
        program = torch.export.export(
            _plain(net), (_example(net),), dynamic_shapes=(dict.fromkeys(_axes(net), Dim.DYNAMIC),)
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths on this machine
        torch.export.save(program, path)
        return torch.export.load(path).module()


def write_onnx(net: DagNet, path: Path) -> Network:
    """An ONNX file with the input "x" and the output "y": any batch size and any picture size.

    Raises:
        ValueError: the packages that this needs are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise ValueError(f"the format onnx needs {problem.name}; pip install 'bregman-nas[onnx]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        program = torch.onnx.export(
            _plain(net),
            (_example(net),),
            dynamo=True,
            dynamic_shapes=(_axes(net),),
            input_names=["x"],
            output_names=["y"],
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # as above
        program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


FORMATS = {"python": ".py", "torch-export": ".pt2", "onnx": ".onnx"}  # and the suffix of its file
WRITERS: dict[str, Callable[..., Network]] = {
    "python": write_python,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
}


def _plain(net: DagNet) -> nn.Module:
    """The module of the generated source, with the weights of ``net``."""
    with tempfile.TemporaryDirectory() as place:
        return write_python(net, Path(place) / "model.py", Path(place) / "model.safetensors")


def _shapes(net: DagNet) -> list[tuple[int, ...]]:
    """Inputs of several batch sizes, and of picture sizes that are multiples of the patch and that are not."""
    channels = net.plan.inputs
    if net.plan.patch is None:
        return [(batch, channels) for batch in (3, 1, 8)]
    patch = net.plan.patch * 2**net.plan.levels
    sides = [(3 * patch + 1, 5 * patch), (patch + 1, 2 * patch), (8 * patch, 4 * patch), (5 * patch - 1, 7 * patch + 1)]
    return [(batch, channels, *sizes) for batch, sizes in zip((3, 1, 2, 1), sides, strict=True)]


def _example(net: DagNet) -> Tensor:
    return torch.zeros(_shapes(net)[0])


def _axes(net: DagNet) -> dict[int, str]:
    """The axes of the input that may have any size."""
    return {0: "batch"} if net.plan.patch is None else {0: "batch", 2: "height", 3: "width"}


@torch.no_grad()
def _compare(net: DagNet, exported: Network) -> float:
    """Largest absolute difference of the outputs on random inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = [net.plan.offset + torch.randn(shape, generator=generator) for shape in _shapes(net)]
    outputs = [(net(x), exported(x)) for x in inputs]
    difference = max(float((y - z).abs().max()) for y, z in outputs)
    allowed = TOLERANCE * max(1.0, *(float(y.abs().max()) for y, _ in outputs))
    if not difference <= allowed:  # NaN is no agreement either
        raise ValueError(f"the export differs from the network by {difference:.1e}, more than {allowed:.0e}")
    return difference
