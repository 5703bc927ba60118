"""Pictures of the model itself: each prompt has its share, they are made once, and a stop leaves nothing half made."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.store.find import find_model
from train.personal.prior import class_pictures
from train.signals import Stop, Stopped

PROMPTS = ("a red circle", "a blue square", "a star")


def made(cache: Path, stop: Stop | None = None, **changes: object) -> Path:
    told: dict[str, object] = {"count": 4, "size": 32, "masked": False, "seed": 0} | changes
    return class_pictures(
        cache, find_model("scenes"), PROMPTS, told.pop("count"), told.pop("size"), device="cpu",  # type: ignore[arg-type]
        progress=lambda what, done, total: None, stop=stop or Stop(), **told,  # type: ignore[arg-type]
    )  # fmt: skip


def test_they_are_made_once_for_the_same_wish(tmp_path: Path) -> None:
    folder = made(tmp_path)
    texts = [path.read_text().strip() for path in sorted(folder.glob("*.txt"))]
    assert texts == ["a red circle", "a red circle", "a blue square", "a star"]
    assert len(list(folder.glob("*.png"))) == 4
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert made(tmp_path) == folder and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    masked = made(tmp_path, masked=True, count=2)
    assert masked != folder and len(list((masked / "masks").glob("*.png"))) == 2


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    stop = Stop()
    stop.ask()
    with pytest.raises(Stopped):
        made(tmp_path, stop)
    assert not list(tmp_path.iterdir())
