"""Several processes that torchrun started train as one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.cli import main
from nas.models import load
from nas.search import Run, Search
from nas.search.training import ranks
from tests.searches import quick
from tests.test_docs import examples
from tests.together import all_of_it, environment, run_together, torchrun

WITHIN, START = 30, 200  # seconds
ENDLESS = 100_000  # epochs
LOST = "nas search: another rank has ended or cannot be reached; what was written stays; go on with nas resume\n"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks saw and came to."""
    folder = tmp_path_factory.mktemp("two")
    done = run_together(2, "-m", "tests.together", str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one():
    return all_of_it()


def test_what_ranks_do_together(two):
    (facts, _), (others, _) = two
    assert facts == others
    assert facts.pop("different").startswith("RankError: now the weights or duals of rank 1 are not those of rank 0")
    assert facts == {
        "size": 2,
        "agreed": [False, True],
        "on_first": (0, 1),
        "refused": "ValueError: rank 0 cannot",
        "spread": [(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)],
        "apart": [(item, item % 2, 1, True) for item in range(5)],
        "one_refuses": "ValueError: rank 1 cannot",
        "same": "returned None",
    }


@pytest.mark.parametrize("what", ["adabreg", "linbreg", "retrained"])
def test_two_come_to_what_one_comes_to(two, one, what):
    """In 50 steps to weights, duals, losses and units; and both to the same bits."""
    torch.testing.assert_close(two[0][1][what], one[what], atol=1e-6, rtol=0)
    torch.testing.assert_close(two[1][1][what], two[0][1][what], atol=0, rtol=0)
    if what != "retrained":
        assert one[what]["units"][-1] > one[what]["units"][0] == 3


def test_two_remove_what_one_removes(two, one):
    for each in (two[0][1], two[1][1]):
        torch.testing.assert_close(each["thinned"], one["thinned"], atol=0, rtol=0)


@pytest.fixture
def of_two(monkeypatch):
    """The second of two ranks, in what it decides without the other."""
    monkeypatch.setattr(ranks, "_ranks", ranks._Ranks(1, 2))


def test_the_share_of_a_rank(of_two):
    x, y = torch.arange(6), torch.arange(6, 12)
    (share,) = ranks.shares(lambda epoch: iter([(x, y)]))(1)
    assert [each.tolist() for each in share] == [[3, 4, 5], [9, 10, 11]]


def test_a_batch_that_cannot_be_shared(of_two):
    with pytest.raises(
        ValueError, match="a batch of 5 cannot be shared equally by 2 processes; choose a batch that is"
    ):
        next(ranks.shares(lambda epoch: iter([(torch.zeros(5), torch.zeros(5))]))(1))


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cuda:1", "several processes compute on the cpu, or on cuda with a GPU each, not on cuda:1"),
        ("mps", "not on mps"),
        ("cuda", "2 processes on a machine need as many GPUs, and there are 0; or use --device cpu"),
    ],
)
def test_a_device_that_ranks_cannot_use(of_two, monkeypatch, device, sentence):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=sentence):
        ranks.check_device(device)
    ranks.check_device("cpu")


def test_a_single_process_is_as_without(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with ranks.joined():
        assert (ranks.size(), ranks.is_first(), ranks.agreed(True, False)) == (1, True, [True, False])


def test_other_verbs_work_in_one_process(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "_ranks", ranks._Ranks(0, 2))
    assert main(["show", "nowhere"]) == 2
    sentence = "nas show: it works in one process; what torchrun starts can be nas search, resume, retrain\n"
    assert capsys.readouterr().err == sentence


@pytest.fixture(scope="module")
def config(data_root):
    return quick(
        data_root,
        model_options={"depth": 2, "width": 6, "hidden": 6, "kernel": 5},
        epochs=3,
        steps=30,
        batch=4,
        sizes="300,200",
        fit=6,
        refit=2,
    )


def words(config, folder, *more):
    """Of a search with these options, by a file that holds them."""
    file = folder.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    return ["-m", "nas", "search", "--config", str(file), "--out", str(folder), *more]


def own_words(stderr):
    """What nas says, not torchrun nor the progress bar."""
    return [
        line
        for line in stderr.replace("\r", "\n").splitlines(keepends=True)
        if line.startswith(("nas: ", "nas search: "))
    ]


@pytest.fixture(scope="module")
def of_one(config, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("of_one") / "run", config)
    list(Search(run))
    return run


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    """What two ranks print, and the run that they make."""
    folder = tmp_path_factory.mktemp("together") / "run"
    done = run_together(2, *words(config, folder))
    assert done.returncode == 0, done.stderr
    return done.stdout, Run.open(folder)


def test_a_search_of_two(of_one, together):
    """The files are those of one process, to round-off; rank 0 alone prints."""
    printed, run = together
    assert printed.count("picked") == 1 and "computing on cpu, 2 ranks\n" in printed
    for one, two in zip(of_one.points(), run.points(), strict=True):
        assert two.snapshot.units == one.snapshot.units and two.params == one.params
        assert two.scores == pytest.approx(one.scores, abs=1e-4)
        weights = [each.supernet(one.snapshot.epoch).state_dict() for each in (of_one, run)]
        torch.testing.assert_close(*weights, atol=1e-5, rtol=0)


SEEDS = ["--seeds=3", "--json"]


def repetitions(folder):
    """What can be compared of the searches with several seeds in a folder: all networks."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def few(config):
    """A batch that two ranks could not share."""
    return replace(config, epochs=2, steps=8, batch=3)


@pytest.fixture(scope="module")
def apart(few, tmp_path_factory):
    """Searches with three seeds, in one process, and what it prints."""
    folder = tmp_path_factory.mktemp("apart") / "out"
    done = subprocess.run([sys.executable, *words(few, folder, *SEEDS)], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(), folder


def test_seeds_are_spread_over_ranks(few, apart, tmp_path):
    """Each search has the networks, bit for bit, that it has in a single process, and the same is chosen among them."""
    folder = tmp_path / "out"
    done = run_together(2, *words(few, folder, *SEEDS))
    assert done.returncode == 0, done.stderr
    assert len(repetitions(folder)) == 3 * 5 and repetitions(folder) == repetitions(apart[1])
    assert done.stdout.startswith("3 searches on 2 ranks, each by itself")
    assert done.stdout.count("\npicked") == 2 and done.stdout.count("\nrecommended") == 1
    one, two = (json.loads(printed.splitlines()[-1]) for printed in (apart[0], done.stdout))
    assert (two["chosen"], two["left_out"], two["psnr"]) == (one["chosen"], one["left_out"], one["psnr"])
    assert [Path(each["run"]).name for each in two["seeds"]] == ["seed-0", "seed-1", "seed-2"]


class Started:
    """A search of two ranks, or several."""

    def __init__(self, config, folder, *more):
        self.process = subprocess.Popen(
            torchrun(2, *words(config, folder, *more)),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.folder = folder

    def wait(self, runs):
        """Until an epoch of each of these runs is done."""
        for metrics in (self.folder / run / "metrics.jsonl" for run in runs):
            until = time.monotonic() + START
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
                assert time.monotonic() < until and self.process.poll() is None
                time.sleep(0.05)

    @property
    def ranks(self):
        """The process of each rank: torchrun's children, in this order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in children.split()]

    def last_words(self, seconds=WITHIN):
        """What nas says and with which codes the ranks end, within so many seconds."""
        stderr = self.process.communicate(timeout=seconds)[1]
        return own_words(stderr), sorted(map(int, re.findall(r"exitcode +: (-?\d+)", stderr)))


@pytest.fixture
def start(tmp_path):
    """Starts a search; whatever is left of it is killed in the end."""
    started = []

    def start(config, *more, runs=("",)):
        started.append(Started(config, tmp_path / "run", *more))
        started[-1].wait(runs)
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others(config, start, tmp_path, rank):
    search = start(replace(config, epochs=ENDLESS))
    os.kill(search.ranks[rank], signal.SIGKILL)
    assert search.last_words() == ([LOST], [-9, 2])
    assert len(Run.open(tmp_path / "run").points()) > 1


@pytest.mark.slow
def test_a_rank_that_no_longer_moves_ends_the_others(config, start):
    search = start(replace(config, epochs=ENDLESS))
    first, second = search.ranks
    os.kill(second, signal.SIGSTOP)
    until = time.monotonic() + WITHIN
    while first in search.ranks:
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(second, signal.SIGKILL)
    said, codes = search.last_words()
    assert said == ["nas: rank 1 has not been heard of for 20 s; what was written stays; go on with nas resume\n"]
    assert codes == [-9, 2]


@pytest.mark.slow
def test_a_search_that_is_stopped_goes_on_bit_for_bit(config, start, together, tmp_path):
    """A signal to one rank stops all at the same step."""
    search = start(config)
    os.kill(search.ranks[1], signal.SIGTERM)
    folder = tmp_path / "run"
    assert search.last_words() == (
        [f"nas search: stopped after writing a checkpoint; go on with nas resume {folder}\n"], [143, 143]
    )  # fmt: skip
    done = run_together(2, *words(config, folder, "--resume"))
    assert done.returncode == 0, done.stderr
    for file in sorted((folder / "path").iterdir()):
        assert file.read_bytes() == (together[1].folder / "path" / file.name).read_bytes()
    assert len(Run.open(folder).points()) == len(together[1].points())


@pytest.mark.slow
def test_ctrl_c(config, start, tmp_path):
    """The terminal sends it to torchrun and to the ranks, and torchrun sends it to the ranks once more."""
    search = start(replace(config, epochs=ENDLESS))
    os.killpg(search.process.pid, signal.SIGINT)
    (sentence,), _ = search.last_words()
    assert sentence.startswith("nas search: stopped after writing a checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_searches_apart_end_together_and_go_on(few, apart, start, tmp_path, number, code):
    """When one rank is told to end, or killed, the other one stops, too; both then go on."""
    folder, long = tmp_path / "run", replace(few, epochs=ENDLESS)
    search = start(long, *SEEDS, runs=["seed-0", "seed-1"])
    os.kill(search.ranks[1], number)
    said = "nas search: stopped after writing a checkpoint; go on with the same command and --resume\n"
    assert search.last_words() == ([said], sorted([code, 143]))
    assert all(Run.open(folder / name).points() for name in ("seed-0", "seed-1"))
    assert not (folder / "seed-2").exists()
    shutil.rmtree(folder)
    search = start(few, *SEEDS, runs=["seed-0"])
    os.kill(search.ranks[1], number)
    search.last_words()
    done = run_together(2, *words(few, folder, *SEEDS, "--resume"))
    assert done.returncode == 0, done.stderr
    assert repetitions(folder) == repetitions(apart[1])


@pytest.mark.slow
def test_what_ranks_cannot_do_is_said_once(config, tmp_path):
    done = run_together(2, *words(replace(config, batch=5), tmp_path / "run"))
    assert own_words(done.stderr) == [
        "nas search: a batch of 5 cannot be shared equally by 2 processes; choose a batch that is a multiple of 2, or "
        "another --nproc-per-node\n"
    ]
    assert re.findall(r"exitcode +: (\d+)", done.stderr) == ["2", "2"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_more_ranks_than_cores(config, of_one, tmp_path):
    done = run_together(4, *words(config, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    points = Run.open(tmp_path / "run").points()
    assert [point.params for point in points] == [point.params for point in of_one.points()]


@pytest.mark.slow
def test_a_retraining_of_two(of_one, tmp_path):
    assert main(["extract", str(of_one.folder), "--no-latency"]) == 0
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(of_one.folder, folder)
    options = ["--epochs=6", "--batch=4"]
    assert main(["retrain", str(folders[0]), *options]) == 0
    done = run_together(2, "-m", "nas", "retrain", str(folders[1]), *options)
    assert done.returncode == 0, done.stderr
    one, two = (load(folder / "retrained").state_dict() for folder in folders)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning_fabric", "accelerate"])
def test_what_others_launch(tmp_path, monkeypatch, name):
    """The example of the documentation prints with two processes what it prints with one."""
    pytest.importorskip(name)
    (example,) = (each for each in examples("distributed.md") if f"from {name} import" in each)
    script = tmp_path / "script.py"
    script.write_text(example)
    if name == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        command = torchrun(2, str(script))
    else:
        options = ["--accelerator=cpu", "--devices=2", "--strategy=ddp"]
        command = [sys.executable, "-m", "lightning_fabric.cli", *options, str(script)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=START)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert lines == ["epoch 1: 9 units", "epoch 2: 9 units"]
