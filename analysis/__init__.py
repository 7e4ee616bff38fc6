"""What was found: the topology graph, exact extraction and its certificate, cost, drawings, the report."""

from nas.analysis.agreement import Agreement, agreement
from nas.analysis.cost import Cost, cost
from nas.analysis.drawing.curves import draw_growth
from nas.analysis.drawing.draw import draw
from nas.analysis.drawing.graph_files import read_graph, write_graph
from nas.analysis.export.export import export
from nas.analysis.extraction.certificate import Certificate, certify
from nas.analysis.extraction.changes import changes, describe_changes
from nas.analysis.extraction.extract import extract
from nas.analysis.extraction.verify import verify
from nas.analysis.latency import latency
from nas.analysis.report.report import write_report
from nas.analysis.runs import Outcome, outcome
from nas.analysis.share import skip_shares
from nas.analysis.structure import Structure, similarity, structure
from nas.analysis.topology import topology
from nas.models.store import fingerprint

__all__ = [
    "Agreement",
    "Certificate",
    "Cost",
    "Outcome",
    "Structure",
    "agreement",
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
    "outcome",
    "read_graph",
    "similarity",
    "skip_shares",
    "structure",
    "topology",
    "verify",
    "write_graph",
    "write_report",
]
