"""What was found: the topology graph, exact extraction and its certificate, cost, drawings."""

from nas.analysis.certificate import Certificate, certify, fingerprint
from nas.analysis.changes import changes, describe_changes
from nas.analysis.cost import Cost, cost
from nas.analysis.curves import draw_growth
from nas.analysis.draw import draw
from nas.analysis.export import export
from nas.analysis.extract import extract
from nas.analysis.graph_files import read_graph, write_graph
from nas.analysis.latency import latency
from nas.analysis.structure import Structure, similarity, structure
from nas.analysis.topology import topology
from nas.analysis.verify import verify

__all__ = [
    "Certificate",
    "Cost",
    "Structure",
    "certify",
    "changes",
    "cost",
    "describe_changes",
    "draw",
    "draw_growth",
    "export",
    "extract",
    "fingerprint",
    "latency",
    "read_graph",
    "similarity",
    "structure",
    "topology",
    "verify",
    "write_graph",
]
