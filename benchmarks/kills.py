"""Is anything lost when a search, an extraction or a retraining is killed at any moment?

    python -m benchmarks.kills --kills 100

The road `nas search`, `extract`, `retrain` (of a tiny network on the pictures of scikit-image) is walked once
undisturbed. Then again and again with kill -9 at random moments; each command is repeated until it ends by itself. The
files at the end must be those of the undisturbed road, byte for byte, but for what the clock says. What went on at the
moment of each kill is told by what lay in the folder. With --record FILE the roads that are done are kept there, and
the same call again goes on with the next one.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nas.cli import main as nas
from nas.search import pictures

EPOCHS = 4
SEARCH = (
    "search", "--resume", "--out=run", "--model-options={depth: 2, width: 8, hidden: 8, kernel: 5}",
    f"--epochs={EPOCHS}", "--steps=40", "--batch=2", "--crop=32", "--density=0.4", "--lr=0.01", "--entry-time=auto",
    "--sizes=300,200", "--fit=30", "--refit=2", "--checkpoint-every=1s",
)  # fmt: skip
ROAD = (SEARCH, ("extract", "run", "--no-latency"), ("retrain", "run", "--epochs=6", "--checkpoint-every=1s"))
CLOCK = re.compile(r'"(seconds|milliseconds)": [\d.e+-]+')
LONGER = 1.15  # so much longer a command may run after each kill, however busy the machine has become
ERRORS = Path("errors")
LEFT_OUT = ("checkpoints", ".lock")  # a checkpoint is a step of the way, not its end


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each road; 0 if all ended alike."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description="Kill and go on.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="file with a line for each road")
    options = parser.parse_args(arguments)
    roads = _recorded(options.record)
    torch.set_num_threads(1)
    pictures()
    with tempfile.TemporaryDirectory() as place:
        seconds = [_timed(command, Path(place)) for command in ROAD]
        expected = contents(Path(place) / "run")
    print(f"undisturbed: {sum(seconds):.0f} s, {len(expected)} files", flush=True)
    while _kills(roads).total() < options.kills:
        rng, killed = random.Random(f"{options.seed}/{len(roads)}"), Counter[str]()
        with tempfile.TemporaryDirectory() as place:
            for command, span in zip(ROAD, seconds, strict=True):
                killed += _walk_killed(command, Path(place), span, rng)
            found = contents(Path(place) / "run")
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        roads.append({"kills": killed, "differing": differing})
        print(f"road {len(roads)}: {_said(killed)}; {', '.join(differing) or 'the same files'}", flush=True)
        if options.record is not None:
            with options.record.open("a") as stream:
                stream.write(json.dumps(roads[-1]) + "\n")
    alike = sum(not road["differing"] for road in roads)
    print(f"{_said(_kills(roads))}; {alike} of {len(roads)} roads ended with the same files")
    return int(alike < len(roads))


def _recorded(record: Path | None) -> list[dict[str, Any]]:
    """The roads of earlier calls."""
    if record is None or not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines()]


def _kills(roads: Sequence[dict[str, Any]]) -> Counter[str]:
    """How many there were at each moment."""
    return sum((Counter(road["kills"]) for road in roads), Counter[str]())


def _said(kills: Counter[str]) -> str:
    """Such as "7 kills (growth 5, retraining 2)"."""
    return f"{kills.total()} kills ({', '.join(f'{name} {count}' for name, count in sorted(kills.items()))})"


def _moment(verb: str, run: Path) -> str:
    """What a process that was killed was at, by the newest it has written."""
    if verb != "search":
        return "retraining" if (run / "retraining").exists() else verb
    newest = max((run / "checkpoints").glob("*.pt"), default=None)
    if newest is None:
        return "beginning, calibration"
    state = torch.load(newest, weights_only=True)
    if state["slimming"] is not None:
        return "fits" if state["slimming"]["refit"] is None else "refits"
    return "growth" if len(json.loads(state["points"])) <= EPOCHS else "between networks of the front"


def contents(folder: Path) -> dict[str, str]:
    """All files of a run, as text without times or as bytes in hexadecimal digits."""
    files = {}
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        if not file.is_file() or name.parts[0] in LEFT_OUT:
            continue
        data = file.read_bytes()
        files[str(name)] = data.hex()
        if file.suffix in (".json", ".jsonl"):
            text = CLOCK.sub(r'"\1": 0', data.decode())
            files[str(name)] = json.dumps(json.loads(text)["points"]) if file.name == "path.json" else text
    return files


def _timed(command: Sequence[str], place: Path) -> float:
    """Seconds that a command takes to its end."""
    began = time.perf_counter()
    _walk(command, place)
    return time.perf_counter() - began


def _perform(command: Sequence[str], place: Path) -> None:
    """What a process does: one command, silently; what goes wrong is in a file."""
    os.chdir(place)
    with open(os.devnull, "w") as nowhere, ERRORS.open("w") as errors:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.exit(nas(command))


def _walk(command: Sequence[str], place: Path, seconds: float | None = None) -> bool:
    """Run a command for so many seconds; whether it came to its end, and was not killed."""
    process = get_context("fork").Process(target=_perform, args=(command, place))  # what is imported is there already
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return False
    if process.exitcode:
        error = (place / ERRORS).read_text()
        raise RuntimeError(f"nas {' '.join(command)} ended with {process.exitcode}: {error[-500:]}")
    return True


def _walk_killed(command: Sequence[str], place: Path, span: float, rng: random.Random) -> Counter[str]:
    """Run a command again and again until it ends by itself; how often it was killed at what."""
    kills = Counter[str]()
    while not _walk(command, place, rng.uniform(0.1, 1.1) * span):
        kills[_moment(command[0], place / "run")] += 1
        span *= LONGER
    return kills


if __name__ == "__main__":
    sys.exit(main())
