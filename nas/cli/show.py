"""``nas show``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import networkx as nx
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from nas.analysis.cost import Cost, cost
from nas.analysis.drawing.curves import draw_growth
from nas.analysis.drawing.draw import draw
from nas.analysis.drawing.graph_files import write_graph
from nas.analysis.drawing.text import draw_text
from nas.analysis.report.film import draw_film
from nas.analysis.share import skip_shares
from nas.analysis.structure import Structure, structure
from nas.analysis.topology import LEVELS, topology
from nas.cli.shared import CONSTANT, Result, add_choice, choice, make_run_parser, sizes
from nas.models.network import compacted, widths
from nas.search.engine.stopping import growth_is_over
from nas.search.runs.path import Point, births, deaths, kernel_history
from nas.search.runs.run import DRAWINGS, FILM, Run

Ages = Mapping[str, Mapping[int, int]]  # node -> unit -> epoch


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Show what is alive; write topology.svg, .json and .graphml and growth.svg into the run folder."
    )
    add_choice(parser)
    parser.add_argument("--level", choices=LEVELS, default="node", help="draw nodes, or every unit")
    parser.add_argument("--film", action="store_true", help="also write growth.gif, the network growing along the path")
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    chosen, points = run.choose(choice(options)), run.points()
    net = run.supernet(chosen.snapshot.epoch)
    history = points[: chosen.snapshot.epoch + 1]
    born, died = births(history), deaths(history)
    nodes = topology(net, births=born, deaths=died)
    shares = skip_shares(net, [example.observed for example in run.validation(run.data())])
    nx.set_edge_attributes(nodes, shares, "share")
    graph = nodes if options.level == "node" else topology(net, options.level, births=born, deaths=died)
    files = _draw(run, graph, points, chosen)
    if options.film:
        files.append(run.folder / FILM)
        draw_film(run, files[-1])

    last, metric = points[-1].snapshot.epoch, run.config.headline
    over = growth_is_over(points, run.config)
    state = "" if over else f" (the search stopped after epoch {last} of {run.config.epochs})"
    print(f"{run.folder}: epoch {chosen.snapshot.epoch}{state}, validation {metric.text(chosen.headline)}\n")
    Console(soft_wrap=True, highlight=False).print(*draw_text(nodes), sep="\n")
    print()
    _print_nodes(widths(net), chosen, born, died)
    _print_kernels(kernel_history(history))
    _print_skips(chosen, shares, nodes)
    whole, small, full = structure(nodes), cost(compacted(net)), cost(net)
    _print_structure(whole)
    _print_cost(small, full)
    print(f"\nwrote {', '.join(map(str, files))}")
    return {
        "epoch": chosen.snapshot.epoch,
        **chosen.scores,
        **sizes(chosen, run),
        "flops": {"alive": small.flops, "total": full.flops},
        "structure": {**asdict(whole), "skips": [[*arc, gate] for arc, gate in whole.skips.items()]},
        "files": [str(file) for file in files],
    }


def _draw(run: Run, graph: nx.DiGraph, points: Sequence[Point], chosen: Point) -> list[Path]:
    """Write the drawings of a run; returns their files."""
    files = [run.folder / name for name in DRAWINGS]
    picture, *graphs, growth = files
    draw(graph, picture)
    for file in graphs:
        write_graph(graph, file)
    draw_growth(points, growth, metric=run.config.headline, picked=chosen.snapshot.epoch)
    return files


def _print_nodes(units: Mapping[str, int], chosen: Point, born: Ages, died: Ages) -> None:
    wide = max([6, *map(len, chosen.snapshot.units)]) + 2
    print(f"{'node':<{wide}}{'alive':>12}{'born first':>12}{'born last':>12}{'died':>12}")
    for name, found in chosen.snapshot.units.items():
        ages, total, alive = born.get(name, {}).values(), units[name], len(found)
        lived = f"{min(ages, default='-'):>12}{max(ages, default='-'):>12}{len(died.get(name, {})):>12}"
        print(f"{name:<{wide}}{f'{alive} / {total}':>12}{lived}")


def _print_kernels(histories: Mapping[tuple[str, str], Sequence[tuple[int, int]]]) -> None:
    """Operations that came or whose kernels grew or shrank during the search."""
    changed = {arc: sides for arc, sides in histories.items() if len(sides) > 1 or sides[0][0] > 0}
    if changed:
        print("\noperation               side of the kernel, since epoch")
    for (source, target), sides in changed.items():
        print(f"  {f'{source} -> {target}':<22}" + ", ".join(f"{side} ({epoch})" for epoch, side in sides))


def _print_skips(chosen: Point, shares: Mapping[tuple[str, str], float], nodes: nx.DiGraph) -> None:
    """The open skips of the supernet; what is not drawn leads into a node that computes nothing."""
    skips = chosen.snapshot.skips
    print(f"\nskips{'gate':>19}{'share of the signal':>22}" if skips else "\nskips   none")
    for arc, gate in skips.items():
        share = f"{shares[arc]:>21.1%}" if arc in shares else ""
        share += "" if arc[1] in nodes else f"  {arc[1]} is read through"
        print(f"  {f'{arc[0]} -> {arc[1]}':<14}{gate:>8.3f}{share}")


def _print_structure(whole: Structure) -> None:
    if whole.num_paths:
        print(f"\ndepth       {whole.depth} (shortest path {whole.shortest}), {whole.num_paths:,} paths over nodes")
        print(f"bottleneck  {whole.bottleneck} units")
    else:
        print(f"\n{CONSTANT}")


def _print_cost(small: Cost, full: Cost) -> None:
    print(f"\nparameters  {small.params:,} of {full.params:,} ({small.params / full.params:.1%})")
    print(f"FLOPs       {small.flops:,} of {full.flops:,} ({small.flops / full.flops:.1%})")
    print("            two per multiply-add, for one picture of 256 x 256 pixels (or one vector)")
