"""Drawings as SVG: in light and in dark, for the colour-blind, and changed by a script in the report."""

from html import escape

from nas.analysis.drawing.layout import BOX_FONT, BOX_HEIGHT, FONT, PADDING, Arc, Box, Layout

INK, PAPER, GHOST, WEIGHT, ALIVE = "#1f2328", "#ffffff", "#c9cfd6", "#7a838d", "#bcd9ee"
POSITIVE, NEGATIVE = "#0072b2", "#d55e00"  # of Okabe and Ito; negative ones are dashed, too

STYLE = f"""
.net {{ --ink: {INK}; --paper: {PAPER}; --ghost: {GHOST}; --weight: {WEIGHT}; --alive: {ALIVE};
  --positive: {POSITIVE}; --negative: {NEGATIVE}; font-family: Helvetica, Arial, sans-serif; }}
@media (prefers-color-scheme: dark) {{
  .net {{ --ink: #e6e8eb; --paper: #16191d; --ghost: #4a5058; --weight: #8d96a0; --alive: #1d4e70;
    --positive: #56b4e9; --negative: #f0883e; }} }}
.net .paper {{ fill: var(--paper); }}
.net .frame {{ fill: none; stroke: var(--ghost); }}
.net .fill {{ fill: var(--alive); }}
.net .edge {{ fill: none; stroke: var(--weight); }}
.net .skip .edge {{ stroke: var(--positive); stroke-opacity: .75; }}
.net .skip.negative .edge {{ stroke: var(--negative); stroke-dasharray: 5 3; }}
.net text {{ fill: var(--ink); font-size: {BOX_FONT:g}px; }}
.net text.small {{ font-size: 8.5px; opacity: .75; }}
.net text.words {{ font-size: {FONT:g}px; stroke: var(--paper); stroke-width: 3px; paint-order: stroke;
  stroke-linejoin: round; }}
.net .skip text.words {{ fill: var(--positive); }}
.net .skip.negative text.words {{ fill: var(--negative); }}
.net .tip {{ fill: var(--weight); stroke: none; }}
.net .ghost {{ opacity: .28; }}
.net .ghost text {{ display: none; }}
.net .node.ghost text {{ display: inline; }}
"""


def to_svg(drawing: Layout, *, standalone: bool = True) -> str:
    """SVG source of a drawing.

    Args:
        drawing: of `nas.analysis.drawing.layout.layout`.
        standalone: a file of its own, with the style; else a part of a page that has `STYLE`.
    """
    width, height = drawing.width, drawing.height
    head = '<?xml version="1.0" encoding="utf-8"?>\n' if standalone else ""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    narrowest = "" if standalone else f' style="min-width: min(20rem, {width:.0f}px)"'  # in a page that is narrower
    names = ", ".join(box.name for box in drawing.boxes)
    parts = [
        f'{head}<svg xmlns="http://www.w3.org/2000/svg" class="net" role="img" {size}{narrowest} '
        f'aria-label="{escape(f"network of the nodes {names}")}">',
        f"<style>{STYLE}.net {{ background: var(--paper); }}</style>" if standalone else "",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 1 8 4 0 7z"/></marker></defs>',
        *(_arc(arc) for arc in drawing.arcs),
        *(_words(arc) for arc in drawing.arcs if arc.label is not None),
        *(_box(box) for box in drawing.boxes),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _arc(arc: Arc) -> str:
    (x, y), *rest = arc.curve
    way = ("C" if arc.bent else "L") + " ".join(f"{a:.1f} {b:.1f}" for a, b in rest)
    tip = "" if arc.kind == "skip" else ' marker-end="url(#tip)"'
    return (
        f"<g {_looks(arc)}><title>{escape(arc.title)}</title>"
        f'<path class="edge" d="M{x:.1f} {y:.1f}{way}" stroke-width="{arc.thickness:.2f}"{tip}/></g>'
    )


def _words(arc: Arc) -> str:
    assert arc.label is not None
    return f"<g {_looks(arc)}>{_text(arc.label.text, *arc.label.at, 'words', arc.label.anchor)}</g>"


def _looks(arc: Arc) -> str:
    sign = " negative" if arc.gate < 0 else ""
    return f'class="arc {arc.kind}{sign}" data-source="{escape(arc.source)}" data-target="{escape(arc.target)}"'


def _box(box: Box) -> str:
    x, first = box.x + PADDING, box.lines[0]
    name = f'<text x="{x:.1f}" y="{first:.1f}"><tspan font-weight="bold">{escape(box.shown_name)}</tspan>'
    texts = f'{name} <tspan class="count">{box.count}</tspan></text>'
    if box.notes:
        texts += _text(box.notes, x, box.lines[1], "small", "start")
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" height="{BOX_HEIGHT:g}" rx="3"'
    return (
        f'<g class="node {box.kind}" data-node="{escape(box.name)}"><title>{escape(box.name)}</title>'
        f'<rect class="paper" {place} width="{box.width:g}"/>'
        f'<rect class="fill" {place} width="{box.width * box.filled:.1f}"/>'
        f'<rect class="frame" {place} width="{box.width:g}"/>{texts}</g>'
    )


def _text(words: str, x: float, y: float, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
