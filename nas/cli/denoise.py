"""``nas denoise``."""

import glob
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from torch import nn
from tqdm import tqdm

from nas.cli.shared import Result, add_choice, check_free, choice, make_parser, sentence
from nas.files import remove_unfinished
from nas.models.network import sight
from nas.search.data.formats.files import check_sheet, encoded, read_sheet, write_sheet
from nas.search.data.formats.sheet import Sheet
from nas.search.data.formats.values import parse_range
from nas.search.data.images import write_picture
from nas.search.runs.config import SearchConfig
from nas.search.runs.networks import load_chosen
from nas.search.runs.path import Choice
from nas.search.runs.run import Run
from nas.search.tasks.degradations import Inpaint, SuperResolve, read_mask
from nas.search.tasks.files import DONE, EARLIER, FAILED, NO_PICTURE, Outcome, denoise_files, find_jobs
from nas.search.tasks.noise import Denoise
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.task import Task
from nas.search.tasks.tiles import tiles
from nas.search.tasks.use import Noise, before_after, denoise_sheet, magnify
from nas.search.zoo.shipped import DEFAULT, find_shipped, load

STANDARD = Path("-")  # input or output


def parser() -> ArgumentParser:
    parser = make_parser(
        "Clean pictures with a network that comes with the package (nas zoo), or with the retrained one of a run (the "
        "compact one if it was not retrained)."
    )
    parser.add_argument(
        "pictures",
        type=Path,
        nargs="+",
        help="grey or colour pictures, folders of them, or - for standard input; before them a run folder, whose "
        "network is used",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="file to write (- for standard output), or folder for several (default: NAME-clean beside a single one)",
    )
    parser.add_argument(
        "--network", type=str, help=f"name of one of nas zoo, run folder, or folder of a network (default: {DEFAULT})"
    )
    add_choice(parser)
    parser.add_argument("--tile", type=int, help="side of the tiles in pixels (default: as memory allows)")
    parser.add_argument(
        "--sigma",
        type=str | float,
        help="of the noise on the 0..255 scale, where the network is told (default: estimated)",
    )
    parser.add_argument("--mask", type=Path, help="picture that is black where pixels are to be filled in")
    parser.add_argument("--peak", type=float, help="photons in white, of pictures with photon noise")
    parser.add_argument("--range", type=str, help="pixel values that are black and white, such as 0:4095")
    parser.add_argument("--force", action="store_true", help="replace files that exist, clean finished ones again")
    return parser


def perform(options: Namespace) -> Result:
    network, pictures = _network_and_pictures(options)
    folder, net, config = _open(network, choice(options))
    list(tiles(1, 1, sight(net), options.tile))  # complains before the first file is read
    given = parse_range(options.range) if options.range else None
    use = _Use(_cleaner(config, net, options), folder, given, options.force)
    out = options.out or _out(pictures)
    if STANDARD in (*pictures, out):
        if len(pictures) > 1 or out.is_dir() or pictures[0].is_dir():
            raise ValueError("- stands for one picture; name one picture and one file, or -, with -o")
        if out == STANDARD and options.json:
            raise ValueError("--json and -o - both write to standard output; choose another -o")
    if len(pictures) == 1 and not out.is_dir() and (pictures[0].is_file() or not _is_pattern_or_folder(pictures[0])):
        return _clean_one(use, pictures[0], out)
    return _clean_many(use, [path for picture in pictures for path in _expand(picture)], out)


def _network_and_pictures(options: Namespace) -> tuple[str, list[Path]]:
    """What the network is taken from, and the pictures; a run folder may stand before these."""
    first, *others = options.pictures
    if options.network is not None or not Run.is_in(first):
        return options.network or DEFAULT, [first, *others]
    if not others:
        raise ValueError(f"{first} is a run folder; name the pictures behind it")
    return str(first), others


def _open(network: str, chosen: Choice) -> tuple[Path, nn.Module, SearchConfig]:
    """A network with where it comes from and what it was trained for, so far as that is known.

    Raises:
        ValueError: there is none, it is damaged, or it does not restore pictures.
    """
    if Run.is_in(Path(network)):
        run = Run.open(Path(network))
        if not issubclass(run.config.task_class, Restoration):
            raise ValueError(
                f"the task of {run.folder} is {run.config.task}; denoise is for networks that restore pictures"
            )
        return *load_chosen(run, chosen), run.config
    if chosen != Choice():
        raise ValueError(f"{network} is a single network; what chooses among several goes with a run folder")
    if Path(network).is_dir():
        net = load(Path(network))
        return Path(network), net, SearchConfig(sigma="1:255" if sight(net).extra else 25.0)
    found = find_shipped(network)
    return found.folder, found.load(), SearchConfig(sigma=f"{found.sigma[0]}:{found.sigma[1]}")


def _out(pictures: Sequence[Path]) -> Path:
    """Where a single picture goes: beside it, as NAME-clean."""
    (picture, *others) = pictures
    if others or picture == STANDARD or _is_pattern_or_folder(picture):
        raise ValueError("several pictures, and standard input, need -o: a folder, or - for standard output")
    return picture.with_name(f"{picture.stem}-clean{picture.suffix}")


@dataclass(frozen=True)
class _Use:
    """What cleans pictures, where its network came from, and how it is used."""

    clean: Callable[[Sheet], Sheet]
    folder: Path
    given: tuple[float, float] | None
    force: bool


def _cleaner(config: SearchConfig, net: nn.Module, options: Namespace) -> Callable[[Sheet], Sheet]:
    """What the task of a network makes of pictures.

    Raises:
        ValueError: the options do not suit the task.
    """
    task = config.make_task(None) if config.num_extra or config.task_class is SuperResolve else None
    if isinstance(task, Inpaint) != (options.mask is not None):
        raise ValueError(
            "--mask FILE, black where pixels are missing, goes with networks that fill them in (--task inpaint), and "
            f"these need it; the task of this one is {config.task}"
        )
    known = None if options.mask is None else read_mask(str(options.mask)).bool().numpy()
    noise = _noise(config, task, Noise(_level(options.sigma), options.peak))
    scale = task.scale if isinstance(task, SuperResolve) else 1
    return lambda sheet: denoise_sheet(net, magnify(sheet, scale), options.tile, noise, known)


def _level(sigma: str | float | None) -> float | None:
    """One level. As a number jsonargparse would take 1:25, a range elsewhere, for the 85 seconds of YAML 1.1.

    Raises:
        ValueError: it is none.
    """
    try:
        return None if sigma is None else float(sigma)
    except ValueError:
        raise ValueError(f"--sigma is the one level of these pictures, such as 25, got {sigma!r}") from None


def _noise(config: SearchConfig, task: Task | None, noise: Noise) -> Noise:
    """The noise of the pictures, if it is what the network was trained for.

    Raises:
        ValueError: the network is not told a level, or was not trained for this one, or for no transformed picture.
    """
    has_photons = config.task_options.get("peak") is not None
    if noise.peak is not None and (has_photons or config.task != "denoise"):
        what = (
            "this one was trained on photon noise as it is" if has_photons else f"the task of this one is {config.task}"
        )
        raise ValueError(f"--peak turns photon noise into Gaussian noise, for networks that remove that; {what}")
    if has_photons and config.num_extra and noise.sigma is None:
        raise ValueError(
            "this network is told the Gaussian noise that comes on top of photon noise, which cannot be estimated; "
            "say it with --sigma"
        )
    if not isinstance(task, Denoise):
        if noise.sigma is not None and noise.peak is None:
            raise ValueError(
                "--sigma is for networks that are told the level of the noise, those of nas search --sigma 5:55; this "
                "one was not"
            )
        if noise.peak is not None:
            warnings.warn(
                f"after the transform sigma is {noise.level:.1f}, which this network is not told", stacklevel=2
            )
        return noise
    low, high = task.ends
    if noise.level is not None and not low <= noise.level <= high:
        what = "sigma" if noise.peak is None else "after the transform of photon noise sigma"
        raise ValueError(f"{what} is {noise.level:.1f}, and the network was trained for {low:g} to {high:g}")
    return replace(noise, within=task.ends)


def _is_pattern_or_folder(path: Path) -> bool:
    return path.is_dir() or (glob.has_magic(str(path)) and not path.exists())


def _expand(path: Path) -> Iterator[Path]:
    """The files that a pattern stands for, where there is no file of this name.

    Raises:
        ValueError: nothing matches.
    """
    if path.exists() or not glob.has_magic(str(path)):
        yield path
        return
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise ValueError(f"no file matches {path}")
    yield from map(Path, found)


def _clean_one(use: _Use, picture: Path, out: Path) -> Result:
    """One picture into one file, and both side by side in another."""
    comparison = out.with_name(f"{out.stem}-before-after.png")
    files = [] if out == STANDARD else [out, comparison]
    for path in files:
        if picture != STANDARD and path.resolve() == picture.resolve():
            raise ValueError(f"{path} is the picture to be cleaned; choose another -o")
        check_free(path, use.force)
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for {out}")
    source = sys.stdin.buffer.read() if picture == STANDARD else picture
    before = read_sheet(source, "standard input" if picture == STANDARD else None, use.given)
    if out != STANDARD:
        check_sheet(before, out)
    after = use.clean(before)
    if out == STANDARD:
        data, lost = encoded(after, before.suffix)
        sys.stdout.buffer.write(data)
    else:
        remove_unfinished(out.parent)
        lost = write_sheet(after, out)
        write_picture(comparison, before_after(before, after))
        print(f"cleaned {before.name} with the network in {use.folder}; wrote {out} and {comparison}")
    notes = [*after.notes, *lost]
    _say(before.name, notes)
    return {"network": str(use.folder), "files": list(map(str, files)), "notes": notes}


def _clean_many(use: _Use, pictures: list[Path], out: Path) -> Result:
    """Several pictures into a folder; what fails is said and does not stop the others."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; several pictures need a folder as -o")
    jobs = find_jobs(pictures, out)
    outcomes: dict[str, list[Outcome]] = {DONE: [], EARLIER: [], NO_PICTURE: [], FAILED: []}
    work = denoise_files(use.clean, jobs, given=use.given, force=use.force)
    for outcome in tqdm(work, total=len(jobs), unit="file", disable=None, leave=False):
        outcomes[outcome.state].append(outcome)
        if outcome.problem is not None:
            _say("", [sentence(outcome.problem)])
        _say(str(outcome.job.source), outcome.notes)
    done, earlier, others, failed = outcomes.values()
    print(f"cleaned {len(done)} of {len(jobs)} files with the network in {use.folder}, into {out}")
    for count, text in (
        (len(earlier), "were there already (--force cleans them again)"),
        (len(others), "are not pictures"),
        (len(failed), "failed"),
    ):
        if count:
            print(f"  {count} {text}")
    return {
        "network": str(use.folder),
        "files": [str(outcome.job.target) for outcome in done],
        "notes": {str(outcome.job.source): list(outcome.notes) for outcome in done if outcome.notes},
        "earlier": [str(outcome.job.target) for outcome in earlier],
        "not_pictures": [str(outcome.job.source) for outcome in others],
        "failed": {str(outcome.job.source): sentence(outcome.problem) for outcome in failed if outcome.problem},
    }


def _say(name: str, notes: list[str] | tuple[str, ...]) -> None:
    """Print what was assumed or lost, without disturbing the progress bar."""
    if notes:
        tqdm.write(": ".join(filter(None, ["nas denoise", name, "; ".join(notes)])), file=sys.stderr)
