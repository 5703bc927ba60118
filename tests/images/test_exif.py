"""EXIF: orientation reset, position and thumbnail really gone, all else untouched; comments as A1111 writes them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from ldm.images.exif import Tiff, clean, decode_comment, user_comment, with_user_comment
from tests.images.make import exif

THUMBNAIL = b"\xff\xd8thumbnail of the old picture\xff\xd9"
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def read_by_pillow(data: bytes) -> Image.Exif:
    found = Image.Exif()
    found.load(b"Exif\0\0" + data)
    return found


@ORDERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_told_and_reset(order, orientation):
    done = clean(exif(orientation, order, maker=b"M" * 30))
    assert done.orientation == orientation and done.exif is not None
    assert read_by_pillow(done.exif)[0x0112] == 1
    assert read_by_pillow(done.exif)[0x010F] == "Camera1"


@ORDERS
def test_position_and_thumbnail_leave_no_bytes(order):
    source = exif(6, order, gps=True, thumbnail=THUMBNAIL, maker=b"MAKER-NOTE-" * 4, comment=b"ASCII\0\0\0hello")
    position = (1234).to_bytes(4, "little" if order == "<" else "big")
    assert read_by_pillow(source).get_ifd(0x8825)[2] == (48.0, 51.0, 12.34) and position in source
    done = clean(source)
    assert done.exif is not None and len(done.notes) == 2
    found = read_by_pillow(done.exif)
    assert 0x8825 not in found and not found.get_ifd(0x8825)
    assert THUMBNAIL not in done.exif and b"old picture" not in done.exif and position not in done.exif
    assert not any(done.exif[-38:-8])  # the second directory, in front of the last value
    assert found.get_ifd(0x8769)[0x927C] == b"MAKER-NOTE-" * 4
    assert found.get_ifd(0x8769)[0x829A] == 1 / 250
    assert done.exif.find(b"MAKER-NOTE-") == source.find(b"MAKER-NOTE-")  # offsets inside maker notes stay right


@ORDERS
def test_keep_location_keeps_both(order):
    source = exif(6, order, gps=True, thumbnail=THUMBNAIL)
    done = clean(source, keep_location=True)
    assert done.exif is not None and done.notes == ()
    assert read_by_pillow(done.exif).get_ifd(0x8825)[2] == (48.0, 51.0, 12.34) and THUMBNAIL in done.exif


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_exif_never_raises(data):
    source = bytearray(exif(6, gps=True, thumbnail=THUMBNAIL, comment=b"UNICODE\0\0a", maker=b"x" * 9))
    for _ in range(data.draw(st.integers(1, 6))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(source[: data.draw(st.integers(0, len(source)))])
    done = clean(cut)
    assert 1 <= done.orientation <= 8
    assert isinstance(user_comment(cut), str)
    assert done.exif is None or len(done.exif) == len(cut)


@ORDERS
@pytest.mark.parametrize("start", [True, False])
def test_a_comment_is_added_and_the_rest_stays(order, start):
    text = "a girl, ☃ 日本\nNegative prompt: x\nSteps: 20, Sampler: Euler a"
    source = exif(1, order, gps=True, comment=b"ASCII\0\0\0old", maker=b"NOTE" * 5) if start else None
    done = with_user_comment(source, text)
    assert user_comment(done) == text
    found = read_by_pillow(done)
    assert found.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + text.encode("utf-16-be")
    if source is not None:
        assert found[0x010F] == "Camera1" and found.get_ifd(0x8825)[2] == (48.0, 51.0, 12.34)
        assert found.get_ifd(0x8769)[0x927C] == b"NOTE" * 5
        assert done.find(b"NOTE") == source.find(b"NOTE")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), max_size=99))
def test_comments_round_trip(text):
    whole = f"{text}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
    assert user_comment(with_user_comment(None, whole)) == whole


def test_comments_in_other_encodings():
    assert decode_comment(b"UNICODE\0" + "Steps: 20".encode("utf-16-le")) == "Steps: 20"
    assert decode_comment(b"UNICODE\0" + "\ufeffSteps: 20".encode("utf-16-be")) == "Steps: 20"
    assert decode_comment(b"ASCII\0\0\0camera") == "camera"
    assert decode_comment(b"\0" * 8 + "ü".encode()) == "ü"
    assert decode_comment(b"") == ""


def test_pillow_reads_a_jpeg_with_our_exif():
    file = io.BytesIO()
    data = with_user_comment(exif(1, gps=True), "hello")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG", exif=b"Exif\0\0" + data)
    found = JpegImagePlugin.JpegImageFile(io.BytesIO(file.getvalue())).getexif()
    assert found[0x010F] == "Camera1" and Tiff(data).first > 8
