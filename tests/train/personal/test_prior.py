"""Pictures of the model itself: each prompt has its share, they are made once, and a stop or a rival costs none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from ldm.store.find import find_model
from pipelines.pipeline import Pipeline
from train.lock import Lock
from train.personal import prior
from train.personal.prior import class_pictures
from train.signals import Stop, Stopped

PROMPTS = ("a red circle", "a blue square", "a star")


def made(cache: Path, stop: Stop | None = None, **changes: object) -> Path:
    told: dict[str, object] = {"count": 4, "size": 32, "masked": False, "at_once": 8, "seed": 0, "prompts": PROMPTS,
                               "progress": lambda what, done, total: None} | changes  # fmt: skip
    return class_pictures(
        cache, find_model("scenes"), told.pop("prompts"), told.pop("count"), told.pop("size"),  # type: ignore[arg-type]
        device="cpu", stop=stop or Stop(), **told,  # type: ignore[arg-type]
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.torture
def test_what_a_stop_or_a_kill_leaves_is_gone_on_with_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"count": 11, "prompts": ("a red circle",), "masked": True}
    whole = made(tmp_path / "whole", **told)
    stop, drawn, run = Stop(), list[tuple[int, int]](), Pipeline.run

    def asked(self: Pipeline, request: Any) -> Iterator[Any]:
        drawn.append((request.seed, request.count))
        return run(self, request)

    def progress(what: str, done: int, total: int) -> None:
        if done == 8:
            stop.ask()

    monkeypatch.setattr(Pipeline, "run", asked)
    with pytest.raises(Stopped):
        made(tmp_path / "cut", stop, progress=progress, **told)
    (part,) = (tmp_path / "cut").iterdir()
    assert len(list((part / "pictures").glob("*.png"))) == 8
    cut = made(tmp_path / "cut", **told)
    assert drawn == [(0, 11), (8, 3)] and contents(cut) == contents(whole)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [cut.name]
    cut.rename(part)  # as a kill leaves it, in the middle of a batch
    (part / "pictures").mkdir()
    for path in [p for p in part.iterdir() if p.name != "pictures"]:
        path.rename(part / "pictures" / path.name)
    (part / "pictures" / "0010.png").unlink()
    (part / "pictures" / "made.json").unlink()
    assert contents(made(tmp_path / "cut", **told)) == contents(whole) and drawn[2:] == [(8, 3)]


def test_of_two_that_ask_at_once_the_second_takes_what_the_first_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path)
    aside = folder.rename(tmp_path / "aside")
    part = tmp_path / f".{folder.name}.part"
    part.mkdir()
    monkeypatch.setattr(prior, "WAIT", 0.01)
    monkeypatch.setattr(Pipeline, "load", lambda *a, **k: pytest.fail("drawn a second time"))
    with Lock(part):
        first = Timer(0.3, lambda: aside.rename(folder))
        first.start()
        assert made(tmp_path) == folder
        first.join()
