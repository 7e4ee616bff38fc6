"""Verification: does a stored compact network still equal the searched one it was taken from?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nas.analysis.extraction.certificate import Certificate, certify
from nas.models.store import fingerprint


@dataclass(frozen=True)
class Verification:
    """The certificate, recomputed (None where the networks cannot be compared), and what is wrong, in sentences."""

    certificate: Certificate | None
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems


def verify(
    net: nn.Module, small: nn.Module, hashes: Mapping[str, str], inputs: Sequence[Tensor] = (), *, seed: int = 0
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
