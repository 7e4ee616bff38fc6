"""Retraining in a run folder: of its extracted network, resumably, alone or beside others that are trained alike."""

import copy
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nas.files import replacing_folder
from nas.models.dag import DagNet
from nas.models.families import HAND_MADE, describe
from nas.models.store import fingerprint
from nas.search import ranks
from nas.search.checkpoints import EVERY, Checkpoints, State
from nas.search.compare import (
    Competitor,
    Memory,
    OnEpoch,
    Trained,
    Training,
    compete,
    fresh,
    hand_made_networks,
    random_networks,
)
from nas.search.compute import Compute
from nas.search.config import ROOTS, check_seed
from nas.search.data.batches import Batches
from nas.search.data.dataset import Pictures
from nas.search.engine import thinned_from_dense
from nas.search.networks import RESULT, load_compact, load_retrained, read_record, save
from nas.search.path import Choice
from nas.search.retrain import Retraining, rewound
from nas.search.run import COMPACT, PICTURES, RETRAINED, RETRAINING, Run
from nas.search.tasks.restoration import STRENGTH, Restoration
from nas.search.tasks.task import Scores, by_condition, evaluate, predict, score, score_trivial
from nas.search.tasks.use import write_restored

RELATIVE_RATES = (0.4, 1.0, 2.0)  # that a comparison tries, as multiples of lr
TITLE = "retrained network"


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
        instead: options of the search that say what is to be learnt (data, clean, sigma, the roots), where it is other
            pictures than the search had; as text.

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
        without = dict.fromkeys(ROOTS) if "data" in self.instead or "data_root" in self.instead else {}
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


@dataclass(frozen=True)
class RetrainResult:
    """What a retraining came to.

    Attributes:
        untrained: test scores by title: without a network, of classical methods, of the network before.
        retrained: test scores of the network.
        by_condition: the same for each condition, such as a level of noise; empty where there is only one.
        compared: what became of each competitor, the network itself first; empty without a comparison.
        better: the validation score of the network of an earlier call that is better and was kept; None if this one
            was written.
        folders: that were written.
        record: what result.json holds.
    """

    untrained: dict[str, Scores]
    retrained: Scores
    by_condition: dict[str, Scores]
    compared: tuple[Trained, ...]
    better: float | None
    folders: tuple[Path, ...]
    record: dict[str, Any]


class RunRetraining:
    """Retraining the extracted network of a run: `open`, `train`, `finish`. Nobody else may write in its folder
    meanwhile (`nas.files.alone`). Several ranks (`nas.search.ranks`) train together, and the first one writes.

    What is wrong with options or data, or with going on with one that was stopped, is found before anything is written.

    Args:
        run: the run.
        config: what determines the retraining.
        force: replace a better retrained network, or a retraining that was stopped.
        checkpoint_every: seconds between two checkpoints, > 0.
        compute: where and how.

    Attributes:
        training: how it is trained.
        competitors: what is trained alike, the found network first; after `open`.
        epochs_done: of a retraining that is alone.
        computed: how the retraining that was stopped computed, in words; None if there is none.

    Raises:
        ValueError: bad options or data; one with other options or data was stopped.
    """

    def __init__(
        self,
        run: Run,
        config: RetrainConfig,
        *,
        force: bool = False,
        checkpoint_every: float = EVERY,
        compute: Compute = Compute(),
    ) -> None:
        if config.rewind_epoch is not None:
            run.choose(Choice(epoch=config.rewind_epoch))
        self.run, self.config, self.force = run, config, force
        self.checkpoints = Checkpoints(run.folder / RETRAINING, every=checkpoint_every)
        learning = config.learning(run)
        self.data = learning.data()
        self.training = config.training(learning, self.data, compute)
        self.training.batches(config.seed)  # what is wrong with batch and crop is said now
        self._begun: State = {
            "options": config.to_json(), "data": self.data.fingerprint(), "compute": str(self.training.compute)
        }  # fmt: skip
        self._state = self._stopped_state()
        self.computed: str | None = self._state.get("compute")
        self.epochs_done: int = self._state["training"]["loop"]["epoch"] - 1 if "training" in self._state else 0

    @property
    def num_epochs(self) -> int:
        """That are trained, of the others beside it, too."""
        return self.training.num_epochs * len(self.competitors)

    @property
    def resumed(self) -> bool:
        """Whether it goes on with one that was stopped."""
        return bool(self._state)

    def _stopped_state(self) -> State:
        """What an earlier call with the same options, that was stopped, left."""
        state, folder = None if self.force else self.checkpoints.newest(), self.run.folder
        if state is None:
            return {}
        if state["options"] != self._begun["options"]:
            raise ValueError(
                f"a retraining of {folder} with other options was stopped; go on with it by nas resume {folder}, or "
                "begin anew with --force"
            )
        if state["data"] != self._begun["data"]:
            raise ValueError(
                f"a retraining of {folder} was stopped, and its data are other ones now; bring those back, or begin "
                "anew with nas retrain --force"
            )
        return state

    def open(self) -> None:
        """Read the extracted network.

        Raises:
            ValueError: there is none, it is damaged, or another one than that whose retraining was stopped.
        """
        self.found = ranks.on_first(lambda: load_compact(self.run))
        self._begun["network"] = fingerprint(self.found)
        if self._state and self._state["network"] != self._begun["network"]:
            raise ValueError(
                f"a retraining of {self.run.folder} was stopped, and the network in {self.run.folder / COMPACT} is "
                "another one now; extract that one again, or begin anew with nas retrain --force"
            )
        self.competitors = [Competitor(TITLE, self._start), *(self._others() if self.config.compare else ())]

    def stop(self) -> None:
        """Let it write a checkpoint after its present step, and end with `Stopped`; for handlers of signals."""
        self.checkpoints.stop()

    def train(self, on_epoch: OnEpoch = lambda what, loss: None) -> None:
        """Train to the end.

        Args:
            on_epoch: called after every epoch with what is trained, in words, and its mean loss.

        Raises:
            Stopped: after `stop`; a checkpoint was written.
            FloatingPointError: training diverged; nothing was written.
        """
        try:
            if self.config.compare:
                self.net, self.compared = self._beside_others(on_epoch)
            else:
                self.net, self.compared = self._alone(on_epoch), ()
        except FloatingPointError as problem:
            self.checkpoints.clear()
            raise FloatingPointError(f"{problem}; nothing was written") from None

    def _alone(self, on_epoch: OnEpoch) -> DagNet:
        """The network, trained; it ends with its best weights."""
        training, metric, net = self.training, self.training.task.metrics[0], self._start(self.config.seed)
        what = TITLE

        def validate() -> float:
            nonlocal what
            headline = evaluate(net, training.validation, training.task)[metric.key]
            what = f"{TITLE}, {metric.text(headline)}"
            return headline

        def progress(epoch: int, loss: float) -> None:
            if epoch > self.epochs_done:  # some are repeated
                self.epochs_done = epoch
                on_epoch(what, loss)

        retraining = Retraining(
            net,
            training.batches(self.config.seed),
            training.task.loss,
            epochs=training.epochs,
            steps=training.steps,
            lr=self.config.lr,
            on_epoch=progress,
            on_step=lambda: self._keep(lambda: {"training": retraining.state_dict()}),
            validate=validate,
            or_start=not self.config.from_scratch,
            patience=training.patience,
            compute=training.compute,
        )
        if self._state:
            retraining.load_state_dict(self._state["training"])
        retraining.run()
        return net

    def _beside_others(self, on_epoch: OnEpoch) -> tuple[DagNet, tuple[Trained, ...]]:
        """The found network as trained with the first seed, and what became of it and of each of the others."""
        memory: Memory = self._state.get("memory", {})

        def progress(what: str, loss: float) -> None:
            on_epoch(what, loss)
            self._keep(lambda: {"memory": memory})

        found, *others = self.competitors
        first = compete(found, self.training, progress, memory)
        if first.network is None:
            raise FloatingPointError("the found network does not train at any of the rates; use a smaller lr")
        return first.network, (first, *(compete(each, self.training, progress, memory) for each in others))

    def _others(self) -> list[Competitor]:
        """What is trained beside the found network."""
        supernet, params, training = self.run.blank.plan, self.found.plan.num_params, self.training

        def thinned(seed: int) -> DagNet:
            batches = training.batches(seed)
            return thinned_from_dense(self.run, params, training.task, batches, seed, training.compute)

        others = [
            *hand_made_networks(supernet, params, self.config.families),
            Competitor("the supernet, dense", fresh(supernet)),
            Competitor("thinned out from it", thinned),
        ]
        try:
            others += random_networks(supernet, params, self.config.random)
        except ValueError as problem:
            warnings.warn(str(problem), stacklevel=1)
        return others

    def _start(self, seed: int) -> DagNet:
        """The network to start from: with the weights that were found, unless the options say otherwise."""
        if self.config.from_scratch:
            return fresh(self.found.plan)(seed)
        if self.config.rewind_epoch is not None:
            found, early = read_record(self.run).epoch, self.config.rewind_epoch
            return rewound(self.run.supernet(found), self.run.supernet(early), seed=seed)
        return copy.deepcopy(self.found)

    def _keep(self, state: Callable[[], State]) -> None:
        self.checkpoints.keep(lambda: {**self._begun, **state()})

    def finish(self) -> RetrainResult:
        """Measure the network on the test pictures, and write it unless there is a better one of this extraction."""
        return ranks.on_first(self._finish)

    def _finish(self) -> RetrainResult:
        training, net, test, task, key = (
            self.training, self.net, self.training.test, self.training.task, self.training.headline
        )  # fmt: skip
        name, untouched = score_trivial(test, task)
        before = evaluate(self._start(self.config.seed), test, task)
        outputs = [task.finish(output) for output in predict(net, [example.observed for example in test])]
        after, separate = score(test, outputs, task), by_condition(test, outputs, task)
        validation = evaluate(net, training.validation, task)[key]
        classical, better = task.baselines(self.data.train, training.validation, test), self._better_than(validation)
        record = {
            **after,
            f"{key}_{name}": untouched[key],
            f"{key}_before": before[key],
            "validation": validation,
            "baselines": {title: scores[key] for title, scores in classical.items()},
            "strengths": {title: each[STRENGTH] for title, each in classical.items() if STRENGTH in each},
            "by_condition": {name: scores[key] for name, scores in separate.items()},
            "pictures": task.by_picture(test, outputs) if isinstance(task, Restoration) else [],
            "compared": [each.to_dict() for each in self.compared],
            "params": net.plan.num_params,
            "from_scratch": self.config.from_scratch,
            "sha256": fingerprint(net),
            "kept": better is not None,
            "data": self.data.fingerprint(),
        }
        folders = () if better is not None else self._write(record)
        self.checkpoints.clear()
        untrained = {name: untouched, **classical, "before retraining": before}
        return RetrainResult(untrained, after, separate, self.compared, better, folders, record)

    def _write(self, record: dict[str, Any]) -> tuple[Path, ...]:
        """The folders of the network and, of restored ones, the pictures."""
        task, test = self.training.task, self.training.test
        retrained, pictures = self.run.folder / RETRAINED, self.run.folder / PICTURES
        save(self.net, retrained, RESULT, record)
        if not isinstance(task, Restoration):
            return (retrained,)
        restoration = task
        replacing_folder(pictures, lambda folder: write_restored(self.net, test, folder, restoration))
        return retrained, pictures

    def _better_than(self, validation: float) -> float | None:
        """The validation score of the network of this extraction that is there already, if it is better."""
        if self.force or not (self.run.folder / RETRAINED).is_dir():
            return None
        try:
            net, result = load_retrained(self.run)
            earlier = float(result["validation"])
        except (ValueError, KeyError, TypeError, OSError):
            return None
        same = net.plan == self.found.plan and result.get("data") == self.data.fingerprint()
        return earlier if same and earlier > validation else None


def stopped_retraining(run: Run) -> RetrainConfig | None:
    """What determines the retraining of a run that was stopped; None if there is none."""
    state = Checkpoints(run.folder / RETRAINING).newest()
    return None if state is None else RetrainConfig.from_json(state["options"])
