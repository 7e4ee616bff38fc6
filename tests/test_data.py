"""Pictures: files of every kind, data sources, and what is said about bad ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from nas.models import conv_skip_autoencoder
from nas.search import folder, load_data, pictures
from nas.search.data.formats.sheet import NotAPictureError
from nas.search.data.images import read_picture, to_array, to_tensor, write_picture
from nas.search.data.sources import TEST, TRAIN, VALIDATION
from nas.search.tasks.use import beside, denoise_pixels


def save_picture(path, shape=(20, 30), mode=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode or Image.fromarray(pixels).mode).save(path)
    return path


def test_the_pictures_are_split_by_picture():
    assert not set(TRAIN) & set(VALIDATION) | set(TRAIN) & set(TEST) | set(VALIDATION) & set(TEST)
    for channels in (1, 3):
        data = pictures(channels)
        for part, names in ((data.train, TRAIN), (data.validation, VALIDATION), (data.test, TEST)):
            assert tuple(picture.name for picture in part) == names
            for picture in part:
                assert picture.pixels.dtype == torch.float32
                assert len(picture.pixels) == channels
                assert 0 <= picture.pixels.min() < picture.pixels.max() <= 1


def test_a_folder_is_split_and_counts_what_it_skips(tmp_path):
    for k in range(12):
        save_picture(tmp_path / f"{k:02}.png", seed=k)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "sub").mkdir()
    with pytest.warns(UserWarning, match="skipped 1 files in .* that are not pictures: notes.txt"):
        data = folder(tmp_path)
    assert [p.name for p in data.validation] == ["04.png"]
    assert [p.name for p in data.test] == ["05.png"]
    assert len(data.train) == 10


def test_a_small_folder_has_one_picture_each(tmp_path):
    for k in range(3):
        save_picture(tmp_path / f"{k}.png")
    data = folder(tmp_path)
    assert [[p.name for p in part] for part in (data.train, data.validation, data.test)] == [
        ["0.png"],
        ["1.png"],
        ["2.png"],
    ]


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*missing"):
        folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds 0 pictures; a search needs at least 3"):
        folder(tmp_path)
    broken, *_ = (save_picture(tmp_path / f"{name}.png", (100, 100)) for name in ("broken", "good", "whole"))
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"the picture .*broken.png is truncated, damaged or too large"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "cats"},
            "unknown data 'cats'; there are: cifar10, class_folder, fashion_mnist, folder, mnist, noisy_pairs, pairs",
        ),
        ({"source": "pictures", "channels": 2}, r"channels must be 1 \(grey\) or 3 \(colour\), got 2"),
        ({"source": "folder"}, "needs --data-root"),
        ({"source": "mnist"}, "needs --data-root"),
        ({"source": "pictures", "download": True}, "ships with scikit-image"),
    ],
)
def test_bad_sources(options, message):
    with pytest.raises(ValueError, match=message):
        load_data(**options)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_mode(tmp_path, mode, channels):
    suffix = ".tif" if mode == "CMYK" else ".png"
    file = save_picture(tmp_path / f"a{suffix}", (9, 7, 3), mode)
    tensor = to_tensor(read_picture(file), channels)
    assert tensor.shape == (channels, 9, 7)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() <= tensor.max() <= 1


def test_grey_pixels_keep_their_values(tmp_path):
    file = save_picture(tmp_path / "a.png", (9, 7))
    pixels = read_picture(file)
    assert np.array_equal(to_array(to_tensor(pixels, 1)), pixels)
    deep = np.linspace(0, 65535, 63).astype(np.uint16).reshape(9, 7)
    write_picture(tmp_path / "deep.png", deep)
    assert np.array_equal(read_picture(tmp_path / "deep.png"), deep)
    assert to_tensor(deep, 1).max() == 1


def test_writing_needs_a_known_format_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="choose a suffix such as .png"):
        write_picture(tmp_path / "a.xyz", np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.iterdir())


def test_floats_stay_floats_and_16_bits_become_8_where_needed(tmp_path):
    ramp = np.linspace(0, 1, 63, dtype=np.float32).reshape(9, 7)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    assert np.array_equal(read_picture(tmp_path / "float.tif"), ramp)
    deep = np.rint(ramp * 65535).astype(np.uint16)
    write_picture(tmp_path / "a.bmp", deep)
    assert np.array_equal(read_picture(tmp_path / "a.bmp"), np.rint(deep / 257))
    Image.fromarray(ramp * 300).save(tmp_path / "large.tif")
    with pytest.raises(ValueError, match=r"large.tif has values from 0 to 300, outside of \[0, 1\]; .* --range=0:300"):
        read_picture(tmp_path / "large.tif")


def test_to_learn_from_values_reach_from_black_to_white(tmp_path):
    import tifffile

    ramp = np.linspace(0, 1, 63).reshape(9, 7)
    tifffile.imwrite(tmp_path / "12.tif", np.rint(ramp * 4095).astype(np.uint16))
    tifffile.imwrite(tmp_path / "white.tif", np.rint(255 - ramp * 255).astype(np.uint8), photometric="miniswhite")
    for name in ("12.tif", "white.tif"):
        assert np.abs(to_tensor(read_picture(tmp_path / name), 1)[0].numpy() - ramp).max() <= 0.5 / 255 + 1e-6


def test_frames_and_channels_that_cannot_be_learnt_from_are_said(tmp_path):
    frames = [Image.fromarray(np.full((9, 7), value, np.uint8)) for value in (0, 100, 200)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="film.png holds 3 pictures; the first is used"):
        assert not read_picture(tmp_path / "film.png").any()
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.tif")
    import tifffile

    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((9, 7, 5), np.uint8), planarconfig="contig", photometric="minisblack"
    )
    with pytest.raises(ValueError, match="five.tif holds 5 channels; grey and colour can be learnt from"):
        read_picture(tmp_path / "five.tif")


def test_a_file_that_ends_in_its_header_is_named(tmp_path):
    file = save_picture(tmp_path / "a.png")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"a.png is (not a picture|truncated)"):
        read_picture(file)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(NotAPictureError, match="a.png is not a picture"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "b.png")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 1), (6, 7, 2), (1, 9, 3), (6, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_empty_network_returns_any_picture(shape, dtype, channels):
    net = conv_skip_autoencoder(channels, depth=1, width=2)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    cleaned = denoise_pixels(net, pixels)
    assert cleaned.dtype == dtype
    assert np.abs(cleaned.astype(int) - pixels.astype(int)).max() <= (dtype == np.uint16)  # float32 holds 24 bits


def test_the_high_byte_may_come_first():
    net, pixels = conv_skip_autoencoder(depth=1, width=2), np.arange(0, 60_000, 5_000, ">u2").reshape(3, 4)
    cleaned = denoise_pixels(net, pixels)
    assert cleaned.dtype == pixels.dtype == ">u2"
    assert np.array_equal(cleaned, denoise_pixels(net, pixels.astype("<u2")))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4)), np.zeros((4, 4), np.int32), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match=r"pixels must be uint8 or uint16 of shape .*denoise_sheet takes all else"):
        denoise_pixels(conv_skip_autoencoder(depth=1, width=2), pixels)


def test_pictures_side_by_side():
    grey, colour = np.zeros((4, 3), np.uint8), np.full((4, 5, 4), 7, np.uint8)
    assert beside([grey, grey]).shape == (4, 3 + 8 + 3)
    joined = beside([grey, colour])
    assert joined.shape == (4, 3 + 8 + 5, 3)
    assert joined[0, :, 0].tolist() == [0] * 3 + [255] * 8 + [7] * 5
