"""Networks of some sizes, trained alike: hand-made ones, random ones of a supernet, and those that were found.

    python -m benchmarks.compare --train DATA/train400 --test DATA/set12 --sizes 4000 14000 --random 40 \
        --run runs/mine --out results.jsonl

Every network is a line of --out as soon as it is done; what is in there is not trained again. What is fair about it is
in docs/comparisons.md.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.cli.shared import sentence
from nas.models import RECIPES, DagNet, Plan, load
from nas.models.families import HAND_MADE, describe
from nas.models.sample import TIGHT
from nas.process import tune_process
from nas.search import Batches, Denoise, Picture, Run, held_out
from nas.search.data.files import find_pictures
from nas.search.retraining.compete import RATES, Trained, Training, compete
from nas.search.retraining.competitors import RANDOM, Competitor, fresh, hand_made_networks, random_networks
from nas.search.retraining.table import random_ones, rank, summarised, table
from nas.search.runs.networks import load_compact
from nas.search.runs.run import CONFIG, TEST_SEED, VALIDATION_SEED
from nas.search.tasks.task import score_trivial

EPOCH = 200  # steps; the validation pictures are looked at every 5 epochs


@dataclass(frozen=True)
class Found:
    """A network that was found, and the supernet that it was found in, where that is known."""

    title: str
    net: DagNet
    supernet: Plan | None

    @classmethod
    def open(cls, folder: Path) -> "Found":
        """The compact network of a run, or any stored network.

        Raises:
            ValueError: there is none, or it is a module of somebody else.
        """
        if (folder / CONFIG).is_file():
            run = Run.open(folder)
            net, supernet = load_compact(run), run.blank
            if not isinstance(net, DagNet) or not isinstance(supernet, DagNet):
                raise ValueError(f"the network of {folder} is no plan, and cannot be compared here")
            return cls(str(folder), net, supernet.plan)
        return cls(str(folder), load(folder), None)

    @property
    def competitors(self) -> list[Competitor]:
        return [
            Competitor(f"{self.title}, its weights", lambda seed: self.net),
            Competitor(f"{self.title}, from scratch", fresh(self.net.plan)),
        ]


class Results:
    """What was trained, by size, network and settings; kept in a file, if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.done = file, dict[str, Trained]()
        if file is not None and file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                self._read(line, file)

    def _read(self, line: str, file: Path) -> None:
        try:
            stored = json.loads(line)
            self.done[stored["key"]] = Trained.from_dict(stored)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file} has a line that is no result of a network: {line[:40]!r}") from None

    def train(self, competitor: Competitor, training: Training, settings: dict[str, Any]) -> Trained:
        """The result of a competitor, trained now if it has not been."""
        net = competitor.network(training.seeds[0])
        assert isinstance(net, DagNet)
        facts = json.dumps([competitor.title, settings, training.rates, training.seeds, net.plan.to_dict()]).encode()
        weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
        key = hashlib.sha256(facts + weights).hexdigest()
        if key not in self.done:
            self.done[key] = trained = compete(competitor, training)
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"key": key, **trained.to_dict(), "settings": settings}) + "\n")
        return replace(self.done[key], title=competitor.title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each network as soon as it is trained, then the tables; exit code 2 on bad options."""
    tune_process()
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError) as problem:
        parser.error(sentence(problem))


def run(options: argparse.Namespace) -> None:
    """The comparison; ``options`` are those of the command line."""
    training, results = _training(options), Results(options.out)
    found = [Found.open(folder) for folder in options.run]
    supernet = _supernet(options, found)
    settings = {name: str(getattr(options, name)) for name in ("train", "test", "sigma", "steps", "batch", "crop")}
    settings["validate"] = str(options.validate)
    few = replace(training, seeds=training.seeds[: options.random_seeds])
    tables = []
    for size in _sizes(options.sizes, found):
        trained = []
        for competitor in _competitors(options, found, supernet, size):
            how = few if competitor.title.startswith(RANDOM) else training
            trained.append(results.train(competitor, how, settings))
            print(_line(trained[-1], training), flush=True)
        tables += ["", *_table(size, trained, training), *_ranks(trained, found, training)]
    print("\n".join(tables))


def _training(options: argparse.Namespace) -> Training:
    task, pictures = Denoise(options.sigma), _pictures(options.train)
    every = len(pictures) // options.validate
    if every < 2:
        raise ValueError(f"{options.train} holds {len(pictures)} pictures, too few to validate on {options.validate}")
    chosen = range(every // 2, every * options.validate, every)
    train = [picture for k, picture in enumerate(pictures) if k not in chosen]
    epochs = max(1, options.steps // EPOCH)
    steps = options.steps // epochs

    def batches(seed: int) -> Batches:
        return task.batches(train, crop=options.crop, batch=options.batch, steps=steps, seed=seed)

    batches(0)  # what is wrong with the pictures is said now
    return Training(
        task,
        batches,
        held_out([pictures[k] for k in chosen], task, seed=VALIDATION_SEED),
        held_out(_pictures(options.test), task, seed=TEST_SEED),
        epochs,
        steps,
        tuple(options.rates),
        tuple(range(options.seeds)),
    )


def _pictures(folder: Path) -> list[Picture]:
    return [file.open() for file in find_pictures(folder, folder, 1, [])]


def _supernet(options: argparse.Namespace, found: Sequence[Found]) -> Plan:
    """That random networks are drawn from, and whose input and output the hand-made ones have.

    Raises:
        ValueError: it cannot be made, or a found network sees other squares of pictures, so that the others would be
            better or worse for that alone.
    """
    known = [each.supernet for each in found if each.supernet is not None]
    if options.model is None and known:
        supernet = known[0]
    else:
        try:
            supernet = RECIPES.find(options.model or "separable_autoencoder")(1, **options.model_options).plan
        except TypeError as problem:
            raise ValueError(f"the options of the supernet do not suit it: {problem}") from None
    for each in found:
        if each.net.plan.patch != supernet.patch:
            raise ValueError(
                f"{each.title} works on squares of {each.net.plan.patch} x {each.net.plan.patch} pixels, the supernet "
                f"on {supernet.patch} x {supernet.patch}: compare it with its own, by its run folder or --model-options"
            )
    return supernet


def _sizes(sizes: Sequence[int], found: Sequence[Found]) -> list[int]:
    """The sizes to compare at, in order: those asked for, and of every found network that has none of them its own."""
    own = {each.net.plan.num_params for each in found}
    return sorted({*sizes, *(params for params in own if not any(_is_of(params, size) for size in sizes))})


def _is_of(params: int, size: int) -> bool:
    return TIGHT * size <= params <= size


def _competitors(options: argparse.Namespace, found: Sequence[Found], supernet: Plan, size: int) -> list[Competitor]:
    competitors = hand_made_networks(supernet, size, options.families)
    competitors += [each for net in found if _is_of(net.net.plan.num_params, size) for each in net.competitors]
    try:
        return competitors + random_networks(supernet, size, options.random)
    except ValueError as problem:
        print(problem, flush=True)
        return competitors


def _line(trained: Trained, training: Training) -> str:
    return table("", {}, [trained], training.task.metrics)[1]


def _table(size: int, trained: Sequence[Trained], training: Training) -> list[str]:
    name, untrained = score_trivial(training.test, training.task)
    title = f"{size:,} parameters, number of seeds: {len(training.seeds)}"
    return table(title, {name: untrained}, summarised(trained, training.headline), training.task.metrics)


def _ranks(trained: Sequence[Trained], found: Sequence[Found], training: Training) -> list[str]:
    """Where each found network stands among the random ones."""
    drawn, titles = random_ones(trained), {each.title for net in found for each in net.competitors}
    return [
        f"{each.title}: rank {rank(each, drawn, training.headline)} among {len(drawn)} random networks and itself"
        for each in trained
        if each.title in titles and drawn
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Networks that remove noise from grey pictures, trained alike.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--train", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--test", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--validate", type=_positive, default=12, help="pictures of --train kept to choose on")
    parser.add_argument("--sizes", type=_positive, nargs="+", default=[4000, 14000, 27000], help="most parameters")
    parser.add_argument("--families", type=_family, nargs="*", default=list(HAND_MADE), help="hand-made networks")
    parser.add_argument("--random", type=_count, default=0, help="random networks of the supernet, of each size")
    parser.add_argument("--random-seeds", type=_positive, default=1, help="of --seeds, for random networks")
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="run folders, or folders of stored networks")
    parser.add_argument("--model", help="supernet; by default that of the first run, else separable_autoencoder")
    parser.add_argument("--model-options", type=_options, default={}, help='such as {"depth": 8}, with --model')
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, on the 0..255 scale")
    parser.add_argument("--steps", type=_positive, default=6000, help="of every training")
    parser.add_argument("--batch", type=_positive, default=16, help="crops per step")
    parser.add_argument("--crop", type=_positive, default=48, help="side of the crops in pixels")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="to choose from, by the first seed")
    parser.add_argument("--seeds", type=_positive, default=3, help="trainings of each network at its best rate")
    parser.add_argument("--out", type=Path, help="file of JSON lines; what is in it is not trained again")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _family(name: str) -> str:
    try:
        describe(name)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return name


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return found


if __name__ == "__main__":
    main()
