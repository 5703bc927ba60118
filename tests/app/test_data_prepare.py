"""`ldm data prepare`: published folders and tables become one table to train on; what is missing is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

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
