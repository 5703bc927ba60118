"""Every size that a batch may have is a whole number of latents, or is refused by name before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldm.config import loads
from ldm.errors import Code, LdmError
from tests.train.tasks.making import setting
from train.config import RunFile
from train.run import opened
from train.task import Setting
from train.tasks import build
from train.tasks.settings import AutoencoderSettings, ControlSettings, DecoderSettings, DiffusionSettings

SIZES = ((64, 64), (63, 65))


def tasks(model: Path) -> list[Any]:
    vae = model / "vae"
    return [
        AutoencoderSettings(type="autoencoder", vae=vae),
        DecoderSettings(type="decoder", vae=vae),
        DiffusionSettings(type="diffusion", unet=model, vae=model, text=model),
        ControlSettings(type="controlnet", model=model),
    ]


@pytest.mark.parametrize("index", range(4))
def test_a_bucket_between_latents_is_refused(tiny_sd1: Path, index: int) -> None:
    told: Setting = replace(setting(size=64), sizes=SIZES)
    with pytest.raises(LdmError) as caught:
        build(tasks(tiny_sd1)[index], told)
    assert caught.value.code is Code.USAGE
    assert "63x65" in caught.value.what
    assert "data.buckets" in caught.value.fix


def test_a_square_between_latents_is_refused(tiny_sd1: Path) -> None:
    with pytest.raises(LdmError) as caught:
        build(tasks(tiny_sd1)[1], setting(size=63))
    assert "data.size=63" in caught.value.what


def test_a_run_file_with_such_a_bucket_trains_nothing(tiny_sd1: Path, tmp_path: Path) -> None:
    text = f"""
task: {{type: autoencoder, vae: {tiny_sd1}/vae}}
data: {{path: scenes, count: 8, size: 64, buckets: {{sizes: [[64, 64], [63, 65]]}}}}
run: {{out: {tmp_path}/run, steps: 1, batch: 1}}
"""
    with pytest.raises(LdmError) as caught, opened(loads(text, RunFile)):
        pass
    assert "63x65" in caught.value.what
    assert not (tmp_path / "run").exists()
