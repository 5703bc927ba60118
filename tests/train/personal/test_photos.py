"""Photos as they are trained on, and the words that call what is on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from ldm.data.doctor import check
from ldm.data.examples import open_photos
from ldm.data.subject import subject_findings
from ldm.errors import LdmError
from ldm.images import open_image
from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from tests.components import WORDS, tokenizer
from tests.data.test_doctor import encoded, scene
from tests.images.make import exif
from train.personal.photos import Photos, looked_at, prepared
from train.personal.plan import Base, captions_for
from train.personal.probe import prompts_for
from train.personal.settings import Wish
from train.personal.token import refuse_syntax, remarks, suggestion


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"p{number}.png").write_bytes(encoded(scene(number, 128)))
    return folder


def test_they_are_upright_small_and_without_a_word_of_exif(photos: Path, tmp_path: Path) -> None:
    turned = scene(9, (160, 320))
    (photos / "p5.jpg").write_bytes(encoded(turned, "JPEG", exif=exif(orientation=6, gps=True)))
    source, _ = looked_at(photos, 32, "zwx")
    made = prepared(source, tmp_path / "made", 32, ("zwx",), "zwx")
    files = made.files()
    assert len(files) == 6 and made.aside == "p3.png" and len(list(made.training.glob("*.png"))) == 5
    for file in files:
        picture = Image.open(file)
        assert not picture.getexif() and min(picture.size) == 64
        assert b"GPS" not in file.read_bytes() and b"Exif" not in file.read_bytes()
    assert Image.open(files[5]).size == (128, 64)  # turned as the mark says
    assert Photos.read(tmp_path / "made") == made and Photos.read(tmp_path / "none") is None


def test_captions_get_the_token_and_pictures_without_words_a_caption(photos: Path, tmp_path: Path) -> None:
    (photos / "p0.txt").write_text("on the grass")
    (photos / "p1.txt").write_text("a photo of ZWX asleep")
    source, findings = looked_at(photos, 32, "zwx")
    assert "no caption" not in {f.kind for f in findings}
    made = prepared(source, tmp_path / "made", 32, ("zwx", "a zwx"), "zwx")
    texts = [path.with_suffix(".txt").read_text().splitlines() for path in made.files()]
    assert texts[:3] == [["zwx, on the grass"], ["a photo of ZWX asleep"], ["zwx", "a zwx"]]


def test_what_is_opaque_counts_and_masks_are_used_by_all_or_refused(photos: Path, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (32, 32, 96, 96))
    (photos / "p0.png").write_bytes(encoded(clear))
    made = prepared(looked_at(photos, 32, "zwx")[0], tmp_path / "made", 32, ("zwx",), "zwx")
    assert made.masked
    masks = sorted((made.training / "masks").glob("*.png"))
    assert len(masks) == 4 and open_image(masks[0]).rgb().mean() == pytest.approx(0.25, abs=0.02)
    assert open_image(masks[1]).rgb().min() == 1
    (photos / "masks").mkdir()
    (photos / "masks" / "p1.png").write_bytes(encoded(Image.new("L", (128, 128), 255)))
    with pytest.raises(LdmError, match="1 of 5 photos have a mask"):
        prepared(looked_at(photos, 32, "zwx")[0], tmp_path / "again", 32, ("zwx",), "zwx")
    for number in (0, 2, 3, 4):
        (photos / "masks" / f"p{number}.png").write_bytes(encoded(Image.new("L", (128, 128), number * 50 or 10)))
    made = prepared(looked_at(photos, 32, "zwx")[0], tmp_path / "third", 32, ("zwx",), "zwx")
    assert np.rint(open_image(sorted((made.training / "masks").glob("*.png"))[2]).rgb().mean() * 255) == 150


def test_masks_are_used_and_said_to_be_and_one_of_another_size_is_refused(photos: Path) -> None:
    (photos / "masks").mkdir()
    for number in range(5):
        (photos / "masks" / f"p{number}.png").write_bytes(encoded(Image.new("L", (128, 128), 200)))
    assert "unused mask" not in {finding.kind for finding in looked_at(photos, 32, "zwx")[1]}
    (photos / "masks" / "p3.png").write_bytes(encoded(Image.new("L", (64, 128), 200)))
    with pytest.raises(LdmError, match="1 mask: of no use") as error:
        looked_at(photos, 32, "zwx")
    assert "p3.png: it has 64x128 pixels, the picture 128x128" in error.value.why


def test_one_broken_photo_among_a_few_is_left_out_and_told(photos: Path, tmp_path: Path) -> None:
    (photos / "p2.png").write_bytes(b"no picture")
    source, findings = looked_at(photos, 32, "zwx")
    (broken,) = [finding for finding in findings if finding.kind == "unreadable"]
    assert broken.level == "warn" and "left out here" in broken.fix and "stops" not in broken.fix
    assert len(prepared(source, tmp_path / "made", 32, ("zwx",), "zwx").names) == 4
    (photos / "p2.png").write_bytes(encoded(scene(2, 128).resize((2000, 40))))  # a strip, which training would refuse
    source, findings = looked_at(photos, 32, "zwx")
    assert "left out here" in next(finding.fix for finding in findings if finding.kind == "unreadable")
    assert "p2.png" not in prepared(source, tmp_path / "strip", 32, ("zwx",), "zwx").names
    for path in photos.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(LdmError, match="no picture can be read"):
        looked_at(photos, 32, "zwx")


def test_folders_are_how_photos_are_sorted_unless_kohya_s_numbers_say_what_is_on_them(tmp_path: Path) -> None:
    for folder, name in (("Camera", "mine"), ("WhatsApp Images", "mine"), ("3_zwx dog", "kohya")):
        (tmp_path / name / folder).mkdir(parents=True)
        for number in range(2):
            (tmp_path / name / folder / f"{number}.png").write_bytes(encoded(scene(len(folder) + number)))
    source, _ = looked_at(tmp_path / "mine", 32, "zwx dog")
    assert len(source) == 4 and not any(source.about(place).captions for place in range(4))
    source, _ = looked_at(tmp_path / "kohya", 32, "zwx dog")
    assert source.about(0).captions == ("zwx dog",)


def test_what_is_not_read_is_told_and_a_raw_file_beside_its_jpeg_is_not(photos: Path) -> None:
    for name in ("IMG_7.HEIC", "p1.dng"):
        (photos / name).write_bytes(b"of another kind")
    (told,) = [finding for finding in looked_at(photos, 32, "zwx")[1] if finding.kind == "foreign"]
    assert [case.names for case in told.cases] == [("IMG_7.HEIC",)] and "JPEG" in told.fix


def test_a_clip_finds_two_subjects_among_the_photos(photos: Path) -> None:
    for number in range(5, 8):
        (photos / f"p{number}.png").write_bytes(encoded(scene(number, 128)))

    def see(pictures: Tensor) -> Tensor:
        rows = torch.eye(16)[[0] * 4 + [1] * (len(pictures) - 4)]
        return normalize(rows + 0.02 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)), dim=1)

    assert "mixed subjects" in {finding.kind for finding in looked_at(photos, 32, "zwx", see)[1]}
    assert "mixed subjects" not in {finding.kind for finding in looked_at(photos, 32, "zwx")[1]}


def test_what_is_said_of_captions_without_the_token_holds_where_it_is_said(photos: Path) -> None:
    (photos / "p0.txt").write_text("on the grass")
    (here,) = [finding for finding in looked_at(photos, 32, "zwx")[1] if finding.kind == "token"]
    report = check(open_photos(photos, 32), 32, more=lambda survey: subject_findings(survey, "zwx"))
    (elsewhere,) = [finding for finding in report.findings if finding.kind == "token"]
    assert "put in front of them" in here.fix and "preserve" in elsewhere.fix and "nothing:" not in elsewhere.fix


def test_the_same_file_again_is_no_other_photo(photos: Path, tmp_path: Path) -> None:
    for number in range(5):
        (photos / f"p{number}.png").write_bytes(encoded(scene(0)))
    (photos / "p3.txt").write_text("zwx at night")
    source, findings = looked_at(photos, 32, "zwx")
    assert "one picture" in next(finding.what for finding in findings if finding.kind == "count")
    (same,) = [finding for finding in findings if finding.kind == "duplicate"]
    assert same.fix == "nothing for ldm personalize, which learns from one of each"
    made = prepared(source, tmp_path / "out", 32, ("zwx",), "zwx", findings)
    assert (made.names, made.aside) == (("p0.png",), None) and len(list(made.training.glob("*.png"))) == 1
    assert (made.training / "0000.txt").read_text() == "zwx at night\n"  # what is said of any of them counts


def test_a_few_photos_are_all_trained_on(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for number in range(3):
        (tmp_path / "few" / f"{number}.png").write_bytes(encoded(scene(number)))
    made = prepared(looked_at(tmp_path / "few", 32, "zwx")[0], tmp_path / "made", 32, ("zwx",), "zwx")
    assert made.aside is None and not made.masked and len(made.files()) == 3


def test_broken_ones_are_left_out_and_nothing_is_an_error(photos: Path, tmp_path: Path) -> None:
    for number in range(20):
        (photos / f"q{number}.png").write_bytes(encoded(scene(20 + number)))
    (photos / "p2.png").write_bytes(b"no picture")
    source, findings = looked_at(photos, 32, "zwx")
    assert "unreadable" in {f.kind for f in findings}
    assert len(prepared(source, tmp_path / "made", 32, ("zwx",), "zwx").names) == 24
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", photos / "p0.png"):
        with pytest.raises(LdmError):
            looked_at(wrong, 32, "zwx")


def wish(token: str, **fields: object) -> Wish:
    return Wish(photos=Path("x"), token=token, model="m", out=Path("o"), **fields)  # type: ignore[arg-type]


def test_the_kind_is_the_token_s_last_word() -> None:
    assert (wish("sks dog").called, wish("zwx").called, wish("sks dog", kind="cat").called) == ("dog", "", "cat")
    assert (wish("Sks Dog!").name, wish("<zwx>").name, wish("**").name) == ("sks-dog", "zwx", "subject")


def test_class_pictures_teach_a_word_nothing_and_seeds_have_an_end() -> None:
    for fields in ({"prior": 4}, {"method": "inversion", "prior": 0}, {"method": "inversion"}, {"seed": 2**62 - 1}):
        wish("zwx", **fields)
    for wrong in ({"method": "inversion", "prior": 4}, {"seed": -1}, {"seed": 2**62}):
        with pytest.raises(ValidationError):
            wish("zwx", **wrong)


def test_common_words_and_words_in_many_pieces_are_remarked_on() -> None:
    large = Vocabulary(clip_tokenizer())
    assert "knows 'dog' already" in next(iter(remarks("dog", "", large, frozenset())))
    assert "falls into" in next(iter(remarks("qzwxkvjplm dog", "dog", large, frozenset())))
    assert not list(remarks("sks dog", "dog", large, frozenset()))
    rare = suggestion(large, frozenset())
    assert len(large.spots([rare])[0]) == 1 and not list(remarks(rare, "", large, frozenset()))
    small, known = Vocabulary(tokenizer()), frozenset(WORDS)
    assert "knows 'red' already" in next(iter(remarks("red dog", "dog", small, known)))
    for vocabulary, read in ((large, frozenset[str]()), (small, known)):  # the kind is a word, and may be all there is
        assert "knows 'dog' already" in next(iter(remarks("dog", "dog", vocabulary, read)))
        assert "knows 'red' already" in next(iter(remarks("red zwx dog", "dog", vocabulary, read)))
    assert "knows 'hotdog' already" in next(iter(remarks("hotdog", "dog", small, frozenset({"hotdog"}))))
    assert not list(remarks("sks guinea pig", "guinea pig", large, frozenset()))
    assert "'qzwxkvjplm' falls into" in next(iter(remarks("qzwxkvjplm dog", "dog", small, known)))
    assert not list(remarks("zwx dog", "dog", small, known))
    for signs in ("***", "\N{CAT FACE} dog"):
        assert "has no letters" in next(iter(remarks(signs, "dog", large, frozenset())))


def test_prompts_are_those_asked_for_those_beside_the_model_or_ones_that_it_can_read(tmp_path: Path) -> None:
    asked = prompts_for("zwx cat", "cat", tmp_path, (), ("{} asleep", "at night"), ("a house",))
    assert asked.subject == ("zwx cat asleep", "zwx cat, at night") and asked.kind == ("cat asleep", "cat, at night")
    assert asked.unrelated == ("a house",)
    general = prompts_for("zwx", "", tmp_path, (), (), ())
    assert all("zwx" in text for text in general.subject) and not general.kind and len(general.unrelated) > 3
    assert not {*general.prior} & {*general.unrelated}
    flowers = prompts_for("flowers", "", tmp_path, (), (), ())
    assert len(flowers.unrelated) == len(general.unrelated) - 1 and not any("flower" in t for t in flowers.unrelated)
    small = prompts_for("zwx", "", tmp_path, frozenset(WORDS), (), ())
    assert small.subject[0] == "zwx" and all(word in WORDS for text in small.unrelated for word in text.split())
    (tmp_path / "prompts.json").write_text('{"subject": ["{} blob"], "unrelated": ["a b"], "prior": ["c", "a b"]}')
    beside = prompts_for("zwx", "", tmp_path, frozenset(WORDS), (), ())
    assert (beside.subject, beside.unrelated, beside.prior) == (("zwx blob",), ("a b",), ("c",))


def test_captions_of_photos_without_words_are_those_beside_the_model_or_general_ones(tmp_path: Path) -> None:
    small = Base(tmp_path, 32, True, frozenset(WORDS), Vocabulary(tokenizer()))
    assert captions_for("zwx cat", small) == ("zwx cat", "a zwx cat")
    assert captions_for("zwx cat", replace(small, small=False)) == ("a photo of zwx cat",)
    (tmp_path / "prompts.json").write_text('{"captions": ["small {}", "blob"]}')
    assert captions_for("zwx cat", small) == ("small zwx cat", "zwx cat, blob")


@pytest.mark.parametrize("token", ["[V] dog", "(ohwx) man", "{a|b}", "__x__", "<lora:a:1>", "a BREAK b", "{}"])
def test_a_token_that_prompts_would_read_otherwise_is_refused(token: str) -> None:
    with pytest.raises(LdmError, match="syntax of prompts") as refused:
        refuse_syntax(token)
    assert "--token '" in refused.value.fix
    fixed = refused.value.fix.split("'")[1]
    refuse_syntax(fixed)
    for good in ("sks dog", "my-word", "zwx", "d'Artagnan", "chat noir"):
        refuse_syntax(good)


def test_what_is_to_be_done_about_photos_can_be_done_here(photos: Path) -> None:
    (photos / "p0.png").write_bytes(encoded(scene(0, 128).filter(ImageFilter.GaussianBlur(14))))
    (photos / "p1.png").write_bytes(encoded(scene(1, 128).resize((400, 128))))
    fixes = {finding.kind: finding.fix for finding in looked_at(photos, 32, "zwx")[1]}
    assert {"blurry", "crop"} <= fixes.keys()
    assert not any("--sheet" in fix or "data." in fix or "buckets" in fix for fix in fixes.values())
