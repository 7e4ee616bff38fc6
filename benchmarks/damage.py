"""What becomes of a run folder whose files are damaged?

    python -m benchmarks.damage --count 300

Files of a small run, finished or interrupted, are truncated, changed by a bit, exchanged with those of another run, or
filled with wrong values; then the verbs that read them are called. Each must do what it does with the undamaged run, or
say in one sentence what is wrong. A traceback, or a silent difference, is a failure.
"""

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from nas.cli import main as nas
from nas.search import Run, Search, pictures
from nas.search.data.images import to_array, write_picture

OPTIONS = (
    "--data=folder", "--data-root=data", "--model-options={depth: 2, width: 6, hidden: 6, kernel: 5}", "--steps=10",
    "--batch=2", "--crop=16", "--density=0.5", "--lr=0.01", "--sizes=300,200", "--fit=5", "--refit=1", "--epochs=3",
)  # fmt: skip
READERS = {
    "path.json": ("show", "verify", "extract"),
    "path": ("show", "verify", "extract"),
    "config.yaml": ("show", "verify", "extract"),
    "compact": ("verify", "denoise", "retrain"),
    "retrained": ("denoise", "export"),
    "checkpoints": ("resume",),
    "metrics.jsonl": ("show", "resume"),
}
WORDS = {
    "extract": ["--no-latency"],
    "denoise": ["noisy.png", "-o", "clean.png", "--force"],
    "retrain": ["--epochs=1", "--force"],
    "export": ["--format=python", "-o", "out.py", "--force"],
}
CLOCK = re.compile(r'("?(?:seconds|latency|milliseconds)"?:? ?)[\d.e+-]+|[\d.]+ ?s\b')
BYTES = (b"", b"\0garbage" * 9, b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 5_000, b"1e999", b"\xff\xfe")
VALUES: tuple[Any, ...] = (None, -1, 1e308, float("nan"), "text", [], {}, True, 10**30, [[[]]], "../../x")


class Outcome(NamedTuple):
    """What a verb did: its exit code, what it printed, the files that it left."""

    code: int
    out: str
    error: str
    files: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each failure and the counts; 0 if there is no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description="Damage files of a run.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        failures = damage(options.count, options.seed)
    print(f"{options.count} damages: {failures} failures")
    return int(failures > 0)


def damage(count: int, seed: int) -> int:
    """Damage files in the present folder, so many times; the number of failures, which are printed."""
    make_runs()
    expected: dict[tuple[str, str], Outcome] = {}
    rng, failures, said = random.Random(seed), 0, 0
    for number in range(count):
        name = ("whole", "broken")[number % 2]
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(name, "run")
        what, part = spoil(Path("run"), Path("other"), rng)
        for verb in READERS[part]:
            if (name, verb) not in expected:
                expected[name, verb] = undamaged(name, verb)
            outcome = call(verb)
            if problem := judge(outcome, expected[name, verb]):
                failures += 1
                print(f"{number}: {name}, {what}: nas {verb}: {problem}", flush=True)
            said += outcome.code != 0
    print(f"{said} sentences")
    return failures


def make_runs() -> None:
    """A finished run, one that was interrupted, and another one."""
    Path("data").mkdir()
    for picture in pictures().train[:6]:
        write_picture(Path("data") / f"{picture.name}.png", to_array(picture.pixels[:, :48, :48]))
    shutil.copy(sorted(Path("data").iterdir())[0], "noisy.png")
    for name, extra in (("whole", ()), ("other", ("--seed=1",))):
        assert _quietly(["search", *OPTIONS, *extra, "--out=run"]).code == 0
        _finish(name)
    engine = Search(Run(Path("run"), Run.open(Path("whole")).config))
    next(iter(engine))
    engine.close()
    _finish("broken")


def _finish(name: str) -> None:
    """Extract and retrain what was found, then move the run."""
    for words in (["extract", "run", "--no-latency"], ["retrain", "run", "--epochs=2"]):
        assert _quietly(words).code == 0
    Path("run").rename(name)


def spoil(run: Path, other: Path, rng: random.Random) -> tuple[str, str]:
    """Damage one file of a run; what was done, and in which part of the folder."""
    part = rng.choice(list(READERS))
    files = sorted(file for file in [run / part, *(run / part).glob("**/*")] if file.is_file())
    file = rng.choice(files)
    ways: list[Callable[[Path, Path, random.Random], str]] = [_cut, _flip, _fill, _exchange, _remove]
    if file.suffix in (".json", ".jsonl", ".yaml"):
        ways += [_value, _value, _value]
    if file.suffix == ".safetensors":
        ways += [_tensor, _tensor, _tensor]
    way = rng.choice(ways)
    return f"{file.relative_to(run)} {way(file, other / file.relative_to(run), rng)}", part


def _cut(file: Path, _: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(max(1, len(data)))])
    return "cut"


def _flip(file: Path, _: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"bit flipped at {place}"


def _fill(file: Path, _: Path, rng: random.Random) -> str:
    data = rng.choice(BYTES)
    file.write_bytes(data)
    return f"filled with {data[:12]!r}"


def _exchange(file: Path, theirs: Path, rng: random.Random) -> str:
    choices = sorted(theirs.parent.iterdir()) if theirs.parent.is_dir() else []
    like = [each for each in choices if each.suffix == file.suffix and each.is_file()]
    if not like:
        return _fill(file, theirs, rng)
    shutil.copy(chosen := rng.choice(like), file)
    return f"exchanged with {chosen}"


def _remove(file: Path, _: Path, rng: random.Random) -> str:
    file.unlink()
    return "removed"


def _value(file: Path, _: Path, rng: random.Random) -> str:
    """One value of a text file becomes another."""
    text = file.read_text()
    if file.suffix == ".yaml":
        lines = text.splitlines()
        k = rng.randrange(len(lines))
        lines[k] = f"{lines[k].partition(':')[0]}: {json.dumps(rng.choice(VALUES))}"
        file.write_text("\n".join(lines))
        return f"line {lines[k]!r}"
    numbers = list(re.finditer(r"(?<=[\s:\[])-?\d+(\.\d+)?(?=[,\s\]}])", text))
    found = rng.choice(numbers)
    new = json.dumps(rng.choice(VALUES))
    file.write_text(text[: found.start()] + new + text[found.end() :])
    return f"{found[0]} at {found.start()} became {new}"


def _tensor(file: Path, _: Path, rng: random.Random) -> str:
    """One tensor becomes another."""
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    changes: dict[str, Callable[[], Any]] = {
        "half precision": lambda: tensor.half(),
        "not finite": lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor - 2**40,
        "slightly changed": lambda: tensor + 1,
        "another shape": lambda: tensor[None],
        "integers": lambda: tensor.int(),
        "huge": lambda: tensor + 2**62 if not tensor.is_floating_point() else tensor * 1e38,
        "empty": lambda: tensor.new_zeros(0),
    }
    what = rng.choice(list(changes))
    tensors[name] = changes[what]().contiguous()
    if rng.random() < 0.1:
        del tensors[name]
        what = "missing"
    save_file(tensors, file)
    return f"{name} {what}"


def undamaged(name: str, verb: str) -> Outcome:
    """What a verb does with the run as it is."""
    shutil.move("run", "aside")
    shutil.copytree(name, "run")
    outcome = call(verb)
    shutil.rmtree("run")
    shutil.move("aside", "run")
    return outcome


def call(verb: str) -> Outcome:
    """Call a verb on "run"."""
    for name in ("clean.png", "out.py"):
        Path(name).unlink(missing_ok=True)
    words = WORDS.get(verb, [])
    return _quietly([verb, "run", *words])


def _quietly(words: list[str]) -> Outcome:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
        try:
            code = nas(words)
        except BaseException:
            code = -1
            traceback.print_exc(file=error)
    files = [*Path("run").rglob("*"), Path("clean.png"), Path("out.py")]
    kept = {
        str(file): CLOCK.sub(
            "",
            file.read_bytes().hex() if file.suffix not in (".json", ".jsonl") else file.read_text("utf-8", "replace"),
        )
        for file in files
        if file.is_file() and "checkpoints" not in file.parts and file.suffix != ".svg"
    }
    return Outcome(code, CLOCK.sub("", out.getvalue()), error.getvalue(), kept)


def judge(outcome: Outcome, expected: Outcome) -> str | None:
    """What is wrong with what a verb did; None if nothing is."""
    if "Traceback" in outcome.error or outcome.code < 0:
        return "traceback: " + outcome.error.strip().splitlines()[-1]
    last = outcome.error.strip().splitlines()[-1] if outcome.error.strip() else ""
    if outcome.code:
        return (
            None
            if re.match(r"nas \w+: .", last) and len(last) < 500
            else f"code {outcome.code}, but no sentence: {last!r}"
        )
    if outcome.out != expected.out:
        return f"silently another answer: {outcome.out[-200:]!r} instead of {expected.out[-200:]!r}"
    for name in ("clean.png", "out.py"):
        if outcome.files.get(name) != expected.files.get(name):
            return f"silently another {name}"
    return None


if __name__ == "__main__":
    sys.exit(main())
