"""What a network costs, from its plan alone, and what each of its searched groups adds to that."""

import math
from collections.abc import Iterator, Set
from dataclasses import replace
from statistics import fmean
from typing import Literal

from nas.models.plan import DEPTHWISE, Node, Plan

Currency = Literal["params", "flops"]
CHEAPEST, DEAREST = 0.5, 2.0  # factors on lam


def total(plan: Plan, currency: Currency) -> float:
    """Number of parameters, or of multiply-adds per pixel (per vector where there are no pixels).

    A weight is used once per position; with p x p pixels as channels and at a level l there are 1 / (p^2 4^l) positions
    per pixel. What is pointwise is computed at the lower of the resolutions that it joins.
    """
    if currency == "params":
        return plan.num_params
    shapes = plan.shapes
    return math.fsum(
        math.prod(shapes[f"nodes.{node.name}.{name}"]) * _positions(plan, level)
        for node in plan.nodes
        for name, level in _levels(plan, node)
    )


def _levels(plan: Plan, node: Node) -> Iterator[tuple[str, int]]:
    """The names of the weights of edges and projections, and at which level they are used."""
    levels = plan.node_levels
    for edge in node.edges:
        yield f"edges.{edge.key}", max(node.level, levels[edge.source] if edge.kernel == 1 else 0)
    for source in node.projections:
        yield f"projections.{source}", max(node.level, levels[source])


def _positions(plan: Plan, level: int) -> float:
    """Positions per pixel at a level."""
    return 0.25**level / (plan.patch or 1) ** 2


def prices(plan: Plan, currency: Currency) -> dict[str, float]:
    """The square root of what one more group adds to `total`, relative to the mean over all units: factors for lam
    (`nas.param_groups`), which weigh prices as the group lasso weighs sizes.

    By the name of the parameter group, and of groups within another one for the larger ones by that name + ".whole":

    * a unit: its rows in all nodes that share it, and what reads it; the node as a whole: what is there for it alone;
    * a gate: 1 parameter; a projection: the matrix;
    * a block of weights: a row of it, and as a whole all of it;
    * a kernel that grows: its mean ring.

    They are kept between 1/2 and 2, so that everything can wake, and nothing at once.
    """
    searched = [node for node in plan.nodes if node.searched]
    units = {node.name: _of_unit(plan, node, currency) for node in searched}
    mean = fmean(units.values(), [node.units for node in searched])
    found = {**units, "gates": _each(plan, 0, currency)}
    for node in plan.nodes:
        if node.whole:
            found[f"{node.name}.whole"] = _for_it_alone(_at_cores(plan), node, currency)
        each = {name: _each(plan, level, currency) for name, level in _levels(plan, node)}
        for source in node.projections:
            name = f"projections.{source}"
            found[f"{node.name}.{name}"] = each[name] * node.units * plan.units[source]
        for edge in node.edges:
            shape = edge.shape(node.num_rows, plan.units[edge.source])
            name, weights = f"{node.name}.edges.{edge.key}", each[f"edges.{edge.key}"] * math.prod(shape)
            if edge.block:
                found |= {name: weights / shape[0], f"{name}.whole": weights}
            elif edge.core is not None:
                found[name] = weights * (1 - (edge.core / shape[-1]) ** 2) / ((shape[-1] - edge.core) // 2)
    return {name: factor(each / mean) for name, each in found.items()}


def factor(price: float) -> float:
    """Of lam, for groups with so many times the mean price."""
    return min(max(math.sqrt(price), CHEAPEST), DEAREST)


def _each(plan: Plan, level: int, currency: Currency) -> float:
    """What one weight at a level costs."""
    return 1.0 if currency == "params" else _positions(plan, level)


def _of_unit(plan: Plan, node: Node, currency: Currency) -> float:
    """What one unit of a node, and of those that are tied to it, costs."""
    own = {each.name for each in plan.nodes if node.name in (each.name, each.tied)}
    fewer = (
        replace(each, units=each.units - 1) if each.name in own else _without_kernel(plan, each, own)
        for each in plan.nodes
    )
    return total(plan, currency) - total(replace(plan, nodes=tuple(fewer)), currency)


def _without_kernel(plan: Plan, node: Node, sources: Set[str]) -> Node:
    """The node with a row less in each depthwise edge from one of the sources: that which reads a unit."""
    rows = {edge: edge.shape(node.num_rows, plan.units[edge.source])[0] for edge in node.edges}
    edges = (
        replace(edge, put=tuple(range(rows[edge] - 1)))
        if edge.operation == DEPTHWISE and edge.source in sources
        else edge
        for edge in node.edges
    )
    return replace(node, edges=tuple(edges))


def _for_it_alone(plan: Plan, node: Node, currency: Currency) -> float:
    """What the edges into nodes that only this one reads cost."""
    readers = [(source, each.name) for each in plan.nodes for source in each.sources]
    alone = [
        each
        for each in plan.nodes
        if not each.searched and {reader for source, reader in readers if source == each.name} == {node.name}
    ]
    shapes = [edge.shape(each.num_rows, plan.units[edge.source]) for each in alone for edge in each.edges]
    return sum(map(math.prod, shapes)) * _each(plan, node.level, currency)


def _at_cores(plan: Plan) -> Plan:
    """The plan before any kernel has grown."""
    nodes = (
        replace(node, edges=tuple(replace(edge, kernel=edge.core or edge.kernel, core=None) for edge in node.edges))
        for node in plan.nodes
    )
    return replace(plan, nodes=tuple(nodes))
