"""The check of a data set: what was planted is found, and what is fine is not called bad."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ldm.data.alike import BITS, candidates, near_duplicates
from ldm.data.buckets import frame
from ldm.data.captions import leak, parts, repeated
from ldm.data.doctor import Report, check, likely_size
from ldm.data.examples import open_source
from ldm.data.facts import edge_width, facts
from ldm.data.scenes import draw, sample_scene
from ldm.data.settings import Buckets, DataSettings
from ldm.data.survey import Finding
from ldm.images import Picture
from tests.images.make import exif, matrix_profile


def scene(number: int, size: int | tuple[int, int] = 64) -> Image.Image:
    """A drawn picture, unlike those of other numbers."""
    rgb = draw(sample_scene(number), size)
    grain = np.random.default_rng(number).normal(0, 0.02, (*rgb.shape[:2], 1))
    return Image.fromarray(np.uint8(np.clip(rgb + grain, 0, 1) * 255))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures with nothing wrong."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        put(folder, f"ok{number}.png", encoded(scene(number)), f"drawing number {number} of things")
    return folder


def put(folder: Path, name: str, data: bytes, caption: str | None = "a drawing that is called {}") -> None:
    (folder / name).write_bytes(data)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption.format(Path(name).stem))


def checked(folder: Path, size: int = 64, **settings: object) -> Report:
    told = DataSettings(path=str(folder), size=size, kind="folder", **settings)  # type: ignore[arg-type]
    return check(open_source(told), size, lambda w, h: frame(told, w, h), masks=told.mask == "beside")


def found(report: Report, kind: str) -> Finding:
    """The finding of a kind; there is exactly one."""
    (finding,) = (f for f in report.findings if f.kind == kind)
    return finding


def names(report: Report, kind: str) -> set[str]:
    return {name for case in found(report, kind).cases for name in case.names}


def test_a_sound_set_is_told_so(photos: Path) -> None:
    report = checked(photos)
    assert report.findings == () and report.ready and report.verdict == "Ready to train: nothing needs mending."
    assert (report.pictures, report.readable, report.typical) == (6, 6, (64, 64))
    (bucket,) = report.buckets
    assert (bucket.width, bucket.height, bucket.pictures, bucket.most_lost) == (64, 64, 6, 0.0)


def test_all_bad_files_of_a_hundred_are_listed_with_a_reason(tmp_path: Path) -> None:
    jpeg, png = encoded(scene(0, 32), "JPEG"), encoded(scene(1, 32))
    bad = {
        "cut-0.jpg": b"",
        "cut-10.jpg": jpeg[: len(jpeg) // 10],
        "cut-50.jpg": jpeg[: len(jpeg) // 2],
        "cut-2-bytes.jpg": jpeg[:-2],
        "cut-50.png": png[: len(png) // 2],
        "cut-2-bytes.png": png[:-2],
        "page.png": b"<!DOCTYPE html><html>404</html>",
        "text.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }
    fine = {"cut-100.jpg": jpeg, "a jpeg.png": encoded(scene(2, 32), "JPEG"), "a png.webp": encoded(scene(3, 32))}
    fine |= {f"{n}.png": encoded(scene(n, 32)) for n in range(10, 99)}
    for name, data in {**bad, **fine}.items():
        put(tmp_path, name, data)
    report = checked(tmp_path, 32)
    assert report.pictures == 100 and report.readable == 92
    unreadable = found(report, "unreadable")
    assert names(report, "unreadable") == set(bad) and unreadable.level == "warn" and report.ready
    reasons = {case.names[0]: case.detail for case in unreadable.cases}
    assert "0 bytes" in reasons["cut-0.jpg"] and "web page" in reasons["page.png"] and "git lfs" in reasons["text.jpg"]
    assert all(len(reason) > 20 for reason in reasons.values())


def test_more_than_a_tenth_unreadable_stops(photos: Path) -> None:
    put(photos, "bad.png", b"")
    report = checked(photos)
    assert not report.ready and report.findings[0].kind == "unreadable" and report.findings[0].level == "stop"
    assert report.verdict.startswith("Not ready")


def test_duplicates_and_their_captions_are_found(photos: Path) -> None:
    same = encoded(scene(1))
    put(photos, "copy.png", same, "quite another caption")
    report = checked(photos)
    assert names(report, "duplicate") == {"copy.png", "ok1.png"} == names(report, "two captions")
    assert "quite another caption" in found(report, "two captions").cases[0].detail
    assert not any(f.kind == "alike" for f in report.findings)  # each pair is told once
    put(photos, "copy.png", same, "drawing number 1 of things")
    assert {f.kind for f in checked(photos).findings} == {"duplicate"}


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: encoded(image, "JPEG", quality=75),
        lambda image: encoded(image, "WEBP", quality=70),
        lambda image: encoded(image.resize((96, 96), Image.Resampling.LANCZOS)),
        lambda image: encoded(image.point(lambda v: v * 0.98 + 4)),
        lambda image: encoded(
            image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=b"Exif\0\0" + exif(6)
        ),
    ],
)
def test_copies_that_look_the_same_are_found(photos: Path, copy) -> None:  # type: ignore[no-untyped-def]
    put(photos, "copy.jpg", copy(scene(2)))
    assert names(checked(photos), "alike") == {"copy.jpg", "ok2.png"}


def test_another_colour_or_a_mirror_is_no_copy(photos: Path) -> None:
    other = Image.merge("RGB", scene(2).split()[::-1])
    put(photos, "colour.png", encoded(other))
    put(photos, "tint.png", encoded(scene(4).point([min(255, v + 20) for v in range(256)] + list(range(256)) * 2)))
    put(photos, "mirror.png", encoded(scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert not any(f.kind in ("alike", "duplicate") for f in checked(photos).findings)


def test_the_search_finds_exactly_the_pairs_that_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 400, dtype=np.uint64)
    for place in range(200, 400):  # copies with 0..9 turned bits
        turned = rng.choice(64, rng.integers(0, 10), replace=False)
        hashes[place] = hashes[place - 200] ^ np.bitwise_or.reduce(np.uint64(1) << turned.astype(np.uint64), initial=0)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    wanted = {(int(a), int(b)) for a, b in zip(*np.nonzero(apart <= BITS), strict=True) if a < b}
    given = {(int(a), int(b)) for some in candidates(hashes) for a, b in zip(*some, strict=True)}
    assert given == wanted and len(wanted) > 100
    chain = [0, 0b111111, 0b111111111111, 0xFF << 40]  # each near the next, the last one near none
    assert near_duplicates(chain, [bytes(192)] * 4) == [[0, 1, 2]]
    assert near_duplicates([5] * 700, [bytes(192)] * 700) == [list(range(700))]


@pytest.mark.parametrize("contrast", [1.0, 0.1])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_the_edge_width_is_the_blur_whatever_the_contrast(sigma: float, contrast: float) -> None:
    step = np.zeros((64, 96), np.float32)
    step[:, 40:] = 255 * contrast
    reach = np.arange(-20, 21)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    blurred = np.stack([np.convolve(row, kernel / kernel.sum(), "valid") for row in step]).astype(np.float32)
    assert edge_width(blurred) == pytest.approx(sigma, rel=0.15)


def test_blurred_pictures_are_found_and_sharp_ones_are_not(photos: Path) -> None:
    put(photos, "soft.png", encoded(scene(9).filter(ImageFilter.GaussianBlur(2.5))))
    put(photos, "large.png", encoded(scene(8, 256).filter(ImageFilter.GaussianBlur(2.5))))  # sharp at 64 pixels
    put(photos, "quiet.png", encoded(scene(7).point(lambda v: 120 + v // 16)))
    assert names(checked(photos), "blurry") == {"soft.png"}


def test_one_colour_is_found(photos: Path) -> None:
    put(photos, "flat.png", encoded(Image.new("RGB", (64, 64), (9, 200, 30))))
    put(photos, "flat too.png", encoded(Image.new("RGB", (64, 64), (9, 200, 31))))
    report = checked(photos)
    assert names(report, "flat") == {"flat.png", "flat too.png"} and {f.kind for f in report.findings} == {"flat"}


def test_sizes_and_what_the_crop_takes(photos: Path) -> None:
    put(photos, "tiny.png", encoded(scene(10, 40)))
    put(photos, "long.png", encoded(scene(11, (64, 256))))
    put(photos, "wide.png", encoded(scene(12, (64, 128))))
    report = checked(photos)
    assert names(report, "tiny") == {"tiny.png"} and names(report, "aspect") == {"long.png"}
    assert {c.names[0]: c.detail for c in found(report, "crop").cases} == {
        "long.png": "75 % of 256x64 is cut off",
        "wide.png": "50 % of 128x64 is cut off",
    }
    (square,) = report.buckets
    assert square.pictures == 9 and square.most_lost == 0.75 and square.mean_lost == pytest.approx(1.25 / 9)
    shaped = checked(photos, buckets=Buckets(step=8, least=32, most=128))
    assert len(shaped.buckets) > 1 and max(b.most_lost for b in shaped.buckets) < 0.75
    assert not any(f.kind == "crop" and "wide.png" in names(shaped, "crop") for f in shaped.findings)


def test_what_is_converted_is_noted_and_stops_nothing(photos: Path) -> None:
    put(photos, "turned.jpg", encoded(scene(20), "JPEG", quality=95, exif=b"Exif\0\0" + exif(6)))
    clear = scene(21).convert("RGBA")
    clear.putalpha(Image.new("L", (64, 64), 128))
    put(photos, "clear.png", encoded(clear))
    put(photos, "grey.png", encoded(scene(22).convert("L")))
    put(photos, "palette.png", encoded(scene(23).quantize(64)))
    put(photos, "adobe.png", encoded(scene(24), icc_profile=matrix_profile()))
    put(photos, "broken profile.png", encoded(scene(25), icc_profile=b"no profile"))
    put(photos, "moving.gif", encoded(scene(26), "GIF", save_all=True, append_images=[scene(27)]))
    sixteen = np.tile(np.arange(64, dtype=np.uint16) * 1024, (64, 1))
    put(photos, "deep.png", encoded(Image.fromarray(sixteen)))
    report = checked(photos)
    wanted = {
        "rotated": {"turned.jpg"},
        "transparent": {"clear.png"},
        "grey": {"grey.png", "deep.png"},
        "mode": {"palette.png", "deep.png", "moving.gif"},
        "profile": {"adobe.png", "broken profile.png"},
        "animated": {"moving.gif"},
    }
    notes = {f.kind: names(report, f.kind) for f in report.findings if f.level == "note"}
    assert notes == wanted and report.ready
    assert all(f.fix for f in report.findings)


def test_captions_that_teach_nothing_are_found(photos: Path) -> None:
    put(photos, "none.png", encoded(scene(30)), None)
    put(photos, "empty.png", encoded(scene(31)), " \n")
    put(photos, "long.png", encoded(scene(32)), "one red square, " * 19)
    put(photos, "IMG_2041.png", encoded(scene(33)), "IMG_2041")
    report = checked(photos)
    assert names(report, "no caption") == {"none.png", "empty.png"}
    assert names(report, "long caption") == {"long.png"} and names(report, "leak") == {"IMG_2041.png"}
    assert "at least 76 tokens" in found(report, "long caption").cases[0].detail


def test_no_captions_at_all_is_a_note(photos: Path) -> None:
    for path in photos.glob("*.txt"):
        path.unlink()
    report = checked(photos)
    assert found(report, "no caption").level == "note" and report.verdict.startswith("Ready to train: nothing")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("photo by me, www.example.org", "a.png"),
        ("write to me@example.org", "a.png"),
        ("<b>a cat</b>", "a.png"),
        ("a cat &amp; a dog", "a.png"),
        ("a photo of {subject}", "a.png"),
        ("a cat <|endoftext|>", "a.png"),
        ("DSC_00412", "x.png"),
        ("DSCN0412.JPG", "x.png"),
        ("scan_of_page_12", "scan_of_page_12.jpg"),
        ("a file in C:\\photos\\mine\\", "a.png"),
        ("un cafÃ© noir", "a.png"),
    ],
)
def test_a_leak_is_recognised(text: str, name: str) -> None:
    assert leak(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a cat, 3 dogs and/or 12 birds < 20 cm", "a.png"),
        ("keycap: 3", "row 3"),
        ("crying face", "crying face.png"),
        ("two discs (red & blue) at 45 degrees, f/2.8", "b.png"),
        ("Ein Käfer, naïve Ästhetik", "c.png"),
        ("flag: Åland Islands", "d.png"),
    ],
)
def test_a_description_is_no_leak(text: str, name: str) -> None:
    assert leak(text, name) is None


def test_tokens_are_never_counted_too_high() -> None:
    from ldm.models.tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer()
    texts = [
        "a red circle",
        "it's 3 o'clock!!",
        "naïve café, 2024-11-20",
        "snake_case <b>",
        "犬と猫",
        "don't, won't; we'll",
    ]
    for text in texts:
        assert parts(text) <= len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids), text
    assert parts("a red circle, two 12") == 7


def test_a_caption_of_many_pictures_is_told() -> None:
    rows = [("a dog", str(n)) for n in range(6)] + [("a cat", "x")] * 9 + [(f"thing {n}", f"t{n}") for n in range(20)]
    assert repeated(rows) == [("a dog", 6)]


def test_masks_are_looked_at_and_missed_when_unused(photos: Path) -> None:
    (photos / "masks").mkdir()
    for number, mask in enumerate(
        (Image.new("L", (64, 64), 255), Image.new("L", (64, 64), 0), Image.new("L", (32, 64), 255))
    ):
        mask.save(photos / "masks" / f"ok{number}.png")
    (photos / "masks" / "ok3.png").write_bytes(b"")
    report = checked(photos)
    assert names(report, "mask") == {"ok1.png", "ok2.png", "ok3.png"}
    assert names(report, "unused mask") == {"ok0.png", "ok1.png", "ok2.png", "ok3.png"}
    used = checked(photos, mask="beside")
    assert names(used, "mask") == {"ok1.png", "ok2.png", "ok3.png"}
    assert not any(f.kind == "unused mask" for f in used.findings)


def test_the_check_can_be_stopped(photos: Path) -> None:
    source = open_source(DataSettings(path=str(photos), size=64))
    told: list[tuple[int, int]] = []
    report = check(source, 64, on_progress=lambda *now: told.append(now), stop=lambda: len(told) == 3)
    assert report.stopped and report.pictures == 3 and told == [(1, 6), (2, 6), (3, 6)]


def test_the_likely_size_is_what_nine_in_ten_reach(photos: Path) -> None:
    settings = DataSettings(path=str(photos), size=64)
    assert likely_size(open_source(settings)) == 64
    for number in range(40, 50):
        put(photos, f"{number}.png", encoded(scene(number).resize((300, 300))))
    put(photos, "bad.png", b"")
    assert likely_size(open_source(settings)) == 64
    for number in range(50, 99):
        put(photos, f"{number}.png", encoded(scene(number).resize((300, 300))))
    assert likely_size(open_source(settings)) == 256


def test_facts_do_not_depend_on_the_way_a_picture_is_stored() -> None:
    rgb = np.asarray(scene(3, 200))
    deep = Picture(rgb.astype(np.uint16) * 257)
    alpha = Picture(rgb, np.full(rgb.shape[:2], 255, np.uint8))
    plain = facts(Picture(rgb), 64)
    for other in (facts(deep, 64), facts(alpha, 64)):
        assert other.bits == plain.bits and other.edge == pytest.approx(plain.edge, abs=0.02)
        assert (
            np.abs(np.frombuffer(other.thumb, np.uint8).astype(int) - np.frombuffer(plain.thumb, np.uint8)).max() <= 1
        )


def test_what_training_leaves_out_by_its_shape_is_told(photos: Path) -> None:
    put(photos, "line.png", encoded(scene(8, (8, 400))))
    put(photos, "small.png", encoded(scene(9, (20, 64))))
    told = DataSettings(path=str(photos), size=64, kind="folder", least_side=24)
    report = check(open_source(told), 64, least=told.least_side)
    assert names(report, "unreadable") == {"line.png", "small.png"}
    assert found(report, "unreadable").level == "stop" and not report.ready  # 2 of 8: so would training


def test_an_endless_word_is_searched_in_no_time() -> None:
    for text in ("1" * 200_000 + "a", "a" * 200_000):
        start = time.perf_counter()
        leak(text, "photo.png")
        assert time.perf_counter() - start < 2
