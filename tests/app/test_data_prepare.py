"""`ldm data prepare`: published folders and tables become one table to train on; what is missing is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ldm.data.emoji_table import read_table
from tests.app.conftest import Ldm

NAMES = "# group: Smileys\n# subgroup: face\n1F600 ; fully-qualified # 😀 E1.0 grinning face\n"


@pytest.fixture
def noto(tmp_path: Path) -> Path:
    folder = tmp_path / "noto"
    folder.mkdir()
    Image.new("RGB", (72, 72), "yellow").save(folder / "emoji_u1f600.png")
    (tmp_path / "emoji-test.txt").write_text(NAMES, "utf-8")
    return folder


def test_folders_become_a_table_and_a_table_another(ldm: Ldm, noto: Path, tmp_path: Path) -> None:
    goal = tmp_path / "a.parquet"
    done = ldm("data", "prepare", goal, f"noto={noto}", "--names", tmp_path / "emoji-test.txt")
    assert done.status == 0 and "1 pictures of 1 things" in done.out and "noto 1" in done.out
    (row,) = read_table(goal)
    assert (row.name, row.style, row.license) == ("grinning face", "noto", "Apache-2.0")
    again = ldm("data", "prepare", tmp_path / "b.parquet", goal, "--json")
    assert again.status == 0 and again.json["pictures"] == 1 and json.dumps(again.json)


def test_what_is_missing_is_asked_for(ldm: Ldm, noto: Path, tmp_path: Path) -> None:
    goal = tmp_path / "a.parquet"
    nameless = ldm("data", "prepare", goal, f"noto={noto}")
    assert nameless.status == 2 and "--names emoji-test.txt" in nameless.err
    wrong = ldm("data", "prepare", tmp_path / "a.csv", f"noto={noto}")
    assert wrong.status == 2 and "pictures.parquet" in wrong.err
    missing = ldm("data", "prepare", goal, tmp_path / "none.parquet")
    assert missing.status == 5 and "none.parquet is not there" in missing.err
    assert not goal.exists()
    styleless = ldm("data", "prepare", goal, f"={noto}", "--names", tmp_path / "emoji-test.txt")
    assert styleless.status == 2 and "Write noto=FOLDER" in styleless.err


def test_what_is_there_already_is_said_before_anything_is_read(ldm: Ldm, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    found = ldm("data", "prepare", tmp_path / "a.parquet", tmp_path / "none.parquet")
    assert found.status == 5 and "exists already" in found.err


def test_a_table_with_an_equals_sign_in_its_path_is_a_table(ldm: Ldm, noto: Path, tmp_path: Path) -> None:
    (tmp_path / "v=2").mkdir()
    first = ldm("data", "prepare", tmp_path / "v=2/a.parquet", f"noto={noto}", "--names", tmp_path / "emoji-test.txt")
    assert first.status == 0
    assert ldm("data", "prepare", tmp_path / "b.parquet", tmp_path / "v=2/a.parquet").status == 0


@pytest.mark.parametrize(("column", "value"), [("group", "Smileys"), ("tags", "face, happy")])
def test_columns_of_another_kind_are_named(ldm: Ldm, tmp_path: Path, column: str, value: str) -> None:
    row = {"image": b"x", "name": "grinning face", "style": "noto", column: value}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "other.parquet")
    found = ldm("data", "prepare", tmp_path / "a.parquet", tmp_path / "other.parquet")
    assert found.status == 5 and f"{column} of grinning face is '{value}'" in found.err
