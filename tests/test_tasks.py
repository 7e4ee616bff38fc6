"""Noise, crops and scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.search import Denoise, Picture, Score, evaluate, held_out, pick, random_crops, restore
from nas.search.baselines import METHODS, baselines
from nas.search.tasks import score


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
    assert score(example, [example[0].observed]).psnr == pytest.approx(-20 * math.log10(25 / 255), abs=0.05)


def test_psnr_is_per_picture_then_averaged():
    examples = held_out([ramp(), ramp()], Denoise(10))
    near, far = (examples[0].clean + offset for offset in (0.01, 0.1))
    assert score(examples, [near, far]).psnr == pytest.approx((40 + 20) / 2, abs=1e-4)


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
    assert score(examples, [examples[0].clean]) == Score(100.0, 1.0)


def test_restore_keeps_order_and_shapes_and_clamps():
    pictures = [torch.rand(1, *size) * 3 - 1 for size in ((4, 5), (4, 5), (7, 3), (4, 5))]
    restored = restore(torch.nn.Identity(), pictures)
    assert all(torch.equal(r, p.clamp(0, 1)) for r, p in zip(restored, pictures, strict=True))


def test_a_perfect_restoration():
    examples = held_out([ramp(channels=3)], Denoise(25))
    assert evaluate(_Oracle(examples[0].clean), examples).ssim == pytest.approx(1)


class _Oracle(torch.nn.Module):
    def __init__(self, clean):
        super().__init__()
        self.clean = clean + 1e-6

    def forward(self, x):
        return self.clean.expand_as(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_baselines_beat_the_noise(channels):
    pictures = [ramp(channels=channels)]
    validation, test = held_out(pictures, Denoise(25), seed=1), held_out(pictures, Denoise(25), seed=2)
    results = baselines(25, validation, test)
    assert set(results) == set(METHODS) == {"tv", "nl_means"}
    noisy = score(test, [example.observed for example in test])
    assert all(isinstance(result, Score) and result.psnr > noisy.psnr + 5 for result in results.values())


def test_pick_is_the_smallest_good_network():
    from nas.search import Point, Snapshot

    def point(epoch, psnr, params):
        return Point(Snapshot(epoch, None, {}, {}), psnr, 0.5, params, 0.0)

    points = [point(0, 20, 10), point(1, 27.95, 50), point(2, 28, 70), point(3, 27.99, 50), point(4, 27.9, 20)]
    assert pick(points, 0.06).snapshot.epoch == 3
    assert pick(points, 0.2).snapshot.epoch == 4
    assert pick(points, 0).snapshot.epoch == 2
    assert pick(points, 0.05, max_params=50).snapshot.epoch == 3
    assert pick(points, 0.2, max_params=20).snapshot.epoch == 4
    assert pick(points, 0.2, max_params=5).snapshot.epoch == 0  # nothing fits: the smallest
