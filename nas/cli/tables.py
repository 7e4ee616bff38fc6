"""Tables in print, for the verbs that put runs side by side."""

from collections.abc import Mapping, Sequence

from nas.analysis.agreement import Agreement, Arc, Stable
from nas.cli.shared import Result


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of equal cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def print_agreement(found: Agreement, stable: Stable | None) -> None:
    """How often each part was chosen; beside it what is stable, if that was asked for."""
    rows = [[f"chosen by the {found.num} searches", "how often", *(["stable"] if stable else [])]]
    for (source, target), times in found.skips.items():
        cells = [f"  skip {source} -> {target}", f"{sum(times)} of {found.num}"]
        rows.append([*cells, *([_yes((source, target) in stable.skips)] if stable else [])])
    for (source, target), sides in found.kernels.items():
        kind = "block" if (source, target) in found.blocks else "kernel of"
        cells = [f"  {kind} {source} -> {target}", _how_often(sides, "x")]
        rows.append([*cells, *([_side(stable.kernels.get((source, target), 0))] if stable else [])])
    for name, counts in found.units.items():
        rows.append([f"  units of {name}", _how_often(counts), *([str(stable.units[name])] if stable else [])])
    print(aligned(rows))


def agreement_result(found: Agreement, stable: Stable | None) -> Result:
    """The same for ``--json``: lists over the searches."""
    return {
        "skips": _listed(found.skips),
        "kernels": _listed(found.kernels),
        "units": {name: list(counts) for name, counts in found.units.items()},
        "stable": stable
        and {
            "skips": [list(arc) for arc in stable.skips],
            "kernels": _listed(stable.kernels),
            "units": stable.units,
        },
    }


def _how_often(values: Sequence[int], power: str = "") -> str:
    """Such as "5x5 in 3, 3x3 in 1, none in 1"; the largest first."""
    names = {value: f"{value}{power}{value if power else ''}" for value in values} | {0: "none"}
    return ", ".join(f"{names[value]} in {values.count(value)}" for value in sorted(set(values), reverse=True))


def _side(side: int) -> str:
    return f"{side}x{side}" if side else "-"


def _yes(stable: bool) -> str:
    return "yes" if stable else "-"


def _listed(values: Mapping[Arc, object]) -> list[list[object]]:
    return [[*arc, list(value) if isinstance(value, tuple) else value] for arc, value in values.items()]
