"""Retraining in a run folder: of its extracted network, resumably, alone or beside others that are trained alike."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas.files import replacing_folder
from nas.models.dag import DagNet
from nas.models.network import alike, num_params, renewed
from nas.models.store import fingerprint
from nas.search.engine.slimming import thinned_from_dense
from nas.search.retraining.compete import Memory, OnEpoch, Trained, compete
from nas.search.retraining.competitors import Competitor, hand_made_networks, plan_like, random_networks
from nas.search.retraining.config import RetrainConfig
from nas.search.runs.networks import RESULT, load_compact, load_retrained, read_record, save
from nas.search.runs.path import Choice
from nas.search.runs.run import COMPACT, PICTURES, RETRAINED, RETRAINING, Run
from nas.search.tasks.restoration import STRENGTH, Restoration
from nas.search.tasks.task import Scores, by_condition, evaluate, predict, score, score_trivial
from nas.search.tasks.use import write_restored
from nas.search.training import ranks
from nas.search.training.checkpoints import EVERY, Checkpoints, State
from nas.search.training.compute import Compute
from nas.search.training.retrain import Retraining, rewound

TITLE = "retrained network"


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
    meanwhile (`nas.files.alone`). Several ranks (`nas.search.training.ranks`) train together, and the first one writes.

    What is wrong with options or data, or with going on with one that was stopped, is found before anything is written.

    Args:
        run: the run.
        config: what determines the retraining.
        force: replace a retrained network that is better or learnt something else, or a retraining that was stopped.
        checkpoint_every: seconds between two checkpoints, > 0.
        compute: where and how.

    Attributes:
        training: how it is trained.
        competitors: what is trained alike, the found network first; after `open`.
        epochs_done: of a retraining that is alone.
        computed: how the retraining that was stopped computed, in words; None if there is none.

    Raises:
        ValueError: bad options or data; one with other options or data was stopped, or ended there.
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
        if not (force or self._state):
            ranks.on_first(self._check_earlier)
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

    def _check_earlier(self) -> None:
        """Raise ValueError if the network of an earlier call learnt something else: no score says which is better."""
        earlier = self._earlier()
        if earlier is not None and not self._learnt_the_same(earlier[1]):
            raise ValueError(
                f"the network in {self.run.folder / RETRAINED} was retrained on other pictures, or for other noise; "
                "--force replaces it"
            )

    def _earlier(self) -> tuple[nn.Module, dict[str, Any]] | None:
        """The network of an earlier call and its result.json; None if there is none, or it is damaged."""
        try:
            return load_retrained(self.run)
        except (ValueError, OSError):
            return None

    def _learnt_the_same(self, result: dict[str, Any]) -> bool:
        """Whether a result.json is of these pictures and this task, so that its scores are of the same kind."""
        task = repr(self.training.task)
        return result.get("data") == self.data.fingerprint() and result.get("task", task) == task

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

    def _alone(self, on_epoch: OnEpoch) -> nn.Module:
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

    def _beside_others(self, on_epoch: OnEpoch) -> tuple[nn.Module, tuple[Trained, ...]]:
        """The found network as trained with the first seed, and what became of it and of each of the others."""
        memory: Memory = self._state.get("memory", {})
        self.training = replace(self.training, on_step=lambda: self._keep(lambda: {"memory": memory}))
        found, *others = self.competitors
        first = compete(found, self.training, on_epoch, memory)
        if first.network is None:
            raise FloatingPointError("the found network does not train at any of the rates; use a smaller lr")
        return first.network, (first, *(compete(each, self.training, on_epoch, memory) for each in others))

    def _others(self) -> list[Competitor]:
        """What is trained beside the found network."""
        supernet, params = self.run.blank, num_params(self.found)

        def thinned(seed: int) -> nn.Module:
            training = self.training
            return thinned_from_dense(
                self.run, params, training.task, training.batches(seed), seed, training.compute, training.on_step
            )

        like = plan_like(supernet)
        others = [
            *(() if like is None else hand_made_networks(like, params, self.config.families)),
            Competitor("the supernet, dense", partial(renewed, supernet)),
            Competitor("thinned out from it", thinned),
        ]
        try:
            if not isinstance(supernet, DagNet):
                raise ValueError("there are no random networks of a supernet that is no plan; they are left out")
            others += random_networks(supernet.plan, params, self.config.random)
        except ValueError as problem:
            warnings.warn(str(problem), stacklevel=1)
        return others

    def _start(self, seed: int) -> nn.Module:
        """The network to start from: with the weights that were found, unless the options say otherwise."""
        if self.config.from_scratch:
            return renewed(self.found, seed)
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
            "params": num_params(net),
            "from_scratch": self.config.from_scratch,
            "sha256": fingerprint(net),
            "kept": better is not None,
            "data": self.data.fingerprint(),
            "task": repr(task),
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
        earlier = None if self.force else self._earlier()
        if earlier is None or not alike(earlier[0], self.found) or not self._learnt_the_same(earlier[1]):
            return None
        try:
            best = float(earlier[1]["validation"])
        except (KeyError, TypeError, ValueError):
            return None
        return best if best > validation else None


def stopped_retraining(run: Run) -> RetrainConfig | None:
    """What determines the retraining of a run that was stopped; None if there is none."""
    state = Checkpoints(run.folder / RETRAINING).newest()
    return None if state is None else RetrainConfig.from_json(state["options"])
