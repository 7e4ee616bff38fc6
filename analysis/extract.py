"""Extraction: the compact network, and the evidence that it computes the same function."""

from collections.abc import Sequence

from torch import Tensor

from nas.analysis.certificate import Certificate, certify
from nas.models.compact import compact
from nas.models.dag import DagNet


def extract(net: DagNet, inputs: Sequence[Tensor] = (), *, seed: int = 0) -> tuple[DagNet, Certificate]:
    """The compact network inside ``net`` and the evidence that it equals ``net``, which is left as it is.

    Args:
        net: a searched supernet, or any `DagNet` with exact zeros.
        inputs: real inputs to compare on besides random ones, each without the batch axis.
        seed: of the random inputs.

    Returns:
        The compact network and its certificate; look at ``certificate.holds``.
    """
    small = compact(net)
    return small, certify(net, small, inputs, seed=seed)
