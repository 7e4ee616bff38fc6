"""The figures of the main job with the defaults of the command line: slow (about six minutes, on one thread)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert start["units"] <= 0.1 * found["units"]["total"]
    assert start["skips"] == 0
    assert found["skips"]["alive"] >= 1
    assert found["params"]["alive"] <= 0.5 * found["params"]["total"]
    assert extracted["certificate"]["max_abs_float32"] <= 1e-5
    assert extracted["certificate"]["max_abs_float64"] <= 1e-10
    assert retrained["psnr"] >= retrained["psnr_noisy"] + 8
    assert retrained["psnr"] >= retrained["baselines"]["tv"] + 0.5
