"""Networks that come with the package: found by its searches and trained for a range of noise levels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nas.models.build import TOPOLOGIES
from nas.models.dag import DagNet
from nas.models.store import fingerprint
from nas.models.store import load as load_stored

NETWORKS = Path(__file__).parent / "networks"
CARD = "card.json"
DEFAULT = "grey-15k"


@dataclass(frozen=True)
class Shipped:
    """A network that comes with the package.

    Attributes:
        name: such as "grey-4k".
        sigma: ends of the range of noise levels that it was trained for, on the 0..255 scale. It is told the level.
        params: number of parameters.
        flops: multiply-adds per pixel.
        psnr: in dB, by level, mean over the pictures of Set12.
        data: what it was trained on, and on what terms that may be used.
        sha256: of the network (`nas.models.store.fingerprint`).
    """

    name: str
    sigma: tuple[float, float]
    params: int
    flops: float
    psnr: Mapping[str, float]
    data: str
    sha256: str

    @property
    def folder(self) -> Path:
        return NETWORKS / self.name

    def load(self) -> DagNet:
        """The network.

        Raises:
            ValueError: its files are damaged.
        """
        net = load_stored(self.folder)
        if fingerprint(net) != self.sha256:
            raise ValueError(f"the network in {self.folder} is not the one that its {CARD} is of; install it anew")
        return net


def shipped() -> list[Shipped]:
    """All of them, the smallest first."""
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in NETWORKS.glob(f"*/{CARD}")]
    return sorted((Shipped(**{**card, "sigma": tuple(card["sigma"])}) for card in cards), key=lambda each: each.params)


def find_shipped(name: str) -> Shipped:
    """The one of this name.

    Raises:
        ValueError: there is none.
    """
    known = {each.name: each for each in shipped()}
    if name not in known:
        raise ValueError(
            f"there is no network {name!r}; there are {', '.join(known)}, run folders, and stored networks"
        )
    return known[name]


def load(network: str | Path) -> DagNet:
    """A network that comes with the package, by its name, or one that is stored in a folder.

    Raises:
        ValueError: there is none of this name, or it is damaged.
    """
    folder = Path(network)
    return load_stored(folder) if folder.is_dir() else find_shipped(str(network)).load()


def _alike(name: str, channels: int = 1) -> DagNet:
    """A network with the topology of the shipped one, and weights of its own."""
    plan = find_shipped(name).load().plan
    if channels != plan.channels:
        raise ValueError(f"{name} takes pictures of {plan.channels} channel, got channels={channels}")
    return DagNet(plan)


TOPOLOGIES.update({each.name: partial(_alike, each.name) for each in shipped()})
