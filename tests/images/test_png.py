"""PNG: our writer read by Pillow and torchvision, their files read by us, and text chunks with a bound."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import PngImagePlugin
from torchvision.io import ImageReadMode, decode_image

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, png
from tests.images.make import exif, png_chunk, png_file

COLOUR = {(1, False): 0, (3, False): 2, (1, True): 4, (3, True): 6}


def drawn(seed: int, height: int, width: int, channels: int, dtype, alpha: bool) -> Picture:
    """A picture that is partly smooth, partly noise, so that every filter is chosen somewhere."""
    rng, top = np.random.default_rng(seed), np.iinfo(dtype).max
    ramp = np.linspace(0, top, height * width * channels).reshape(height, width, channels)
    noise = rng.integers(0, top + 1, ramp.shape)
    pixels = np.where(rng.random((height, 1, 1)) < 0.5, ramp, noise).astype(dtype)
    return Picture(pixels, rng.integers(0, top + 1, (height, width)).astype(dtype) if alpha else None)


def written(picture: Picture, **more) -> bytes:
    file = io.BytesIO()
    png.write(file, picture.pixels, picture.alpha, **more)
    return file.getvalue()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 1000), st.integers(1, 150), st.integers(1, 40), st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.uint16]), st.booleans(),
)  # fmt: skip
def test_what_is_written_is_read_alike_by_torchvision_and_by_us(seed, height, width, channels, dtype, alpha):
    picture = drawn(seed, height, width, channels, dtype, alpha)
    data = written(picture)
    planes = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()
    assert planes.dtype == dtype
    assert np.array_equal(planes[:channels].transpose(1, 2, 0), picture.pixels)
    again = open_image(data)
    assert again.pixels.dtype == dtype and np.array_equal(again.pixels, picture.pixels)
    if alpha:
        assert np.array_equal(planes[channels], picture.alpha) and np.array_equal(again.alpha, picture.alpha)
    else:
        assert again.alpha is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_pillow_reads_our_8_bit_files(channels, alpha):
    picture = drawn(0, 70, 33, channels, np.uint8, alpha)
    array = np.asarray(PngImagePlugin.PngImageFile(io.BytesIO(written(picture))))
    array = array[..., None] if array.ndim == 2 else array
    assert np.array_equal(array[..., :channels], picture.pixels)
    assert not alpha or np.array_equal(array[..., -1], picture.alpha)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_16_bit_files_of_others_keep_every_step(colour):
    count = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    array = np.random.default_rng(colour).integers(0, 65536, (9, 13, count)).astype(np.uint16)
    found = open_image(png_file(array, colour, 16))
    colours = 1 if colour in (0, 4) else 3
    assert np.array_equal(found.pixels, array[..., :colours])
    assert (found.alpha is None) == (colour < 4)
    assert colour < 4 or np.array_equal(found.alpha, array[..., -1])


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_becomes_alpha(depth, colour):
    top, count = 2**depth - 1, {0: 1, 2: 3}[colour]
    array = np.random.default_rng(5).integers(0, top, (6, 5, count))
    array[2, 3] = array[0, 0]
    key = png_chunk(b"tRNS", array[0, 0].astype(">u2").tobytes())
    found = open_image(png_file(array, colour, depth, key))
    assert found.alpha is not None
    assert found.alpha[2, 3] == found.alpha[0, 0] == 0 and found.alpha[1, 1] == top
    assert np.array_equal(found.pixels, array)


def test_text_is_read_from_all_three_kinds_and_pillow_reads_ours():
    packed = zlib.compress("größer ☃".encode())
    extra = [
        png_chunk(b"tEXt", b"Software\0caf\xe9"),
        png_chunk(b"zTXt", b"packed\0\0" + zlib.compress(b"abc" * 1000)),
        png_chunk(b"iTXt", b"ours\0\1\0de\0unser\0" + packed),
    ]
    found = open_image(png_file(np.zeros((3, 3, 3)), 2, 8, *extra)).text
    assert found == {"Software": "café", "packed": "abc" * 1000, "ours": "größer ☃"}
    text = {"ldm": '{"prompt": "ü ☃ \U0001f600"}', "parameters": "a\nb", "prompt": '{"1": {}}', "workflow": "{}"}
    data = written(Picture(np.zeros((4, 4, 3), np.uint8)), text=text)
    assert PngImagePlugin.PngImageFile(io.BytesIO(data)).text == text
    assert b"iTXtldm\0" in data and b"tEXtprompt\0" in data


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_any_text_survives_but_nul_and_surrogates(text):
    data = written(Picture(np.zeros((1, 1, 1), np.uint8)), text={"parameters": text})
    wanted = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    assert open_image(data).text == {"parameters": wanted}


@pytest.mark.parametrize("key", ["", " x", "x ", "y" * 80, "日本", "a\nb"])
def test_illegal_keywords_are_refused(key):
    with pytest.raises(LdmError) as error:
        written(Picture(np.zeros((1, 1, 1), np.uint8)), text={key: "x"})
    assert error.value.code == Code.USAGE


@pytest.mark.parametrize("bits", [8, 16])
def test_every_cut_and_every_flipped_checksum_is_an_error(bits):
    data = written(drawn(1, 20, 20, 3, np.uint8 if bits == 8 else np.uint16, True), text={"a": "b"})
    cuts = [data[: len(data) * part // 10] for part in range(1, 10)] + [data[:-1], data[:-2], data[:-13], data[:9]]
    flipped = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(40, len(data) - 12, 97)]
    for damaged in (*cuts, *flipped):
        with pytest.raises(LdmError) as error:
            open_image(damaged)
        assert error.value.code == Code.FILE, damaged[:60]


def test_a_damaged_chunk_is_named_as_text():
    data = written(drawn(1, 20, 20, 3, np.uint8, False))
    flipped = data[:29] + bytes([data[29] ^ 1]) + data[30:]
    hostile = png.SIGNATURE + struct.pack(">I", 999) + b"\x1b[2J" + bytes(12)
    for damaged, words in (
        (data[:-20], "Chunk IDAT claims "),
        (flipped, "The checksum of chunk IHDR at byte 8 is wrong."),
        (hostile, "Chunk 1b 5b 32 4a claims 999 bytes"),
    ):
        with pytest.raises(LdmError) as error:
            open_image(damaged)
        assert error.value.why.startswith(words)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("kind", ["short", "cut", "garbage", "filter", "none", "empty"])
def test_damaged_pixel_data_with_right_checksums_is_an_error(bits, interlace, kind):
    """torchvision 0.29 ends the whole process on the first four of these."""
    row = 1 + 20 * 3 * bits // 8
    packed = zlib.compress(bytes(row * 20))
    streams = {
        "short": zlib.compress(bytes(20)),
        "cut": packed[: len(packed) // 2],
        "garbage": b"\x78\x9c" + b"\xff" * 50,
    }
    streams |= {"filter": zlib.compress(b"\x09" * (row * 40)), "empty": b""}
    head = struct.pack(">IIBBBBB", 20, 20, bits, 2, 0, 0, interlace)
    body = png_chunk(b"IDAT", streams[kind]) if kind != "none" else b""
    with pytest.raises(LdmError) as error:
        open_image(png.SIGNATURE + png_chunk(b"IHDR", head) + body + png_chunk(b"IEND", b""))
    assert error.value.code == Code.FILE


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("wrong", [{"depth": 3}, {"colour": 5}, {"compression": 1}, {"filters": 1}, {"interlace": 2}])
def test_illegal_headers_are_errors(bits, wrong):
    head = {"width": 2, "height": 2, "depth": bits, "colour": 2, "compression": 0, "filters": 0, "interlace": 0} | wrong
    body = png_chunk(b"IDAT", zlib.compress(bytes(99))) + png_chunk(b"IEND", b"")
    with pytest.raises(LdmError) as error:
        open_image(png.SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", *head.values())) + body)
    assert error.value.code == Code.FILE


def interlaced(array: np.ndarray, colour: int) -> bytes:
    """A 16-bit PNG in Adam7 order, unfiltered."""
    raw = b""
    for x, y, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        part = array[y::dy, x::dx]
        if part.size:
            raw += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 1)
    body = png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    return png.SIGNATURE + png_chunk(b"IHDR", head) + body


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (16, 17), (1, 40), (40, 1)])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_interlaced_16_bit_files_keep_every_step(size, colour):
    count = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    array = np.random.default_rng(colour).integers(0, 65536, (*size, count)).astype(np.uint16)
    found = open_image(interlaced(array, colour))
    assert np.array_equal(found.pixels, array[..., : 1 if colour in (0, 4) else 3])
    assert colour < 4 or np.array_equal(found.alpha, array[..., -1])


def test_exif_written_by_imagemagick_turns_the_picture():
    hexed = (b"Exif\0\0" + exif(3)).hex()
    body = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n   {len(hexed) // 2}\n{hexed}\n".encode())
    array = np.arange(12).reshape(3, 4, 1)
    found = open_image(png_file(array, 0, 8, png_chunk(b"zTXt", body)))
    assert np.array_equal(found.pixels, array[::-1, ::-1]) and "Raw profile type exif" not in found.text
