"""The film: the network growing along the path of a search."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nas.analysis.drawing.draw import paint
from nas.analysis.drawing.layout import Layout, layout, skip_words
from nas.analysis.report.growth import Frame, crops, frames, totals, whole_graph
from nas.files import replacing
from nas.search.runs.path import Point
from nas.search.runs.run import Run

MOST = 60  # pictures
MILLISECONDS, AT_THE_END = 250, 2500
COLOURS = 64


def draw_film(run: Run, path: Path) -> None:
    """Write an animated GIF: a picture for every epoch of the search (evenly spaced ones of a long path) up to the
    recommended network.

    Raises:
        ValueError: the search path is missing or damaged.
        OSError: the file cannot be written.
    """
    chosen = run.choose()
    grown = [point for point in run.points() if not point.snapshot.in_front]
    points = grown[:: math.ceil(len(grown) / MOST)]
    shown = [*points, *(point for point in (grown[-1], chosen) if point not in points)]
    inputs = crops([example.observed for example in run.validation(run.data())[:1]])
    drawing, total = layout(whole_graph(run.blank)), totals(run.blank)
    pictures = [
        _picture(at_frame(drawing, frame, total), _caption(run, frame.point)) for frame in frames(run, shown, inputs)
    ]
    replacing(path, lambda temporary: _write(pictures, temporary))


def at_frame(drawing: Layout, frame: Frame, totals: Mapping[str, int]) -> Layout:
    """The drawing of a whole supernet with what is alive in a frame; places stay."""
    boxes = [
        replace(box, filled=alive / totals[box.name], count=f"{alive} of {totals[box.name]}")
        for box in drawing.boxes
        for alive in [frame.units[box.name]]
    ]
    arcs = []
    for arc in drawing.arcs:
        ends = arc.source, arc.target
        if arc.kind == "weights" and ends in frame.operations:
            arcs.append(replace(arc, label=arc.label and replace(arc.label, text=frame.operations[ends])))
        if arc.kind == "skip" and ends in frame.skips:
            gate, share = frame.skips[ends]
            label = arc.label and replace(arc.label, text=skip_words(gate, share))
            thickness = 0.8 + 5 * (min(0.5, abs(gate) / 4) if share is None else share)
            arcs.append(replace(arc, gate=gate, thickness=thickness, label=label))
    return replace(drawing, boxes=tuple(boxes), arcs=tuple(arcs))


def _caption(run: Run, point: Point) -> str:
    epoch = point.snapshot.epoch
    when = f"network {epoch} of the front" if point.snapshot.in_front else f"epoch {epoch}"
    return f"{when}: {point.params:,} parameters, {run.config.headline.text(point.headline)}"


def _picture(drawing: Layout, caption: str) -> bytes:
    buffer = io.BytesIO()
    paint(drawing, buffer, caption=caption, scale=1.5)
    return buffer.getvalue()


def _write(pictures: list[bytes], path: Path) -> None:
    from PIL import Image

    first, *rest = (Image.open(io.BytesIO(each)).convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS)
                    for each in pictures)  # fmt: skip
    times = [MILLISECONDS] * len(rest) + [AT_THE_END]
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0, optimize=True)
