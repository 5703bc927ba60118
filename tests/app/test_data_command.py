"""`ldm data check`: the verdict first for a newcomer, JSON for a program, and a status that says whether to train."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import Code
from ldm.images import open_image
from tests.app.conftest import Ldm
from tests.data.test_doctor import encoded, put, scene


def picture(seed: int, side: int = 64) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"pattern of colours {'abcdefghijkl'[number]}")
    return folder


def test_a_sound_set_is_told_in_a_few_lines(ldm: Ldm, photos: Path) -> None:
    done = ldm("data", "check", photos)
    assert done.status == 0 and done.err == ""
    lines = done.out.splitlines()
    assert "12 pictures, typically 64x64; 12 can be read" in lines[0] and "64 pixels" in lines[1]
    assert lines[3] == "Ready to train: nothing needs mending." and len(lines) <= 10


def test_problems_are_named_with_a_remedy_and_do_not_stop(ldm: Ldm, photos: Path) -> None:
    (photos / "3.png").write_bytes(picture(3)[:-40])
    (photos / "again.png").write_bytes(picture(5))
    done = ldm("data", "check", photos, "--size", 96)
    assert done.status == 0
    assert "Ready to train; 4 things below" in done.out
    told = done.out
    assert "3.png: " in told and "5.png = again.png" in told and "and 4 more (--json lists all)" in told
    assert told.count("fix: ") == 4 and "1 picture (7.7 %): cannot be read" in told


def test_too_many_bad_files_give_the_status_of_a_bad_file(ldm: Ldm, photos: Path) -> None:
    for number in range(2):
        (photos / f"{number}.png").write_bytes(b"<html>")
    done = ldm("data", "check", photos)
    assert done.status == 5 and "Not ready: training would stop." in done.out and "web page" in done.out
    told = ldm("data", "check", photos, "--json")
    assert told.status == 5 and told.json["ready"] is False and told.json["readable"] == 10


def test_json_holds_everything(ldm: Ldm, photos: Path) -> None:
    done = ldm("data", "check", photos, "--size", 96, "--json")
    assert done.status == 0 and done.json["size"] == 96 and done.json["pictures"] == 12
    (tiny,) = done.json["findings"]
    assert tiny["kind"] == "tiny" and len(tiny["cases"]) == 12 and tiny["cases"][0]["detail"] == "64x64"
    assert done.json["buckets"] == [{"width": 96, "height": 96, "pictures": 12, "mean_lost": 0.0, "most_lost": 0.0}]


def test_the_sheet_shows_what_was_found_and_replaces_nothing(ldm: Ldm, photos: Path) -> None:
    (photos / "3.png").write_bytes(b"")
    done = ldm("data", "check", photos, "--size", 96, "--sheet", "sheet.png")
    assert done.status == 0 and "sheet: sheet.png" in done.out
    page = open_image("sheet.png")
    assert page.width > 800 and page.height > 200
    wanted = open_image(picture(0)).pixels[0, 0]  # the corner of the first small picture
    assert (page.pixels == wanted).all(-1).sum() > 100
    before = Path("sheet.png").read_bytes()
    again = ldm("data", "check", photos, "--sheet", "sheet.png")
    assert again.status == 5 and "exists already" in again.err and Path("sheet.png").read_bytes() == before
    assert ldm("data", "check", photos, "--sheet", "sheet.pdf").status == 2


def test_a_sound_set_has_a_sheet_too(ldm: Ldm, photos: Path) -> None:
    assert ldm("data", "check", photos, "--sheet", "sheet.png").status == 0
    assert open_image("sheet.png").height < 60


def test_shapes_are_listed_with_what_they_cut_off(ldm: Ldm, photos: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 256, 3), dtype=np.uint8)).save(photos / "wide.png")
    (photos / "wide.txt").write_text("a wide pattern")
    squares = ldm("data", "check", photos, "--size", 64)
    assert "75 % of 256x64 is cut off" in squares.out and "64x64" in squares.out
    shaped = ldm("data", "check", photos, "--size", 128, "--buckets", "--json").json
    assert len(shaped["buckets"]) == 2 and shaped["buckets"][1]["most_lost"] < 0.75


def test_a_run_file_says_what_is_checked(ldm: Ldm, photos: Path) -> None:
    Path("run.yaml").write_text(
        f"task: {{type: autoencoder, vae: vae.json}}\ndata: {{path: {photos}, size: 32}}\nrun: {{out: a, steps: 1}}\n"
    )
    done = ldm("data", "check", "run.yaml", "--json")
    assert done.status == 0 and done.json["size"] == 32 and done.json["pictures"] == 12


def test_what_is_drawn_can_be_checked(ldm: Ldm) -> None:
    Path("run.yaml").write_text(
        "task: {type: autoencoder, vae: vae.json}\ndata: {path: scenes, count: 40, size: 32}\nrun: {out: a, steps: 1}\n"
    )
    assert ldm("data", "check", "run.yaml", "--json").json["readable"] == 40


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nowhere",), 5, "spelling"),
        (("empty",), 5, "no picture"),
        (("photos", "--size", "4"), 2, "--size"),
        ((), 2, "PATH"),
    ],
)
def test_what_cannot_be_checked_is_told_in_three_lines(
    ldm: Ldm, photos: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    Path("empty").mkdir()
    done = ldm("data", "check", *words)
    assert done.status == status and said in done.err and "Traceback" not in done.err


def test_names_and_captions_do_not_drive_the_terminal(ldm: Ldm, photos: Path) -> None:
    (photos / "a\x1b[2Jb.png").write_bytes(b"")
    (photos / "1.txt").write_text("\x1b]0;title\x07 http://example.org")
    done = ldm("data", "check", photos)
    assert "\x1b[2J" not in done.out and "\x1b]0" not in done.out and "http://example.org" in done.out


def test_pictures_of_one_subject_are_checked_as_such(ldm: Ldm, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    put(tmp_path / "one", "a.png", encoded(scene(1)), "a thing")
    told = ldm("data", "check", "one", "--subject", "--token", "zwx", "--json").json
    assert {"count", "token"} <= {finding["kind"] for finding in told["findings"]}
    assert "count" not in {finding["kind"] for finding in ldm("data", "check", "one", "--json").json["findings"]}
    alone = ldm("data", "check", "one", "--token", "zwx")
    assert (alone.status, "--subject" in alone.err) == (Code.USAGE, True)
    (tmp_path / "none").mkdir()
    assert ldm("data", "check", "none", "--subject").status == Code.FILE
    assert ldm("data", "check", "one", "--subject", "--clip", "nothing").status == Code.FILE


RUN = """
task: {{type: lora, model: emoji, token: zwx}}
data: {{path: photos, size: 64, caption: "zwx"{mask}}}
run: {{out: runs/zwx, steps: 1, batch: 1}}
"""


@pytest.mark.parametrize(("mask", "status"), [("", Code.FILE), (", mask: beside", 0)])
def test_a_mask_that_training_refuses_stops_it_here(
    ldm: Ldm, photos: Path, tmp_path: Path, mask: str, status: int
) -> None:
    (photos / "masks").mkdir()
    for number in range(12):
        Image.new("L", (64, 64), 255).save(photos / "masks" / f"{number}.png")
    (tmp_path / "run.yaml").write_text(RUN.format(mask=mask))
    done = ldm("data", "check", "run.yaml")
    assert (done.status, "and is not used" in done.out) == (status, status != 0), done.out
    assert "and is not used" not in ldm("data", "check", "photos", "--subject").out  # ldm personalize uses them
    assert ldm("data", "check", "photos").status == 0 and "and is not used" in ldm("data", "check", "photos").out


def test_a_few_photos_are_told_what_ldm_personalize_makes_of_them(ldm: Ldm, photos: Path) -> None:
    (photos / "3.png").write_bytes(b"no picture")
    for caption in photos.glob("*.txt"):
        caption.unlink()
    done = ldm("data", "check", "photos", "--subject", "--token", "zwx")
    assert done.status == 0 and "left out here" in done.out and ".txt" not in done.out
    assert (
        ldm("data", "check", "photos").status == 0 and "no picture has a caption" in ldm("data", "check", "photos").out
    )
    (photos / "masks").mkdir()
    Image.new("L", (64, 64), 255).save(photos / "masks" / "1.png")
    lacking = ldm("data", "check", "photos", "--subject")
    assert lacking.status == Code.FILE and "1 of 11 photos have a mask beside them" in lacking.out


def test_names_of_folders_are_no_captions_of_a_subject(ldm: Ldm, tmp_path: Path) -> None:
    for place in ("camera", "phone"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / place / f"{number}.png").write_bytes(picture(10 * len(place) + number))
    told = ldm("data", "check", "photos", "--subject", "--token", "zwx", "--json").json
    assert not {"token", "leaking words"} & {finding["kind"] for finding in told["findings"]}, told
