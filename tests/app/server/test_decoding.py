"""Pictures of strangers, decoded in a process of their own."""

from __future__ import annotations

import io
import os
import signal
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from app.server import decoding
from app.server.decoding import Decoder
from ldm.errors import Code, LdmError
from ldm.images import open_image


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    one = Decoder(max_pixels=1_000_000)
    yield one
    one.close()


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def pictures() -> Iterator[tuple[str, bytes]]:
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 255, (9, 13, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "png", saved(colour, "PNG")
    yield "alpha", saved(colour.convert("RGBA"), "PNG")
    yield "turned", saved(colour, "JPEG", exif=exif)
    yield "webp", saved(colour, "WEBP", lossless=True)
    yield "16 bits", saved(Image.fromarray(draw.integers(0, 65535, (9, 13), np.uint16)), "PNG")


@pytest.mark.parametrize(("name", "data"), pictures())
def test_a_picture_is_the_one_that_is_decoded_here(decoder: Decoder, name: str, data: bytes) -> None:
    ours, theirs = open_image(data), decoder.decode(data)
    assert (ours.pixels == theirs.pixels).all() and ours.pixels.dtype == theirs.pixels.dtype
    assert (ours.alpha is None) == (theirs.alpha is None) and (ours.icc, ours.exif) == (theirs.icc, theirs.exif)
    assert (ours.text, ours.notes, ours.sha256) == (theirs.text, theirs.notes, theirs.sha256)


def bomb(side: int) -> bytes:
    """A PNG whose head says that it is huge."""
    head = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "data", [bomb(50_000), b"", b"<svg/>", b"%PDF-1.4", saved(Image.new("L", (8, 8)), "PNG")[:-20]]
)
def test_what_is_no_picture_is_refused_and_the_next_one_is_read(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(LdmError) as caught:
        decoder.decode(data)
    assert caught.value.code in (Code.FILE, Code.REFUSED)
    assert decoder.decode(saved(Image.new("L", (8, 8)), "PNG")).size == (8, 8)


def test_a_decoder_that_dies_or_hangs_takes_nobody_along() -> None:
    one = Decoder(max_pixels=1_000_000, seconds=2.0)
    good = saved(Image.new("L", (8, 8)), "PNG")
    try:
        assert one.decode(good).size == (8, 8)
        assert one._process is not None and one._process.pid is not None
        os.kill(one._process.pid, signal.SIGSTOP)  # as one that never comes to an end
        with pytest.raises(LdmError, match="more than 2 s"):
            one.decode(good)
        assert one.decode(good).size == (8, 8)
        os.kill(one._process.pid, signal.SIGSTOP)
        with pytest.raises(LdmError, match="more than 2 s"):
            one.decode(good + b" " * (1 << 20))  # more than a pipe holds
        assert one.decode(good).size == (8, 8)
        os.kill(one._process.pid, signal.SIGINT)  # a Ctrl-C is for the server
        assert one.decode(good).size == (8, 8)
        os.kill(one._process.pid, signal.SIGKILL)
        one._process.join()
        assert one.decode(good).size == (8, 8)
    finally:
        one.close()
    with pytest.raises(LdmError, match="ending"):
        one.decode(good)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 40,
        decoding._packed({"shape": [9, 9, 3], "type": "uint8"}, b"too few"),
        decoding._packed({"shape": [1, 1, 3], "type": "object"}, b"123"),
        decoding._packed({"error": [99, "a", "b", "c"]}),
        decoding._packed({"shape": [-1, -1, 3], "type": "uint8"}, b"123"),
    ],
)
def test_an_answer_that_contradicts_itself_is_none(answer: bytes) -> None:
    with pytest.raises(EOFError):
        decoding._understood(answer)
