"""The networks of a search, by size and score, and what they are measured against."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.analysis.drawing.layout import layout
from nas.analysis.drawing.svg import to_svg
from nas.analysis.latency import milliseconds
from nas.analysis.topology import topology
from nas.models.dag import DagNet
from nas.models.network import compacted
from nas.models.plan import Plan
from nas.search.runs.path import Point
from nas.search.runs.run import RETRAINED, Run

SIDE = 256  # of the pictures that the time is measured on


def front_rows(run: Run) -> list[dict[str, Any]]:
    """The networks of the front, the smallest first, with the time that a call takes.

    Raises:
        ValueError: there is no front.
    """
    front = sorted(run.front(), key=lambda point: point.params)
    if not front:
        raise ValueError("There is no front yet: it is made at the end of nas search (unless --sizes none).")
    recommended = run.choose().snapshot.epoch
    return [_row(run, point, recommended) for point in front]


def _row(run: Run, point: Point, recommended: int) -> dict[str, Any]:
    return {
        "epoch": point.snapshot.epoch,
        "params": point.params,
        "flops": point.flops,
        "milliseconds": milliseconds(compacted(run.supernet(point.snapshot.epoch)), side=SIDE, calls=5),
        "score": point.headline,
        "scores": point.scores,
        "recommended": point.snapshot.epoch == recommended,
    }


def tested(run: Run) -> dict[str, Any]:
    """What nas retrain measured on the held-out pictures: the network, others of its size, classical methods.

    Returns:
        "networks" with title, params, score, spread (None without seeds) and plan (None where there is none); scores by
        title of what is there without a network, "trivial", and of classical methods, "lines", with the "strengths" of
        those that have one; and the score of the network now and "before".

    Raises:
        ValueError: there is no result yet, or it is damaged.
    """
    result = read_json(run.folder / RETRAINED / "result.json", f"It is measured by nas retrain {run.folder}.")
    key = run.config.headline.key
    try:
        networks = [
            {
                "title": each["title"], "params": each["params"], "score": each["mean"], "spread": each["spread"],
                "plan": each.get("plan"),
            }
            for each in result["compared"]
            if each["mean"] is not None
        ] or [
            {
                "title": "retrained network", "params": result["params"], "score": result[key], "spread": None,
                "plan": None,
            }
        ]  # fmt: skip
        before = f"{key}_before"
        trivial = {
            name.removeprefix(f"{key}_"): float(score)
            for name, score in result.items()
            if name.startswith(f"{key}_") and name != before
        }
        lines = {name: float(score) for name, score in result["baselines"].items()}
        finite = all(math.isfinite(each["score"]) for each in networks)
        if not finite:
            raise ValueError("its scores are not finite")
        return {
            "networks": networks,
            "trivial": trivial,
            "lines": lines,
            "strengths": {name: float(each) for name, each in result.get("strengths", {}).items() if name in lines},
            "before": float(result[before]),
            "score": float(result[key]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"{run.folder / RETRAINED}/result.json is damaged: {problem}") from None


def with_drawings(test: Mapping[str, Any]) -> dict[str, Any]:
    """`tested` with "drawings" of the networks beside the first, by title, instead of their plans.

    Raises:
        ValueError: a plan is none.
    """
    networks = [{key: value for key, value in each.items() if key != "plan"} for each in test["networks"]]
    plans = {each["title"]: each["plan"] for each in test["networks"][1:] if each["plan"] is not None}
    graphs = {title: topology(DagNet(Plan.from_dict(plan))) for title, plan in plans.items()}
    drawings = {title: to_svg(layout(graph), standalone=False) for title, graph in graphs.items()}
    return {**test, "networks": networks, "drawings": drawings}


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: it is missing (then with the ``hint``) or damaged.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"There is no {file.parent.name}/{file.name} in the run yet. {hint}") from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"{file} cannot be read: {problem}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} is damaged: it holds no object")
    return data
