"""What ships: small enough, with its card, and read by other people's programs to the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import ldm as package
from ldm.store.clip import load_clip
from pipelines.pipeline import Pipeline
from pipelines.request import Request

PRETRAINED = Path(package.__file__).parent / "pretrained"
FOLDERS = sorted(path for path in PRETRAINED.iterdir() if any(path.glob("*.json")))
LIMIT = 40_000_000  # bytes, of all together


def test_all_together_are_small() -> None:
    assert sum(file.stat().st_size for file in PRETRAINED.rglob("*") if file.is_file()) <= LIMIT


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_has_a_card_that_names_the_licence(folder: Path) -> None:
    assert "Apache-2.0" in (folder / "README.md").read_text("utf-8")


def test_cards_of_what_learned_from_twemoji_say_whose_pictures_those_are() -> None:
    for folder in FOLDERS:
        if folder.name.startswith("emoji"):
            text = (folder / "README.md").read_text("utf-8")
            assert "CC-BY-4.0" in text and "Twitter, Inc. and other contributors" in text, folder


@pytest.mark.parametrize(("name", "prompt"), [("emoji", "crying face, noto style"), ("scenes", "a red circle")])
def test_stock_diffusers_draws_the_same_picture(name: str, prompt: str) -> None:
    stock = StableDiffusionPipeline.from_pretrained(
        PRETRAINED / name, safety_checker=None, torch_dtype=torch.float32, local_files_only=True
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        prompt, num_inference_steps=3, guidance_scale=4.0, generator=torch.Generator().manual_seed(1), output_type="np"
    ).images[0]
    request = Request(prompt=prompt, steps=3, solver="ddim", guidance={"scale": 4.0}, seed=1)
    ours = Pipeline.load(name, device="cpu", dtype="float32").results(request)[0].picture.pixels
    assert np.abs(theirs * 255 - ours).max() <= 1.0


def test_open_clip_reads_emoji_clip_to_the_same_scores() -> None:
    folder = PRETRAINED / "emoji-clip"
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load_clip(folder)
    pixels = torch.rand(2, 3, ours.side, ours.side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = (pixels / 2 + 0.5 - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(theirs.eval().encode_image(shown).float(), dim=-1)
        assert (ours.encode_image(pixels) - wanted).abs().max() < 1e-3
