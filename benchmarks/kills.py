"""Is anything lost when a search, an extraction or a retraining is killed at any moment?

    python -m benchmarks.kills --kills 100

The road `nas search`, `extract`, `retrain` (of a tiny network on the pictures of scikit-image) is walked once
undisturbed. Then again and again with kill -9 at random moments; each command is repeated until it ends by itself. The
files at the end must be those of the undisturbed road, byte for byte, but for what the clock says.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SEARCH = (
    "search", "--resume", "--out=run", "--model-options={depth: 2, width: 8, hidden: 8, kernel: 5}", "--epochs=4",
    "--steps=40", "--batch=2", "--crop=32", "--density=0.4", "--lr=0.01", "--entry-time=auto", "--sizes=300,200",
    "--fit=30", "--refit=2", "--checkpoint-every=1s",
)  # fmt: skip
ROAD = (SEARCH, ("extract", "run", "--no-latency"), ("retrain", "run", "--epochs=6", "--checkpoint-every=1s"))
CLOCK = re.compile(r'"(seconds|milliseconds)": [\d.e+-]+')
LEFT_OUT = ("checkpoints", ".lock")  # a checkpoint is a step of the way, not its end


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each road; 0 if all ended alike."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description="Kill and go on.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng, kills, roads, wrong = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        seconds = [_walk(command, Path(place)) for command in ROAD]
        expected = contents(Path(place) / "run")
    print(f"undisturbed: {sum(seconds):.0f} s, {len(expected)} files", flush=True)
    while kills < options.kills:
        with tempfile.TemporaryDirectory() as place:
            died = sum(
                _walk_killed(command, Path(place), span, rng) for command, span in zip(ROAD, seconds, strict=True)
            )
            found = contents(Path(place) / "run")
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        kills, roads, wrong = kills + died, roads + 1, wrong + bool(differing)
        print(f"road {roads}: {died} kills, {', '.join(differing) or 'the same files'}", flush=True)
    print(f"{kills} kills on {roads} roads; {roads - wrong} ended with the same files")
    return int(wrong > 0)


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


def _start(command: Sequence[str], place: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-m", "nas", *command]
    return subprocess.Popen(words, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _walk(command: Sequence[str], place: Path) -> float:
    """Run a command to its end; how long it took."""
    began = time.perf_counter()
    process = _start(command, place)
    _, error = process.communicate()
    if process.returncode:
        raise RuntimeError(f"nas {' '.join(command)} ended with {process.returncode}: {error.decode()[-500:]}")
    return time.perf_counter() - began


def _walk_killed(command: Sequence[str], place: Path, span: float, rng: random.Random) -> int:
    """Run a command again and again until it ends by itself; how often it was killed."""
    kills = 0
    while True:
        process = _start(command, place)
        try:
            _, error = process.communicate(timeout=rng.uniform(0.1, 1.1) * span)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        if process.returncode:
            raise RuntimeError(f"nas {' '.join(command)} ended with {process.returncode}: {error.decode()[-500:]}")
        return kills


if __name__ == "__main__":
    sys.exit(main())
