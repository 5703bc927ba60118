"""Pictures of a model that is being trained, by the project's own loop; the same seed begins with the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch, join
from ldm.diffusion.denoise import Guidance, guided
from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction, sample
from ldm.diffusion.solver import Run, Solver
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond
from ldm.models.unet import UNet
from train.draws import Draws
from train.task import Setting

PROMPTS = 8  # pictures of a preview
LARGEST = 30.0  # latents of a model that has not learned yet are kept in what an autoencoder can show


@dataclass(frozen=True)
class Look:
    """How previews are sampled."""

    solver: str = "ddim"
    steps: int = 20
    scale: float = 5.0


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without gradients and dropout; each module is left in the mode that it was in."""
    modes = [m.training for m in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def prompts(setting: Setting) -> list[str]:
    """A few captions of the data set, spread over the first of them; of a set without words the empty prompt."""
    first = list(dict.fromkeys(islice(setting.captions(), 16 * PROMPTS))) or [""]
    return first[:: max(1, len(first) // PROMPTS)][:PROMPTS]


def examples(setting: Setting, count: int = 4) -> Batch:
    """A few examples of the data set, of one size."""
    batches = list(setting.look(count))
    size = None if batches[0].image is None else batches[0].image.shape[-2:]
    return join([b for b in batches if (None if b.image is None else b.image.shape[-2:]) == size])


def start_noise(seed: int, shape: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """[count,C,h,w]: picture i of a seed begins the same at every step of a run."""
    places = torch.arange(count)
    return Draws(seed, places, count, "preview").normal("start", shape).to(device)


def pictures(
    network: UNet, vae: Autoencoder, scheduler: Mapping[str, Any], noise: Tensor, cond: Cond, null: Cond, look: Look
) -> Tensor:
    """[B,3,H,W] in [-1,1] from noise [B,C,h,w]; one that is told its scale is told that of `look`."""
    flow = network.kind == "flow"
    solver = Solver(Run("flow-euler" if flow else look.solver, look.steps), scheduler, noise.device)
    scale = look.scale
    if network.told_scale:
        cond, scale = replace(cond, guidance=torch.full((len(noise),), scale, device=noise.device)), 1.0
    told = {"cond": cond, "null": null}

    def branches(x: Tensor, level: Level, wanted: tuple[str, ...]) -> dict[str, Prediction]:
        return dict(zip(wanted, network(x, level, [told[name] for name in wanted]), strict=True))

    denoise = guided(branches, Guidance(scale=scale, kind=network.kind))
    generators = [torch.Generator().manual_seed(i) for i in range(len(noise))]
    *_, last = sample(denoise, solver, solver.start(noise), generators)
    shown = torch.nan_to_num(last.float()).clamp(-LARGEST, LARGEST)
    half = torch.is_autocast_enabled(noise.device.type) and not vae.config.get("force_upcast")
    with torch.autocast(noise.device.type, enabled=half):  # XL's autoencoder overflows in half precision
        return vae.decode(shown).clamp(-1, 1)
