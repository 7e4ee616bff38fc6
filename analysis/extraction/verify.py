"""Verification: does a stored compact network still equal the searched one it was taken from?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nas.analysis.extraction.certificate import Certificate, certify, fingerprint
from nas.models.dag import DagNet


@dataclass(frozen=True)
class Record:
    """What a certificate.json says: the epoch, and the hashes of the "supernet" and the "compact" network."""

    epoch: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class Verification:
    """The certificate, recomputed (None where the networks cannot be compared), and what is wrong, in sentences."""

    certificate: Certificate | None
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems


def read_record(file: Path) -> Record:
    """Read a certificate.json that `nas extract` wrote.

    Raises:
        ValueError: it is damaged.
        OSError: it is missing or cannot be read.
    """
    text = file.read_bytes()
    try:
        data = json.loads(text)
        epoch, hashes = data["epoch"], data["certificate"]["hashes"]
        if not isinstance(epoch, int) or not all(isinstance(hashes[name], str) for name in ("supernet", "compact")):
            raise ValueError("its epoch or its hashes are of the wrong kind")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"the certificate {file} is damaged, or of an earlier version: {problem}") from None
    return Record(epoch, {name: hashes[name] for name in ("supernet", "compact")})


def verify(
    net: DagNet, small: DagNet, hashes: Mapping[str, str], inputs: Sequence[Tensor] = (), *, seed: int = 0
) -> Verification:
    """Compare both networks with the recorded hashes and, as `certify` does, with each other.

    Args:
        net: the searched network.
        small: the compact network as it was stored.
        hashes: recorded `fingerprint` of the "supernet" and the "compact" network.
        inputs: real inputs, each without the batch axis.
        seed: of the random inputs.
    """
    networks = {"supernet": net, "compact": small}
    problems = [
        f"the {name} network is not the recorded one: its hash is {found[:12]}..., not {hashes[name][:12]}..."
        for name, network in networks.items()
        if (found := fingerprint(network)) != hashes[name]
    ]
    try:
        certificate = certify(net, small, inputs, seed=seed)
    except ValueError as problem:
        return Verification(None, (*problems, str(problem)))
    if not certificate.holds:
        problems.append(
            f"the outputs differ by {certificate.max_abs_float32:.1e} in float32 and "
            f"{certificate.max_abs_float64:.1e} in float64"
        )
    return Verification(certificate, tuple(problems))
