"""Training networks, for the verbs that do: options, and a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nas.cli.progress import progress_line
from nas.cli.shared import choice
from nas.models.families import HAND_MADE
from nas.search.retraining.compete import OnEpoch
from nas.search.retraining.config import RetrainConfig
from nas.search.runs.options import ROOTS

OTHER_PICTURES = {
    "data": "other pictures",
    "data_root": "their folder",
    "val_root": "their folder to validate on",
    "test_root": "their folder to test on",
    "range": "their pixel values that are black and white, such as 0:4095",
    "clean": "given or none",
    "sigma": "of their noise",
}


def add_training(parser: ArgumentParser) -> None:
    """Options of a training, and of the comparison with others."""
    parser.add_argument("--lr", type=float, default=0.005, help="highest learning rate of the one-cycle schedule")
    parser.add_argument(
        "--patience", type=int, help="stop after so many looks (every 5 epochs) without a better validation score"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each network in the comparison")
    parser.add_argument(
        "--families",
        type=str,
        nargs="+",
        default=list(HAND_MADE),
        help="hand-made networks in the comparison; separable5k7: 5 blocks, kernels of 7 x 7",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training data, the noise and new weights")


def retrain_config(options: Namespace) -> RetrainConfig:
    """What the options of `add_training`, and those of the verb of the same names, say."""
    given = {field.name: options[field.name] for field in fields(RetrainConfig) if field.name in options}
    chosen = {"choice": choice(options)} if "epoch" in options else {}
    instead = {name: options[name] for name in OTHER_PICTURES if options.get(name) is not None}
    instead |= {name: str(Path(instead[name]).resolve()) for name in ROOTS if name in instead}
    return RetrainConfig(**{**given, "families": tuple(options.families), **chosen, "instead": instead})


@contextmanager
def progress_bar(num_epochs: int, done: int = 0) -> Iterator[OnEpoch]:
    """What is to be called after every epoch of trainings (`nas.search.retraining.compete.OnEpoch`)."""
    bar = progress_line(num_epochs, initial=done, delay=0.1)  # none for options that are refused

    def progress(what: str, loss: float) -> None:
        bar.set_description_str(f"{what}, loss {loss:.5f}", refresh=False)
        bar.update()

    with bar:
        yield progress
