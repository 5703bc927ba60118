"""Other sizes than that of training: a small model draws them, and says that things may repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.pipeline import Pipeline
from pipelines.request import Request, TileUse


@pytest.fixture(scope="module")
def scenes() -> Pipeline:
    return Pipeline.load("scenes", device="cpu")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, False),
        ({"width": 32, "height": 32}, False),
        ({"width": 40, "height": 24}, False),  # a shape of much the same area, as buckets have them
        ({"width": 48, "height": 32}, True),
        ({"width": 64, "height": 16}, True),  # the area is its own, the shape is not
        ({"width": 24, "height": 24}, True),
        ({"width": 64, "height": 64, "tile": TileUse(size=32, overlap=8)}, False),
    ],
)
def test_only_another_size_is_remarked_on(scenes: Pipeline, fields: dict[str, Any], told: bool) -> None:
    (result,) = scenes.results(Request(prompt="a red circle", steps=1, **fields))
    assert any("own size is 32x32" in note for note in result.recipe.notes) == told
    assert result.picture.pixels.shape[:2] == (fields.get("height", 32), fields.get("width", 32))


def test_models_that_people_publish_bear_other_sizes(tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(tiny_sd1, device="cpu")
    monkeypatch.setattr(pipeline.model.parts, "family", "sd1")
    (result,) = pipeline.results(Request(prompt="a", steps=1, width=24, height=16))
    assert not any("own size" in note for note in result.recipe.notes)
