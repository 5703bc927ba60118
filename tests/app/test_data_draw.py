"""`ldm data draw`: pictures and captions as files, the same for the same seed; nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.data.scenes import caption, draw, sample_scene
from ldm.errors import Code
from ldm.images import open_image
from tests.app.conftest import Ldm


def test_pictures_are_the_scenes_of_the_seed_with_their_captions(ldm: Ldm) -> None:
    told = ldm("data", "draw", "mine", "--count", 11, "--size", 48, "--seed", 3, "--json").json
    assert told == {"path": "mine", "pictures": 11, "size": 48}
    assert sorted(p.name for p in Path("mine").glob("*.png")) == [f"{i:02d}.png" for i in range(11)]
    for i in (0, 10):
        scene = sample_scene(i, 3)
        assert Path(f"mine/{i:02d}.txt").read_text("utf-8") == caption(scene) + "\n"
        assert np.abs(open_image(f"mine/{i:02d}.png").pixels / 255 - draw(scene, 48)).max() <= 0.5 / 255 + 1e-6


def test_what_is_there_stays(ldm: Ldm) -> None:
    Path("mine").mkdir()
    done = ldm("data", "draw", "mine", "--count", 2)
    assert (done.status, "exists already" in done.err) == (Code.FILE, True)
    assert list(Path("mine").iterdir()) == []


@pytest.mark.parametrize("wrong", [("--count", "0"), ("--size", "8"), ("--count", "x"), ("--seed", "-1")])
def test_bad_numbers_are_refused(ldm: Ldm, wrong: tuple[str, str]) -> None:
    assert ldm("data", "draw", "mine", *wrong).status == Code.USAGE
    assert ldm("data", "draw", " ").status == Code.USAGE
    assert not Path("mine").exists()


def test_a_creature_is_drawn_in_many_poses_without_words(ldm: Ldm, tmp_path: Path) -> None:
    done = ldm("data", "draw", "mine", "--character", 3, "--count", 4, "--size", 48, "--json")
    assert done.status == 0 and done.json["pictures"] == 4
    files = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert files == ["0.png", "1.png", "2.png", "3.png"]
    assert len({(tmp_path / "mine" / name).read_bytes() for name in files}) == 4
    assert ldm("data", "draw", "other", "--character", 4, "--count", 4, "--size", 48).status == 0
    assert (tmp_path / "other/0.png").read_bytes() != (tmp_path / "mine/0.png").read_bytes()
