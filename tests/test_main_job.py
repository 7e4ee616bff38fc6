"""The figures of the main job with the defaults of the command line: slow (about eight minutes)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nas.search import Run, births
from nas.search.runs.path import kernel_history

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_main_job_reaches_its_figures(tmp_path):
    def nas(*words):
        command = [sys.executable, "-c", "from nas.__main__ import main; raise SystemExit(main())", *words, "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    run = str(tmp_path / "run")
    found, extracted, retrained = nas("search", "--out", run), nas("extract", run), nas("retrain", run)
    start = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert start["units"] <= 0.15 * found["units"]["total"]
    points = Run.open(tmp_path / "run").points()
    ages = [epoch for units in births(points).values() for epoch in units.values()]
    assert sum(epoch > 0 for epoch in ages) > 0.5 * len(ages)  # what lives was born in the search
    assert any(sides[-1][1] > sides[0][1] for sides in kernel_history(points[: found["epoch"]]).values())
    assert len(nas("front", run)["front"]) == 3
    assert found["params"]["alive"] <= 15_000
    assert extracted["certificate"]["max_abs_float32"] <= 1e-5
    assert extracted["certificate"]["max_abs_float64"] <= 1e-10
    assert retrained["psnr"] >= retrained["psnr_noisy"] + 8
    assert retrained["psnr"] >= retrained["baselines"]["tv"] + 0.5
    assert retrained["psnr"] >= retrained["baselines"]["nl_means"] + 0.3
