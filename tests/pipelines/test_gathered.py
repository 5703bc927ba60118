"""Requests of several people that share calls: pictures as if each had been made alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction
from ldm.models.gathering import Ended, Gathering, Run, gathered
from ldm.models.latent import Cond
from pipelines.pipeline import Pipeline
from pipelines.request import GuidanceUse, Request
from pipelines.steps import Result, Step
from tests.pipelines.test_mixes import lora

ASKED = (
    Request(prompt="a red circle", steps=4, seed=1, width=32, height=32),
    Request(prompt="two blue squares, (green:1.3)", negative="grey", steps=6, seed=2, width=32, height=32),
    Request(prompt="a star", steps=3, seed=3, count=2, solver="euler-a", width=32, height=32),
    Request(prompt="no guidance", steps=4, seed=4, width=32, height=32, guidance=GuidanceUse(scale=1.0)),
    Request(prompt="larger", steps=2, seed=5, width=48, height=32),
)


@pytest.fixture
def sharing(four: Pipeline) -> Iterator[Pipeline]:
    before, four.sharing = four.sharing, gathered
    yield four
    four.sharing = before


def made(pipeline: Pipeline, asked: Sequence[Request], most: int = 64) -> list[list[Result]]:
    """All requests at once."""
    gathering = Gathering[Step](most)
    gathering.runs = [Run(pipeline.run(request)) for request in asked]
    found: dict[Run[Step], list[Result]] = {run: [] for run in gathering.runs}

    def heard(run: Run[Step], told: Step | Ended) -> None:
        if isinstance(told, Ended):
            assert told.error is None, told.error
        else:
            found[run] += told.done

    while gathering.runs:
        gathering.turn(heard)
    return list(found.values())


def test_pictures_are_those_of_each_request_alone(sharing: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [sharing.results(request) for request in ASKED]
    rows = list[int]()
    network = type(sharing.model.network)
    plain = network.__call__

    def counted(self: object, x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        rows.append(len(x) * len(conds))
        said: list[Prediction] = plain(self, x, level, conds)  # type: ignore[arg-type]
        return said

    monkeypatch.setattr(network, "__call__", counted)
    together = made(sharing, ASKED)
    for ours, theirs in zip(together, alone, strict=True):
        assert [r.seed for r in ours] == [r.seed for r in theirs]
        for one, other in zip(ours, theirs, strict=True):
            apart = np.abs(one.picture.pixels.astype(int) - other.picture.pixels.astype(int))
            assert apart.max() <= 2 and one.recipe.request == other.recipe.request
    # three with guidance share (4, 6 and 3 steps; the last is two pictures), one has none, one is of another size
    assert sorted(rows) == sorted([2 + 2 + 4] * 3 + [2 + 2] + [2] * 2 + [1] * 4 + [2] * 2)


def test_what_cannot_be_made_ends_alone(sharing: Pipeline) -> None:
    gathering = Gathering[Step](most=64)
    bad = Run(sharing.run(ASKED[0].model_copy(update={"width": 12})))
    good = Run(sharing.run(ASKED[0]))
    gathering.runs = [bad, good]
    ends: dict[Run[Step], str] = {}
    while gathering.runs:
        gathering.turn(lambda run, told: ends.update({run: str(told.error)}) if isinstance(told, Ended) else None)
    assert "12" in ends[bad] and ends[good] == "None"


def test_adapters_of_one_request_do_not_act_in_another(sharing: Pipeline, tmp_path: Path) -> None:
    used = lora(sharing, tmp_path / "adapter.safetensors")
    plain = Request(prompt="a red circle", steps=4, seed=1, width=32, height=32)
    asked = [plain, plain.model_copy(update={"loras": (used,)}), plain.model_copy(update={"seed": 7, "loras": (used,)})]
    alone = [sharing.results(request)[0].picture.pixels.astype(int) for request in asked]
    assert np.abs(alone[0] - alone[1]).max() > 2  # the adapter acts
    together = [found[0].picture.pixels.astype(int) for found in made(sharing, asked)]
    assert all(np.abs(one - other).max() <= 2 for one, other in zip(together, alone, strict=True))
