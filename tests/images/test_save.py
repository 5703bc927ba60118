"""`save_image`: whole or not at all, never over another file, with profile, EXIF, alpha and text."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import Code, LdmError
from ldm.images import Picture, as_png, free_path, from_rgb, from_tensor, open_image, save_image, to_tensor
from ldm.images.metadata import text_from_xmp, xmp_packet
from tests.images.make import exif, grey_profile, matrix_profile

TEXT = {"ldm": '{"prompt": "größer <b>&amp; ☃ \U0001f600"}', "parameters": 'a 猫, "x"\nSteps: 20, Sampler: Euler a'}


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_everything_survives_that_the_format_can_hold(tmp_path, kind, channels, alpha, dtype):
    icc = matrix_profile() if channels == 3 else grey_profile()
    graph = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": '{"nodes": ["ü"]}', "Software": "dropped"}
    clear = np.full((20, 30), np.iinfo(dtype).max // 3, dtype) if alpha else None
    picture = Picture(np.full((20, 30, channels), np.iinfo(dtype).max // 2, dtype), clear, icc, exif(gps=True), graph)
    found = open_image(save_image(picture, tmp_path / f"x.{kind}", text=TEXT, lossless=True), keep_location=True)
    assert found.text == TEXT | {"prompt": graph["prompt"], "workflow": graph["workflow"]}
    assert found.icc == (None if kind == "webp" and channels == 1 else icc)
    assert found.exif is not None and b"Camera1" in found.exif
    assert (found.alpha is not None) == (alpha and kind != "jpg")
    wanted = picture.rgb((1, 1, 1)) if kind != "jpg" else picture.rgb()
    tolerance = 1 / 65535 if kind == "png" else 3 / 255
    if not (alpha and kind == "jpg"):  # white behind a JPEG is mixed in the picture's own space, not in sRGB
        assert np.abs(found.rgb() - wanted).max() <= tolerance
    if kind == "png":
        assert found.exif == picture.exif and found.pixels.dtype == dtype


def test_a_png_that_is_sent_is_the_one_that_would_be_saved(tmp_path):
    picture = Picture(
        noise(9, 7, 3), noise(9, 7), matrix_profile(), exif(gps=True), {"prompt": "kept", "Software": "x"}
    )
    assert as_png(picture, TEXT) == save_image(picture, tmp_path / "x.png", text=TEXT).read_bytes()
    assert as_png(from_rgb(noise(5, 5, 3))) == save_image(from_rgb(noise(5, 5, 3)), tmp_path / "y.png").read_bytes()


def test_text_given_replaces_what_the_picture_had(tmp_path):
    picture = Picture(noise(4, 4, 3), text={"prompt": "old", "workflow": "kept"})
    assert open_image(save_image(picture, tmp_path / "x.png", text={"prompt": "new"})).text == {
        "prompt": "new",
        "workflow": "kept",
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=99), max_size=4))
def test_texts_in_xmp_round_trip(text):
    text.pop("parameters", None)
    packet = xmp_packet(text)
    assert (packet is None) == (not text)
    assert text_from_xmp((packet or b"").decode()) == text


@pytest.mark.parametrize(
    "packet", ["<ldm:text>", "<ldm:text>{</ldm:text>", "</ldm:text><ldm:text>", "<ldm:text>[1]</ldm:text>"]
)
def test_damaged_packets_hold_nothing(packet):
    assert text_from_xmp(packet) == {}


def test_a_file_is_never_overwritten(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"precious")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link.png"):
        with pytest.raises(LdmError, match="exists already") as error:
            save_image(Picture(noise(4, 4, 3)), taken)
        assert error.value.code == Code.FILE
    path.with_suffix(".jpg").touch()
    with pytest.raises(LdmError, match="exists already"):  # said before anything is encoded
        save_image(Picture(noise(4, 4, 3)), path.with_suffix(".jpg"), text={"ldm": "x" * 70_000})
    path.with_suffix(".jpg").unlink()
    assert path.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "x.png"]


def test_of_many_writers_of_one_name_one_wins(tmp_path):
    won, lost = [], []

    def write(value: int) -> None:
        try:
            save_image(Picture(np.full((8, 8, 3), value, np.uint8)), tmp_path / "x.png")
            won.append(value)
        except LdmError:
            lost.append(value)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 11
    assert (open_image(tmp_path / "x.png").pixels == won[0]).all() and len(list(tmp_path.iterdir())) == 1


def test_without_links_the_name_is_reserved(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    picture = Picture(noise(4, 4, 3))
    save_image(picture, tmp_path / "x.png")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # the other writer was faster by a moment
    with pytest.raises(LdmError, match="exists already"):
        save_image(Picture(noise(5, 5, 3)), tmp_path / "x.png")
    assert np.array_equal(open_image(tmp_path / "x.png").pixels, picture.pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, suffix):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LdmError, match="No space left") as error:
        save_image(Picture(noise(4, 4, 3)), tmp_path / f"x.{suffix}")
    assert error.value.code == Code.RESOURCE and list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_image(Picture(noise(4, 4, 3)), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = save_image(Picture(noise(4, 4, 3)), tmp_path / "x.png")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x", "x.gif", "x.png.exe", "x.tiff"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(LdmError, match="png, jpeg or webp") as error:
        save_image(Picture(noise(4, 4, 3)), tmp_path / name)
    assert error.value.code == Code.USAGE and list(tmp_path.iterdir()) == []
    assert save_image(Picture(noise(4, 4, 3)), tmp_path / name, format="png").read_bytes()[:4] == b"\x89PNG"


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x.png", tmp_path / "a\0b.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(LdmError) as error:
            save_image(Picture(noise(4, 4, 3)), path)
        assert error.value.code == Code.FILE
    assert save_image(Picture(noise(4, 4, 3)), tmp_path / "new" / "folder" / "x.png").exists()


def test_an_exact_picture_is_not_saved_with_losses(tmp_path):
    exact = Picture(noise(16, 16, 3), noise(16, 16), exact=True)
    deep = Picture(noise(16, 16, 3, dtype=np.uint16), exact=True)
    grey = Picture(noise(16, 16, 1), icc=grey_profile(), exact=True)
    for picture, name in ((exact, "a.jpg"), (deep, "a.webp"), (grey, "a.webp"), (deep, "a.jpg")):
        with pytest.raises(LdmError, match="outside its mask") as error:
            save_image(picture, tmp_path / name)
        assert error.value.code == Code.USAGE and list(tmp_path.iterdir()) == []
    found = open_image(save_image(exact, tmp_path / "a.webp"))
    assert np.array_equal(found.pixels, exact.pixels) and np.array_equal(found.alpha, exact.alpha)
    assert not np.array_equal(open_image(save_image(exact, tmp_path / "b.webp", allow_lossy=True)).pixels, exact.pixels)
    assert save_image(exact, tmp_path / "b.jpg", allow_lossy=True).exists()


def test_limits_of_the_formats(tmp_path):
    with pytest.raises(LdmError, match="16383"):
        save_image(Picture(np.zeros((1, 16_384, 3), np.uint8)), tmp_path / "x.webp")
    with pytest.raises(LdmError, match="text is too long") as error:
        save_image(Picture(noise(4, 4, 3)), tmp_path / "x.jpg", text={"ldm": "x" * 70_000})
    assert error.value.code == Code.USAGE and list(tmp_path.iterdir()) == []
    long = {"ldm": "x" * 70_000, "parameters": "y" * 70_000}
    assert open_image(save_image(Picture(noise(4, 4, 3)), tmp_path / "x.webp", text=long)).text == long


def test_free_path(tmp_path):
    names = []
    for _ in range(3):
        path = free_path(tmp_path, "0001-7", "png")
        save_image(Picture(noise(4, 4, 3)), path)
        names.append(path.name)
    assert names == ["0001-7.png", "0001-7-2.png", "0001-7-3.png"]


def test_tensors_and_back():
    rgb = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    x = to_tensor(rgb)
    assert x.shape == (1, 3, 5, 7) and x.min() >= -1 and x.max() <= 1
    assert np.abs(from_tensor(x)[0] - rgb).max() <= 1e-6
    assert len(from_tensor(x.repeat(3, 1, 1, 1).half())) == 3
    assert from_tensor(x * 9)[0].max() == 1
    for value in (float("nan"), float("inf")):
        broken = x.clone()
        broken[0, 0, 0, 0] = value
        with pytest.raises(LdmError, match="non-finite") as error:
            from_tensor(broken)
        assert error.value.code == Code.NUMERIC


def test_from_rgb_and_the_record():
    plain = from_rgb(np.full((4, 4, 3), 0.5, np.float32))
    assert plain.pixels.dtype == np.uint8 and (plain.pixels == 128).all() and plain.sha256
    like = Picture(noise(4, 4, 3), noise(4, 4), text={"workflow": "w", "parameters": "old"}, name="a.png")
    same, smaller = from_rgb(like.rgb(), like), from_rgb(np.zeros((2, 2, 3)), like)
    assert np.array_equal(same.alpha, like.alpha) and same.text == {"workflow": "w"} and same.name == "a.png"
    assert smaller.alpha is None and "transparency" in smaller.notes[-1]
    assert same.sha256 != like.sha256 and Picture(like.pixels, like.alpha).sha256 == like.sha256
    with pytest.raises(ValueError, match="read-only"):
        like.pixels[0, 0, 0] = 1
    for wrong in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="pixels are"):
            Picture(wrong)
    with pytest.raises(ValueError, match="alpha is"):
        Picture(noise(4, 4, 3), noise(4, 5))


def test_opening_and_saving_need_no_torch(tmp_path):
    code = (
        "import sys, numpy, ldm.images as i; p = i.save_image(i.Picture(numpy.zeros((4, 4, 3), 'uint8')), sys.argv[1]);"
    )
    code += "i.open_image(p); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.png")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False" and Path(tmp_path / "x.png").exists()
