"""Settings, batches and turns for tests of tasks, from tiny real parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.data.scenes import caption, draw, sample_scene
from tests.components import PIXELS
from train.draws import Draws
from train.task import Setting, Task, Turn

WORDS = ("a red circle", "a blue square", "a photo of a cat", "the dog on the left", "a small green triangle", "a dog")


def batch(count: int = 4, first: int = 0, size: int = PIXELS, **extra: Tensor) -> Batch:
    """Smooth pictures with captions; `first` is the place of the first."""
    places = torch.arange(first, first + count)
    image = Draws(1, places, count).normal("picture", (3, size // 4, size // 4))
    image = torch.nn.functional.interpolate(image, scale_factor=4, mode="bilinear").clamp(-1, 1)
    return Batch(places, places, image, tuple(WORDS[i % len(WORDS)] for i in places.tolist()), None, extra)


def setting(size: int = PIXELS, steps: int = 10, **extra: Callable[[Batch], Tensor]) -> Setting:
    def look(count: int) -> Iterator[Batch]:
        some = batch(count, size=size)
        yield replace(some, extra={name: make(some) for name, make in extra.items()})

    return Setting(seed=0, size=size, steps=steps, look=look, captions=lambda: iter(WORDS), name="tiny")


def turn(total: int, places: Tensor, step: int = 0, **changes: Any) -> Turn:
    return Turn("train", step, total, Draws(0, places, total, "train"), **changes)


def gradients(task: Task, whole: Batch, size: int) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients by parameter and figures of one step taken in micro-batches of `size`."""
    total, loss, figures = len(whole), 0.0, dict[str, float]()
    params = {f"{name}.{n}": p for name, network in task.networks().items() for n, p in network.named_parameters()}
    for p in params.values():
        p.grad = None
    micros = whole.split(size)
    context = task.context(turn(total, whole.places), micros)
    for micro in micros:
        part, told = task.loss(turn(total, micro.places, context=context), micro)
        part.backward()
        loss += float(part.detach())
        figures = {name: figures.get(name, 0.0) + float(value) for name, value in told.items()}
    return loss, {n: p.grad.clone() for n, p in params.items() if p.grad is not None}, figures


def descend(task: Task, whole: Batch, steps: int = 25, lr: float = 3e-3) -> list[float]:
    """Losses of so many steps of AdamW on one batch, the same noise each time."""
    params = [p for phase in task.phases() for p in phase.params]
    optimiser, losses = torch.optim.AdamW(params, lr=lr), []
    for step in range(steps):
        asked = replace(turn(len(whole), whole.places), step=step)
        loss, _ = task.loss(replace(asked, context=task.context(asked, [whole])), whole)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The greatest difference, relative to the greatest number."""
    assert a.keys() == b.keys()
    largest = max(float(t.abs().max()) for t in a.values())
    return max(float((a[n] - b[n]).abs().max()) for n in a) / largest


def scenes(count: int, first: int = 0) -> Batch:
    """Drawn scenes at 32 pixels with their captions."""
    drawn = [sample_scene(i) for i in range(first, first + count)]
    image = torch.from_numpy(np.stack([draw(s).transpose(2, 0, 1) for s in drawn])) * 2 - 1
    places = torch.arange(first, first + count)
    return Batch(places, places, image.float(), tuple(caption(s) for s in drawn))
