"""The extraction in a run folder: the compact network with its certificate, cost and latency."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from nas.analysis.cost import Cost, cost
from nas.analysis.extraction.certificate import Certificate
from nas.analysis.extraction.extract import extract
from nas.analysis.latency import Latency, fastest_multiple, latency
from nas.search.runs.networks import CERTIFICATE, save
from nas.search.runs.path import Choice
from nas.search.runs.run import COMPACT, Run


@dataclass(frozen=True)
class Extraction:
    """What was extracted.

    Attributes:
        epoch: of the searched network.
        certificate: that the compact one computes the same function.
        compact: what it costs.
        supernet: what the searched one costs.
        latency: of both; empty where it was not measured.
        round_to: the multiple that widths were rounded up to.
    """

    epoch: int
    certificate: Certificate
    compact: Cost
    supernet: Cost
    latency: tuple[Latency, ...]
    round_to: int

    def to_dict(self) -> dict[str, Any]:
        """What certificate.json holds."""
        return {
            "epoch": self.epoch,
            "certificate": self.certificate.to_dict(),
            **asdict(self.compact),
            **{f"{name}_supernet": number for name, number in asdict(self.supernet).items()},
            "latency": [asdict(each) for each in self.latency],
            "round_to": self.round_to,
        }


def extract_into(run: Run, choice: Choice, *, round_to: int | Literal["auto"] = 1, timed: bool = True) -> Extraction:
    """Replace the compact network of a run by that of a point of its path. Nobody else may write there meanwhile.

    Args:
        run: the run.
        choice: the point.
        round_to: as of `extract`; "auto" is what `fastest_multiple` measures.
        timed: measure the time of both networks (`latency`).

    Raises:
        ValueError: there is no such point, its file is damaged, or ``round_to`` is out of range.
    """
    epoch = run.choose(choice).snapshot.epoch
    net = run.supernet(epoch)
    multiple = fastest_multiple(net) if round_to == "auto" else round_to
    small, certificate = extract(net, run.inputs(run.data()), round_to=multiple)
    found = Extraction(epoch, certificate, cost(small), cost(net), latency(net, small) if timed else (), multiple)
    save(small, run.folder / COMPACT, CERTIFICATE, found.to_dict())
    return found
