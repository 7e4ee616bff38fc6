"""Everything that determines a retraining."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nas.models.families import HAND_MADE, describe
from nas.search.data.batches import Batches
from nas.search.data.dataset import Pictures
from nas.search.retraining.compete import Training
from nas.search.runs.options import ROOTS, check_seed
from nas.search.runs.path import Choice
from nas.search.runs.run import Run
from nas.search.training.compute import Compute

RELATIVE_RATES = (0.4, 1.0, 2.0)  # that a comparison tries, as multiples of lr


@dataclass(frozen=True)
class RetrainConfig:
    """Everything that determines a retraining of a run.

    Attributes:
        epochs: as long as those of the search, >= 1.
        batch: crops, or pictures to classify, per step; as in the search by default.
        crop: side of the training crops in pixels; as in the search by default.
        lr: highest learning rate of the one-cycle schedule, > 0.
        patience: looks (every 5 epochs) without a better validation score after which it stops, >= 1; never by default.
        from_scratch: forget the found weights, keep the topology.
        rewind_epoch: start with the weights of this epoch of the search.
        compare: train others alike, each at `RELATIVE_RATES` and with every seed.
        random: random networks in the comparison, >= 0.
        seeds: of each network in the comparison, >= 1.
        families: hand-made networks in the comparison (`nas.models.families`).
        seed: of the training data, the noise and new weights.
        choice: the network that was extracted for it; if nothing is chosen, the one that was there.
        instead: options of the search that say what is to be learnt (data, range, clean, sigma, the roots), where it is
            other pictures than the search had; as text.

    Raises:
        ValueError: an option out of range.
    """

    epochs: int = 120
    batch: int | None = None
    crop: int | None = None
    lr: float = 0.005
    patience: int | None = None
    from_scratch: bool = False
    rewind_epoch: int | None = None
    compare: bool = False
    random: int = 5
    seeds: int = 3
    families: tuple[str, ...] = HAND_MADE
    seed: int = 0
    choice: Choice = Choice()
    instead: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.from_scratch and self.rewind_epoch is not None:
            raise ValueError("retrain starts from scratch or from a rewound epoch, not both")
        for name, least in (("seeds", 1), ("patience", 1), ("random", 0), ("epochs", 1), ("batch", 1), ("crop", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        check_seed(self.seed)
        for name in self.families:
            describe(name)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RetrainConfig":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is not the configuration of a retraining.
        """
        try:
            data = json.loads(text)
            return cls(**{**data, "families": tuple(data["families"]), "choice": Choice(**data["choice"])})
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"not the configuration of a retraining: {problem}") from None

    def learning(self, run: Run) -> Run:
        """The run as if it had searched on the pictures that this retraining is on.

        Raises:
            ValueError: what they are does not suit the network.
        """
        if not self.instead:
            return run
        config = run.config
        without = dict.fromkeys((*ROOTS, "range")) if "data" in self.instead or "data_root" in self.instead else {}
        roots = {name: Path(value) for name, value in self.instead.items() if name in ROOTS}
        given: dict[str, Any] = {**without, **self.instead, **roots}
        other = replace(config, **given).at_absolute_roots()
        if other.num_extra != config.num_extra:
            raise ValueError(
                f"the network was searched with sigma {config.sigma} and sees {config.num_extra} channels beside the "
                f"picture; sigma {other.sigma} needs {other.num_extra}"
            )
        return Run(run.folder, other)

    def training(self, run: Run, data: Pictures, compute: Compute = Compute()) -> Training:
        """How networks of a run are trained, with other crops and noise than in the search."""

        def batches(seed: int) -> Batches:
            return run.batches(data, run.config.seed + 1 + seed, batch=self.batch, crop=self.crop)

        rates = tuple(factor * self.lr for factor in RELATIVE_RATES) if self.compare else (self.lr,)
        seeds = tuple(range(self.seed, self.seed + self.seeds)) if self.compare else (self.seed,)
        return Training(
            run.task(data), batches, run.validation(data), run.test(data), self.epochs, run.config.steps, rates, seeds,
            patience=self.patience, compute=compute,
        )  # fmt: skip
