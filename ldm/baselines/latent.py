"""Latent diffusion (Rombach 2022): an autoencoder first, then diffusion among its latents. The centre of this project,
as one family among the others."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from ldm.baselines.codes import Coder
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.baselines.pixels import PixelNet
from ldm.config import Strict
from ldm.data.draws import Draws
from ldm.diffusion.level import Level
from ldm.diffusion.loss import denoising_loss
from ldm.diffusion.sample import Prediction, sample
from ldm.diffusion.solver import Run, Solver
from ldm.diffusion.training import Schedule, scheduler_config


class Settings(Strict):
    numbers: int = Field(4, gt=1)  # channels of the latent
    grid: int = Field(8, gt=1)  # places a side of the latent
    coder: int = Field(64, gt=0)  # its width
    width: int = Field(64, gt=0)  # of the network that denoises
    layers: int = Field(1, gt=0)  # its residual blocks on each size
    shake: float = Field(0.1, ge=0)  # noise on latents while the autoencoder learns: neighbours then look alike
    coder_until: float = Field(0.3, gt=0, lt=1)  # share of the run
    solver: Literal["ddim", "ddpm"] = "ddim"
    steps: int = Field(50, gt=0)  # of sampling


class Model(Family):
    """Latents of length sqrt(C) at each place: their variance is 1 without being measured. Among them, v-prediction."""

    facts = Facts(
        name="Latent diffusion", paper="Rombach 2022", group="diffusion", likelihood="none", passes="one a step",
        free_form=True, cannot="It bounds the likelihood of latents, not of pictures; what they leave out is lost.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        self.coder = Coder(form, settings.coder, settings.numbers, settings.grid)
        self.inner = Form(self.coder.side, form.classes, settings.numbers)
        self.net = PixelNet(self.inner, settings.width, settings.numbers, settings.layers)
        self.scheduler = scheduler_config("v_prediction", "scaled_linear") | {"set_alpha_to_one": True}
        self.schedule = Schedule.of(self.scheduler)

    def parts(self) -> list[Part]:
        until = self.settings.coder_until
        return [  # diffusion learns from the autoencoder as it is, so no average may take its place
            Part("autoencoder", list(self.coder.parameters()), end=until, average=False),
            Part("diffusion", list(self.net.parameters()), start=until),
        ]

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """[n,C,h,w]."""
        return _even(self.coder.features(x))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.coder.picture(_even(z))

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        if part == "autoencoder":
            z = self.encode(x)
            shaken = z + self.settings.shake * draws.normal("shake", self.inner.shape)
            made = self.decode(shaken)
            error = (made - x).square().flatten(1).mean(1) + 0.2 * (made - x).abs().flatten(1).mean(1)
            return error, {"error": error.detach()}
        with torch.no_grad():
            z = self.encode(x)
        level = self.schedule.level(draws.stratified("time"))
        noise = draws.normal("noise", self.inner.shape)
        said = self.net(level.noisy(z, noise), level.t, label)
        each = denoising_loss(said, z, noise, level, "v_prediction")
        return each, {"latent error": each.detach()}

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = next(self.net.parameters()).device
        solver = Solver(Run(self.settings.solver, self.settings.steps, "trailing"), self.scheduler, device)
        noise = torch.randn(count, *self.inner.shape, generator=generator).to(device)

        def denoise(x: Tensor, level: Level) -> Prediction:
            level = level.expand(len(x))
            return Prediction(level.clean(self.net(x, level.t, label).float(), x, "v_prediction"))

        *_, last = sample(denoise, solver, solver.start(noise), generator)
        return self.decode(last).clamp(-1, 1)


def _even(z: Tensor) -> Tensor:
    even: Tensor = F.normalize(z, dim=1) * z.shape[1] ** 0.5
    return even
