"""What was found: the topology graph, exact extraction and its certificate, cost, drawings."""

from nas.analysis.certificate import Certificate, certify, fingerprint
from nas.analysis.cost import Cost, cost
from nas.analysis.curves import draw_growth
from nas.analysis.draw import draw
from nas.analysis.extract import extract
from nas.analysis.topology import topology

__all__ = ["Certificate", "Cost", "certify", "cost", "draw", "draw_growth", "extract", "fingerprint", "topology"]
