"""The autoencoder of benchmarks/autoencoder.py, on random pictures."""

from collections import deque
from itertools import islice

import pytest
import torch

from benchmarks import autoencoder
from nas import LinBreg, Zero, param_groups, sparse_start
from nas.models import skip_autoencoder
from nas.search import Denoise, Pictures, Stack
from nas.search.training.loop import Loop


def random_stack(count, side):
    pixels = torch.randint(256, (count, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Stack([str(k) for k in range(count)], pixels, torch.zeros(count, dtype=torch.long), 1)


def test_the_chain_is_the_skip_autoencoder_with_its_gates_shut():
    net, other = autoencoder.chain(depth=3, patch=4), skip_autoencoder(depth=3, patch=4)
    other.load_state_dict({**net.state_dict(), **{k: p for k, p in other.state_dict().items() if "gates" in k}})
    x = torch.rand(5, 1, 4, 4)
    assert all(not gates.any() for gates in other.gate_parameters().values())
    assert not net.gate_parameters()
    assert torch.equal(net(x), other(x)) and net(x).any()


def test_an_epoch_has_every_picture_once_with_fresh_noise():
    stack, task = random_stack(50, 8), Denoise(12.75)
    batches = autoencoder.whole_pictures(stack, task, batch=16, seed=1)
    (observed, clean), (later, _) = (map(torch.cat, zip(*batches(epoch), strict=True)) for epoch in (1, 2))
    assert sorted(clean.flatten(1).tolist()) == sorted(stack.pixels.flatten(1).div(255).tolist())
    assert (observed - clean).std() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(observed, later)
    assert all(torch.equal(x, y) for x, y in zip(next(batches(1)), next(batches(1)), strict=True))


def test_rows_wake_and_what_sleeps_passes_on_a_constant():
    torch.manual_seed(0)
    net, task = autoencoder.chain(depth=2, patch=6), Denoise(12.75)
    batches = autoencoder.whole_pictures(random_stack(64, 6), task, batch=16, seed=0)
    groups = param_groups(net, lam=0.07, lr=5.0, rules={"nodes.*.bias": Zero()})
    sparse_start(net, 0.1, groups=groups, batch=next(batches(0))[0])
    autoencoder.start_biases(net)
    assert all(bias.min() >= 0 and bias.max() < 1 / 6 for _, bias in net.unit_parameters().values())
    before = autoencoder.widths(net)
    optimizer = LinBreg(groups)
    deque(islice(Loop(net, batches, optimizer, task.loss), 20), maxlen=0)
    after = autoencoder.widths(net)
    states = net.states(next(batches(0))[0])
    assert set(before.values()) == {3}
    assert 9 < sum(after.values()) < 108
    for name, (weight, _) in net.unit_parameters().items():
        varies = (states[name] - states[name][:1]).flatten(0, -2).any(dim=0)
        assert not varies[~weight.any(dim=1)].any()
        assert 0 < varies.sum() <= after[name]


@pytest.mark.parametrize(("option", "width"), [([], "8"), (["--joint-biases"], "8"), (["--dense"], "784")])
def test_the_command_prints_a_line_per_epoch_and_draws(option, width, tmp_path, monkeypatch, capsys):
    stack = random_stack(24, 28)
    monkeypatch.setattr(autoencoder, "mnist", lambda root: Pictures(stack, stack, stack[:4]))
    picture = tmp_path / "widths.svg"
    words = ["--data-root", "-", "--epochs", "2", "--batch", "12", "--lr", "1", "--draw", str(picture)]
    autoencoder.main([*words, *option])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:7] == ["1", *[width] * 6]
    assert second.split()[0] == "2"
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "an integer of at least 1, got '0'"),
        (["--lr", "-1"], "lr"),
        ([], "MNIST is not in the folder"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    if "--lr" in words:
        monkeypatch.setattr(autoencoder, "mnist", lambda root: Pictures(*[random_stack(4, 28)] * 3))
    with pytest.raises(SystemExit) as stop:
        autoencoder.main(["--data-root", str(tmp_path), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
