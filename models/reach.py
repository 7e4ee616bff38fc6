"""How far a network sees: what a part of its output depends on, and how pictures may be cut into tiles."""

from nas.models.plan import INPUT, OUTPUT, Plan


def grain(plan: Plan) -> int:
    """Side in pixels of the squares that a network never cuts: tiles start at multiples of patch * 2^levels.

    Raises:
        ValueError: the network does not return pictures.
    """
    if plan.patch is None or plan.pooled:
        what = "works on vectors, not on pictures" if plan.patch is None else "returns one vector for a whole picture"
        raise ValueError(f"the network {what}; it cannot restore a picture")
    return plan.patch << plan.levels


def reach(plan: Plan) -> int:
    """How many pixels beyond a square of the output, at each side, the output in it depends on at most.

    The square starts and ends at multiples of `grain`. Followed backwards from the output, an edge with a k x k kernel
    at a resolution with cells of s pixels adds (k // 2) * s, rounded up to whole cells of the node that it reads. The
    longest way counts. Where no weights are zero and edges join all units this is exact: the last pixel within reach
    has influence, the next one never has.
    Fully connected networks see one patch at a time and reach 0 pixels far.

    Raises:
        ValueError: the network does not return pictures.
    """
    grain(plan)
    cell = {name: (plan.patch or 1) << level for name, level in plan.node_levels.items()}
    needed = {OUTPUT: 0}  # of each node that the output depends on: pixels beyond the square, in whole cells
    for node in reversed(plan.nodes):
        if node.name not in needed:
            continue
        others = [*(skip.source for skip in node.skips), *node.projections]
        for source, kernel in [*((edge.source, edge.kernel or 1) for edge in node.edges), *((o, 1) for o in others)]:
            far = needed[node.name] + kernel // 2 * cell[node.name]
            needed[source] = max(needed.get(source, 0), -(-far // cell[source]) * cell[source])
    return needed.get(INPUT, 0)
