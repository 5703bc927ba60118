"""`open_image`: formats by content, modes, orientation, bombs, damage. Rows F7 to F10 of the fault table."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, save_image
from ldm.images.colour import space
from ldm.images.door import turned
from tests.images.make import (
    axes,
    cmyk_profile,
    exif,
    grey_profile,
    lab_bytes,
    lut,
    matrix_profile,
    png_chunk,
    png_file,
    profile,
    table_profile,
)

RNG = np.random.default_rng(0)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that JPEG hardly changes, different in each corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x * 200 + 20, y * 200 + 20, (x + y) * 100], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused(source, code: Code, *words: str) -> LdmError:
    with pytest.raises(LdmError) as error:
        open_image(source)
    assert error.value.code == code, str(error.value)
    for word in words:
        assert word in str(error.value)
    assert error.value.fix.split()[0][0].isupper()
    return error.value


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {})],
)
def test_content_decides_the_format_not_the_suffix(tmp_path, kind, options):
    array = noise(13, 17, 3)
    path = tmp_path / "wrong.jpg"
    path.write_bytes(encoded(Image.fromarray(array), kind, **options))
    found = open_image(path)
    assert np.array_equal(found.pixels, array) and found.name == "wrong.jpg" and found.notes == ()
    assert open_image(str(path)).sha256 == found.sha256 == open_image(path.read_bytes()).sha256


# --- F9: modes ---------------------------------------------------------------------------------------------------


def in_mode(mode: str) -> Image.Image:
    rgb = Image.fromarray(smooth(16, 24))
    if mode in ("I", "F"):
        return Image.fromarray(
            np.linspace(0, {"I": 65535, "F": 1}[mode], 384).reshape(16, 24).astype(f"{mode.lower()}4")
        )
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (24, 16), np.arange(384).astype("<u2" if mode != "I;16B" else ">u2").tobytes())
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    if mode == "La":
        return rgb.convert("LA").convert("La")
    if mode == "RGBa":
        return rgb.convert("RGBA").convert("RGBa")
    return rgb.convert(mode)


CHANGED = {
    "1": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr", "HSV": "HSV", "LAB": "LAB",
    "I": "16-bit", "F": "16-bit", "La": "premultiplied", "RGBa": "premultiplied", "RGBX": "RGBX",
}  # fmt: skip
PLAIN = ["L", "LA", "RGB", "RGBA", "I;16", "I;16B"]


@pytest.mark.parametrize("mode", [*PLAIN, *CHANGED])
def test_every_mode_is_read_and_says_what_changed(mode):
    image = in_mode(mode)
    assert image.mode == mode
    found = open_image(image)
    assert found.size == (24, 16)
    assert found.pixels.dtype == (np.uint16 if mode[0] in "IF" else np.uint8)
    assert (found.alpha is not None) == (mode in ("LA", "RGBA", "PA", "La", "RGBa"))
    assert found.pixels.shape[2] == (1 if mode[0] in "1LIF" and mode != "LAB" else 3)
    assert found.notes == () if mode in PLAIN else CHANGED[mode] in found.notes[0]
    if mode in ("RGB", "RGBA", "RGBa", "RGBX", "LAB", "YCbCr", "HSV", "CMYK"):
        assert np.abs(found.pixels.astype(int) - smooth(16, 24)).max() <= {"LAB": 10, "YCbCr": 3, "HSV": 6}.get(mode, 0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_16_bit_ramp_keeps_its_levels(mode, tmp_path):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    order = "<u2" if mode == "I;16" else ">u2"
    image = Image.frombytes(mode, (32, 32), ramp.astype(order).tobytes())
    image.save(tmp_path / "ramp.tif")
    for source in (image, tmp_path / "ramp.tif"):
        found = open_image(source)
        assert np.array_equal(found.pixels[..., 0], ramp)
        assert len(np.unique(np.rint(found.rgb() * 255))) == 256  # Pillow's convert("RGB") leaves 2


def test_files_in_14_modes(tmp_path):
    """The modes as files, in the formats that carry them."""
    kinds = {
        "1": "PNG", "L": "PNG", "P": "PNG", "LA": "PNG", "RGB": "JPEG", "RGBA": "WEBP", "CMYK": "JPEG", "YCbCr": "JPEG",
        "LAB": "TIFF", "I": "TIFF", "F": "TIFF", "I;16": "TIFF", "I;16B": "TIFF", "RGBX": "TIFF",
    }  # fmt: skip
    assert len(kinds) == 14
    for mode, kind in kinds.items():
        path = tmp_path / f"x.{kind.lower()}"
        in_mode(mode).save(path, kind)
        found = open_image(path)
        rgb = found.rgb()
        assert rgb.shape == (16, 24, 3) and rgb.dtype == np.float32 and 0 <= rgb.min() <= rgb.max() <= 1
        if mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "RGBX"):
            assert np.abs(rgb - smooth(16, 24) / 255).mean() <= 3 / 255, mode


def test_a_palette_with_transparent_entries_has_alpha():
    image = Image.fromarray(noise(8, 8) % 4, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    found = open_image(encoded(image, "PNG", transparency=bytes([0, 128, 255, 255])))
    want = np.asarray(image)
    assert found.alpha is not None and np.array_equal(found.alpha, np.array([0, 128, 255, 255])[want])
    assert np.array_equal(found.pixels[want == 2], np.tile([0, 255, 0], ((want == 2).sum(), 1)))


def test_wide_samples_are_documented():
    assert open_image(Image.fromarray(np.array([[0, 70000]], np.int32))).pixels[0, :, 0].tolist() == [0, 65535]
    assert open_image(Image.fromarray(np.array([[0, 255]], np.float32))).pixels[0, :, 0].tolist() == [0, 65535]
    found = open_image(Image.fromarray(np.array([[np.nan, -5.0, 5.0, np.inf]], np.float32)))
    assert found.pixels[0, :, 0].tolist() == [32768, 0, 65535, 32768] and any("not numbers" in n for n in found.notes)
    assert open_image(Image.fromarray(np.full((2, 2), 9e9, np.float32))).pixels.max() == 0


def test_cmyk_goes_through_its_profile():
    image = Image.fromarray(np.full((8, 8, 4), (128, 0, 0, 0), np.uint8), "CMYK")
    with_profile = open_image(encoded(image, "TIFF", icc_profile=cmyk_profile()))
    without = open_image(encoded(image, "TIFF"))
    assert with_profile.icc is None and "profile" in with_profile.notes[0]
    assert np.abs(with_profile.rgb() - without.rgb()).max() > 5 / 255
    assert "plain formula" in without.notes[0] and without.pixels[0, 0].tolist() == [127, 255, 255]


def test_a_damaged_cmyk_profile_is_said_to_be_unusable():
    image = Image.fromarray(np.full((8, 8, 4), (128, 0, 0, 0), np.uint8), "CMYK")
    icc = cmyk_profile()[:400].ljust(len(cmyk_profile()), b"\0").replace(b"mft1", b"none")
    assert "no usable profile" in open_image(encoded(image, "TIFF", icc_profile=icc)).notes[0]


def test_adobe_cmyk_jpeg_is_not_inverted():
    image = Image.fromarray(np.full((16, 16, 4), (0, 0, 0, 0), np.uint8), "CMYK")  # no ink: white paper
    assert open_image(encoded(image, "JPEG")).rgb().min() >= 0.98


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profiles_are_kept_and_used(kind):
    array, icc = smooth(16, 16), matrix_profile()
    found = open_image(encoded(Image.fromarray(array), kind, icc_profile=icc))
    assert found.icc == icc
    plain = open_image(encoded(Image.fromarray(array), kind))
    assert np.abs(found.rgb() - plain.rgb()).max() > 5 / 255


def test_profiles_that_do_not_fit_are_left_out():
    colour, grey = Image.fromarray(smooth(8, 8)), Image.fromarray(smooth(8, 8)[..., 0])
    for image, icc in (
        (colour, grey_profile()),
        (grey, matrix_profile()),
        (colour, b"junk" * 50),
        (colour, cmyk_profile()),
    ):
        found = open_image(encoded(image, "PNG", icc_profile=icc))
        assert found.icc is None and "profile" in found.notes[-1]
    assert open_image(encoded(grey, "PNG", icc_profile=grey_profile())).icc == grey_profile()
    assert open_image(encoded(colour, "PNG", icc_profile=table_profile())).icc == table_profile()
    one_way = profile(b"scnr", b"RGB ", b"Lab ", {b"A2B0": lut(2, lab_bytes(axes(2, 3)), 3)})
    assert space(one_way) == "RGB"
    assert "profile" in open_image(encoded(colour, "PNG", icc_profile=one_way)).notes[-1]
    damaged = png_file(smooth(4, 4), 2, 8, png_chunk(b"iCCP", b"x\0\0notzlib"))
    assert "profile" in open_image(damaged).notes[-1]


def test_alpha_is_composed_over_the_background():
    found = Picture(np.full((1, 2, 3), 255, np.uint8), np.array([[0, 255]], np.uint8))
    assert found.rgb(background=(0, 0.5, 0))[0].tolist() == [[0, 0.5, 0], [1, 1, 1]]


# --- F8: orientation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("entry", ["jpeg", "png", "webp", "tiff", "pillow"])
def test_orientation_is_applied_once(orientation, entry, tmp_path):
    up = smooth(16, 32)
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = Image.fromarray(turned(up, undo))
    tags = Image.Exif()
    tags[0x0112] = orientation
    options = {"exif": tags.tobytes()}
    if entry == "pillow":
        source = Image.open(io.BytesIO(encoded(stored, "PNG", **options)))
    else:
        lossless = {"lossless": True} if entry == "webp" else {"quality": 95} if entry == "jpeg" else {}
        source = encoded(stored, entry.upper(), **options, **lossless)
    found = open_image(source)
    assert found.size == (32, 16)
    assert np.abs(found.rgb() - up / 255).mean() <= 2 / 255
    again = open_image(save_image(found, tmp_path / "again.png"))
    assert np.array_equal(again.pixels, found.pixels)
    assert (orientation != 1) == any("upright" in note for note in found.notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_agrees_with_pillow(orientation):
    array = noise(5, 7, 3)
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(turned(array, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_orientation_in_xmp_only():
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    found = open_image(encoded(Image.fromarray(smooth(16, 32)), "JPEG", xmp=packet))
    assert found.size == (16, 32) and any("XMP" in note for note in found.notes)


def test_position_and_thumbnail_are_dropped_unless_asked():
    tags = exif(6, gps=True, thumbnail=b"\xff\xd8old\xff\xd9")
    data = encoded(Image.fromarray(smooth(16, 16)), "JPEG", exif=b"Exif\0\0" + tags)
    found, kept = open_image(data), open_image(data, keep_location=True)
    assert found.exif is not None and b"old" not in found.exif
    assert [n for n in found.notes if "GPS" in n] and [n for n in found.notes if "thumbnail" in n]
    assert kept.exif is not None and b"old" in kept.exif and not [n for n in kept.notes if "GPS" in n]


def test_comments_of_jpeg_and_webp_are_text():
    for kind in ("JPEG", "WEBP"):
        comment = exif(comment=b"UNICODE\0" + "a cat\nSteps: 20".encode("utf-16-be"))
        found = open_image(encoded(Image.fromarray(smooth(8, 8)), kind, exif=b"Exif\0\0" + comment))
        assert found.text == {"parameters": "a cat\nSteps: 20"}


# --- F7: bombs ---------------------------------------------------------------------------------------------------


def wide_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head)


def bombs(folder: Path) -> dict[str, str]:
    """File names and the error code that is expected of each ("": it opens)."""
    rows = zlib.compress(bytes(14000 * 14001 // 8), 9)
    packer = zlib.compressobj(9)
    text = b"".join([packer.compress(bytes(1 << 20)) for _ in range(50)] + [packer.flush()])
    end = png_chunk(b"IEND", b"")
    many = [png_chunk(b"tEXt", b"a%d\0" % i + b"x" * (1 << 20)) for i in range(20)]
    frame_header = b"\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\1\x03\x11\1"
    scan_header = b"\xff\xda\0\x0c\x03\1\0\2\x11\3\x11\0\x3f\0"
    tiny = noise(4, 4, 3)
    gif = [Image.fromarray(np.full((8, 8), i % 250, np.uint8)) for i in range(40)]
    one = encoded(gif[0], "GIF", save_all=True, append_images=gif[1:])
    frame = one[one.index(b"\x21\xf9", 800) : -1]
    tiff = bytearray(encoded(Image.fromarray(noise(4, 4, 3)), "TIFF"))
    at = tiff.find(struct.pack("<HHI", 277, 3, 1))
    tiff[at + 8 : at + 10] = struct.pack("<H", 65000)
    files = {
        "square.png": (wide_header(14000, 14000, 1, 0) + png_chunk(b"IDAT", rows) + end, "REFUSED"),
        "header.png": (wide_header(50000, 50000), "REFUSED"),
        "text.png": (png_file(tiny, 2, 8, png_chunk(b"zTXt", b"x\0\0" + text)), "REFUSED"),
        "itxt.png": (png_file(tiny, 2, 8, png_chunk(b"iTXt", b"x\0\1\0\0\0" + text)), "REFUSED"),
        "profile.png": (png_file(tiny, 2, 8, png_chunk(b"iCCP", b"x\0\0" + text)), "REFUSED"),
        "texts.png": (png_file(tiny, 2, 8, *many), "REFUSED"),
        "pixels.png": (wide_header(4, 4) + png_chunk(b"IDAT", text) + end, ""),
        "frames.gif": (one[:-1] + frame * (10_000 // 39) + b";", ""),
        "screen.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + one[10:], "REFUSED"),
        "samples.tif": (bytes(tiff), "FILE"),
        "big.webp": (b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2, "REFUSED"),
        "big.bmp": (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 60000, -60000, 1, 24, 0) + bytes(24), "REFUSED"),
        "big.jpg": (b"\xff\xd8" + frame_header + scan_header + b"\xff\xd9", "REFUSED"),
    }  # fmt: skip
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: code for name, (_, code) in files.items()}


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from ldm.errors import LdmError
from ldm.images import open_image
out = {}
def rss():
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("VmHWM")).split()[1])

open_image(Path(sys.argv[1]) / "small.png")
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, start, code = rss(), time.perf_counter(), ""
    try:
        open_image(path)
    except LdmError as error:
        code = error.code.name
    out[path.name] = [code, time.perf_counter() - start, (rss() - before) / 1024]
print(json.dumps(out))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_bombs_are_refused_quickly_and_without_memory(tmp_path):
    wanted = bombs(tmp_path)
    (tmp_path / "small.png").write_bytes(png_file(noise(4, 4, 3), 2, 8))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {name: row[0] for name, row in found.items()} == wanted | {"small.png": ""}
    for name, (_, seconds, megabytes) in found.items():
        assert seconds <= 5 * 0.2, (name, seconds)
        assert megabytes <= 50, (name, megabytes)


def test_the_cap_is_an_argument():
    data = png_file(noise(20, 20, 3), 2, 8)
    assert open_image(data, max_pixels=400).width == 20
    with pytest.raises(LdmError, match="20x20"):
        open_image(data, max_pixels=399)
    for source in (Image.fromarray(noise(20, 20, 3)), open_image(data)):
        with pytest.raises(LdmError):
            open_image(source, max_pixels=399)


def test_a_sequence_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        found = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert any("first frame" in note for note in found.notes), kind
        assert np.abs(found.pixels.astype(int) - 10).max() <= 1


# --- F6, F10: damage and odd sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (b"PK\x03\x04abc", "zip"),
        (b"\0" * 100, "none of PNG"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, words):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    refused(path, Code.FILE, words, "photo.png")
    refused(content, Code.FILE, words)


def test_paths_that_lead_nowhere(tmp_path):
    refused(tmp_path / "no.png", Code.FILE, "no such file", "no.png")
    refused(tmp_path, Code.FILE, "folder")
    refused("a\0b.png", Code.FILE)
    refused("x" * 5000, Code.FILE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, -2])
def test_cut_files_are_errors(kind, part):
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    cut = data[: int(len(data) * part)] if part >= 0 else data[:part]
    if kind == "GIF" and part == -2:
        assert open_image(cut).size == (64, 64)  # the first frame is whole; only the file's trailer is missing
    else:
        refused(cut, Code.FILE)


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_download_that_was_filled_up_with_zeros_is_an_error(part):
    data = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    kept = data[: int(len(data) * part)]
    filled = kept + bytes(len(data) - len(kept) + 4000)
    Image.open(io.BytesIO(filled)).load()  # Pillow takes it for whole
    refused(filled, Code.FILE, "cut off")


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_open_or_are_refused(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]))
    source = bytearray(encoded(Image.fromarray(noise(12, 12, 3)), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert open_image(bytes(source), max_pixels=100_000).pixels.size
    except LdmError as error:
        assert error.code in (Code.FILE, Code.REFUSED)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (7, 7)])
def test_odd_sizes_open(size, tmp_path):
    array = noise(size[1], size[0], 3)
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        assert open_image(encoded(Image.fromarray(array), kind)).size == size
    assert open_image(save_image(Picture(array), tmp_path / "x.png")).size == size


def test_16_bit_colour_that_pillow_reduced_is_mentioned(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(png_file(noise(4, 4, 3, dtype=np.uint16), 2, 16))
    assert any("16-bit" in note for note in open_image(Image.open(path)).notes)
    assert open_image(path).pixels.dtype == np.uint16 and open_image(path).notes == ()
