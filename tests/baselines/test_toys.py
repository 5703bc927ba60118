"""Known toy results: eight clusters in a ring, found by a GAN, a VAE, a flow, diffusion and others.

A point (x, y) is a picture of 4x4 places, all of one colour: red tells x, green y. What is judged is the mean colour:
the same code that draws pictures is shown to place its mass where data is.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.baselines.family import Form, make
from ldm.data.draws import Draws

RING, SPREAD = 0.6, 0.04
FORM = Form(4)
# name: options, steps, learning rate, clusters that must be found, share of samples that must lie at one
CASES: dict[str, tuple[dict[str, Any], int, float, int, float]] = {
    "mixture": ({"components": 16}, 200, 1e-2, 8, 0.9),
    "vae": ({"latents": 8, "width": 32}, 1500, 2e-3, 8, 0.5),
    "dcgan": ({"latents": 8, "width": 32, "loss": "wasserstein", "penalty": 10, "critic_turns": 1}, 2000, 1e-3, 7, 0.5),
    "r3gan": ({"latents": 8, "width": 32, "gamma": 0.5}, 2000, 1e-3, 7, 0.6),
    "pixelcnn": ({"width": 32, "layers": 4, "kernel": 3, "mixture": 8}, 1200, 2e-3, 8, 0.7),
    "ddpm": ({"width": 32, "schedule": "cosine", "steps": 50}, 2500, 1e-3, 8, 0.7),
    "flow_matching": ({"width": 32, "steps": 12}, 2500, 1e-3, 8, 0.7),
}


def ring(count: int, seed: int) -> Tensor:
    """[count,3,4,4] in [-1,1]."""
    draws = torch.Generator().manual_seed(seed)
    which = torch.randint(8, (count,), generator=draws)
    centre = torch.stack([(which * math.pi / 4).cos(), (which * math.pi / 4).sin()], 1) * RING
    point = centre + SPREAD * torch.randn(count, 2, generator=draws)
    return torch.cat([point, torch.zeros(count, 1)], 1)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def found(pictures: Tensor) -> tuple[int, float]:
    """How many clusters have a fair part of the samples, and the share of samples that lie at one."""
    point = pictures[:, :2].mean((2, 3))
    angle = torch.arange(8) * math.pi / 4
    centres = torch.stack([angle.cos(), angle.sin()], 1) * RING
    apart, which = torch.cdist(point, centres).min(1)
    good = apart < 4 * SPREAD
    counts = torch.bincount(which[good], minlength=8)
    return int((counts > len(pictures) / 8 / 5).sum()), float(good.float().mean())


def test_the_judge_of_rings_knows_one_from_a_cluster_and_from_noise() -> None:
    assert found(ring(400, 1)) == (8, pytest.approx(1, abs=0.01))
    assert found(ring(400, 1)[:1].expand(400, -1, -1, -1))[0] == 1
    assert found(torch.rand(400, 3, 4, 4) * 2 - 1)[1] < 0.3


@pytest.mark.torture
@pytest.mark.parametrize("name", sorted(CASES))
def test_eight_clusters_are_found(name: str) -> None:
    options, steps, rate, clusters, share = CASES[name]
    model = make(name, options, FORM, 0)
    model.begin(ring(model.first, 0), None)
    betas = (0.0, 0.9) if name in ("dcgan", "r3gan") else (0.9, 0.99)
    optimisers = {part.name: torch.optim.Adam(part.params, rate, betas) for part in model.parts()}
    for step in range(steps):
        x = ring(128, step + 1)
        for part in model.parts():
            if step % part.every:
                continue
            optimiser = optimisers[part.name]
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimiser.zero_grad()
            draws = Draws(0, torch.arange(step * 128, step * 128 + 128), 128, part.name)
            model.loss(part.name, x, None, draws)[0].mean().backward()
            optimiser.step()
    got, near = found(model.eval().sample(400, None, torch.Generator().manual_seed(0)))
    assert got >= clusters and near >= share, (got, near)
