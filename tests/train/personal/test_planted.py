"""Adapters whose fault is known, on the model that ships: one trained far too long, one that learned nothing, one as
the command makes it. The report must tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.generate import DEFAULT_MODEL
from ldm.data.characters import character, draw_character, pose
from train.personal import watching
from train.personal.learn import Hooks, personalize
from train.personal.settings import Wish
from train.personal.verdict import Checkpoint, flags
from train.signals import Stop

pytestmark = [pytest.mark.torture, pytest.mark.timeout(7200)]
SEEDS = (0, 1, 2)


def photos(folder: Path, who: int) -> Path:
    folder.mkdir()
    for how in range(5):
        draw_character(character(who), pose(how), 128).save(folder / f"{how}.png")
    return folder


def last(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, rate: float | None, **changes: Any) -> Checkpoint:
    """The last checkpoint of a run with this rate, however bad."""
    if rate is not None:
        changes["rate"] = rate
        monkeypatch.setattr(watching, "is_done", lambda checkpoints: False)
    seen: list[Checkpoint] = []
    real = watching.Watching.at

    def at(self: watching.Watching, trainer: Any, step: int) -> None:
        real(self, trainer, step)
        seen[:] = self.checkpoints

    monkeypatch.setattr(watching.Watching, "at", at)
    wish = Wish(photos=photos(tmp_path / "photos", 3 + seed), token="zwx", model=DEFAULT_MODEL, seed=seed,
                out=tmp_path / "out" / "zwx", **changes)  # fmt: skip
    personalize(wish, Hooks(), Stop())
    return seen[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adapter_trained_far_too_long_is_called_a_copy(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large, and with nothing that keeps the model: it gives back the photos whatever is asked."""
    found = last(tmp_path, seed, monkeypatch, 1e-3, steps=1000, rank=64, prior=0, checkpoints=1, flip=False)
    assert flags(found.measures) >= {"copies", "drift"}, found


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adapter_trained_at_a_high_rate_is_flagged(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = last(tmp_path, seed, monkeypatch, 1e-2, steps=600, prior=0, checkpoints=2, flip=False)
    assert "drift" in flags(found.measures), found


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adapter_that_learned_nothing_is_called_that(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = last(tmp_path, seed, monkeypatch, 1e-7, steps=40, prior=0, checkpoints=1)
    assert flags(found.measures) == {"not learned"}, found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_adapter_is_not_flagged(seed: int, tmp_path: Path) -> None:
    wish = Wish(photos=photos(tmp_path / "photos", 3 + seed), token="zwx", model=DEFAULT_MODEL, seed=seed,
                out=tmp_path / "out" / "zwx")  # fmt: skip
    report = personalize(wish, Hooks(), Stop()).report
    # What is not known is not held against it: beside a new word this small model follows prompts too little to tell.
    assert set(report["flags"]) <= {"prompts unknown"}, report["verdict"]
