"""How the cost of a step grows with the size of pictures, by the clock: the textbooks' "resolution scaling"."""

from __future__ import annotations

import time

import torch

from ldm.baselines.family import Form, make
from ldm.data.draws import Draws
from train.measure import wait
from train.tasks.family import phases_of
from train.tasks.settings import FamilySettings

PICTURES, REPEATS = 8, 2
LEAST = 8  # the smallest side that families take
LONG = 1000  # steps of the run whose shares are taken


def growth(settings: FamilySettings, side: int, classes: int, device: torch.device) -> float:
    """How many times as long a training step takes when the side doubles, up to `side`: 4 where the work is that of
    the pixels alone."""
    side = max(side, 2 * LEAST)
    small, large = (step_seconds(settings, one, classes, device) for one in (side // 2, side))
    return large / small


def step_seconds(
    settings: FamilySettings, side: int, classes: int, device: torch.device, pictures: int = PICTURES
) -> float:
    """Of a step, for each picture of a batch of noise, without its optimiser; every part as often as it is due, and
    what a part does now and then not counted."""
    form = Form(side, classes)
    model = make(settings.family, settings.options, form, 0).to(device)
    dice = torch.Generator().manual_seed(0)
    x = (torch.rand(pictures, *form.shape, generator=dice) * 2 - 1).to(device)
    label = (torch.arange(pictures) % classes).to(device) if classes else None
    model.begin(x, label)
    total = 0.0
    for phase in phases_of(model, LONG):
        taken = []
        for step in range(1, 2 + REPEATS):
            wait(device)
            began = time.perf_counter()
            places = torch.arange(step * pictures, (step + 1) * pictures, device=device)
            draws = Draws(0, places, pictures, phase.name)
            model.loss(phase.name, x, label, draws)[0].mean().backward()  # type: ignore[no-untyped-call]
            wait(device)
            taken.append(time.perf_counter() - began)
        total += min(taken[1:]) * sum(phase.due(step) for step in range(LONG)) / LONG
    return total / pictures
