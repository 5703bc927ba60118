"""Small CLIP tasks for tests: coloured pictures with the names of their colours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.batch import Batch
from tests.components import stock
from train.draws import Draws
from train.task import Setting, Turn
from train.tasks.clip import ClipTask
from train.tasks.settings import ClipSettings

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}
COLOURS |= {"black": (-1.0, -1.0, -1.0), "yellow": (1.0, 1.0, -1.0), "cyan": (-1.0, 1.0, 1.0), "grey": (0.0, 0.0, 0.0)}
SIDE, WORDS = 16, 560
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "patch_size": 4, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 12, "width": 40, "heads": 5, "layers": 3},
}


def captions() -> Iterator[str]:
    return (f"a {name} {thing}" for name in COLOURS for thing in ("picture", "wall", "sheet") for _ in range(2))


def batch(size: int, step: int = 0, total: int | None = None, names: list[str] | None = None) -> Batch:
    """Pictures of one colour with a little noise, and their names; all differ unless `names` says otherwise."""
    names = names or [list(COLOURS)[i % len(COLOURS)] for i in range(size)]
    noise = torch.randn(size, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(step)) * 0.1
    image = torch.tensor([COLOURS[n] for n in names])[:, :, None, None] + noise
    places = torch.arange(size) + step * (total or size)
    return Batch(places, places, image.clamp(-1, 1), tuple(f"a {n} picture" for n in names))


def make(tmp_path: Path, changes: dict[str, Any] | None = None, **settings: Any) -> ClipTask:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(ARCHITECTURE | (changes or {})))
    told = ClipSettings(**({"type": "clip", "model": str(file), "vocabulary": WORDS} | settings))
    return ClipTask(told, Setting(3, SIDE, 10, lambda size: iter([batch(size)]), captions))


def turn(task: ClipTask, whole: Batch, micros: list[Batch]) -> Turn:
    at = Turn("clip", 0, len(whole), Draws(0, whole.places, len(whole)))
    return replace(at, context=task.context(at, micros))


def gradients(task: ClipTask, whole: Batch, sizes: int | None) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Value, gradients and figures of a batch in micro-batches of so many."""
    task.model.zero_grad(set_to_none=True)
    micros = whole.split(sizes or len(whole))
    at = turn(task, whole, micros)
    value, figures = 0.0, dict.fromkeys(("loss", "image_to_text", "text_to_image", "scale"), 0.0)
    for micro in micros:
        part, told = task.loss(at, micro)
        part.backward()
        value += float(part.detach())
        figures = {name: figures[name] + float(told[name]) for name in told}
    return value, {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}, figures


def differs(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The greatest difference, relative to each gradient's own size."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - g).norm() / g.norm().clamp(min=1e-6)) for n, g in wanted.items())


def open_ids(task: ClipTask, texts: list[str]) -> Tensor:
    length = task.about.config["text_cfg"]["context_length"]
    padded = {"padding": "max_length", "max_length": length, "truncation": True}
    ids: Tensor = stock(task.about.tokenizer)(texts, return_tensors="pt", **padded).input_ids
    return ids
