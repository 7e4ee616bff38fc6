"""What picture files hold: values, orientation, depths that are not read, damage."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.odd_files import exif_with, in_bytes, odd_files
from nas.search.data.formats.exif import split_orientation
from nas.search.data.formats.files import encoded, read_sheet
from nas.search.data.formats.reading import _bits_of_avif, _bits_of_jpeg2000
from nas.search.data.formats.sheet import GREY, RGB, Extras, Sheet
from nas.search.data.formats.values import UnusableError, Values, find_values, parse_range


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("inverted", [False, True])
def test_values_go_to_light_and_back(dtype, inverted):
    low, high = (0, 1) if dtype.startswith("f") else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    pixels = np.linspace(low, high, 70000).astype(dtype)
    values = Values.between(high, low) if inverted else Values.between(low, high)
    unit = values.to_unit(pixels)
    assert unit.dtype == np.float32
    assert (unit.min(), unit.max()) == (0, 1)
    assert unit[0] == inverted
    back = values.from_unit(unit, pixels.dtype)
    assert back.dtype == pixels.dtype
    assert np.abs(back.astype(float) - pixels).max() <= (1e-7 if dtype.startswith("f") else 0)


def test_restored_values_stay_in_the_range_or_in_what_the_file_holds():
    values, _ = find_values([np.array([[-5.0, 0.5, 3.0]])], "x", given=(0, 1))
    assert values.from_unit(np.array([-9.0, 0.25, 9.0]), np.dtype("float64")).tolist() == [-5, 0.25, 3]
    values, _ = find_values([np.array([[20, 30]], np.uint8)], "x")
    assert values.from_unit(np.array([-9.0, 0.4, 9.0]), np.dtype("uint8")).tolist() == [0, 102, 255]


@pytest.mark.parametrize(
    ("highest", "dtype", "white"),
    [(255, "uint16", 255), (256, "uint16", 1023), (1023, "int16", 1023), (1024, "uint32", 4095),
     (4096, "uint16", 16383), (16384, "uint16", 65535), (65535, "int64", 65535), (7, "uint8", 255)],
)  # fmt: skip
def test_integers_reach_as_far_as_their_bits(highest, dtype, white):
    values, notes = find_values([np.array([[0, highest]], dtype)], "x")
    assert (values.black, values.white) == (0, white)
    assert bool(notes) == (white not in (65535,) and dtype != "uint8")


@given(st.integers(65536, 2**60), st.sampled_from([1, -1]))
def test_other_integers_are_refused_or_given(size, sign):
    frames = [np.array([[0, sign * size]])]
    with pytest.raises(UnusableError, match=r"outside of those of 16 bits|beyond 2\*\*53"):
        find_values(frames, "x")
    values, _ = find_values(frames, "x", given=(0, size))
    assert values.highest == size


def test_a_range():
    assert parse_range("-1000:3e3") == (-1000, 3000)
    assert parse_range("255:0") == (255, 0)
    for text in ("", "1", "1:1", "1:2:3", "a:b", "nan:1", "0:inf"):
        with pytest.raises(ValueError, match="a range must be two different numbers BLACK:WHITE, such as 0:4095, got"):
            parse_range(text)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_alone_changes(orientation):
    exif = exif_with(orientation)[6:]
    found, upright = split_orientation(exif)
    assert found == orientation
    assert split_orientation(upright) == (1, upright)
    assert sum(a != b for a, b in zip(exif, upright, strict=True)) == (orientation != 1)
    little = Image.Exif()
    little.endian = "<"
    little[0x0112] = orientation
    assert split_orientation(little.tobytes()[6:])[0] == orientation


@given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_damaged_exif_data_stay_as_long_as_they_are(data, start):
    orientation, upright = split_orientation(start + data)
    assert 1 <= orientation <= 8
    assert len(upright) == len(start + data)


@pytest.mark.parametrize(
    ("suffix", "bits_of", "mark", "offset", "changed"),
    [
        (".jp2", _bits_of_jpeg2000, b"\xff\x4f\xff\x51", 42, {11: 12, 15: 16}),
        (".avif", _bits_of_avif, b"av1C", 6, {0x4C: 10, 0x6C: 12}),
    ],
)
def test_depths_that_are_not_read_are_found(suffix, bits_of, mark, offset, changed):
    def save(path):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)

    data = bytearray(in_bytes(save, suffix))
    assert bits_of(io.BytesIO(data)) == 8
    for byte, bits in changed.items():
        data[data.index(mark) + offset] = byte
        assert bits_of(io.BytesIO(data)) == bits


def test_a_pgm_keeps_its_numbers_and_its_largest():
    numbers = np.random.default_rng(0).integers(0, 4000, (6, 7), dtype=np.uint16)
    data = b"P5\n7 6\n4095\n" + numbers.astype(">u2").tobytes()
    sheet = read_sheet(data, "a.pgm")
    assert (sheet.frames[0][..., 0] == numbers).all()
    assert (sheet.values.black, sheet.values.white, sheet.notes) == (0, 4095, ())
    assert encoded(sheet, ".pgm") == (data, [])
    assert read_sheet(data, "a.pgm", (0, 2000)).values.white == 2000
    assert read_sheet(data.replace(b"4095", b"65535", 1), "b.pgm").values.white == 65535


def test_damage_is_one_sentence():
    """Bytes at random, in the head of files above all: they are read, or refused as pictures are."""
    choose = random.Random(1)
    whole = [in_bytes(odd.write, f".{odd.name.split('.', 1)[1]}") for odd in odd_files() if not odd.sentence]
    for _ in range(150):
        data = bytearray(choose.choice(whole))
        for _ in range(choose.choice([1, 2, 9])):
            data[choose.randrange(min(len(data), choose.choice([60, 300, 10**6])))] = choose.choice([0, 255, 73])
        try:
            read_sheet(bytes(data), "the file")
        except ValueError as problem:
            assert "the file" in str(problem) and "\n" not in str(problem)


def png_of(bits, rows, *chunks):
    """The bytes of a grey PNG file, its ``rows`` already packed."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8 * len(rows[0]) // bits, len(rows), bits, 0, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


@pytest.mark.parametrize(("bits", "row"), [(2, b"\x1b"), (4, b"\x01\x9f")])
def test_a_transparent_grey_of_few_bits_stays_so(bits, row):
    (frame,) = (sheet := read_sheet(png_of(bits, [row], (b"tRNS", b"\0\1")))).frames
    assert frame[0, :, 1].tolist() == [255, 0, 255, 255]
    assert frame[0, :, 0].tolist() == ([0, 85, 170, 255] if bits == 2 else [0, 17, 153, 255])
    assert sheet.notes == (f"its {bits} bits a pixel become 8",)


def test_what_a_png_says_of_its_light_is_kept_or_said():
    linear = (b"gAMA", struct.pack(">I", 100000))
    sheet = read_sheet(png_of(8, [b"\0\xff"], linear))
    data, lost = encoded(sheet, ".png")
    assert linear[0] + linear[1] in data
    assert lost == []
    assert encoded(sheet, ".bmp")[1] == ["a file .bmp does not keep its gamma and primaries"]
    assert encoded(sheet, ".tif")[1] == ["a TIFF file does not keep its gamma and primaries"]
    gamma, primaries = (b"gAMA", struct.pack(">I", 45455)), [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]
    usual = read_sheet(png_of(8, [b"\0\xff"], gamma, (b"cHRM", struct.pack(">8I", *primaries))))
    assert encoded(usual, ".bmp")[1] == []
    primaries[4:6] = 21000, 71000  # the green of Adobe RGB
    wide = read_sheet(png_of(8, [b"\0\xff"], gamma, (b"cHRM", struct.pack(">8I", *primaries))))
    assert encoded(wide, ".bmp")[1] == ["a file .bmp does not keep its gamma and primaries"]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_frames_of_an_animation_do_not_show_through_each_other(suffix):
    frames = np.zeros((3, 20, 30, 4), np.uint8)
    for k, frame in enumerate(frames):
        frame[2:12, 8 * k : 8 * k + 6] = 255, 0, 0, 255
    sheet = Sheet("a.gif", ".gif", tuple(frames), RGB, True, Values.between(0, 255), Extras(durations=(50, 50, 50)))
    with Image.open(io.BytesIO(encoded(sheet, suffix)[0])) as film:
        for k, frame in enumerate(frames):
            film.seek(k)
            assert np.array_equal(np.asarray(film.convert("RGBA"))[..., 3], frame[..., 3])


def test_floats_of_netpbm_stay_floats():
    frame = np.linspace(-0.5, 2, 35, dtype=np.float32).reshape(5, 7, 1)
    sheet = Sheet("a.tif", ".tif", (frame,), GREY, False, Values.between(0, 1, -0.5, 2))
    data, lost = encoded(sheet, ".pfm")
    assert (data[:2], lost) == (b"Pf", [])
    again = read_sheet(data, given=(0, 1))
    assert np.array_equal(again.frames[0], frame)
    assert again.suffix == ".pfm"
    with pytest.raises(ValueError, match=r"a file \.pfm holds grey pictures here: choose \.tif"):
        encoded(Sheet("a.png", ".png", (np.zeros((2, 2, 3), np.uint8),), RGB, False, Values.between(0, 255)), ".pfm")


def test_a_proposed_range_can_be_taken():
    with pytest.raises(UnusableError, match="such as --range=-7:-6$"):
        find_values([np.full((2, 2, 1), -7, np.int16)], "a.tif")


@pytest.mark.parametrize("head", [b"P5 2 2 255\n", b"P5 2 1 65535\n", b"P5 2 1 4095\n", b"P5 2 2 200\n"])
def test_a_second_picture_in_a_pgm_is_said(head):
    one, said = head + b"\1\2\3\4", "the other pictures in it are left out"
    assert said not in read_sheet(one).notes
    assert said in read_sheet(one + one).notes


def test_floats_are_no_second_picture():
    assert read_sheet(b"Pf\n2 2\n-1.0\n" + bytes(8) + b"P5\0\0" + bytes(4)).notes == ()


@pytest.mark.parametrize(("alpha", "said"), [(255, False), (100, True)])
def test_a_gif_has_no_half_transparent_pixels(alpha, said):
    frame = np.full((4, 5, 2), (50, alpha), np.uint8)
    lost = encoded(Sheet("a.png", ".png", (frame,), GREY, True, Values.between(0, 255)), ".gif")[1]
    assert ("in it a pixel is transparent or not" in lost) is said
