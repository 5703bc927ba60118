"""What excludes what is said in words, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ldm.errors import Code, LdmError
from train.tasks.parts import read_architecture
from train.tasks.settings import DistillSettings, Noise


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "flow"}, "flow needs both"),
        ({"schedule": "flow"}, "flow needs both"),
        ({"kind": "epsilon", "zero_snr": True}, "zero_snr needs kind v_prediction"),
        ({"zero_snr": True, "weighting": "min_snr"}, "set floor"),
        ({"floor": 0.1}, "does nothing without it"),
        ({"kind": "epsilon", "weighting": "min_snr", "floor": 0.1}, "floor / SNR"),
        ({"weighting": "min_snr", "floor": 6.0}, "above gamma"),
        ({"kind": "flow", "schedule": "flow", "bound": 0.001}, "set it to 0"),
        ({"shift": 2.0}, "shift is for kind flow"),
        ({"weighting": "min-snr"}, "min_snr"),
        ({"gama": 5.0}, "gama"),
    ],
)
def test_noise_that_does_not_go_together(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Noise(**fields)
    assert words in str(caught.value)


def test_a_floor_gives_the_level_without_signal_a_weight() -> None:
    assert Noise(zero_snr=True, weighting="min_snr", floor=0.1).floor == 0.1


@pytest.mark.parametrize("wrong", [(0.5, 2.0), (4.0, 2.0)])
def test_a_range_of_guidance_rises_from_one(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValidationError) as caught:
        DistillSettings(type="distill", model="x", guidance=wrong)  # type: ignore[arg-type]
    assert "two rising numbers" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("configs/models/scenes-unte.json", "configs/models/scenes-unet.json"), ("my-unte.json", "my-unet.json")],
)
def test_an_architecture_that_is_missing_names_the_nearest(
    asked: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-unet.json").write_text("{}")
    with pytest.raises(LdmError) as caught:
        read_architecture(Path(asked))
    assert caught.value.code is Code.FILE and asked in caught.value.what and f"Write {meant}," in caught.value.fix
    assert read_architecture(Path("configs/models/scenes-unet.json"))["_class_name"] == "UNet2DConditionModel"
