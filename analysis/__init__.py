"""What was found: the topology graph, exact extraction and its certificate, cost, drawings."""

from nas.analysis.cost import Cost, cost
from nas.analysis.curves import draw_growth
from nas.analysis.draw import draw
from nas.analysis.export import export
from nas.analysis.extract import Certificate, extract
from nas.analysis.topology import topology

__all__ = ["Certificate", "Cost", "cost", "draw", "draw_growth", "export", "extract", "topology"]
