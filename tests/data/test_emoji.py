"""Emoji as a table: names without skin tones, equal pictures, what is kept from training, wordings, sources."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.emoji import KEPT, TRAIN, Emoji, base, prepared, wordings
from ldm.data.emoji_folders import fitted, key_of, read_keywords, read_names, read_style
from ldm.data.emoji_table import read_table, write_table
from ldm.errors import LdmError
from ldm.images import open_image

STYLES = ("blob", "noto", "twemoji")


def webp(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (size, size), (value % 256, value // 256 % 256, 7, 255)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def in_all_styles(count: int) -> list[Emoji]:
    return [
        Emoji(webp(3 * i + s), f"thing {i}", style, ("tool", "small"))
        for i in range(count)
        for s, style in enumerate(STYLES)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("octopus", "octopus"),
        ("waving hand: medium-light skin tone", "waving hand"),
        ("woman: dark skin tone, red hair", "woman: red hair"),
        ("couple with heart: woman, man, light skin tone, dark skin tone", "couple with heart: woman, man"),
        ("flag: France", "flag: France"),
        ("medium skin tone", "medium skin tone"),
    ],
)
def test_a_base_name_has_no_skin_tone(name: str, expected: str) -> None:
    assert base(name) == expected


def test_every_kept_pair_is_known_in_two_other_styles_and_no_picture_of_it_trains() -> None:
    rows = prepared(in_all_styles(200))
    kept = [row for row in rows if row.split == KEPT]
    assert 5 <= len(kept) <= 40  # one name in twelve
    for row in kept:
        others = [r for r in rows if r.name == row.name and r.split == TRAIN]
        assert {r.style for r in others} == set(STYLES) - {row.style}


def test_tones_of_a_kept_pair_are_kept_with_it() -> None:
    kept = next(row for row in prepared(in_all_styles(200)) if row.split == KEPT)
    toned = Emoji(webp(60_000), f"{kept.name}: dark skin tone", kept.style)
    rows = prepared([*in_all_styles(200), toned])
    assert rows[-1].name == toned.name and rows[-1].split == KEPT


def test_a_picture_that_also_shows_a_kept_pair_does_not_train() -> None:
    rows = in_all_styles(200)
    kept = next(row for row in prepared(rows) if row.split == KEPT)
    double = next(row for row in prepared(rows) if row.split == TRAIN and row.style == kept.style)
    same = [
        Emoji(kept.image, r.name, r.style) if r.name == double.name and r.style == double.style else r for r in rows
    ]
    merged = next(row for row in prepared(same) if row.style == kept.style and kept.name in row.names)
    assert set(merged.names) == {kept.name, double.name} and merged.split == KEPT


def test_a_pair_whose_picture_another_style_has_too_is_not_kept_for_training_would_see_it() -> None:
    rows = in_all_styles(200)
    kept = next(row for row in prepared(rows) if row.split == KEPT)
    twin = next(style for style in STYLES if style != kept.style)
    shared = [replace(r, image=kept.image) if (r.name, r.style) == (kept.name, twin) else r for r in rows]
    assert {r.split for r in prepared(shared) if r.name == kept.name} == {TRAIN}


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = in_all_styles(60)
    splits = {(r.name, r.style): r.split for r in prepared(rows)}
    assert {(r.name, r.style): r.split for r in prepared(rows[::-1])} == splits


def test_equal_pictures_are_one_row_with_the_words_of_both() -> None:
    image = webp(1)
    rows = prepared([Emoji(image, "person walking", "noto", ("hike",)), Emoji(image, "man walking", "noto", ("man",))])
    assert len(rows) == 1
    assert rows[0].names == ("person walking", "man walking") and rows[0].tags == ("hike", "man")
    assert any(text.startswith("man walking, noto style") for text in rows[0].captions)


def test_wordings_say_name_and_style_half_of_the_time_and_are_always_the_same() -> None:
    row = Emoji(webp(1), "flag: Norway", "blob", ("NO", "Bouvet"))
    texts = wordings(row)
    plain = [text for text in texts if text == "flag: Norway, blob style"]
    assert 0.4 <= len(plain) / len(texts) <= 0.6
    assert texts == wordings(row)
    unstyled = [text for text in texts if "blob" not in text]
    assert len(unstyled) == 2 and unstyled[0] == f"{unstyled[1]} emoji"
    assert unstyled[1] in ("flag: Norway", "Norway flag")


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = prepared(in_all_styles(20))
    write_table(rows, tmp_path / "a.parquet")
    again = list(read_table(tmp_path / "a.parquet"))
    assert [(r.image, r.name, r.names, r.style, r.tags, r.split) for r in again] == [
        (r.image, r.name, r.names, r.style, r.tags, r.split) for r in rows
    ]
    assert prepared(again) == rows  # prepared once more: the same
    with pytest.raises(LdmError, match="exists already"):
        write_table(rows, tmp_path / "a.parquet")


def test_a_table_without_a_needed_column_is_refused_by_name(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"image": [b"x"], "name": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(LdmError, match="no column 'style'"):
        list(read_table(tmp_path / "a.parquet"))


NAMES = """# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
# group: People & Body
# subgroup: person-role
1F468 1F3FB 200D 1F4BB ; fully-qualified     # 👨🏻‍💻 E4.0 man technologist: light skin tone
2764 FE0F                                              ; fully-qualified     # ❤️ E0.6 red heart
2764                                                   ; unqualified         # ❤ E0.6 red heart
"""


def published(tmp_path: Path) -> tuple[Path, Path, Path]:
    (tmp_path / "emoji-test.txt").write_text(NAMES, "utf-8")
    words = {
        "annotations": {
            "annotations": {"😀": {"default": ["face", "grin"], "tts": ["grinning face"]}, "❤": {"default": ["heart"]}}
        }
    }
    (tmp_path / "annotations.json").write_text(json.dumps(words), "utf-8")
    folder = tmp_path / "png"
    folder.mkdir()
    for name, colour in (
        ("emoji_u1f600", "yellow"),
        ("1f468-1f3fb-200d-1f4bb", "blue"),
        ("2764", "red"),
        ("about", "grey"),
    ):
        Image.new("RGB", (72, 36), colour).save(folder / f"{name}.png")
    return tmp_path / "emoji-test.txt", tmp_path / "annotations.json", folder


def test_published_folders_get_unicodes_names_groups_and_keywords(tmp_path: Path) -> None:
    names, words, folder = published(tmp_path)
    rows = {r.name: r for r in read_style("noto", folder, read_names(names), read_keywords(words))}
    assert set(rows) == {"grinning face", "man technologist: light skin tone", "red heart"}
    assert rows["grinning face"].tags == ("face", "grin") and rows["red heart"].tags == ("heart",)
    assert (rows["red heart"].group, rows["red heart"].subgroup) == (1, 1)
    assert rows["red heart"].codepoints == "2764-FE0F" and rows["red heart"].license == "Apache-2.0"


def test_pictures_of_any_shape_lie_in_a_transparent_square(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (10, 20, 30)).save(tmp_path / "a.png")
    picture = open_image(fitted(open_image(tmp_path / "a.png")))
    assert picture.size == (128, 128) and picture.alpha is not None
    assert picture.alpha[0, 0] == 0 and picture.alpha[64, 64] == 255
    assert np.array_equal(picture.pixels[64, 64], (10, 20, 30))


@pytest.mark.parametrize(
    ("text", "key"), [("emoji_u1f469_200d_1f4bb", (0x1F469, 0x200D, 0x1F4BB)), ("2764-fe0f", (0x2764,)), ("readme", ())]
)
def test_keys_are_code_points_without_presentation(text: str, key: tuple[int, ...]) -> None:
    assert key_of(text) == key


def test_folders_and_lists_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    names, words, _ = published(tmp_path)
    empty = tmp_path / "svg"
    empty.mkdir()
    with pytest.raises(LdmError, match="holds no emoji"):
        list(read_style("noto", empty, read_names(names), {}))
    with pytest.raises(LdmError, match="names no emoji"):
        read_names(words)
    with pytest.raises(LdmError, match="holds no keywords"):
        read_keywords(names)
    with pytest.raises(LdmError, match="cannot be read"):
        read_names(tmp_path / "missing.txt")
