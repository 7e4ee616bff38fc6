"""``nas retrain``."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from nas.analysis.extraction.certificate import fingerprint
from nas.analysis.extraction.verify import read_record
from nas.cli.alike import add_training, check_training, make_training, train_alike
from nas.cli.extract import write_extract
from nas.cli.shared import (
    RESULT,
    Result,
    add_checkpoints,
    add_choice,
    add_compute,
    choice,
    load_compact,
    load_retrained,
    make_run_parser,
    resume_command,
    save,
    say_compute,
    seconds,
    stopping,
)
from nas.files import alone, replacing_folder
from nas.models.dag import DagNet
from nas.search import ranks
from nas.search.checkpoints import Checkpoints, State
from nas.search.compare import (
    Competitor,
    Memory,
    Trained,
    Training,
    fresh,
    hand_made_networks,
    random_networks,
    summarised,
    table,
)
from nas.search.engine import thinned_from_dense
from nas.search.path import Choice
from nas.search.retrain import Retraining, rewound
from nas.search.run import COMPACT, PICTURES, RETRAINED, RETRAINING, Run
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.task import Metric, Scores, evaluate, score_trivial
from nas.search.tasks.use import write_restored


def parser() -> ArgumentParser:
    parser = make_run_parser(
        "Train the compact network (extracted anew if you choose one) with Adam; measure it beside classical methods."
    )
    parser.add_argument("--epochs", type=int, default=120, help="epochs, as long as those of the search")
    parser.add_argument(
        "--batch", type=int, help="crops, or pictures to classify, per step (default: as in the search)"
    )
    parser.add_argument("--crop", type=int, help="side of the training crops in pixels (default: as in the search)")
    add_choice(parser)
    parser.add_argument("--from_scratch", action="store_true", help="forget the found weights, keep the topology")
    parser.add_argument("--rewind_epoch", type=int, help="start with the weights of this epoch of the search")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train others alike: hand-made networks of this size, random ones of the supernet, the dense supernet and "
        "one thinned out from it, each at 3 rates (0.4, 1 and 2 times --lr) and with every seed: by default about 100 "
        "times the work",
    )
    parser.add_argument("--random", type=int, default=5, help="random networks in the comparison")
    add_training(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace a better retrained network, or a retraining that was stopped"
    )
    add_checkpoints(parser)
    add_compute(parser)
    return parser


def perform(options: Namespace) -> Result:
    run = _open(options)
    with ranks.by_first(alone(run.folder)):
        return _Retrain(run, options).perform()


def stopped_options(run: Run) -> dict[str, Any] | None:
    """Those of a retraining of a run that was stopped; None if there is none."""
    state = Checkpoints(run.folder / RETRAINING).newest()
    return None if state is None else json.loads(state["options"])


class _Retrain:
    """One call of ``nas retrain``; what is wrong with its options or data is said before anything is written."""

    def __init__(self, run: Run, options: Namespace) -> None:
        self.run, self.options = run, options
        self.checkpoints = Checkpoints(run.folder / RETRAINING, every=seconds(options.checkpoint_every))
        self.data = run.data()
        self.training = make_training(run, self.data, options)
        self.training.batches(options.seed)  # what is wrong with batch and crop is said now
        self.begun = {"options": json.dumps(_those_that_matter(options)), "data": self.data.fingerprint()}
        self.state = self._stopped_state()
        if (chosen := choice(options)) != Choice():
            ranks.on_first(lambda: write_extract(run, chosen, timed=False))
        self.found = ranks.on_first(lambda: load_compact(run))
        self.begun["network"] = fingerprint(self.found)
        if self.state:
            self._check_network()
            print("going on with the retraining that was stopped")
        self.compute = str(self.training.compute)
        say_compute(self.compute, self.state.get("compute"))

    def _stopped_state(self) -> State:
        """What an earlier call with the same options, that was stopped, left."""
        state, folder = None if self.options.force else self.checkpoints.newest(), self.run.folder
        if state is None:
            return {}
        if state["options"] != self.begun["options"]:
            raise ValueError(
                f"a retraining of {folder} with other options was stopped; go on with it by nas resume {folder}, or "
                "begin anew with --force"
            )
        if state["data"] != self.begun["data"]:
            raise ValueError(
                f"a retraining of {folder} was stopped, and its data are other ones now; bring those back, or begin "
                "anew with nas retrain --force"
            )
        return state

    def _check_network(self) -> None:
        """Raise ValueError if another network was extracted since the retraining was stopped."""
        if self.state["network"] != self.begun["network"]:
            raise ValueError(
                f"a retraining of {self.run.folder} was stopped, and the network in {self.run.folder / COMPACT} is "
                "another one now; extract that one again, or begin anew with nas retrain --force"
            )

    def perform(self) -> Result:
        net = _with_first_weights(self.found, self.run, self.options, self.options.seed)
        before = evaluate(net, self.training.test, self.training.task)
        compared: list[Trained] = []
        try:
            with stopping(self.checkpoints.stop, resume_command(self.run, self.options)):
                if self.options.compare:
                    net, compared = self._beside_others()
                else:
                    self._train(net)
        except FloatingPointError as problem:
            self.checkpoints.clear()
            raise FloatingPointError(f"{problem}; nothing was written") from None
        result = ranks.on_first(lambda: self._finish(net, before, compared))
        self.checkpoints.clear()
        return result

    def _finish(self, net: DagNet, before: Scores, compared: Sequence[Trained]) -> Result:
        """Measure the trained network beside classical methods, and write it if it is the best so far."""
        test, task = self.training.test, self.training.task
        name, untouched = score_trivial(test, task)
        validation = evaluate(net, self.training.validation, task)[self.training.headline]
        after, classical = evaluate(net, test, task), task.baselines(self.data.train, self.training.validation, test)
        key = self.training.headline
        result = {
            **after,
            f"{key}_{name}": untouched[key],
            f"{key}_before": before[key],
            "validation": validation,
            "baselines": {title: scores[key] for title, scores in classical.items()},
            "compared": [each.to_dict() for each in compared],
            "params": net.plan.num_params,
            "from_scratch": self.options.from_scratch,
            "sha256": fingerprint(net),
        }
        rows = {name: untouched, **classical, "before retraining": before}
        if compared:
            _print_comparison(rows, compared, self.training)
        else:
            _print_table(f"mean over {len(test)} held-out pictures", {**rows, "retrained network": after}, task.metrics)
        result["kept"] = self._better_one(validation)
        if not result["kept"]:
            self._write(net, result)
        return result

    def _write(self, net: DagNet, result: Result) -> None:
        task, wrote = self.training.task, [self.run.folder / RETRAINED]
        save(net, wrote[0], RESULT, result)
        if isinstance(task, Restoration):
            wrote.append(self.run.folder / PICTURES)
            test, name = self.training.test, task.observed_name
            replacing_folder(wrote[-1], lambda folder: write_restored(net, test, folder, name))
        print(f"wrote {' and '.join(map(str, wrote))}")

    def _better_one(self, validation: float) -> bool:
        """Whether there is a better network of this extraction already, which is kept."""
        folder = self.run.folder / RETRAINED
        if self.options.force or not folder.is_dir():
            return False
        try:
            net, result = load_retrained(self.run)
            earlier = float(result["validation"])
        except (ValueError, KeyError, TypeError, OSError):
            return False
        if net.plan != self.found.plan or not earlier > validation:
            return False
        metric = self.training.task.metrics[0]
        print(
            f"kept {folder}: {metric.text(earlier)} in validation, this one {metric.number(validation)}; --force "
            f"replaces it"
        )
        return True

    def _train(self, net: DagNet) -> None:
        """Train ``net``, with a progress bar; it ends with its best weights."""
        training, options, metric = self.training, self.options, self.training.task.metrics[0]
        bar = tqdm(total=options.epochs, unit="epoch", desc="retrain", delay=0.1)  # none for options that are refused

        def progress(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
            bar.update()

        def validate() -> float:
            headline = evaluate(net, training.validation, training.task)[metric.key]
            bar.set_description(f"retrain, {metric.text(headline)}")
            return headline

        def keep() -> None:
            self.checkpoints.keep(lambda: {**self.begun, "compute": self.compute, "training": retraining.state_dict()})

        retraining = Retraining(
            net,
            training.batches(options.seed),
            training.task.loss,
            epochs=options.epochs,
            steps=training.steps,
            lr=options.lr,
            on_epoch=progress,
            on_step=keep,
            validate=validate,
            or_start=not options.from_scratch,
            patience=options.patience,
            compute=training.compute,
        )
        with bar:
            if self.state:
                retraining.load_state_dict(self.state["training"])
                bar.update(retraining.loop.epoch - 1)
            retraining.run()

    def _beside_others(self) -> tuple[DagNet, list[Trained]]:
        """The found network as trained with the first seed, and what became of it and of each of the others."""
        memory: Memory = self.state.get("memory", {})

        def keep() -> None:
            self.checkpoints.keep(lambda: {**self.begun, "compute": self.compute, "memory": memory})

        found, *others = _competitors(self.found, self.run, self.options, self.training)
        (first,) = train_alike([found], self.training, memory, keep)
        if first.network is None:
            raise FloatingPointError("the found network does not train at any of the rates; use a smaller lr")
        return first.network, [first, *train_alike(others, self.training, memory, keep)]


def _those_that_matter(options: Namespace) -> dict[str, Any]:
    """Options that determine what a retraining leads to."""
    left_out = ("run", "config", "json", "force", "checkpoint_every", "device", "precision", "compile")
    return {name: value for name, value in options.items() if name not in left_out}


def _open(options: Namespace) -> Run:
    """The run; what is wrong with the options is said now."""
    if options.from_scratch and options.rewind_epoch is not None:
        raise ValueError("retrain starts from scratch or from a rewound epoch, not both")
    check_training(options)
    if options.random < 0:
        raise ValueError(f"random must be at least 0, got {options.random}")
    for name in ("epochs", "batch", "crop"):
        if options[name] is not None and options[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {options[name]}")
    run = Run.open(options.run)
    if options.rewind_epoch is not None:
        run.choose(Choice(epoch=options.rewind_epoch))
    return run


def _with_first_weights(net: DagNet, run: Run, options: Namespace, seed: int) -> DagNet:
    """The compact network with the weights to start from: those that were found, unless the options say otherwise."""
    if options.from_scratch:
        return fresh(net.plan)(seed)
    if options.rewind_epoch is not None:
        found = read_record(run.folder / COMPACT / "certificate.json").epoch
        early = run.choose(Choice(epoch=options.rewind_epoch)).snapshot.epoch
        return rewound(run.supernet(found), run.supernet(early), seed=seed)
    return net


def _competitors(found: DagNet, run: Run, options: Namespace, training: Training) -> list[Competitor]:
    """What is trained alike, the found network first: titles with functions from the seed to a network."""
    supernet, params = run.blank.plan, found.plan.num_params
    competitors = [
        Competitor("retrained network", lambda seed: _with_first_weights(found, run, options, seed)),
        *hand_made_networks(supernet, params, options.families),
        Competitor("the supernet, dense", fresh(supernet)),
        Competitor(
            "thinned out from it",
            lambda seed: thinned_from_dense(run, params, training.task, training.batches(seed), seed, training.compute),
        ),
    ]
    try:
        competitors += random_networks(supernet, params, options.random)
    except ValueError as problem:
        warnings.warn(str(problem), stacklevel=1)
    return competitors


def _print_comparison(rows: dict[str, Scores], compared: Sequence[Trained], training: Training) -> None:
    """The table of all competitors; of the random ones the best and the median."""
    metrics = training.task.metrics
    title = f"held-out pictures: {len(training.test)}, seeds: {len(training.seeds)}"
    print("\n".join(table(title, rows, summarised(compared, training.headline), metrics)))


def _print_table(title: str, rows: dict[str, Scores], metrics: Sequence[Metric]) -> None:
    print(f"{title:<36}" + "".join(f"{metric.title:>12}" for metric in metrics))
    for name, scores in rows.items():
        print(f"  {name:<34}" + "".join(f"{metric.number(scores[metric.key]):>12}" for metric in metrics))
