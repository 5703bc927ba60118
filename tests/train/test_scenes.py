"""The recipe of the scenes model in small, and the weights that ship: size, layout, and pictures made by stock code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline

import ldm
from ldm.data.scenes import draw, make_scene, outline, read, sample_scene
from train import scenes_stages as recipe
from train.scenes_check import psnr

FOLDER = Path(ldm.__file__).parent / "pretrained" / "scenes"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.set_num_threads(1)
    made = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def test_fits_in_two_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 2_000_000


def test_latents_need_no_scale_and_no_shift(pipeline: StableDiffusionPipeline) -> None:
    x = torch.from_numpy(np.stack([draw(sample_scene(i, 11)) for i in range(256)])).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        z = pipeline.vae.encode(x).latent_dist.mean
    assert z.shape == (256, 4, 8, 8)
    assert pipeline.vae.config.scaling_factor == 1.0
    assert z.mean((0, 2, 3)).abs().max() < 0.1
    assert (z.std((0, 2, 3)) - 1.0).abs().max() < 0.1


def test_autoencoder_keeps_pictures(pipeline: StableDiffusionPipeline) -> None:
    assert psnr(pipeline, [sample_scene(i, 12) for i in range(100)]) >= 30.0


def test_prompts_become_pictures(pipeline: StableDiffusionPipeline) -> None:
    wanted = [("circle", "red"), ("square", "blue"), ("triangle", "green"), ("cross", "black"), ("ring", "white")]
    prompts = [f"a {colour} {shape} on a yellow background" for shape, colour in wanted for _ in range(4)]
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    made = pipeline(prompts, num_inference_steps=20, guidance_scale=4.0, generator=seeds, output_type="np").images
    found = [read(picture) for picture in made]
    right = [f.has(*wanted[i // 4]) for i, f in enumerate(found)]
    assert np.mean(right) >= 0.8
    assert np.mean([f.background == "yellow" for f in found]) >= 0.9
    crossed = [f.has(*wanted[(i // 4 + 1) % 5]) for i, f in enumerate(found)]
    assert np.mean(crossed) <= 0.1


def test_control_follows_the_edges(pipeline: StableDiffusionPipeline) -> None:
    control = ControlNetModel.from_pretrained(FOLDER / "controlnet-edges", dtype=torch.float32)
    controlled = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=control)
    controlled.set_progress_bar_config(disable=True)
    places = ("left", "right", "top", "bottom")
    scenes = [make_scene("square", size="big", position=place, seed=3) for place in places * 3]
    hints = torch.from_numpy(np.stack([outline(s) for s in scenes])).permute(0, 3, 1, 2)
    seeds = [torch.Generator().manual_seed(i) for i in range(12)]
    prompts = ["a red square"] * 12
    options = {"num_inference_steps": 20, "guidance_scale": 4.0, "output_type": "np", "generator": seeds}
    seen = [read(picture).things for picture in controlled(prompts, image=hints, **options).images]
    right = [len(things) == 1 and things[0].position == places[i % 4] for i, things in enumerate(seen)]
    assert np.mean(right) >= 0.8


def test_folding_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    vae = recipe.AutoencoderKL.from_config(recipe.config("vae")).double().eval()
    x = torch.rand(8, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        picture = vae.decode(before.mean).sample
        recipe.fold(vae, before.mean)
        after = vae.encode(x).latent_dist
        again = vae.decode(after.mean).sample
    std = before.mean.std((0, 2, 3), keepdim=True)
    assert after.mean.mean((0, 2, 3)).abs().max() < 1e-9
    assert (after.mean.std((0, 2, 3)) - 1.0).abs().max() < 1e-9
    assert (after.std * std - before.std).abs().max() < 1e-9
    assert (again - picture).abs().max() < 1e-9


def test_noise_levels_cover_the_schedule() -> None:
    level = recipe.Noiser().level(1000, torch.Generator().manual_seed(0))
    assert sorted(level.t.tolist()) == list(range(1000))
    assert (level.alpha**2 + level.sigma**2 - 1.0).abs().max() < 1e-6
    stock = DDIMScheduler.from_config(recipe.config("scheduler")).alphas_cumprod.sqrt()
    assert (recipe.Noiser().alphas - stock).abs().max() < 1e-5


def test_every_weight_is_trained_by_one_optimiser() -> None:
    vae = recipe.AutoencoderKL.from_config(recipe.config("vae"))
    hidden, others = recipe.split(vae)
    assert {id(p) for p in hidden} | {id(p) for p in others} == {id(p) for p in vae.parameters()}
    assert len(hidden) + len(others) == len(list(vae.parameters()))
    assert all(p.dim() >= 2 for p in hidden)
    assert any(p is vae.encoder.conv_in.weight for p in others)


def test_hints_stay_outlines() -> None:
    hints = torch.from_numpy(np.stack([outline(sample_scene(i, 13))[..., 0] for i in range(60)]))
    made = recipe.varied(hints, torch.Generator().manual_seed(0))
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert (made != hints).any((1, 2)).float().mean() > 0.3
    assert 0.5 < made.sum() / hints.sum() < 2.0
