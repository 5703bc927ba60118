"""The check of a few pictures of one subject: what was planted is found, and what is fine is not called bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.data.doctor import Report, check
from ldm.data.examples import open_source
from ldm.data.facts import extent
from ldm.data.settings import DataSettings
from ldm.data.subject import Floats, subject_findings, two_groups, unlike
from tests.data.test_doctor import encoded, put, scene


def checked(folder: Path, token: str = "", features: Floats | None = None) -> Report:
    source = open_source(DataSettings(path=str(folder), size=64, kind="folder"))
    return check(source, 64, more=lambda survey: subject_findings(survey, token, features))


def told(report: Report) -> dict[str, list[tuple[str, ...]]]:
    return {finding.kind: [case.names for case in finding.cases] for finding in report.findings}


@pytest.mark.parametrize(
    ("pictures", "level", "words"),
    [
        (1, "warn", "one picture"),
        (3, "note", "too few to judge by"),
        (6, None, ""),
        (60, "warn", "more than one subject"),
    ],
)
def test_how_many_there_are(tmp_path: Path, pictures: int, level: str | None, words: str) -> None:
    for number in range(pictures):
        put(tmp_path, f"{number:02}.png", encoded(scene(number)), None)
    found = [f for f in checked(tmp_path).findings if f.kind == "count"]
    assert [f.level for f in found] == ([] if level is None else [level])
    assert all(words in f.what for f in found)


def test_a_small_subject_is_found_by_edges_or_by_what_is_opaque(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path, f"ok{number}.png", encoded(scene(number)), None)
    small = Image.new("RGB", (128, 128), (120, 160, 200))
    ImageDraw.Draw(small).ellipse((20, 30, 44, 54), fill=(200, 30, 30))
    put(tmp_path, "far.png", encoded(small), None)
    clear = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    ImageDraw.Draw(clear).rectangle((90, 90, 110, 120), fill=(0, 90, 0, 255))
    put(tmp_path, "cut.png", encoded(clear), None)
    assert sorted(told(checked(tmp_path))["small subject"]) == [("cut.png",), ("far.png",)]


def test_extent_is_the_share_that_edges_fill() -> None:
    luma = np.zeros((100, 200), np.float32)
    assert extent(luma) == 1.0  # nothing to judge by
    luma[20:70, 40:120] = 1
    assert extent(luma) == pytest.approx(0.5 * 0.4, rel=0.1)
    opaque = np.zeros((100, 200), bool)
    opaque[10:20, 0:100] = True
    assert extent(luma, opaque) == pytest.approx(0.1 * 0.5)


def test_words_that_tell_what_the_token_is_to_learn(tmp_path: Path) -> None:
    places = ("on grass", "in a car", "by the sea", "at night", "under a tree")
    for number, place in enumerate(places):
        put(tmp_path, f"{number}.png", encoded(scene(number)), f"a photo of sks dog with a red collar, {place}")
    report = checked(tmp_path, "sks dog")
    assert sorted(told(report)["leaking words"]) == [("collar",), ("red",)]
    assert "token" not in told(report)
    assert len(told(checked(tmp_path, "zwx"))["token"]) == 5
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "1.txt").write_text("sks dog asleep")
    assert "leaking words" not in told(checked(tmp_path, "sks dog"))


def groups(*counts: int, spread: float = 0.1) -> Floats:
    """Unit rows around as many directions."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.eye(16)[[k] * n] + rng.normal(0, spread, (n, 16)) for k, n in enumerate(counts)])
    return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_two_subjects_are_told_apart_and_one_is_not_split() -> None:
    assert two_groups(groups(4, 3)) == ([0, 1, 2, 3], [4, 5, 6])
    for spread in (0.05, 0.1, 0.3):
        assert two_groups(groups(8, spread=spread)) is None
    assert unlike(groups(7, 1)) == [7] and unlike(groups(8)) == [] and unlike(groups(1, 1)) == []


def test_features_tell_mixed_subjects_and_strangers(tmp_path: Path) -> None:
    for number in range(7):
        put(tmp_path, f"{number}.png", encoded(scene(number)), None)
    report = told(checked(tmp_path, features=groups(4, 3)))
    assert report["mixed subjects"] == [("0.png", "1.png", "2.png", "3.png"), ("4.png", "5.png", "6.png")]
    assert told(checked(tmp_path, features=groups(6, 1)))["unlike"] == [("6.png",)]
    assert not {"mixed subjects", "unlike"} & told(checked(tmp_path, features=groups(7))).keys()
