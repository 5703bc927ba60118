"""Settings that suit a model and its adapters: what nobody said, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from ldm.errors import LdmError
from pipelines.pipeline import Pipeline
from pipelines.request import GuidanceUse, LoraUse
from pipelines.suited import merged, settled


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A model's folder and an adapter with settings of its own."""
    (tmp_path / "sampling.json").write_text('{"steps": 15, "solver": "ddim", "guidance": 3.0}', "utf-8")
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast/sampling.json").write_text('{"steps": 4, "solver": "lcm", "guidance": 1.0}', "utf-8")
    save_file({}, tmp_path / "fast/fast.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "scale", "rescale"),
    [
        ({"guidance": {"rescale": 0.5}}, 3.0, 0.5),
        ({"guidance": GuidanceUse(rescale=0.5)}, 3.0, 0.5),
        ({"guidance": GuidanceUse(scale=7.5)}, 7.5, None),  # its default, and said
        ({}, 3.0, None),
    ],
)
def test_who_gives_a_part_of_the_guidance_has_not_said_the_others(
    home: Path, fields: dict[str, Any], scale: float, rescale: float | None
) -> None:
    told = settled(home, "x", fields)["guidance"]
    assert (told["scale"], told.get("rescale")) == (scale, rescale)


def test_a_spacing_or_levels_of_noise_leave_the_solver_open(home: Path) -> None:
    assert settled(home, "x", {})["solver"] == "ddim"
    assert "solver" not in settled(home, "x", {"spacing": "karras"})
    assert "solver" not in settled(home, "x", {"sigmas": [10.0, 1.0]})
    assert settled(home, "x", {"spacing": "karras", "solver": "euler"})["solver"] == "euler"
    assert settled(home, "x", {"spacing": "auto"})["solver"] == "ddim"


def test_an_adapter_goes_before_the_model_unless_its_weight_is_nought(home: Path) -> None:
    assert settled(home, "x", {"loras": [LoraUse(path=home / "fast")]})["steps"] == 4
    assert settled(home, "x", {"loras": [{"path": str(home / "fast")}], "steps": 2})["steps"] == 2
    assert settled(home, "x", {"loras": [LoraUse(path=home / "fast", weight=0)]})["steps"] == 15


@pytest.mark.parametrize("wrong", [5, "emoji-fast", [5], {"path": "x"}])
def test_what_is_no_list_of_adapters_is_an_error_in_words(wrong: Any) -> None:
    with pytest.raises(LdmError, match="loras"):
        Pipeline.load("emoji", device="cpu")("red apple", loras=wrong)


def test_karras_on_the_default_model_takes_a_solver_that_has_it() -> None:
    pipeline = Pipeline.load("emoji", device="cpu")
    request = pipeline.request("red apple", spacing="karras")
    assert (pipeline.solver_name(request), request.guidance.scale) == ("dpm++ 2m", 3.0)
    assert pipeline.solver_name(pipeline.request("red apple")) == "ddim"


def test_other_settings_than_suit_an_adapter_and_one_that_acts_twice_are_noted() -> None:
    pipeline, student = Pipeline.load("emoji", device="cpu"), LoraUse(path=Path("emoji-fast"))

    def notes(**fields: Any) -> str:
        request = pipeline.request("red apple, noto style", steps=1, **fields)
        return " ".join(pipeline.results(request)[0].recipe.notes)

    assert "was made for" not in notes(loras=[student]) and "was made for" not in notes()
    assert "emoji-fast.safetensors was made for solver lcm and guidance 1.0" in notes(
        loras=[student], guidance={"scale": 7.0}
    )
    assert "with solver euler" in notes(loras=[student], solver="euler")
    assert "given 2 times" in notes(loras=[student, student])


def test_nested_fields_are_merged() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
