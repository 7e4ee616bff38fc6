"""Noise, crops and scores."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.search import Choice, Deblur, Denoise, Picture, evaluate, held_out, pick, random_crops, restore, score
from nas.search.data.batches import _cut, _numbers, in_rows
from nas.search.tasks.restoration import published_ssim
from nas.search.tasks.unclean import NoiseToNoise, Recorrupted


def ramp(height=32, width=40, channels=1, name="ramp"):
    pixels = torch.linspace(0, 1, height * width).reshape(1, height, width)
    return Picture(name, pixels.expand(channels, -1, -1).contiguous())


def test_noise_has_the_stated_deviation_and_is_not_clipped():
    clean = torch.full((1, 500, 500), 0.02)
    noise = Denoise(25).observe(clean, torch.Generator().manual_seed(0)) - clean
    assert 255 * noise.std().item() == pytest.approx(25, rel=0.01)
    assert noise.mean().abs().item() < 1e-3
    assert (clean + noise).min() < 0


@pytest.mark.parametrize("sigma", [0, -25, 256, float("nan"), float("inf")])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match=r"sigma must lie in \(0, 255\], on the 0..255 scale, got"):
        Denoise(sigma)


def test_psnr_of_the_noisy_picture_is_its_closed_form():
    example = held_out([ramp(400, 400)], Denoise(25))
    assert score(example, [example[0].observed], Denoise(25))["psnr"] == pytest.approx(
        -20 * math.log10(25 / 255), abs=0.05
    )


def test_psnr_is_per_picture_then_averaged():
    examples = held_out([ramp(), ramp()], Denoise(10))
    near, far = (examples[0].target + offset for offset in (0.01, 0.1))
    assert score(examples, [near, far], Denoise(10))["psnr"] == pytest.approx((40 + 20) / 2, abs=1e-4)


def test_held_out_noise_is_fixed_and_differs_by_picture():
    pictures = [ramp(), ramp()]
    first, again = held_out(pictures, Denoise(25), seed=3), held_out(pictures, Denoise(25), seed=3)
    assert all(torch.equal(a.observed, b.observed) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].observed, first[1].observed)


@given(crop=st.integers(1, 32), batch=st.integers(1, 3), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_crops_come_from_the_picture(crop, batch, channels, seed):
    picture = ramp(channels=channels)
    batches = random_crops([picture], Denoise(25), crop=crop, batch=batch, steps=2, seed=seed)
    pairs = list(batches(1))
    assert len(pairs) == 2
    for observed, clean in pairs:
        assert observed.shape == clean.shape == (batch, channels, crop, crop)
        assert torch.isin(clean, picture.pixels).all()


def test_epochs_differ_and_repeat():
    batches = random_crops([ramp()], Denoise(25), crop=8, batch=2, steps=3)
    one, again, two = (torch.cat([x for x, _ in batches(epoch)]) for epoch in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_a_picture_smaller_than_the_crop_is_named():
    with pytest.raises(ValueError, match="the picture ramp has 40 x 32 pixels, smaller than the crop of 33"):
        random_crops([ramp()], Denoise(25), crop=33, batch=1, steps=1)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        random_crops([ramp()], Denoise(25), crop=8, batch=0, steps=1)


def test_held_out_pictures_must_be_large_enough_for_ssim():
    with pytest.raises(ValueError, match="the picture ramp has 40 x 6 pixels, smaller than the 7 x 7 pixels that SSIM"):
        held_out([ramp(6, 40)], Denoise(25))
    with pytest.raises(ValueError, match="there is no picture to validate or test on"):
        held_out([], Denoise(25))


def test_a_picture_without_error_counts_as_100_db():
    examples = held_out([ramp()], Denoise(25))
    assert score(examples, [examples[0].target], Denoise(25)) == {"psnr": 100.0, "ssim": 1.0}


def test_restore_keeps_order_and_shapes_and_clamps():
    pictures = [torch.rand(1, *size) * 3 - 1 for size in ((4, 5), (4, 5), (7, 3), (4, 5))]
    restored = restore(torch.nn.Identity(), pictures)
    assert all(torch.equal(r, p.clamp(0, 1)) for r, p in zip(restored, pictures, strict=True))


def test_a_perfect_restoration():
    examples = held_out([ramp(channels=3)], Denoise(25))
    assert evaluate(_Oracle(examples[0].target), examples, Denoise(25))["ssim"] == pytest.approx(1)


class _Oracle(torch.nn.Module):
    def __init__(self, clean):
        super().__init__()
        self.clean = clean + 1e-6

    def forward(self, x):
        return self.clean.expand_as(x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("task", "names", "gain"), [(Denoise(25), {"tv", "nl_means", "wavelet"}, 5), (Deblur(12.75), {"wiener"}, 2)]
)
def test_baselines_beat_the_observation(task, names, gain, channels):
    pictures = [ramp(channels=channels)]
    validation, test = held_out(pictures, task, seed=1), held_out(pictures, task, seed=2)
    results = task.baselines(pictures, validation, test)
    assert set(results) == names
    untouched = score(test, [example.observed for example in test], task)
    assert all(result["psnr"] > untouched["psnr"] + gain for result in results.values())


def test_the_strength_of_a_baseline_is_the_best_in_validation():
    task = Denoise(25)
    validation, test = held_out([ramp()], task, seed=1), held_out([ramp()], task, seed=2)
    method, strengths = task.methods["tv"]
    results = {s: score(validation, [method(validation[0].observed, s)], task)["psnr"] for s in strengths}
    best = max(results, key=results.get)
    expected = {**score(test, [method(test[0].observed, best)], task), "strength": best}
    assert task.baselines([], validation, test)["tv"] == expected


def test_blur_is_the_convolution_it_is_said_to_be():
    """A point becomes the kernel, constants darken only at the border, and channels do not mix."""
    task, generator = Deblur(1e-9), torch.Generator()
    x = torch.arange(-4, 5)
    kernel = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 5.0**2))
    kernel /= kernel.sum()
    point = torch.zeros(2, 3, 21, 21)
    point[1, 2, 10, 10] = 1
    blurred = task.observe(point, generator)
    torch.testing.assert_close(blurred[1, 2, 6:15, 6:15], kernel, atol=1e-7, rtol=0)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert blurred[0].abs().max() < 1e-9
    white = task.observe(torch.ones(1, 21, 21), generator)
    torch.testing.assert_close(white[:, 4:-4, 4:-4], torch.ones(1, 13, 13))
    assert white[0, 0, 0].item() == pytest.approx(kernel[4:, 4:].sum().item(), abs=1e-6)


def test_noise_comes_after_the_blur():
    task, picture = Deblur(25, blur=2.0, kernel=5), ramp(60, 60).pixels
    one, other = (task.observe(picture, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    clean = Deblur(1e-9, blur=2.0, kernel=5).observe(picture, torch.Generator())
    assert 255 * (one - clean).std().item() == pytest.approx(25, rel=0.03)
    assert 255 * (one - other).std().item() == pytest.approx(25 * math.sqrt(2), rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, "sigma must lie in"),
        ({"blur": 0.0}, "blur must be > 0 pixels, got 0.0"),
        ({"blur": float("nan")}, "blur must be > 0 pixels, got nan"),
        ({"kernel": 8}, "kernel must be an odd number of pixels below 100, got 8"),
        ({"kernel": 9.0}, "kernel must be an odd number of pixels below 100, got 9.0"),
    ],
)
def test_bad_blurs(options, message):
    with pytest.raises(ValueError, match=message):
        Deblur(**{"sigma": 12.75, **options})


def test_a_network_of_another_shape_is_refused():
    examples = held_out([ramp()], Denoise(25))
    with pytest.raises(ValueError, match="returns 32 x 40 x 1 numbers, not 1 x 32 x 40: the task needs pictures"):
        score(examples, [examples[0].target.permute(1, 2, 0)], Denoise(25))
    with pytest.raises(ValueError, match="returns 4 x 10 numbers, not 4 x 1 x 8 x 8: the task needs pictures"):
        Denoise(25).loss(torch.zeros(4, 10), torch.zeros(4, 1, 8, 8))


def test_of_many_pictures_at_most_500_are_measured_evenly_spaced():
    examples = held_out([ramp(8, 8, name=str(k)) for k in range(1250)], Denoise(25))
    assert [example.name for example in examples] == [str(k) for k in range(0, 1250, 3)]


def test_pick_is_the_smallest_good_network():
    from nas.search import Point, Snapshot

    def point(epoch, psnr, params):
        return Point(Snapshot(epoch, None, {}, {}, {}), {"psnr": psnr, "ssim": -psnr}, params, 2.0 * params, 0.0)

    points = [point(0, 20, 10), point(1, 27.95, 50), point(2, 28, 70), point(3, 27.99, 50), point(4, 27.9, 20)]
    assert pick(points, 0.06).snapshot.epoch == 3
    assert pick(points, 0.2).snapshot.epoch == 4
    assert pick(points, 0).snapshot.epoch == 2
    chosen = {
        Choice(): 3,
        Choice(epoch=1): 1,
        Choice(max_params=50): 3,
        Choice(max_params=20): 4,
        Choice(max_flops=45): 4,
        Choice(max_params=60, max_flops=100): 3,
        Choice(min_score=27.92): 3,
        Choice(min_score=27): 4,
        Choice(knee=True): 4,
    }
    assert {choice: choice.of(points, 0.06).snapshot.epoch for choice in chosen} == chosen


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"max_params": 5}, "no network so small; the smallest has 10 parameters and 20 multiply-adds"),
        ({"min_score": 29}, "no network with a score of 29 or more; .* the best score is 28.00 with 70 parameters"),
        ({"epoch": 2}, "the search has epochs 0 to 1, not 2"),
        ({"epoch": 1, "knee": True}, "choose by epoch, by min_score, by the knee, or by max_params and max_flops"),
    ],
)
def test_a_choice_that_does_not_exist(choice, message):
    from nas.search import Point, Snapshot

    points = [
        Point(Snapshot(epoch, None, {}, {}, {}), {"psnr": psnr}, params, 2.0 * params, 0.0)
        for epoch, psnr, params in ((0, 20, 10), (1, 28, 70))
    ]
    with pytest.raises(ValueError, match=message):
        Choice(**choice).of(points, 0.1)


def test_published_ssim_is_that_of_the_article():
    """By its equations, with the Gaussian window cut to 11 x 11 pixels and nothing beyond the border."""
    clean = torch.rand(1, 40, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = (clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    x = torch.arange(11.0, dtype=torch.float64) - 5
    side = torch.exp(-x.square() / (2 * 1.5**2))
    window = torch.outer(side, side)[None, None] / side.sum() ** 2

    def mean(picture):
        return torch.nn.functional.conv2d(picture[None], window)

    a, b = mean(clean), mean(other)
    variances = mean(clean**2) - a**2 + mean(other**2) - b**2
    covariance = mean(clean * other) - a * b
    ssim = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a**2 + b**2 + 1e-4) * (variances + 9e-4))
    assert published_ssim(other, clean) == pytest.approx(float(ssim.mean()), abs=1e-9)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_numbers_are_those_of_as_many_calls(count):
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    limits = [1, 2, 4, 500, 1_000_003, 2**20, 2**25 + 1]
    numbers = [number % limits[k % 7] for k, number in enumerate(_numbers(count, one))]
    assert numbers == [int(torch.randint(limits[k % 7], (), generator=other)) for k in range(count)]
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flips", range(2))
def test_a_crop_is_turned_then_flipped(turns, flips):
    picture = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(0))
    crop = torch.from_numpy(_cut(picture.numpy(), 5, 5 + 1, 3 + 2, 4 + turns, 2 + flips).copy())
    expected = picture[:, 1:6, 2:7].rot90(turns, (1, 2))
    assert torch.equal(crop, expected.flip(2) if flips else expected)


@pytest.mark.parametrize(("crop", "most"), [(8, 8), (300, 5), (1000, 1)])
def test_small_batches_are_made_in_a_row_and_stay_the_same(crop, most):
    made = []

    def batches(epoch):
        for k in range(11):
            made.append(k)
            yield torch.full((2, 1, crop, crop), epoch + k), torch.tensor(k)

    waiting = [len(made) - k for k, (x, y) in enumerate(in_rows(batches)(3)) if y == k and (x == 3 + k).all()]
    assert len(waiting) == 11
    assert max(waiting) == most


@pytest.mark.parametrize("task", [Denoise(25, border=3), NoiseToNoise(border=3), Recorrupted(25, border=3)])
def test_a_border_does_not_count(task):
    generator = torch.Generator().manual_seed(0)
    picture = Picture("p", torch.rand(1, 30, 28, generator=generator), noisy=torch.rand(1, 30, 28, generator=generator))
    (example,) = held_out([picture], task)
    inner = (..., slice(3, -3), slice(3, -3))
    output = torch.rand(1, 30, 28, generator=generator)
    expected = replace(task, border=0).score(output[inner], example.target[inner])
    assert task.score(output, example.target) == expected
    spoilt = torch.zeros(1, 30, 28)
    spoilt[inner] = output[inner]
    (scores,) = task.by_picture([example], [spoilt])
    assert expected.items() <= scores.items()
    if "published_ssim" in scores:
        assert scores["published_ssim"] == published_ssim(output[inner], example.target[inner])


def test_bad_borders():
    with pytest.raises(ValueError, match="border must be at least 0 pixels, got -1"):
        Denoise(25, border=-1)
    with pytest.raises(ValueError, match="p has 12 x 12 pixels, smaller than the 7 x 7 .* beside the border of 3"):
        held_out([Picture("p", torch.zeros(1, 12, 12))], Denoise(25, border=3))
