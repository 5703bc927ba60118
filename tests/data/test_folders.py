"""Folders in each layout give the pictures, words and repeats that lie there; what would be passed over is an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.examples import check_captions, open_source
from ldm.data.mixture import Mixture
from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from tests.data import sets


def opened(path: Path, **settings: object) -> Mixture:
    return open_source(DataSettings.model_validate({"path": str(path), "size": 8, **settings}))


def captions(source: Mixture) -> dict[str, tuple[str, ...]]:
    return {source.name(i): source.about(i).captions for i in range(len(source))}


def error(path: Path, **settings: object) -> LdmError:
    with pytest.raises(LdmError) as caught:
        opened(path, **settings)
    return caught.value


def test_sidecars(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 3)
    (root / "00.txt").unlink()
    (root / "00.caption").write_text("\ufeffeine Möwe\n\n zwei Möwen \n", "utf-8")
    (root / "01.txt").write_bytes("drei Möwen".encode("utf-16"))
    (root / "02.txt").write_bytes(b"caf\xe9")
    (root / ".hidden.png").write_bytes(b"")
    (root / "deep" / "er").mkdir(parents=True)
    sets.picture(3).save(root / "deep" / "er" / "x.JPG", "JPEG")
    (root / "deep" / "er" / "x.txt").write_text("deep")
    assert captions(opened(root)) == {
        "00.png": ("eine Möwe", "zwei Möwen"),
        "01.png": ("drei Möwen",),
        "02.png": ("caf\ufffd",),
        "deep/er/x.JPG": ("deep",),
    }


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root, names in ((one, "b a/c a/B d"), (other, "d a/B a/c b")):
        for name in names.split():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            sets.picture(0).save(root / f"{name}.png")
    names = [[s.name(i) for i in range(len(s))] for s in (opened(one, kind="folder"), opened(other, kind="folder"))]
    assert names[0] == names[1] == ["a/B.png", "a/c.png", "b.png", "d.png"]


def test_metadata_tables(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 4, texts=False)
    rows = [
        {"file_name": "00.png", "text": "zero", "label": "cat", "artist": "A"},
        {"file_name": "./02.png", "text": ["two", "a pair"], "label": "dog", "artist": None},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source = opened(root)
    assert captions(source) == {"00.png": ("zero",), "02.png": ("two", "a pair")}
    assert source.labels == ("cat", "dog")
    assert [source.about(i).label for i in range(2)] == [0, 1]
    assert captions(opened(root, caption=["{text} by {artist}"])) == {
        "00.png": ("zero by A",),
        "02.png": ("two by", "a pair by"),
    }
    assert captions(opened(root, where={"label": ["dog"]})) == {"02.png": ("two", "a pair")}
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text('file_name,text\r\n03.png,"one, ""two"""\r\n01.png,\r\n')
    assert captions(opened(root)) == {"03.png": ('one, "two"',), "01.png": ()}
    assert captions(opened(root / "metadata.csv")) == captions(opened(root))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.jsonl", '{"file_name": "00.png"}\n{"file_name": "no.png"}\n', "no.png (line 2)"),
        ("metadata.jsonl", '{"file_name": "00.png"}\n{"file_name": ', "line 2 cannot be read"),
        ("metadata.jsonl", "[]\n", "line 1 cannot be read"),
        ("metadata.jsonl", '{"file_name": "00.png"}\n{"text": "x"}\n', "line 2 has no file_name"),
        ("metadata.csv", "file_name;text\n00.png;a\n", "no column 'file_name'"),
        ("metadata.jsonl", '{"file_name": "../secret.png"}\n', "leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "/etc/passwd"}\n', "leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "a\\\\..\\\\..\\\\x.png"}\n', "leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "00.png", "hint": "../x.png"}\n', "leads out of the folder"),
        ("metadata.jsonl", "", "the table is empty"),
        ("metadata.csv", "file_name,text\n00.png,a,b\n", "line 2 cannot be read"),
        ("metadata.csv", 'file_name,text\n00.png,"a\n', "cannot be read"),
    ],
)
def test_bad_tables_name_their_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    root = sets.folder(tmp_path / "set", 1, texts=False)
    (root / name).write_text(text)
    assert words in str(error(root))


def test_kohya_folders(tmp_path: Path) -> None:
    root = tmp_path / "img"
    sets.folder(root / "10_sks dog", 2, texts=False)
    sets.folder(root / "3_cat", 1)
    (root / "log").mkdir()
    source = opened(root, repeats=2)
    assert captions(source) == {
        "10_sks dog/00.png": ("sks dog",),
        "10_sks dog/01.png": ("sks dog",),
        "3_cat/00.png": ("picture 0",),
    }
    assert [source.about(i).weight for i in range(3)] == [20, 20, 6]
    weights = source.weights()
    assert weights is not None and weights.tolist() == [20, 20, 6]


def test_a_folder_that_kohya_would_skip_is_an_error_with_the_fix(tmp_path: Path) -> None:
    root = tmp_path / "img"
    sets.folder(root / "10_sks dog", 2)
    sets.folder(root / "reg", 3)
    found = error(root)
    assert "3 pictures in reg would be passed over" in found.what
    assert "'1_reg'" in found.fix
    assert "data.path to" in error(tmp_path).fix and str(root) in error(tmp_path).fix
    sets.picture(0).save(tmp_path / "img" / "loose.png")
    assert "the folder itself" in error(root).what


def test_years_are_no_repeats(tmp_path: Path) -> None:
    for name in ("2023_summer", "2024_winter"):
        sets.folder(tmp_path / name, 1)
    assert opened(tmp_path).weights() is None


def test_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("red fox", "owl")):
        sets.picture(number).save((sets.folder(tmp_path / name, 0)) / "a.png")
    source = opened(tmp_path)
    assert source.labels == ("owl", "red fox")
    assert captions(source) == {"owl/a.png": ("owl",), "red fox/a.png": ("red fox",)}
    assert captions(opened(tmp_path, caption="a photo of a {label}"))["owl/a.png"] == ("a photo of a owl",)
    sets.picture(0).save(tmp_path / "loose.png")
    assert "loose.png" in error(tmp_path, kind="classes").what


def test_hints_and_masks_lie_beside(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 2)
    sets.folder(root / "hints", 1)
    (root / "masks").mkdir()
    Image.new("L", (12, 12), 128).save(root / "masks" / "01.webp", lossless=True)
    source = opened(root)
    assert len(source) == 2
    hint, mask = source.hint(0), source.mask(1)
    assert hint is not None and hint.pixels[0, 0].tolist() == list(sets.colour(0))
    assert mask is not None and mask.pixels[0, 0, 0] == 128
    assert source.hint(1) is None and source.mask(0) is None


def test_a_hint_column_wins(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 3, texts=False)
    (root / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x", "hint": "02.png"}\n')
    hint = opened(root).hint(0)
    assert hint is not None and hint.pixels[0, 0].tolist() == list(sets.colour(2))


def test_pictures_come_upright_with_their_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for suffix in ("jpg", "png", "webp", "tiff"):
            Image.fromarray(base).save(tmp_path / f"{turn}.{suffix}", exif=exif)
    source = opened(tmp_path)
    assert len(source) == 32
    for index in range(32):
        assert source.size(index) == source.picture(index).size, source.name(index)
    assert {source.size(i) for i in range(32)} == {(24, 16), (16, 24)}


def test_empty_folders(tmp_path: Path) -> None:
    assert "holds no picture" in error(tmp_path).what
    (tmp_path / "a.heic").write_bytes(b"x")
    assert "convert" in error(tmp_path).fix
    missing = error(tmp_path / "nowhere")
    assert missing.code is Code.FILE and "not there" in missing.what
    (tmp_path / "notes.doc").write_bytes(b"x")
    assert "neither a folder nor" in error(tmp_path / "notes.doc").what


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 9)
    for number in range(7):
        (root / f"{number:02}.txt").write_text(" \n")
    settings = DataSettings(path=str(root), size=8)
    with pytest.raises(LdmError) as caught:
        check_captions(open_source(settings), settings)
    assert "7 of 9 pictures have no caption" in caught.value.what
    assert "00.png, 01.png, 02.png, 03.png, 04.png and 2 more" in caught.value.why
    assert "data.uncaptioned=empty" in caught.value.fix
    check_captions(open_source(settings), DataSettings(path=str(root), size=8, uncaptioned="empty"))


@pytest.mark.parametrize("caption", ["a {colour} thing", "a {name!r}", "a {name", "a {name.real}", "{0}"])
def test_templates_take_fields_and_nothing_else(tmp_path: Path, caption: str) -> None:
    source = opened(sets.folder(tmp_path / "set", 1), caption=caption)
    with pytest.raises(LdmError, match="caption"):
        source.about(0)


def test_the_row_of_a_table_wins_in_templates_and_numbers_stay_classes(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 2, texts=False)
    (root / "metadata.csv").write_text("file_name,name,label\n00.png,grin,10\n01.png,tears,2\n")
    source = opened(root, caption="{name} emoji")
    assert captions(source) == {"00.png": ("grin emoji",), "01.png": ("tears emoji",)}
    assert [source.about(i).label for i in range(2)] == [10, 2] and source.labels[10] == "10"
    (root / "metadata.csv").write_text("file_name,label\n00.png,20240501\n01.png,20231224\n")
    source = opened(root)
    assert [source.about(i).label for i in range(2)] == [1, 0] and source.labels == ("20231224", "20240501")


def test_class_numbers_stay_in_a_mix(tmp_path: Path) -> None:
    parts = []
    for name in ("one", "two"):
        root = sets.folder(tmp_path / name, 1, texts=False)
        (root / "metadata.csv").write_text("file_name,label\n00.png,10\n")
        parts.append({"path": str(root)})
    source = open_source(DataSettings.model_validate({"mix": parts, "size": 8}))
    assert [source.about(i).label for i in range(2)] == [10, 10]


def test_a_hint_column_is_read_as_it_was_checked(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 1, texts=False)
    (root / "edges").mkdir()
    sets.picture(5).save(root / "edges" / "a.png")
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "00.png", "hint": "edges\\a.png"}))
    hint = opened(root).hint(0)
    assert hint is not None and hint.pixels[0, 0].tolist() == list(sets.colour(5))


def test_nothing_is_passed_over_in_silence(tmp_path: Path) -> None:
    linked = sets.folder(tmp_path / "linked", 2)
    (linked / "more").symlink_to(sets.folder(tmp_path / "elsewhere", 2))
    assert "more" in error(linked).what and "links" in error(linked).what
    for name in ("hats", "masks", "shoes"):
        sets.folder(tmp_path / "classes" / name, 2, texts=False)
    assert "2 pictures in 'masks' belong to no picture" in error(tmp_path / "classes").what
    for split in ("train", "val"):
        sets.folder(tmp_path / "split" / split / "cat", 1, texts=False)
    assert "train, val, which are no classes" in error(tmp_path / "split").what
    assert "data.where does nothing" in error(sets.folder(tmp_path / "plain", 1), where={"split": "train"}).what
    assert "data.where does nothing" in error(Path("scenes"), where={"split": "train"}).what
    both = sets.folder(tmp_path / "both", 2)
    sets.shard(both / "backup.tar", {"0.png": sets.png(0)})
    assert "holds shards and pictures" in error(both).what
    assert len(opened(both, kind="shards")) == 1 and len(opened(both, kind="folder")) == 2


def test_a_text_that_is_no_caption_is_not_read_whole(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 1)
    (root / "00.txt").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(LdmError, match="is no caption"):
        opened(root).about(0)
