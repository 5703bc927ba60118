"""What ships: small enough, with its card, and read by other people's programs to the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import ldm as package
from app.demo import scribbled_face
from ldm.store.clip import load_clip
from pipelines.pipeline import Pipeline
from pipelines.request import ControlUse, LoraUse, Request

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


def stock(name: str, kind: type[StableDiffusionPipeline] = StableDiffusionPipeline, **parts: Any) -> Any:
    """Diffusers' own pipeline over what ships, with DDIM."""
    made = kind.from_pretrained(
        PRETRAINED / name, safety_checker=None, torch_dtype=torch.float32, local_files_only=True, **parts
    )
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipeline: Any, prompt: str, steps: int, scale: float, **given: Any) -> np.ndarray:
    draws = torch.Generator().manual_seed(1)
    given |= {"num_inference_steps": steps, "guidance_scale": scale, "generator": draws, "output_type": "np"}
    return np.asarray(pipeline(prompt, **given).images[0]) * 255


def own(name: str, prompt: str, steps: int, scale: float, solver: str = "ddim", **given: Any) -> np.ndarray:
    request = Request(prompt=prompt, steps=steps, solver=solver, guidance={"scale": scale}, seed=1, **given)
    return Pipeline.load(name, device="cpu", dtype="float32").results(request)[0].picture.pixels


@pytest.mark.parametrize(("name", "prompt"), [("emoji", "crying face, noto style"), ("scenes", "a red circle")])
def test_stock_diffusers_draws_the_same_picture(name: str, prompt: str) -> None:
    assert np.abs(drawn(stock(name), prompt, 3, 4.0) - own(name, prompt, 3, 4.0)).max() <= 1.0


@pytest.mark.parametrize("steps", [1, 4])
def test_stock_diffusers_draws_the_same_picture_with_the_student(steps: int) -> None:
    prompt, student = "red apple, noto style", PRETRAINED / "emoji-fast"
    theirs = stock("emoji")
    theirs.load_lora_weights(student)
    theirs.scheduler = LCMScheduler.from_pretrained(student, subfolder="scheduler")
    ours = own("emoji", prompt, steps, 1.0, "lcm", loras=(LoraUse(path=Path("emoji-fast")),))
    assert np.abs(drawn(theirs, prompt, steps, 1.0) - ours).max() <= 1.0
    assert np.abs(ours - own("emoji", prompt, steps, 1.0, "lcm")).mean() > 5  # it acts


def test_stock_diffusers_draws_the_same_picture_along_a_scribble() -> None:
    prompt, face = "cat face, noto style", scribbled_face()
    control = ControlNetModel.from_pretrained(PRETRAINED / "emoji-scribble", torch_dtype=torch.float32)
    theirs = stock("emoji", StableDiffusionControlNetPipeline, controlnet=control)
    made = drawn(theirs, prompt, 3, 3.0, image=Image.fromarray(face.pixels))
    ours = own("emoji", prompt, 3, 3.0, controls=(ControlUse(model="emoji-scribble", image=face),))
    assert np.abs(made - ours).max() <= 1.0
    assert np.abs(ours - own("emoji", prompt, 3, 3.0)).mean() > 5


def test_previews_of_emoji_are_those_of_stock_autoencoder_tiny() -> None:
    pipeline = Pipeline.load("emoji", device="cpu", dtype="float32")
    steps = list(pipeline.run(pipeline.request("red apple, noto style", seed=1, steps=2)))
    (last,) = [step for step in steps if step.stage == "sample"][-1:]
    tiny = AutoencoderTiny.from_pretrained(PRETRAINED / "emoji/tiny-decoder", torch_dtype=torch.float32)
    assert last.clean is not None
    with torch.no_grad():
        wanted = ((tiny.decode(last.clean).sample + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    (shown,) = last.preview()
    assert shown.shape == (64, 64, 3) and np.abs(shown - wanted).max() < 1e-3
    assert np.abs(shown * 255 - steps[-1].done[0].picture.pixels).mean() < 25  # it is a preview of that picture


def test_open_clip_reads_emoji_clip_to_the_same_scores() -> None:
    folder = PRETRAINED / "emoji-clip"
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load_clip(folder)
    pixels = torch.rand(2, 3, ours.side, ours.side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = (pixels / 2 + 0.5 - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(theirs.eval().encode_image(shown).float(), dim=-1)
        assert (ours.encode_image(pixels) - wanted).abs().max() < 1e-3
