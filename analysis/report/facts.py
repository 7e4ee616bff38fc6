"""The certificate, the costs, and how it was made."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from nas.analysis.cost import cost
from nas.analysis.extraction.changes import NodeChanges, describe_changes
from nas.analysis.report.front import read_json
from nas.search.callbacks.surroundings import read_surroundings
from nas.search.runs.config import SearchConfig
from nas.search.runs.run import COMPACT, Run


def certificate(run: Run) -> dict[str, Any]:
    """What certificate.json says, in words.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    record = read_json(run.folder / COMPACT / "certificate.json", f"It is made by nas extract {run.folder}.")
    try:
        found = record["certificate"]
        changed = [NodeChanges(**each) for each in found["changes"]]
        return {
            "epoch": record["epoch"],
            "holds": bool(found["holds"]),
            "words": _words(found),
            "changes": describe_changes(changed).splitlines(),
            "hashes": found["hashes"],
            "latency": [_timing(each) for each in record["latency"]],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"{run.folder / COMPACT}/certificate.json is damaged: {problem}") from None


def _words(found: dict[str, Any]) -> list[str]:
    def number(name: str) -> str:
        return "not finite" if found[name] is None else f"{found[name]:.2g}"

    verdict = (
        "The certificate holds: the compact network computes the same function as the searched one."
        if found["holds"]
        else "The certificate does NOT hold: the compact network differs from the searched one."
    )
    compared = (
        f"Compared on {found['num_random']} random inputs and {found['num_given']} held-out pictures, the outputs "
        f"differ by at most {number('max_abs_float32')} in single precision and {number('max_abs_float64')} in double "
        f"precision; they are as large as {number('max_output')}."
    )
    nodes = [each["max_abs_float32"] for each in found["nodes"].values()]
    inside = f"Inside, the states of all {len(nodes)} surviving nodes were compared, too, on the units that survive."
    constant = (
        ["No path leads from input to output: it computes a constant, which a residual network adds to the picture."]
        if found["constant"]
        else []
    )
    return [verdict, compared, inside, *constant]


def _timing(timed: dict[str, Any]) -> dict[str, Any]:
    milliseconds = {name: 1e3 * float(timed[name]["median"]) for name in ("supernet", "compact")}
    return {"shape": " x ".join(map(str, timed["shape"])), "threads": timed["threads"], **milliseconds,
            "speed_up": float(timed["speed_up"])}  # fmt: skip


def costs(net: nn.Module, small: nn.Module) -> list[dict[str, Any]]:
    """Parameters, floating point operations and bytes of a supernet and of a compact network, with their ratio."""
    whole, compact = asdict(cost(net)), asdict(cost(small))
    titles = {"params": "parameters", "flops": "FLOPs (256 x 256 pixels, or a vector)", "bytes": "bytes of the weights"}
    return [
        {"title": title, "supernet": whole[name], "compact": compact[name], "part": compact[name] / whole[name]}
        for name, title in titles.items()
    ]


def command(config: SearchConfig) -> str:
    """The command that makes the same search: every option that is not at its default."""
    import yaml

    words = ["nas", "search"]
    chosen, defaults = (yaml.safe_load(each.to_yaml()) for each in (config, SearchConfig()))
    for name, value in chosen.items():
        if value != defaults[name]:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
            words.append(f"--{name.replace('_', '-')}={text}")
    return shlex.join(words)


def searched_with(run: Run) -> list[dict[str, Any]]:
    """With what it was searched: "epoch", since which, and "words". None of a run that did not record it."""
    lines = read_surroundings(run)
    return [
        {"epoch": line["epoch"], "words": in_words({name: what for name, what in line.items() if name != "epoch"})}
        for line in lines
    ]


def in_words(surroundings: Mapping[str, object]) -> str:
    """Such as "nas 0.1.0, Python 3.12.1, torch 2.7.0"."""
    return ", ".join(f"{name} {what}" for name, what in surroundings.items())
