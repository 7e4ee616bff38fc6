"""Which models that other people wrote can be searched, and what extraction does with them.

    python -m benchmarks.models                   one model of each family of torchvision, and of timm if installed
    python -m benchmarks.models resnet18 timm:resnet10t

`coupled_units` accepts a model whole if all its layers with channels of their own are units, in part (strict=False) if
some stay dense. Then half of the units of every layer are set to zero, and extraction has to remove them. Printed are
the layers with units, parameters before and after, the difference of the outputs in double precision, the seconds that
`coupled_units` and `extract` took the processor, and why a model is not accepted whole.
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from nas import coupled_units, settle_norms
from nas.analysis import extract
from nas.groups import Members, slices
from nas.search.data.vision import import_torchvision

MOST = 60e6  # parameters; larger models are left out
DETECTORS = ("rcnn", "retinanet", "fcos", "ssd", "raft", "quantized")  # lists of pictures, pairs, integers


def torchvision_models() -> Iterator[str]:
    from torchvision import models

    kept = [name for name in models.list_models() if not any(word in name for word in DETECTORS)]
    families: dict[str, str] = {}
    for name in kept:
        builder = models.get_model_builder(name)
        families.setdefault(f"{builder.__module__}.{name.rstrip('_0123456789')[:9]}", name)
    yield from families.values()


def timm_models() -> Iterator[str]:
    try:
        import timm  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        small = [
            name for name in names if any(word in name for word in ("tiny", "nano", "pico", "atto", "_s", "18", "26"))
        ]
        if names:
            yield f"timm:{(small or names)[0]}"


def build(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=False)  # type: ignore[no-any-return]
    from torchvision import models

    options = {"weights_backbone": None} if "segmentation" in models.get_model_builder(name).__module__ else {}
    return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]


def inputs_of(name: str, model: nn.Module) -> torch.Tensor:
    """Two examples of the size that the model is made for."""
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    if "video" in type(model).__module__:
        side = 224 if "mvit" in name or "swin" in name else 112
        size = (3, 16, side, side)
    return torch.rand(2, *size)


@torch.no_grad()
def kill(units: Mapping[str, Members]) -> None:
    for members in units.values():
        for p, axis in zip(members, members.axes, strict=True):
            slices(p, axis)[1::2] = 0


def judge(name: str) -> tuple[str, str]:
    """The class of the answer, and what is to be said."""
    torch.manual_seed(0)
    model = build(name)
    params = sum(p.numel() for p in model.parameters())
    if params > MOST:
        return "too large", ""
    x = inputs_of(name, model)
    began, said, units = time.process_time(), "", {}
    try:
        answer, units = "whole", coupled_units(model, x)
    except ValueError as problem:
        said = str(problem).removeprefix("coupled_units: ")
        answer = "untraceable" if "cannot trace" in said or "cannot compute" in said else "part"
    found = time.process_time()
    if answer == "part":
        try:
            units = coupled_units(model, x, strict=False)
        except ValueError:
            answer = "no unit"
    kill(units)
    settle_norms(model, units)
    middle = time.process_time()
    if not units:
        return answer, said
    small, certificate = extract(model.eval(), [x[0]])
    after = sum(p.numel() for p in small.parameters())
    if not certificate.holds:
        answer = "wrong"
    numbers = f"{len(units):>4} layers  {params:>9} -> {after:>9}  {certificate.max_abs_float64:.0e}"
    return answer, f"{numbers}  {found - began:5.1f} s {time.process_time() - middle:5.1f} s  {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of torchvision, or timm:NAME; all families by default")
    names = parser.parse_args().names
    import_torchvision()
    counts: Counter[str] = Counter()
    for name in names or [*torchvision_models(), *timm_models()]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer, said = judge(name)
            except Exception as problem:  # is to be seen in the table
                answer, said = "crashed", f"{type(problem).__name__}: {str(problem).splitlines()[:1]}"
        counts[answer] += 1
        print(f"{answer:<12}{name:<36}{said}", flush=True)
    print(", ".join(f"{count} {answer}" for answer, count in counts.most_common()))


if __name__ == "__main__":
    main()
