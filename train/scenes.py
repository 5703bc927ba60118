"""Trains the shipped `scenes` model from nothing: autoencoder, text tower with U-Net, edge ControlNet.

python -m train.scenes --out ldm/pretrained/scenes        # 2 cores: about 28 minutes
python -m train.scenes --evaluate ldm/pretrained/scenes   # writes docs/results/scenes.json
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.data.hints import make_hint
from ldm.data.scenes import Scene, caption, draw, outline, sample_scene, words
from train.scenes_stages import (
    STAGES,
    Plan,
    TextUNet,
    config,
    encode,
    new_denoiser,
    train_autoencoder,
    train_control,
    train_denoiser,
)
from train.tokenizer import save_tokenizer

log = logging.getLogger("train.scenes")
SCENES = 60_000


def make_pictures(scenes: list[Scene]) -> Tensor:
    """[N,3,32,32] in 0..255, uint8."""
    return torch.from_numpy(np.stack([np.rint(draw(s).transpose(2, 0, 1) * 255).astype(np.uint8) for s in scenes]))


def make_hints(scenes: list[Scene]) -> Tensor:
    """[N,32,32] of 0 and 255, uint8: every second one is the true outline, the others what an edge finder sees."""
    hints = [outline(s) if i % 2 else make_hint("canny", draw(s)) for i, s in enumerate(scenes)]
    return torch.from_numpy(np.stack([(hint[..., 0] * 255).astype(np.uint8) for hint in hints]))


def make_tokens(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    """[N,77] token numbers of the captions."""
    texts = [caption(s) for s in scenes]
    ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    return ids


def save(module: Any, folder: Path) -> None:
    """In half precision, which halves the folder; the module itself keeps its own, and no path of this machine."""
    half = copy.deepcopy(module).half()
    if isinstance(half, ModelMixin):  # of diffusers, which writes where a network was loaded from
        half.register_to_config(_name_or_path="")
    half.save_pretrained(folder)


def load_denoiser(out: Path) -> TextUNet:
    """The text tower and U-Net of a folder, in fp32."""
    text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
    return TextUNet(text, UNet2DConditionModel.from_pretrained(out / "unet", dtype=torch.float32))


def save_index(out: Path) -> None:
    """The scheduler and model_index.json: then stock `StableDiffusionPipeline.from_pretrained` loads the folder."""
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(config("scheduler"), indent=2) + "\n", "utf-8")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def train(out: Path, seed: int, share: float, stages: list[str]) -> None:
    """The whole recipe, or some of its stages on top of what the folder holds; `share` shortens each one."""
    vocabulary = save_tokenizer(words(), out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    scenes = [sample_scene(index, seed) for index in range(SCENES)]
    pictures = make_pictures(scenes)
    if "autoencoder" in stages:
        with stage(out, "autoencoder", seed, share) as (plan, generator):
            save(train_autoencoder(pictures, plan, generator), out / "vae")
    if set(stages) - {"autoencoder"}:
        vae = AutoencoderKL.from_pretrained(out / "vae", dtype=torch.float32)
        latents, tokens = encode(vae, pictures), make_tokens(scenes, tokenizer)
    for name in ("denoiser", "layout", "finish"):
        if name in stages:
            with stage(out, name, seed, share) as (plan, generator):
                model = new_denoiser(vocabulary) if name == "denoiser" else load_denoiser(out)
                model = train_denoiser(model, latents, tokens, plan, generator, name)
                save(model.text, out / "text_encoder")
                save(model.unet, out / "unet")
    if "control" in stages:
        with stage(out, "control", seed, share) as (plan, generator):
            control = train_control(latents, tokens, make_hints(scenes), load_denoiser(out), plan, generator)
            save(control, out / "controlnet-edges")
    save_index(out)


@contextmanager
def stage(out: Path, name: str, seed: int, share: float) -> Iterator[tuple[Plan, torch.Generator]]:
    """The plan and the randomness of one stage, which do not depend on the stages before; notes its time."""
    plan = STAGES[name]
    torch.manual_seed(seed + plan.stream)
    began, cpu = time.perf_counter(), time.process_time()
    yield replace(plan, steps=max(1, round(plan.steps * share))), torch.Generator().manual_seed(seed + plan.stream)
    note = out / "training.json"
    spent = json.loads(note.read_text("utf-8")) if note.exists() else {}
    seconds = {"seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time() - cpu)}
    spent[name] = {**seconds, "threads": torch.get_num_threads(), "seed": seed, "share": share}
    note.write_text(json.dumps(spent, indent=2) + "\n", "utf-8")
    log.info("%s: %s", name, spent[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the weights (made if needed; files in it are replaced)")
    parser.add_argument("--evaluate", type=Path, help="a trained folder: measure it with the checker")
    parser.add_argument("--report", type=Path, default=Path("docs/results/scenes.json"), help="where the figures go")
    parser.add_argument("--sheet", type=Path, help="with --evaluate: a PNG of many pictures to look at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="part of the steps to run (1: the shipped model)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="the others stay as they are")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    if args.out is None and args.evaluate is None:
        parser.error("give --out DIR to train, --evaluate DIR to measure, or both")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        train(args.out, args.seed, args.share, args.stages)
    if args.evaluate is not None:
        from train.scenes_check import evaluate

        evaluate(args.evaluate, args.report, args.sheet)


if __name__ == "__main__":
    main()
