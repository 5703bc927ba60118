"""The scenes model that ships: size, layout, pictures made by stock code; and how a chain's result becomes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

import ldm
from ldm.data.scenes import draw, make_scene, outline, read, sample_scene
from ldm.errors import LdmError
from ldm.store.weights import load_weights
from ldm.store.write import write_weights
from train.ship import ship

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
    x = torch.from_numpy(np.stack([draw(sample_scene(i, 12)) for i in range(100)])).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        y = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    assert (-10 * ((x - y) / 2).square().mean((1, 2, 3)).log10()).mean() >= 30.0


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


def test_what_a_chain_made_ships_in_half_precision(tmp_path: Path) -> None:
    """The shipped folder itself stands for a trained chain: the networks are the same, their notes too."""
    chain = tmp_path / "chain"
    shutil.copytree(
        FOLDER, chain / "diffusion" / "model", ignore=shutil.ignore_patterns("controlnet-*", "training.json")
    )
    shutil.copytree(FOLDER / "controlnet-edges", chain / "controlnet" / "model")
    full = load_weights(FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    write_weights(
        chain / "diffusion" / "model" / "unet" / "fp32.safetensors", {name: t.float() for name, t in full.items()}
    )
    start = '{"step":%d,"time":1.0,"start":{"processes":2,"machine":{"threads":1},"ready":2.0}}\n'
    line = '{"step":%d,"time":1.0,"figures":{"loss":1.0},"lr":0.1,"seconds":0.5,"skipped":0}\n'
    (chain / "diffusion" / "log.jsonl").write_text(start % 0 + line % 4 + start % 4 + line % 7)
    ship(chain, tmp_path / "out", {"controlnet": "controlnet-edges"})
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert told == {"diffusion": {"steps": 7, "seconds": 7.5, "processes": 2, "threads": 1}}
    made = load_weights(tmp_path / "out" / "unet" / "fp32.safetensors")
    assert all(torch.equal(made[name], full[name].half()) for name in full)
    assert (tmp_path / "out" / "controlnet-edges" / "config.json").is_file()
    with pytest.raises(LdmError, match="exists already"):
        ship(chain, tmp_path / "out", {"controlnet": "controlnet-edges"})
    with pytest.raises(LdmError, match="is not there"):
        ship(tmp_path / "nothing", tmp_path / "other")
