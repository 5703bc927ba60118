"""`make demo`: the page and every picture on it."""

from __future__ import annotations

import re
from pathlib import Path

from app.demo import make
from pipelines.recipe import read_recipe


def test_the_demonstration_shows_every_mode_and_overwrites_nothing(tmp_path: Path) -> None:
    index = make(tmp_path / "demo")
    page = index.read_text("utf-8")
    shown = re.findall(r"src='([^']+)'", page)
    assert len(shown) >= 25
    assert all((index.parent / name).is_file() for name in shown)
    assert "outside the mask: 0" in page
    assert (index.parent / "sheet.png").is_file()
    made = [name for name in shown if "seed" in name]
    assert all(read_recipe(index.parent / name).pixels for name in made)
    assert "http" not in page
