"""Measures the `scenes` model with stock diffusers and the checker, and draws a sheet to look at."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image

from ldm.data.scenes import Scene, caption, draw, matches, outline, read, sample_scene

log = logging.getLogger("train.scenes")
STEPS, GUIDANCE, HELD_OUT = 25, 4.0, 10_007  # the seed of scenes that no training run draws


def evaluate(folder: Path, report: Path, sheet: Path | None = None, count: int = 400) -> dict[str, Any]:
    """Accuracy per attribute over `count` unseen captions, for shuffled captions and for control, and the PSNR."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes = [sample_scene(index, HELD_OUT) for index in range(count)]
    began, cpu = time.perf_counter(), time.process_time()
    pictures = pictures_of(pipeline, [caption(s) for s in scenes])
    spent = {"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    singles = [index for index, scene in enumerate(scenes) if len(scene.things) == 1]
    control = ControlNetModel.from_pretrained(folder / "controlnet-edges", dtype=torch.float32)
    controlled = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=control)
    controlled.set_progress_bar_config(disable=True)
    hinted = scenes[: count // 2]
    along = pictures_of(controlled, ["a picture"] * len(hinted), [outline(s) for s in hinted])
    result = {
        "sampling": {"solver": "ddim", "steps": STEPS, "guidance": GUIDANCE, "prompts": count, **spent},
        "accuracy": accuracy(pictures, scenes),
        "accuracy_single": accuracy([pictures[i] for i in singles], [scenes[i] for i in singles]),
        "accuracy_shuffled_captions": accuracy(pictures, scenes[1:] + scenes[:1]),
        "control": along_edges(along, hinted),
        "control_shuffled_hints": along_edges(along, hinted[1:] + hinted[:1]),
        "psnr_db": round(psnr(pipeline, scenes), 2),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    training = folder / "training.json"
    if training.exists():
        result["training"] = json.loads(training.read_text("utf-8"))
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    log.info("%s", json.dumps(result, indent=2))
    if sheet is not None:
        save_sheet(sheet, [*pictures[:96], *beside([outline(s) for s in hinted[:24]], along[:24])])
    return result


def pictures_of(pipeline: Any, prompts: list[str], hints: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """Picture i of seed i for each prompt, [H,W,3] in [0,1], in batches of 50."""
    result: list[np.ndarray] = []
    for start in range(0, len(prompts), 50):
        some = prompts[start : start + 50]
        extra: dict[str, Any] = {}
        if hints is not None:
            extra["image"] = torch.from_numpy(np.stack(hints[start : start + 50])).permute(0, 3, 1, 2)
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        made = pipeline(
            some, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds, output_type="np", **extra
        )
        result += list(made.images)
    return result


def tally(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """For each attribute that captions tell, and for all of one together: how many pictures show it, of how many."""
    told: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for picture, scene in zip(pictures, scenes, strict=True):
        verdict = matches(read(picture), scene)
        verdict["all"] = all(verdict.values())
        told.update(verdict.keys())
        shown.update(name for name, right in verdict.items() if right)
    return {name: (shown[name], told[name]) for name in sorted(told)}


def accuracy(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of pictures that show each told attribute, and of those that show all of them."""
    return {name: round(right / count, 4) for name, (right, count) in tally(pictures, scenes).items()}


def along_edges(pictures: list[np.ndarray], scenes: list[Scene]) -> dict[str, float]:
    """How often a picture has the shapes of the hint, and has a thing within 2 pixels of each one of them."""
    shape = place = 0
    for picture, scene in zip(pictures, scenes, strict=True):
        found = read(picture)
        shape += sorted(str(t.shape) for t in found.things) == sorted(t.shape for t in scene.things)
        near = [min((max(abs(s.x - t.x), abs(s.y - t.y)) for s in found.things), default=1.0) for t in scene.things]
        place += max(near) <= 2 / 32
    return {"shape": round(shape / len(scenes), 4), "place": round(place / len(scenes), 4)}


@torch.no_grad()
def psnr(pipeline: Any, scenes: list[Scene]) -> float:
    """Of the autoencoder's reconstructions, in dB, mean over pictures."""
    x = torch.from_numpy(np.stack([draw(s) for s in scenes])).permute(0, 3, 1, 2) * 2 - 1
    y = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    error = ((x - y) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def save_sheet(path: Path, pictures: Sequence[np.ndarray], columns: int = 12, zoom: int = 3) -> None:
    """The pictures in rows, enlarged without smoothing."""
    side = max(p.shape[0] for p in pictures) + 2
    sheet = np.full((-(-len(pictures) // columns) * side, columns * side, 3), 0.8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * side + 1, index % columns * side + 1
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    big = np.rint(sheet * 255).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(big).save(path)


def beside(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One of the left, one of the right, and so on."""
    return [picture for pair in zip(left, right, strict=True) for picture in pair]
