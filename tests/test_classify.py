"""Classification: batches, scores, the search, and the command line."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nas.cli import main
from nas.models import DagNet, Node, Plan, register_recipe
from nas.search import (
    Classify,
    Picture,
    Pictures,
    Run,
    Search,
    SearchConfig,
    Stack,
    class_folder,
    evaluate,
    held_out,
    pictures,
    random_samples,
    score,
)
from tests.nets import full

NAMES = ("top_left", "top_right", "bottom_left", "bottom_right")
PLAIN = Classify(NAMES, (0.0,), (1.0,))


def labelled(count, seed=0):
    """Pictures of 2 x 2 pixels with noise, one pixel of which, the class, is bright."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(100, (count, 1, 2, 2), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    pixels.flatten(1)[torch.arange(count), labels] += 120
    return Stack([f"p{k}" for k in range(count)], pixels, labels, 1)


@pytest.fixture
def tiny(monkeypatch):
    """A registered model that returns four logits for a picture of 2 x 2 pixels."""
    forward = DagNet.forward
    monkeypatch.setattr(DagNet, "forward", lambda self, x: forward(self, x).flatten(1))

    def recipe(channels=1, *, width=8, outputs=None):
        hidden = Node("n1", width, full({"in": None}), activation="right_relu")
        out = Node("out", outputs, full({"n1": None}), activation="identity", searched=False)
        return DagNet(Plan(channels, (hidden, out), patch=2))

    register_recipe("tiny", recipe)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    for name in NAMES:
        (root / name).mkdir()
    for k, picture in enumerate(labelled(300)):
        pixels = (255 * picture.pixels[0]).round().byte().numpy()
        Image.fromarray(pixels).save(root / NAMES[picture.label] / f"{k:03}.png")
    return root


@pytest.fixture
def config(data_root, tiny):
    return SearchConfig(
        task="classify", data="class_folder", data_root=data_root, model="tiny",
        epochs=4, sizes="none", price="none", second_moment="entry", steps=60, batch=16, density=0.2, lr=0.01,
        entry_time=20, tolerance=2.0,
    )  # fmt: skip


def test_the_network_sees_normalised_pixels():
    """Over the training pictures each channel has mean 0 and standard deviation 1, in batches and held-out pictures."""
    pixels = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stack = Stack([str(k) for k in range(50)], pixels, torch.arange(50) % 2, 3)
    data = Pictures(stack, stack, stack, ("even", "odd"))
    task = SearchConfig(task="classify").make_task(data)
    (x, labels) = next(task.batches(stack, crop=48, batch=50, steps=1)(1))
    examples = held_out(stack, task)
    for seen in (x, torch.stack([example.observed for example in examples])):
        torch.testing.assert_close(seen.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert labels.dtype == torch.long
    assert [int(example.target) for example in examples] == [picture.label for picture in stack]
    torch.testing.assert_close(examples[3].observed, task.observe(stack[3].pixels, torch.Generator()))


@given(count=st.integers(1, 9), batch=st.integers(1, 5), steps=st.integers(1, 6), seed=st.integers(0, 9))
def test_no_picture_comes_again_before_all_have_come(count, batch, steps, seed):
    train = [Picture(f"p{k}", torch.full((1, 2, 2), k / 10), k) for k in range(count)]
    pairs = list(random_samples(train, PLAIN, batch=batch, steps=steps, seed=seed)(1))
    assert [len(labels) for _, labels in pairs] == [batch] * steps
    drawn = torch.cat([labels for _, labels in pairs])
    torch.testing.assert_close(torch.cat([x for x, _ in pairs])[:, 0, 0, 0], drawn / 10)
    for part in drawn.split(count):
        assert len(part.unique()) == len(part)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"shift": 1}, {"flip": True, "shift": 1}])
def test_samples_differ_by_epoch_and_repeat(options):
    batches = random_samples(labelled(40), PLAIN, batch=8, steps=3, **options)
    one, again, two = (torch.cat([x for x, _ in batches(epoch)]) for epoch in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_flips_and_shifts_are_those_of_the_picture():
    """Every sample is the picture, perhaps mirrored, moved by (dy, dx) with zeros coming in; all cases occur."""
    pixels = torch.arange(1.0, 13.0).reshape(1, 3, 4) / 12
    batches = random_samples([Picture("p", pixels, 0)], PLAIN, batch=400, steps=1, flip=True, shift=1)
    ((samples, _),) = batches(1)
    cases = {
        (flip, dy, dx): F.pad(pixels.flip(2) if flip else pixels, (1, 1, 1, 1))[:, 1 - dy : 4 - dy, 1 - dx : 5 - dx]
        for flip in (False, True)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    found = [next(case for case, each in cases.items() if torch.equal(sample, each)) for sample in samples]
    assert set(found) == set(cases)


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([], {}, "there is no picture"),
        ([Picture("a", torch.zeros(1, 2, 2))], {}, "the picture a has no label"),
        (
            [Picture("a", torch.zeros(1, 2, 2), 0), Picture("b", torch.zeros(1, 2, 3), 1)],
            {},
            "the picture b has the shape 1 x 2 x 3, a has 1 x 2 x 2",
        ),
        (labelled(4), {"batch": 0}, "batch must be at least 1, got 0"),
        (labelled(4), {"batch": 10**9}, "a batch of 1000000000 times 2 x 2 pixels is larger than"),
        (labelled(4), {"shift": 0.5}, "shift must lie between 0 and 1 pixels, got 0.5"),
        (labelled(4), {"shift": 2}, "shift must lie between 0 and 1 pixels, got 2"),
    ],
)
def test_bad_samples(train, options, message):
    with pytest.raises(ValueError, match=message):
        random_samples(train, PLAIN, **{"batch": 2, "steps": 1, **options})


def test_accuracy_and_loss_are_their_closed_forms():
    examples = held_out(labelled(8), PLAIN)
    labels = torch.stack([example.target for example in examples])
    right = list(F.one_hot(labels, 4).float())
    assert score(examples, right, PLAIN) == {"accuracy": 100.0}
    wrong = list(F.one_hot((labels + 1) % 4, 4).float())
    assert score(examples, right[:6] + wrong[6:], PLAIN) == {"accuracy": 75.0}
    assert PLAIN.loss(torch.zeros(8, 4), labels).item() == pytest.approx(math.log(4))
    assert math.isnan(score(examples, [torch.full((4,), math.nan)] * 8, PLAIN)["accuracy"])
    name, outputs = PLAIN.trivial(examples)
    assert name == "majority"
    assert score(examples, outputs, PLAIN)["accuracy"] == 100 * labels.bincount().max().item() / 8


def test_what_is_no_classification():
    with pytest.raises(ValueError, match="the task classify needs pictures of two classes or more: data such as mnist"):
        SearchConfig(task="classify").make_task(pictures())
    with pytest.raises(ValueError, match="flip must be true or false, got 3"):
        replace(PLAIN, flip=3)
    with pytest.raises(ValueError, match="the picture a has the label 4, of 4 classes"):
        held_out([Picture("a", torch.zeros(1, 2, 2), 4)], PLAIN)
    with pytest.raises(ValueError, match=r"needs a mean and a std > 0, got \(0.5,\) and \(0.0,\)"):
        Classify(NAMES, (0.5,), (0.0,))
    with pytest.raises(ValueError, match="returns 8 x 1 x 2 x 2 numbers, not 8 x 4: the task needs 4 logits"):
        PLAIN.loss(torch.zeros(8, 1, 2, 2), torch.zeros(8, dtype=torch.long))
    data = Pictures(*[labelled(5)] * 3, classes=NAMES)
    with pytest.raises(ValueError, match="classify has no option 'mean'; its options are flip, shift"):
        SearchConfig(task="classify", task_options={"mean": 1.0}).make_task(data)
    with pytest.raises(ValueError, match="denoise has no option 'blur'; its options are peak"):
        SearchConfig(task_options={"blur": 5.0}).make_task(data)


def test_logistic_regression_separates_what_is_linear():
    train, test = labelled(400), labelled(100, seed=1)
    examples = [held_out(part, PLAIN) for part in (labelled(100, seed=2), test)]
    assert PLAIN.baselines(train, *examples) == {"linear": {"accuracy": pytest.approx(100, abs=2)}}


def test_a_search_finds_a_classifier(tmp_path, config, data_root):
    engine = Search(Run(tmp_path / "run", config))
    points = list(engine)
    run = Run.open(tmp_path / "run")
    assert run == engine.run
    assert run.config == replace(config, model_options={"outputs": 4})
    assert list(points[-1].scores) == ["accuracy"]
    assert points[-1].headline > 90 > 50 > engine.points[0].headline
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["accuracy"] for line in lines] == [point.headline for point in engine.points]
    assert {"loss", "units", "params"} < set(lines[0]) and not {"psnr", "ssim"} & set(lines[0])
    data = run.data()
    net = run.supernet(run.choose().snapshot.epoch)
    assert evaluate(net, run.validation(data), run.task(data)) == run.choose().scores
    assert run.task(data).mean == class_folder(data_root).mean


def test_outputs_of_the_user_stay(config):
    assert replace(config, model_options={"outputs": 7}).with_outputs(4).model_options == {"outputs": 7}
    plain = replace(config, model="skip_autoencoder")
    assert plain.with_outputs(4) is plain  # a model without that option
    assert config.with_outputs(None) is config


def test_a_model_without_classes_leaves_nothing_behind(tmp_path, data_root):
    config = SearchConfig(
        task="classify", data="class_folder", data_root=data_root, model="conv_skip_autoencoder", price="none"
    )
    with pytest.raises(ValueError, match="the task needs 4 logits, so choose a model with the option outputs"):
        Search(Run(tmp_path / "run", config))
    assert not list(tmp_path.iterdir())


def test_every_verb_classifies(tmp_path, monkeypatch, capsys, config):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(config.to_yaml())

    def nas(*words, code=0):
        assert main([*words, "--json"]) == code, capsys.readouterr().err
        output = capsys.readouterr()
        if code:
            return output.err.strip()
        return output.out, json.loads(output.out.splitlines()[-1])

    text, found = nas("search", "--config=mine.yaml", "--out=run")
    assert "run: classify with tiny by adabreg on class_folder, 4 classes, pixels normalised by mean 0." in text
    assert "majority in validation: accuracy" in text
    assert 20 < found["accuracy_majority"] < 50 < found["accuracy"] <= 100
    assert "psnr" not in found
    assert nas("resume", "run")[1]["accuracy"] == found["accuracy"]
    text, shown = nas("show", "run")
    assert f"validation accuracy {found['accuracy']:.2f} %" in text
    assert shown["accuracy"] == found["accuracy"]
    assert "validation accuracy in %" in (tmp_path / "run" / "growth.svg").read_text()
    extracted = nas("extract", "run", "--no-latency")[1]
    assert extracted["certificate"]["holds"]
    assert nas("verify", "run")[1]["certificate"] == extracted["certificate"]
    text, retrained = nas("retrain", "run", "--epochs=2", "--compare", "--seeds=1", "--random=1")
    assert set(retrained) == {
        "accuracy", "accuracy_majority", "accuracy_before", "baselines", "compared", "params", "from_scratch",
        "validation", "sha256", "kept", "by_condition", "pictures", "data", "task", "strengths",
    }  # fmt: skip
    assert list(retrained["baselines"]) == ["linear"]
    assert retrained["baselines"]["linear"] > 90
    assert len(retrained["compared"]) > 5
    assert f"{retrained['accuracy']:.2f} %" in text
    assert not (tmp_path / "run" / "pictures").exists()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("a.png")
    assert nas("denoise", "run", "a.png", "-o", "b.png", code=2) == (
        "nas denoise: the task of run is classify; denoise is for networks that restore pictures"
    )
