"""U-Nets that are told the guidance scale (LCM): loaded, fingerprinted, sampled as stock does, and saved again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler

from ldm.store.names import unet_plan
from ldm.store.parts import load_parts
from ldm.store.save import save_folder, save_single
from ldm.store.weights import load_weights
from pipelines.pipeline import Pipeline
from pipelines.request import GuidanceUse, Request
from tests import components
from tests.store import models

TOLD = "time_embedding.cond_proj.weight"


def lcm() -> LCMScheduler:
    config = components.scheduler_config()
    return LCMScheduler(**{k: v for k, v in config.items() if k != "timestep_spacing"})


def parts() -> dict[str, Any]:
    return {"unet": components.unet(time_cond_proj_dim=32), "scheduler": lcm()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return components.save(components.sd1(**parts()), tmp_path_factory.mktemp("told") / "lcm")


def latents(where: Path, scale: float) -> torch.Tensor:
    request = Request(prompt="a red square", steps=4, seed=5, guidance=GuidanceUse(scale=scale))
    pipeline = Pipeline.load(where, device="cpu")
    assert pipeline.solver_name(request) == "lcm"
    return next(s.clean for s in pipeline.run(request) if s.stage == "decode" and s.clean is not None)


def test_samples_as_stock_does(folder: Path) -> None:
    stock = components.sd1(**parts())
    stock.set_progress_bar_config(disable=True)
    want = stock(
        "a red square", num_inference_steps=4, guidance_scale=5.0, height=16, width=16,
        generator=torch.Generator().manual_seed(5), output_type="latent",
    ).images  # fmt: skip
    got = latents(folder, 5.0)
    assert float((got - want).abs().max()) <= 1e-4
    assert float(got.std()) > 0.1
    assert float((latents(folder, 2.0) - got).abs().max()) > 1e-3  # the scale that it is told matters


def test_every_weight_is_read_and_saved_again(folder: Path, tmp_path: Path) -> None:
    read = load_parts(folder)
    assert models.difference(read.unet, parts()["unet"]) == 0
    again = load_parts(save_folder(read, tmp_path / "again"))
    assert models.difference(again.unet, read.unet) == 0
    assert again.fingerprint == read.fingerprint
    assert load_parts(components.save(components.sd1(), tmp_path / "plain")).fingerprint != read.fingerprint


def test_a_single_file_keeps_the_name_of_diffusers(tmp_path: Path) -> None:
    """The original layout has no name for it; files on the hubs hold it under the one that diffusers gave it."""
    read = load_parts(components.save(models.sd1(**parts()), tmp_path / "folder"))
    file = save_single(read, tmp_path / "lcm.safetensors")
    assert f"model.diffusion_model.{TOLD}" in load_weights(file)
    again = load_parts(file)
    assert models.difference(again.unet, read.unet) == 0
    assert again.fingerprint == read.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        TOLD,
        "encoder_hid_proj.weight",
        "class_embedding.linear_1.weight",
        "down_blocks.x.resnets.0.conv1.weight",
        "down_blocks.0.motion_modules.0.norm.weight",
        f"down_blocks.{'9' * 5000}.resnets.0.conv1.weight",
        "mid_block.weight",
        "controlnet_cond_embedding.blocks",
        "",
    ],
)
def test_names_without_an_original_pass_through(name: str) -> None:
    known = "down_blocks.0.resnets.0.conv1.weight"
    plan = unet_plan([known, name], 1, "")
    assert plan[name].source == name
    assert plan[known].source == "input_blocks.1.0.in_layers.2.weight"
