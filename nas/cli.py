"""The command line: ``nas VERB --help``. Every verb is one function that returns what ``--json`` prints."""

import argparse
import json
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from nas import __version__
from nas.analysis.certificate import Certificate
from nas.analysis.changes import describe_changes
from nas.analysis.cost import cost
from nas.analysis.curves import draw_growth
from nas.analysis.draw import draw
from nas.analysis.export import FORMATS, export, files_of
from nas.analysis.extract import extract
from nas.analysis.graph_files import write_graph
from nas.analysis.latency import Latency, latency
from nas.analysis.structure import structure
from nas.analysis.topology import LEVELS, topology
from nas.analysis.verify import read_record, verify
from nas.files import replacing_folder, write_json
from nas.models.compact import compact
from nas.models.dag import DagNet
from nas.models.store import load
from nas.registry import import_registrations
from nas.search.config import TASKS, SearchConfig, check_seed
from nas.search.images import read_picture, to_array, write_picture
from nas.search.path import Point, births, deaths
from nas.search.polish import Polished
from nas.search.restoration import Restoration, restore
from nas.search.retrain import retrain, rewound, same_size
from nas.search.run import COMPACT, DRAWINGS, EXPORT, PICTURES, RETRAINED, Run, Search
from nas.search.stack import Pictures
from nas.search.tasks import Example, Metric, Scores, Task, evaluate, score
from nas.search.use import beside, denoise_pixels
from nas.steering import DeadTraining

Result = dict[str, Any]
IMPORT_HELP = "run this Python file or module first; it registers tasks, data or models of your own (with any verb)"
CONSTANT = "the network is constant: no path from input to output"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done. 1: a certificate does not hold. 2: something the user can mend, said in one sentence.
        130: interrupted with Ctrl-C.
    """
    torch.set_flush_denormal(True)  # moments of silent units decay into denormal numbers, on which a step is slow
    verb = "nas"
    try:
        words, to_import = _split_imports(sys.argv[1:] if argv is None else argv)
        for source in to_import:
            import_registrations(source)
        arguments = _parser().parse_args(_with_underscores(words))
        verb = f"nas {arguments.verb}"
        options = arguments[arguments.verb]
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"{verb}: {message}", file=sys.stderr)
            result = VERBS[arguments.verb](options)
        if options.json:
            print(json.dumps(result, allow_nan=False))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{verb}: interrupted", file=sys.stderr)
        return 130
    except (ArgumentError, ValueError, OSError, FloatingPointError, DeadTraining) as problem:
        print(f"{verb}: {_sentence(problem)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as problem:
        if "memory" not in str(problem).lower():
            raise
        print(f"{verb}: the memory of this machine does not suffice for networks or pictures so large", file=sys.stderr)
        return 2
    return 1 if False in (result.get("holds"), result.get("certificate", {}).get("holds")) else 0


def run_search(options: Namespace) -> Result:
    config = SearchConfig(**{field.name: options[field.name] for field in fields(SearchConfig)})
    if config.data_root is not None:  # later verbs may be called from another folder
        config = replace(config, data_root=config.data_root.resolve())
    run = Run(options.out or Path("runs") / f"{config.task}-{config.data}", config)
    return _run_to_the_end(Search(run, force=options.force, download=options.download))


def resume(options: Namespace) -> Result:
    return _run_to_the_end(Search(Run.open(options.run), resume=True))


def _run_to_the_end(engine: Search) -> Result:
    run, config, task = engine.run, engine.run.config, engine.task
    name, before = _trivial(task, engine.validation)
    print(f"{run.folder}: {config.task} with {config.model} on {config.data}, {task}, seed {config.seed}")
    steps = config.epochs * config.steps
    entry_time = engine.lam / config.lr
    print(f"the first units can wake after about {entry_time:.0f} of {steps} steps (lam = {engine.lam:.3g})")
    if entry_time >= steps:
        warnings.warn(
            "nothing can wake in so few steps: more epochs, or a shorter entry_time, would help", stacklevel=1
        )
    metric = task.metrics[0]
    print(f"at the start {_alive(engine.points[0], run)}; {name} in validation: {metric.text(before[metric.key])}")
    done = min(len(engine.points) - 1, config.epochs)
    bar = tqdm(total=config.epochs + config.polish, initial=done, unit="epoch", desc="search")
    engine.on_trial = lambda candidate, accepted: _show_trial(bar, candidate)
    try:
        for point in engine:
            found = point.snapshot
            if found.epoch > config.epochs:
                continue
            bar.update()
            bar.set_postfix_str(
                f"loss {found.loss:.5f}, {metric.text(point.headline)}, units {found.num_units}, "
                f"skips {len(found.skips)}"
            )
    except KeyboardInterrupt:
        bar.close()
        done = run.points()[-1].snapshot.epoch
        print(
            f"stopped after epoch {done} of {config.epochs}: {run.folder} is valid up to there; "
            f"go on with nas resume {run.folder}",
            file=sys.stderr,
        )
        raise
    bar.close()
    chosen = run.choose()
    picked = f"{metric.text(chosen.headline)} with {_alive(chosen, run)}"
    print(f"picked {_when(chosen.snapshot.epoch, config.epochs)}: {picked}")
    return {
        "run": str(run.folder),
        "epoch": chosen.snapshot.epoch,
        f"{metric.key}_{name}": before[metric.key],
        **chosen.scores,
        **_sizes(chosen, run),
        "seconds": engine.points[-1].seconds,
    }


def _show_trial(bar: Any, candidate: Polished) -> None:
    bar.set_description_str("polish")
    bar.set_postfix_str(f"trial with {candidate.num_params:,} parameters")
    bar.update()


def _when(epoch: int, epochs: int) -> str:
    """Such as "epoch 31 of 50", or of a later point "epoch 53, step 3 of the polishing"."""
    return f"epoch {epoch} of {epochs}" if epoch <= epochs else f"epoch {epoch}, step {epoch - epochs} of the polishing"


def show(options: Namespace) -> Result:
    run = Run.open(options.run)
    chosen, points = run.choose(options.epoch), run.points()
    last = points[-1].snapshot.epoch
    net = run.supernet(chosen.snapshot.epoch)
    history = points[: chosen.snapshot.epoch + 1]
    born, died = births(history), deaths(history)
    graph = topology(net, options.level, births=born, deaths=died)
    files = [run.folder / name for name in DRAWINGS]
    draw(graph, files[0])
    write_graph(graph, files[1])
    write_graph(graph, files[2])
    metric = run.config.headline
    draw_growth(points, files[3], metric=metric, picked=chosen.snapshot.epoch)

    state = "" if last >= run.config.epochs else f" (the search stopped after epoch {last} of {run.config.epochs})"
    print(f"{run.folder}: epoch {chosen.snapshot.epoch}{state}, validation {metric.text(chosen.headline)}\n")
    print(f"{'node':<8}{'alive':>12}{'born first':>12}{'born last':>12}{'died':>12}")
    for name, units in net.plan.units.items():
        ages = born.get(name, {}).values()
        alive = chosen.snapshot.units.get(name, range(units))
        lived = f"{min(ages, default='-'):>12}{max(ages, default='-'):>12}{len(died.get(name, {})):>12}"
        print(f"{name:<8}{f'{len(alive)} / {units}':>12}{lived}")
    print("\nskips   " + ("none" if not chosen.snapshot.skips else ""))
    for (source, target), gate in chosen.snapshot.skips.items():
        print(f"  {f'{source} -> {target}':<14}{gate:>8.3f}")
    whole = structure(topology(net))
    small, full = cost(compact(net)), cost(net)
    if whole.num_paths:
        print(f"\ndepth       {whole.depth} (shortest path {whole.shortest}), {whole.num_paths:,} paths over nodes")
        print(f"bottleneck  {whole.bottleneck} units")
    else:
        print(f"\n{CONSTANT}")
    print(f"\nparameters  {small.params:,} of {full.params:,} ({small.params / full.params:.1%})")
    print(f"FLOPs       {small.flops:,} of {full.flops:,} ({small.flops / full.flops:.1%})")
    print("            two per multiply-add, for one picture of 256 x 256 pixels (or one vector)")
    print(f"\nwrote {', '.join(map(str, files))}")
    return {
        "epoch": chosen.snapshot.epoch,
        **chosen.scores,
        **_sizes(chosen, run),
        "flops": {"alive": small.flops, "total": full.flops},
        "structure": {**asdict(whole), "skips": [[*arc, gate] for arc, gate in whole.skips.items()]},
        "files": [str(file) for file in files],
    }


def run_extract(options: Namespace) -> Result:
    run = Run.open(options.run)
    chosen = run.choose(options.epoch)
    net = run.supernet(chosen.snapshot.epoch)
    small, certificate = extract(net, run.inputs(run.data()), round_to=options.round_to)
    sizes, supernet = cost(small), cost(net)
    timings = () if options.no_latency else latency(net, small)
    result = {
        "epoch": chosen.snapshot.epoch,
        "certificate": certificate.to_dict(),
        **asdict(sizes),
        **{f"{name}_supernet": number for name, number in asdict(supernet).items()},
        "latency": [asdict(timed) for timed in timings],
    }

    def write(folder: Path) -> None:
        small.save_pretrained(folder)
        write_json(folder / "certificate.json", result)

    replacing_folder(run.folder / COMPACT, write)
    part = sizes.flops / supernet.flops
    print(f"epoch {chosen.snapshot.epoch}: {sizes.params:,} of {supernet.params:,} parameters, {part:.1%} of the FLOPs")
    print(_differences(certificate))
    print(describe_changes(certificate.changes))
    if certificate.constant:
        print(CONSTANT)
    for timed in timings:
        print(_times(timed))
    print(f"the certificate {'holds' if certificate.holds else 'DOES NOT HOLD'}; wrote {run.folder / COMPACT}")
    return result


def run_verify(options: Namespace) -> Result:
    run = Run.open(options.run)
    small = _load(run.folder / COMPACT, f"nas extract {run.folder}")
    record = read_record(run.folder / COMPACT / "certificate.json")
    net = run.supernet(record.epoch)
    verification = verify(net, small, record.hashes, run.inputs(run.data()), seed=options.seed)
    certificate = verification.certificate
    if certificate is not None:
        print(f"epoch {record.epoch}: {_differences(certificate)}")
    for problem in verification.problems:
        print(f"nas verify: {problem}", file=sys.stderr)
    print(f"the certificate of {run.folder / COMPACT} {'holds' if verification.holds else 'DOES NOT HOLD'}")
    return {
        "epoch": record.epoch,
        "holds": verification.holds,
        "problems": list(verification.problems),
        **({"certificate": certificate.to_dict()} if certificate is not None else {}),
    }


def run_retrain(options: Namespace) -> Result:
    if options.from_scratch and options.rewind_epoch is not None:
        raise ValueError("retrain starts from scratch or from a rewound epoch, not both")
    run = Run.open(options.run)
    net = _load(run.folder / COMPACT, f"nas extract {run.folder}")
    if not os.access(run.folder, os.W_OK):  # said now rather than after the training
        raise ValueError(f"{run.folder}: no permission to write")
    data = run.data()
    task, validation, test = run.task(data), run.validation(data), run.test(data)
    check_seed(options.seed)
    if options.from_scratch:
        torch.manual_seed(options.seed)
        net = DagNet(net.plan)
    if options.rewind_epoch is not None:
        found = read_record(run.folder / COMPACT / "certificate.json").epoch
        early = run.choose(options.rewind_epoch).snapshot.epoch
        net = rewound(run.supernet(found), run.supernet(early), seed=options.seed)
    before = evaluate(net, test, task)
    _train_to_the_end(net, run, data, validation, options, "retrain")
    after = evaluate(net, test, task)
    compared: dict[str, Scores] = {}
    if options.compare:
        torch.manual_seed(options.seed)
        supernet = run.supernet(0)
        for title, other in (
            ("same size, built by hand", same_size(net, supernet)),
            ("the supernet, dense", DagNet(supernet.plan)),
        ):
            _train_to_the_end(other, run, data, validation, options, title)
            compared[title] = evaluate(other, test, task)
    name, untouched = _trivial(task, test)
    classical = task.baselines(data.train, validation, test)
    key = task.metrics[0].key
    result = {
        **after,
        f"{key}_{name}": untouched[key],
        f"{key}_before": before[key],
        "baselines": {title: scores[key] for title, scores in classical.items()},
        "compared": {title: scores[key] for title, scores in compared.items()},
        "params": sum(p.numel() for p in net.parameters()),
        "from_scratch": options.from_scratch,
    }

    def write(folder: Path) -> None:
        net.save_pretrained(folder)
        write_json(folder / "result.json", result)

    replacing_folder(run.folder / RETRAINED, write)
    rows = {name: untouched, **classical, "before retraining": before, "retrained network": after, **compared}
    _print_table(f"mean over {len(test)} held-out pictures", rows, task.metrics)
    wrote = [run.folder / RETRAINED]
    if isinstance(task, Restoration):
        wrote.append(run.folder / PICTURES)
        replacing_folder(wrote[-1], lambda folder: _write_pictures(net, test, folder, task.observed_name))
    print(f"wrote {' and '.join(map(str, wrote))}")
    return result


def _trivial(task: Task, examples: Sequence[Example]) -> tuple[str, Scores]:
    """What the results without any network are called, and their scores."""
    name, outputs = task.trivial(examples)
    return name, score(examples, outputs, task)


def _print_table(title: str, rows: dict[str, Scores], metrics: Sequence[Metric]) -> None:
    print(f"{title:<36}" + "".join(f"{metric.title:>12}" for metric in metrics))
    for name, scores in rows.items():
        print(f"  {name:<34}" + "".join(f"{metric.number(scores[metric.key]):>12}" for metric in metrics))


def _train_to_the_end(
    net: DagNet, run: Run, data: Pictures, validation: Sequence[Example], options: Namespace, title: str
) -> None:
    """Train ``net`` with the options of nas retrain, with a progress bar; it ends with its best weights."""
    task = run.task(data)
    metric = task.metrics[0]
    bar = tqdm(total=options.epochs, unit="epoch", desc=title, delay=0.1)  # none for options that are refused

    def progress(epoch: int, loss: float) -> None:
        bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
        bar.update()

    def validate() -> float:
        headline = evaluate(net, validation, task)[metric.key]
        bar.set_description(f"{title}, {metric.text(headline)}")
        return headline

    batches = run.batches(data, run.config.seed + 1 + options.seed)  # other crops and noise than in the search
    with bar:
        retrain(
            net,
            batches,
            task.loss,
            epochs=options.epochs,
            steps=run.config.steps,
            lr=options.lr,
            on_epoch=progress,
            validate=validate,
            patience=options.patience,
        )


def denoise(options: Namespace) -> Result:
    run = Run.open(options.run)
    if not issubclass(TASKS.find(run.config.task), Restoration):
        raise ValueError(
            f"the task of {run.folder} is {run.config.task}; denoise is for networks that restore pictures"
        )
    folder, net = _network(run)
    comparison = options.out.with_name(f"{options.out.stem}-before-after.png")
    for path in (options.out, comparison):
        if path.resolve() == options.picture.resolve():
            raise ValueError(f"{path} is the picture to be cleaned; choose another -o")
        if path.exists() and not options.force:
            raise ValueError(f"{path} exists; choose another -o, or --force to replace it")
    pixels = read_picture(options.picture)
    cleaned = denoise_pixels(net, pixels)
    both = beside([pixels, cleaned])
    write_picture(options.out, cleaned)
    write_picture(comparison, both)
    print(f"cleaned {options.picture} with the network in {folder}; wrote {options.out} and {comparison}")
    return {"network": str(folder), "files": [str(options.out), str(comparison)]}


def run_export(options: Namespace) -> Result:
    run = Run.open(options.run)
    folder, net = _network(run)
    out = options.out or run.folder / EXPORT / f"model{FORMATS[options.format]}"
    files = files_of(out, options.format)
    if options.out is None:
        out.parent.mkdir(exist_ok=True)
    elif not options.force and (taken := [file for file in files if file.exists()]):
        raise ValueError(f"{taken[0]} exists; choose another -o, or --force to replace it")
    try:
        difference = export(net, out, options.format)
    finally:
        if options.out is None and not any(out.parent.iterdir()):
            out.parent.rmdir()
    sizes = {str(file): file.stat().st_size for file in files}
    print(f"exported the network in {folder}")
    for file, size in sizes.items():
        print(f"  {file}  {size:,} bytes")
    print(f"loaded again, its outputs differ by at most {difference:.1e} on random inputs of several sizes")
    return {"network": str(folder), "format": options.format, "files": sizes, "max_abs": difference}


VERBS: dict[str, Callable[[Namespace], Result]] = {
    "search": run_search,
    "resume": resume,
    "show": show,
    "extract": run_extract,
    "verify": run_verify,
    "retrain": run_retrain,
    "denoise": denoise,
    "export": run_export,
}


def _parser() -> ArgumentParser:
    parser = _make(
        "Networks found by Bregman iterations: search, look, extract, retrain, use.", prog="nas", version=__version__
    )
    parser.add_argument("--import", action="append", metavar="FILE.py|MODULE", help=IMPORT_HELP)  # for its help only
    verbs = parser.add_subcommands(required=True, dest="verb", metavar="VERB")

    search = _make("Start almost empty and let units and skips enter when the loss asks for them.")
    search.add_class_arguments(SearchConfig)
    search.add_argument("--out", type=Path, help="run folder to make (default: runs/TASK-DATA)")
    search.add_argument("--force", action="store_true", help="replace the run that is in the folder")
    search.add_argument("--download", action="store_true", help="fetch a data set that is missing")

    resumed = _make("Go on with a search that was interrupted; the same as if it had not been, bit for bit.")

    shown = _make("Show what is alive; write topology.svg, .json and .graphml and growth.svg into the run folder.")
    shown.add_argument("--epoch", type=int, help="epoch to show (default: the one that the search picked)")
    shown.add_argument("--level", choices=LEVELS, default="node", help="draw nodes, or every unit")

    extracted = _make("Write the compact network and the certificate that it computes the same function.")
    extracted.add_argument("--epoch", type=int, help="epoch to extract (default: the one that the search picked)")
    extracted.add_argument("--no_latency", action="store_true", help="leave out measuring the time of both networks")
    extracted.add_argument("--round_to", type=int, default=1, help="round hidden widths up to multiples, by zero units")

    verified = _make("Recompute the certificate from the stored networks; exit with 1 if it does not hold any more.")
    verified.add_argument("--seed", type=int, default=0, help="of the random inputs")

    retrained = _make("Train the compact network with Adam; measure it beside classical methods.")
    retrained.add_argument("--epochs", type=int, default=120, help="epochs, as long as those of the search")
    retrained.add_argument("--lr", type=float, default=0.005, help="highest learning rate of the one-cycle schedule")
    retrained.add_argument("--from_scratch", action="store_true", help="forget the found weights, keep the topology")
    retrained.add_argument(
        "--rewind_epoch",
        type=int,
        help="start with the weights of this epoch of the search",
    )
    retrained.add_argument(
        "--patience",
        type=int,
        help="stop after so many looks (every 5 epochs) without a better validation score",
    )
    retrained.add_argument(
        "--compare",
        action="store_true",
        help="train two more networks alike, from scratch: one of the same size built by hand, and the dense supernet",
    )
    retrained.add_argument("--seed", type=int, default=0, help="of the training data, the noise and new weights")

    denoised = _make("Clean a picture with the retrained network (the compact one if it was not retrained).")

    exported = _make("Write the network for machines without this package; run and compared before it counts.")
    exported.add_argument("--format", choices=list(FORMATS), required=True, help="plain PyTorch source, or a program")
    exported.add_argument("-o", "--out", type=Path, help="file to write (default: export/model.* in the run folder)")
    exported.add_argument("--force", action="store_true", help="replace the file -o if it exists")

    for verb, help_text, parser_of_verb in (
        ("search", "find a network", search),
        ("resume", "go on with an interrupted search", resumed),
        ("show", "what is alive", shown),
        ("extract", "the compact network, with proof", extracted),
        ("verify", "recompute the proof", verified),
        ("retrain", "train the compact network", retrained),
        ("denoise", "clean a picture", denoised),
        ("export", "for machines without this package", exported),
    ):
        if verb != "search":
            parser_of_verb.add_argument("run", type=Path, help="run folder of nas search")
        if verb == "denoise":
            denoised.add_argument("picture", type=Path, help="any grey or colour picture")
            denoised.add_argument("-o", "--out", type=Path, required=True, help="file to write")
            denoised.add_argument("--force", action="store_true", help="replace the file if it exists")
        parser_of_verb.add_argument("--config", action="config", help="YAML file with options of this verb")
        parser_of_verb.add_argument("--json", action="store_true", help="print a JSON object as the last line")
        verbs.add_subcommand(verb, parser_of_verb, help=help_text)
    return parser


def _make(description: str, **options: Any) -> ArgumentParser:
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, **options)


def _split_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without each ``--import SOURCE``, and the sources.

    Taken from the command line before anything else is read, so that no configuration file can import anything.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--import", dest="sources", action="append", default=[])
    found, words = parser.parse_known_args(argv)
    return words, found.sources


def _with_underscores(argv: Iterable[str]) -> list[str]:
    """--from-scratch and --from_scratch are the same option."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word)
    return words


def _sentence(problem: BaseException) -> str:
    if isinstance(problem, UnicodeDecodeError):
        return "a file that should hold text, such as a configuration, does not"
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}" if problem.filename else problem.strerror
    text = " ".join(str(problem).split())
    if union := re.fullmatch(
        r'Parser key "(\w+)": Does not validate .* Subtypes: \[(.*)\] Errors: .* value: (.*)', text
    ):
        key, kinds, value = union.groups()
        accepted = " or ".join(a or b for a, b in re.findall(r"class '(\w+)'|Literal\['(\w+)'\]", kinds))
        return f"{key} must be {accepted}, got {value}"
    return text


def _load(folder: Path, command: str) -> DagNet:
    if not folder.is_dir():
        raise ValueError(f"there is no network in {folder}; make it with {command}")
    return load(folder)


def _network(run: Run) -> tuple[Path, DagNet]:
    """The retrained network with its folder; the compact one if there is none of the present extraction."""
    net = _load(run.folder / COMPACT, f"nas extract {run.folder}")
    if (run.folder / RETRAINED).is_dir():
        retrained = load(run.folder / RETRAINED)
        if retrained.plan == net.plan:
            return run.folder / RETRAINED, retrained
        warnings.warn(f"{run.folder / RETRAINED} is of an earlier extraction and not used", stacklevel=1)
    return run.folder / COMPACT, net


def _sizes(point: Point, run: Run) -> Result:
    supernet = run.blank
    searched = [node for node in supernet.plan.nodes if node.searched]
    return {
        "units": {"alive": point.snapshot.num_units, "total": sum(node.units for node in searched)},
        "skips": {
            "alive": len(point.snapshot.skips),
            "total": sum(len(node.skips) + len(node.blocks) + len(node.projections) for node in supernet.plan.nodes),
        },
        "params": {"alive": point.params, "total": sum(p.numel() for p in supernet.parameters())},
    }


def _alive(point: Point, run: Run) -> str:
    sizes = _sizes(point, run)
    return ", ".join(f"{size['alive']:,} of {size['total']:,} {name}" for name, size in sizes.items())


def _differences(certificate: Certificate) -> str:
    return (
        f"largest difference to the searched network on {certificate.num_random} random inputs and "
        f"{certificate.num_given} held-out pictures: {certificate.max_abs_float32:.1e} in float32, "
        f"{certificate.max_abs_float64:.1e} in float64"
    )


def _times(timed: Latency) -> str:
    """One line: "batch 8: 12.1 ms (supernet 40.3 ms), 3.33 x as fast, on 2 threads"."""
    small, full = 1e3 * timed.compact.median, 1e3 * timed.supernet.median
    return (
        f"batch {timed.shape[0]}: {small:.1f} ms (supernet {full:.1f} ms), {timed.speed_up:.2f} x as fast, "
        f"on {timed.threads} thread{'s' if timed.threads > 1 else ''}"
    )


def _write_pictures(net: DagNet, test: Sequence[Example], folder: Path, observed_name: str, most: int = 8) -> None:
    shown = test[:most]
    for example, restored in zip(shown, restore(net, [each.observed for each in shown]), strict=True):
        stem = Path(example.name.replace("/", "-")).stem
        views = {"clean": example.target, observed_name: example.observed, "restored": restored}
        arrays = {name: to_array(view) for name, view in views.items()}
        for name, array in arrays.items():
            write_picture(folder / f"{stem}-{name}.png", array)
        write_picture(folder / f"{stem}.png", beside([arrays[name] for name in (observed_name, "restored", "clean")]))
