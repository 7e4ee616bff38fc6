"""TIFF files that tifffile does not decode by itself, and arrangements that other formats do not know."""

import io

import numpy as np
import pytest
import tifffile

from nas.search.data.formats.files import encoded, read_sheet
from nas.search.data.formats.values import UnusableError
from nas.search.tasks.use import magnify

RNG = np.random.default_rng(0)


def lzw(data):
    """Bytes as LZW codes of 9 bits, which never get wider, since they begin anew again and again."""
    codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8), "big")


def file_of(*pages, byteorder="<", compression=None, **options):
    """The bytes of a TIFF file with one page after the other."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, byteorder=byteorder) as writer:
        for k, pixels in enumerate(pages):
            own = {name: value[k] if isinstance(value, list) else value for name, value in options.items()}
            writer.write(pixels, metadata=None, **{"photometric": "minisblack"} | own)
    if compression == "lzw":
        for k, pixels in enumerate(pages):
            data = lzw(pixels.astype(pixels.dtype.newbyteorder(byteorder)).tobytes())
            start = stream.seek(0, io.SEEK_END)
            stream.write(data)
            change(stream, k, Compression=5, StripOffsets=start, StripByteCounts=len(data))
    return stream.getvalue()


def change(stream, k, **tags):
    """Write other values into the tags of a page."""
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        for name, value in tags.items():
            file.pages[k].tags[name].overwrite(value)


def whole(*shape, dtype="uint8", high=256):
    return RNG.integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_compressed_numbers_are_read_as_they_are(dtype):
    pixels = whole(9, 11, dtype=dtype) / 255 if dtype == "float32" else whole(9, 11, dtype=dtype)
    sheet = read_sheet(file_of(pixels.astype(dtype), compression="lzw"))
    assert sheet.frames[0].dtype == dtype
    assert np.array_equal(sheet.frames[0][..., 0], pixels.astype(dtype))


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize(("dtype", "ink"), [("uint16", 65535), ("float32", 1)])
def test_ink_is_not_taken_for_light(dtype, ink, compression):
    pixels = np.where(whole(9, 11) < 100, ink, 0).astype(dtype)
    sheet = read_sheet(file_of(pixels, compression=compression, photometric="miniswhite"))
    assert np.array_equal(sheet.values.to_unit(sheet.frames[0])[..., 0], pixels == 0)
    again = read_sheet(encoded(sheet, ".pfm")[0])
    assert np.array_equal(again.frames[0][..., 0], pixels == 0)


@pytest.mark.parametrize(
    ("dtype", "channels", "byteorder"),
    [
        ("int16", 1, ">"), ("float32", 1, ">"), ("uint32", 1, "<"), ("int8", 1, "<"), ("uint8", 5, "<"),
        ("uint16", 3, "<"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused(dtype, channels, byteorder):
    pixels = whole(9, 11, channels, dtype=dtype, high=100)
    options = {"planarconfig": "contig", "photometric": "rgb" if channels > 1 else "minisblack"}
    data = file_of(pixels[..., 0] if channels == 1 else pixels, compression="lzw", byteorder=byteorder, **options)
    with pytest.raises(UnusableError, match=r"compressed as LZW with \d+ bits, which needs the package imagecodecs$"):
        read_sheet(data)


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_reduced_copies_are_left_out_and_that_is_said(compression):
    large, small = whole(9, 11), whole(5, 6)
    for pages, types in (((large, small), [0, 1]), ((small, large), [1, 0])):
        sheet = read_sheet(file_of(*pages, compression=compression, subfiletype=types))
        assert [frame.shape for frame in sheet.frames] == [(9, 11, 1)]
        assert sheet.notes == ("reduced copies in it are left out",)


def test_few_bits_of_the_file_are_its_range():
    pixels = whole(8, 8, dtype="uint16", high=700)
    even, odd = pixels[:, ::2], pixels[:, 1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).astype("uint8").reshape(8, 12)
    stream = io.BytesIO(file_of(packed))
    change(stream, 0, ImageWidth=8, BitsPerSample=12)
    sheet = read_sheet(stream.getvalue())
    assert np.array_equal(sheet.frames[0][..., 0], pixels)
    assert (sheet.values.white, sheet.notes) == (4095, ())


def test_channels_beside_colours_keep_their_meaning():
    pixels = whole(9, 11, 5)
    sheet = read_sheet(file_of(pixels, photometric="rgb", extrasamples=("unassalpha", "unspecified")))
    (page,) = tifffile.TiffFile(io.BytesIO(encoded(sheet, ".tif")[0])).pages
    assert (page.photometric.name, tuple(map(int, page.extrasamples))) == ("RGB", (2, 0))
    assert np.array_equal(page.asarray(), pixels)


@pytest.mark.parametrize(("channels", "photometric"), [(3, 1), (2, 2)])
def test_channels_that_a_file_does_not_explain_stay_together(channels, photometric):
    pixels = whole(9, 11, channels)
    stream = io.BytesIO(file_of(pixels, photometric="rgb" if channels == 3 else "minisblack", planarconfig="contig"))
    change(stream, 0, PhotometricInterpretation=photometric)
    sheet = read_sheet(stream.getvalue())
    (page,) = tifffile.TiffFile(io.BytesIO(encoded(sheet, ".tif")[0])).pages
    assert np.array_equal(page.asarray(), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colours_that_were_multiplied_by_alpha_are_divided_for_other_formats(dtype):
    full = np.iinfo(dtype).max
    pixels = np.array([[[full // 4, full // 2, 0, full // 2], [0, 0, 0, 0], [9, 8, 7, full]]], dtype)
    sheet = read_sheet(file_of(pixels, photometric="rgb", extrasamples=("assocalpha",)))
    straight = read_sheet(encoded(sheet, ".png")[0]).frames[0]
    expected = [[[full // 2, full, 0, full // 2], [0, 0, 0, 0], [9, 8, 7, full]]]
    assert np.abs(straight.astype(int) - expected).max() <= 1
    (page,) = tifffile.TiffFile(io.BytesIO(encoded(sheet, ".tif")[0])).pages
    assert np.array_equal(page.asarray(), pixels)


@pytest.mark.parametrize("options", [{}, {"ome": True, "metadata": {"axes": "YX"}}])
def test_a_description_of_another_size_is_not_kept(options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, whole(9, 11), photometric="minisblack", **options)
    sheet = read_sheet(stream.getvalue())
    same, lost = encoded(sheet, ".tif")
    assert (lost, read_sheet(same).extras.tiff["description"]) == ([], sheet.extras.tiff["description"])
    larger, lost = encoded(magnify(sheet, 2), ".tif")
    assert lost == (["a TIFF file does not keep its description of another size"] if options else [])
    assert "description" not in read_sheet(larger).extras.tiff
