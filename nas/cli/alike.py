"""Training others alike, for the verbs that compare."""

import math
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from nas.cli.shared import compute
from nas.models.families import HAND_MADE, describe
from nas.search.compare import Competitor, Memory, Trained, Training, compete
from nas.search.config import check_seed
from nas.search.data.batches import Batches
from nas.search.data.stack import Pictures
from nas.search.run import Run

RELATIVE_RATES = (0.4, 1.0, 2.0)  # that a comparison tries, as multiples of --lr


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


def check_training(options: Namespace) -> None:
    """Raise ValueError for an option of `add_training`, or of `add_compute`, out of range."""
    compute(options)
    if options.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {options.seeds}")
    if not 0 < options.lr < math.inf:
        raise ValueError(f"lr must be > 0, got {options.lr}")
    if options.patience is not None and options.patience < 1:
        raise ValueError(f"patience must be at least 1, got {options.patience}")
    check_seed(options.seed)
    for name in options.families:
        describe(name)


def make_training(run: Run, data: Pictures, options: Namespace) -> Training:
    """What the options say, with other crops and noise than in the search."""
    sizes = {name: options.get(name) for name in ("batch", "crop")}

    def batches(seed: int) -> Batches:
        return run.batches(data, run.config.seed + 1 + seed, **sizes)

    rates = tuple(factor * options.lr for factor in RELATIVE_RATES) if options.compare else (options.lr,)
    seeds = tuple(range(options.seed, options.seed + options.seeds)) if options.compare else (options.seed,)
    return Training(
        run.task(data), batches, run.validation(data), run.test(data), options.epochs, run.config.steps, rates, seeds,
        patience=options.patience, compute=compute(options),
    )  # fmt: skip


def train_alike(
    competitors: Sequence[Competitor],
    training: Training,
    memory: Memory | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> list[Trained]:
    """What became of each competitor; with a progress bar. ``memory`` as in `nas.search.compare.compete`."""
    bar = tqdm(total=len(competitors) * training.num_epochs, unit="epoch", delay=0.1)

    def progress(what: str, loss: float) -> None:
        bar.set_description(f"{what}, loss {loss:.5f}", refresh=False)
        bar.update()
        on_epoch()

    with bar:
        return [compete(each, training, progress, memory) for each in competitors]
