"""Fair comparisons: hand-made families, random networks of a supernet, training alike."""

import json
import math
from dataclasses import replace

import pytest
import torch

import nas.search.retraining.compete
from nas.models import RECIPES, DagNet, conv_skip_autoencoder, dense_mlp, mlp, separable_autoencoder
from nas.models.families import HAND_MADE, describe, hand_made, widest
from nas.models.sample import TIGHT, random_subnet
from nas.search import Denoise, folder, held_out
from nas.search.retraining.compete import Trained, Training, compete
from nas.search.retraining.competitors import Competitor, fresh, hand_made_networks, random_networks
from nas.search.retraining.table import rank, summarised, table

SMALL = {
    "conv_skip_autoencoder": {"width": 12},
    "skip_autoencoder": {"patch": 4, "depth": 3},
    "mlp": {"widths": (20, 10), "patch": 4},
    "dense_conv": {"depth": 3, "outputs": 4},
    "separable_autoencoder": {"depth": 3, "width": 12, "hidden": 12, "levels": 1},
    "mixed_autoencoder": {"depth": 3, "width": 12},
}


def supernet(name):
    return RECIPES[name](**SMALL.get(name, {})).plan


def inputs(plan):
    return torch.rand(2, plan.inputs, *([] if plan.patch is None else [16, 16]))


@pytest.fixture(scope="module")
def training(data_root):
    task, data = Denoise(25), folder(data_root)
    return Training(
        task,
        lambda seed: task.batches(data.train, crop=16, batch=4, steps=20, seed=seed),
        held_out(data.validation, task),
        held_out(data.test, task, seed=1),
        epochs=2,
        steps=20,
        rates=(5e-3, 1e-2),
        seeds=(0, 1),
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_families_have_the_form_of_the_supernet_and_use_the_budget(name):
    like = supernet(name)
    for family in HAND_MADE:
        plan = widest(family, like, 2000)
        if plan is None:
            assert "separable" in family and not like.is_convolutional or widest(family, like, 20_000)
            continue
        assert plan.num_params <= 2000 < hand_made(family, like, plan.nodes[0].units + 1).num_params
        net = DagNet(plan)
        assert plan.num_params == sum(p.numel() for p in net.parameters())
        assert net(inputs(like)).shape == DagNet(like)(inputs(like)).shape
        assert all(p.grad is not None and p.grad.isfinite().all() for p in _with_gradients(net, inputs(like)))


def _with_gradients(net, x):
    net(x).sum().backward()
    return [p for p in net.parameters() if p.numel()]


def test_families_are_the_ones_of_the_evidence():
    like = separable_autoencoder().plan
    assert widest("chain2", like, 14_000).num_params == 13_619
    assert widest("chain5", like, 14_000).nodes[0].units == 18
    assert widest("separable5k7", like, 14_000).nodes[0].units == 24
    assert describe("separable5k7") == "5 separable blocks 7x7"
    scaled = widest("separable6k3s012", like, 14_000)
    assert [node.level for node in scaled.nodes if node.name.startswith("d")] == [
        0,
        1,
        2,
        0,
        1,
        2,
    ] and scaled.levels == 2
    assert describe("separable6k3s012") == "6 separable blocks 3x3 at scales 012"
    assert widest("chain1", like, 100) is None
    assert widest("separable3k5", dense_mlp().plan, 10**6) is None
    assert len(hand_made_networks(mlp(patch=2, outputs=3).plan, 1000)) == 8


@pytest.mark.parametrize("name", ["chain", "chain0", "separable5", "separable5k4", "residual1000", "wide3"])
def test_unknown_families_are_refused(name):
    with pytest.raises(ValueError, match=f"there is no network '{name}'; write chain3"):
        widest(name, dense_mlp().plan, 100)


def test_residual_networks_change_nothing_at_first():
    x = torch.rand(1, 1, 16, 16)
    for name in ("chain3", "residual3", "separable8k5"):
        net = fresh(widest(name, separable_autoencoder().plan, 14_000))(0)
        assert (net(x) - x).abs().max() < 0.1


@pytest.mark.parametrize("name", list(RECIPES))
def test_random_networks_have_their_size(name):
    plan = supernet(name)
    for part in (0.3, 0.7):
        size = int(part * plan.num_params)
        drawn = [random_subnet(plan, size, seed) for seed in range(3)]
        assert all(TIGHT * size <= each.num_params <= size for each in drawn)
        assert len(set(drawn)) > 1
        for each in drawn:
            net = DagNet(each)
            assert net(inputs(plan)).shape == DagNet(plan)(inputs(plan)).shape
            assert each.units["out"] == plan.units["out"]
            assert all(units <= plan.units[node] for node, units in each.units.items())


def test_random_networks_differ_in_blocks_and_kernels():
    plan = separable_autoencoder(depth=4, width=12, hidden=12, kernel=7).plan
    drawn = [random_subnet(plan, 1500, seed) for seed in range(5)]
    kernels = {edge.kernel for each in drawn for node in each.nodes for edge in node.edges if node.name[0] == "d"}
    assert {3, 7} <= kernels <= {1, 3, 5, 7}
    assert len({len(each.nodes) for each in drawn}) > 1
    assert drawn[0] == random_subnet(plan, 1500, 0)
    for each in drawn:
        trunk = {node.units for node in each.nodes if node.name.startswith("t")}
        assert len(trunk) == 1  # tied


@pytest.mark.parametrize("size", [3, 10**6])
def test_sizes_that_a_supernet_does_not_have_are_refused(size):
    with pytest.raises(ValueError, match=f"no random network of .* to {size} parameters was found in a supernet of"):
        random_subnet(conv_skip_autoencoder(depth=2, width=4).plan, size, 0)


def test_competitors_are_trained_alike(training):
    like, said = conv_skip_autoencoder(depth=2, width=8).plan, []
    (competitor,) = hand_made_networks(like, 500, ["chain1"])
    assert competitor.title == "chain of one hidden layer, 6 wide"
    trained = compete(competitor, training, lambda what, loss: said.append(what))
    assert len(said) == training.num_epochs == 2 * 3
    assert said[0] == "chain of one hidden layer, 6 wide, rate 0.005, seed 0"
    assert [what.split("seed ")[1] for what in said] == ["0"] * 4 + ["1"] * 2
    assert trained.rate in training.rates and f"rate {trained.rate:g}" in said[-1]
    assert len(trained.test) == len(trained.validation) == 2
    assert min(scores["psnr"] for scores in trained.validation) > training.trivial > 19.9
    values = [scores["psnr"] for scores in trained.test]
    assert trained.mean("psnr") == pytest.approx(sum(values) / 2)
    assert trained.spread("psnr") == pytest.approx(max(values) - min(values))
    assert trained.params == 442 == sum(p.numel() for p in trained.network.parameters())
    assert Trained.from_dict(json.loads(json.dumps(trained.to_dict()))) == replace(
        trained, seconds=round(trained.seconds, 1)
    )
    assert compete(competitor, training).test == trained.test


def test_the_rate_is_the_best_on_the_validation_pictures(training):
    competitor = hand_made_networks(conv_skip_autoencoder().plan, 500, ["chain2"])[0]
    alone = [compete(competitor, replace(training, rates=(rate,), seeds=(0,))) for rate in (2e-3, 1e-2)]
    both = compete(competitor, replace(training, rates=(2e-3, 1e-2), seeds=(0,)))
    best = max(alone, key=lambda each: each.validation[0]["psnr"])
    assert (both.rate, both.test) == (best.rate, best.test)


CHAIN = fresh(widest("chain1", conv_skip_autoencoder().plan, 500))


def _constant(seed):
    """Its rectifiers are dead for good, and only the bias of the output is left to learn."""
    net = CHAIN(seed)
    net.nodes["n1"].bias.data.fill_(-1e3)
    return net


def _diverging(seed):
    net = CHAIN(seed)
    net.nodes["out"].bias.data.fill_(math.inf)
    return net


def _sometimes(seed):
    return _constant(seed) if seed else CHAIN(seed)


def test_where_a_seed_does_not_train_the_next_best_rate_is_taken(training, monkeypatch):
    (competitor,) = hand_made_networks(conv_skip_autoencoder(depth=2, width=8).plan, 500, ["chain1"])
    best = compete(competitor, training).rate
    module = nas.search.retraining.compete
    train = module._trained
    monkeypatch.setattr(
        module,
        "_trained",
        lambda net, rate, seed, *rest: None if (rate, seed) == (best, 1) else train(net, rate, seed, *rest),
    )
    second = compete(competitor, training)
    assert second.rate == next(rate for rate in training.rates if rate != best)
    assert len(second.test) == 2


@pytest.mark.parametrize("network", [_constant, _diverging, _sometimes])
def test_what_does_not_train_is_no_result(network, training):
    trained = compete(Competitor("bad", network), training)
    assert (trained.rate, trained.test, trained.network) == (None, (), None)
    assert trained.mean("psnr") == -math.inf
    assert trained.to_dict()["mean"] is None
    assert "does not train" in table("title", {}, [trained], training.task.metrics)[1]


@pytest.mark.parametrize(
    ("wrong", "message"), [({"seeds": ()}, "at least one seed"), ({"rates": (0.0,)}, "rates must be > 0, got 0.0")]
)
def test_bad_trainings_are_refused(wrong, message, training):
    with pytest.raises(ValueError, match=message):
        replace(training, **wrong)


def made_up(title, *psnr):
    scores = tuple({"psnr": value, "ssim": 0.5} for value in psnr)
    return Trained(title, 1000, 0.005 if psnr else None, scores, scores, 1.0)


def test_ranks_and_summaries():
    drawn = [made_up(f"random network {k}", value) for k, value in enumerate((28.0, 29.0, 27.0), 1)]
    failed = made_up("random network 4")
    found, hand = made_up("found", 28.5, 20.0), made_up("chain", 28.0)
    assert rank(found, [*drawn, failed], "psnr") == 2  # on the first seed, which all have
    assert rank(failed, drawn, "psnr") == 4
    shown = summarised([found, *drawn, failed, hand], "psnr")
    assert [(each.title, each.mean("psnr")) for each in shown] == [
        ("found", 24.25),
        ("chain", 28.0),
        ("random network, best of 4", 29.0),
        ("random network, median of 4", 27.0),
    ]


def test_the_table_has_a_line_for_each(training):
    rows = [made_up("found", 28.5, 28.75), made_up("chain")]
    head, noisy, found, chain = table("mean", {"noisy": {"psnr": 20.0, "ssim": 0.25}}, rows, training.task.metrics)
    assert head.split() == ["mean", "parameters", "rate", "PSNR", "spread", "SSIM"]
    assert noisy.split() == ["noisy", "20.00", "dB", "0.250"]
    assert found.split() == ["found", "1,000", "0.005", "28.62", "dB", "0.25", "0.500"]
    assert chain.split() == ["chain", "1,000", "does", "not", "train"]
    assert len(head) == len(noisy) == len(found)


def test_random_networks_are_competitors():
    plan = separable_autoencoder(depth=2, width=8, hidden=8).plan
    first, second = random_networks(plan, 800, 2)
    assert (first.title, second.title) == ("random network 1", "random network 2")
    weights = [torch.cat([p.flatten() for p in first.network(seed).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
