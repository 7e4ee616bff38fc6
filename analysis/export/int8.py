"""ONNX files that compute in 8-bit integers on CPUs. They are never exact: what that costs is measured."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor, nn

from nas.analysis.export.export import check_writable, export, files_of, load_onnx
from nas.files import naming
from nas.models.traced.network import TracedNet
from nas.search.tasks.task import Example, Scores, Task, by_condition, predict, score

SIDE, PIXELS = 512, 2**20  # of each picture to calibrate on, at most; and of all together, about


@dataclass(frozen=True)
class Loss:
    """Scores on the same held-out pictures.

    Attributes:
        exact: of the network in single precision.
        int8: of the file.
        conditions: both for each condition, such as a level of noise; empty where there is only one.
    """

    exact: Scores
    int8: Scores
    conditions: dict[str, tuple[Scores, Scores]]


class _File(nn.Module):
    """What an ONNX file computes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._run = load_onnx(path)

    def forward(self, x: Tensor) -> Tensor:
        try:
            outputs: list[Tensor] = self._run(x.contiguous())
        except Exception as problem:  # of onnxruntime, of many kinds
            sizes = " x ".join(map(str, x.shape))
            raise ValueError(f"the exported file does not compute inputs of {sizes} numbers: {problem}") from None
        return outputs[0]


def export_int8(net: nn.Module, path: Path, pictures: Sequence[Tensor]) -> nn.Module:
    """Write ``net`` as an ONNX file whose layers multiply 8-bit integers, for CPUs without this package.

    The file of `nas.analysis.export` is made and compared first, then quantised by onnxruntime: each tensor between two
    layers gets the range that it has on ``pictures``, and the weights of each channel that a layer puts out a scale of
    their own. They have 7 bits, so that sums do not overflow on CPUs without instructions for it either.

    Args:
        net: a `DagNet` or a `TracedNet`, left as it is.
        path: named *.onnx, in an existing folder. An existing file is replaced.
        pictures: what the network sees, (inputs, height, width), such as validation pictures. Calibrated is on the
            middle of some of them, drawn at random but always the same.

    Returns:
        The network as the file computes it.

    Raises:
        ValueError: as `nas.analysis.export`; no picture, or one that the file does not take.
        OSError: the folder cannot be written.
    """
    if not pictures:
        raise ValueError("int8 needs pictures to calibrate on, and there are none")
    check_writable(files_of(path, "onnx"))
    with naming(path), tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as place:
        exact, new = Path(place) / "exact.onnx", Path(place) / "int8.onnx"
        export(net, exact, "onnx")
        batches = [x[None] for x in _chosen(pictures, SIDE if _takes_any_size(exact) else max(pictures[0].shape))]
        batches = [net.padded(x) if isinstance(net, TracedNet) else x for x in batches]
        _File(exact)(batches[0])  # complains
        _quantise(exact, new, batches)
        file = _File(new)
        new.replace(path)
    if not isinstance(net, TracedNet):
        return file
    whole = copy.deepcopy(net)
    whole.module = file
    return whole


def int8_loss(net: nn.Module, quantised: nn.Module, examples: Sequence[Example], task: Task) -> Loss:
    """How much worse ``quantised`` (`export_int8`) is than ``net`` on held-out pictures."""
    observed = [example.observed for example in examples]
    outputs = [[task.finish(output) for output in predict(each, observed)] for each in (net, quantised)]
    exact, int8 = (score(examples, each, task) for each in outputs)
    at = [by_condition(examples, each, task) for each in outputs]
    return Loss(exact, int8, {name: (scores, at[1][name]) for name, scores in at[0].items()})


class _Calibration:
    """Inputs, one after the other, as onnxruntime asks for them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        x = next(self._batches, None)
        return None if x is None else {"x": x.numpy()}


def _quantise(exact: Path, new: Path, batches: Sequence[Tensor]) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = exact.with_name("prepared.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own inside
        quant_pre_process(exact, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            new,
            _Calibration(batches),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def _takes_any_size(exact: Path) -> bool:
    """Whether its inputs may have other sides than those it was traced with."""
    import onnx

    sizes = onnx.load(exact).graph.input[0].type.tensor_type.shape.dim
    return all(size.dim_param for size in sizes[2:])


def _chosen(pictures: Sequence[Tensor], side: int) -> list[Tensor]:
    """The middle of some of them."""
    most = max(1, PIXELS // _middle(pictures[0], side)[0].numel())
    return [_middle(picture, side) for picture in Random(0).sample(pictures, min(most, len(pictures)))]


def _middle(picture: Tensor, side: int) -> Tensor:
    """At most so many rows and columns of (inputs, height, width)."""
    for axis in range(1, picture.ndim):
        length = min(side, picture.shape[axis])
        picture = picture.narrow(axis, (picture.shape[axis] - length) // 2, length)
    return picture.contiguous()
