"""Denoising diffusion in pixels: DDPM (Ho 2020), with learned variances (Nichol & Dhariwal 2021) if asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.pixels import PixelNet
from ldm.baselines.shades import SHADES, bits
from ldm.config import Strict
from ldm.data.draws import Draws
from ldm.diffusion.level import Level
from ldm.diffusion.loss import denoising_loss
from ldm.diffusion.sample import Prediction, sample
from ldm.diffusion.schedule import Spacing
from ldm.diffusion.solver import Run, Solver
from ldm.diffusion.training import Posterior, Schedule, scheduler_config

STRATA = 8  # levels at which the bound of a picture is looked at
BOUND = 0.001  # weight of the bound that teaches variances, as in the paper


class Settings(Strict):
    kind: Literal["epsilon", "v_prediction"] = "epsilon"
    schedule: Literal["linear", "cosine"] = "linear"
    learned_variance: bool = False
    width: int = Field(64, gt=0)
    layers: int = Field(1, gt=0)  # residual blocks on each size
    solver: Literal["ddim", "ddpm"] = "ddim"  # ddpm: with noise at each step, whose size may have been learned
    steps: int = Field(50, gt=0)  # of sampling


class Model(Family):
    """x_t = alpha_t x + sigma_t noise; the network says what was mixed in. Samples are made by our own loop."""

    facts = Facts(
        name="DDPM", paper="Ho 2020", group="diffusion", likelihood="bound", passes="one a step", free_form=True,
        cannot="Its likelihood is a bound, and a picture takes many passes of the network.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        self.scheduler = scheduler_config(
            settings.kind, settings.schedule, learned_variance=settings.learned_variance and settings.solver == "ddpm"
        ) | {"set_alpha_to_one": True}  # the last step leaves no noise
        self.schedule = Schedule.of(self.scheduler)
        self.net = PixelNet(
            form, settings.width, form.channels * (2 if settings.learned_variance else 1), settings.layers
        )

    @classmethod
    def facts_by(cls, settings: Settings) -> Facts:
        if settings.learned_variance:
            return replace(cls.facts, name="Improved DDPM", paper="Nichol & Dhariwal 2021")
        return cls.facts

    def predict(self, x: Tensor, level: Level, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network's output, and what it says of the variance, in [-1,1] or so."""
        out = self.net(x, level.t, label).float()
        if not self.settings.learned_variance:
            return out, None
        said, variance = out.chunk(2, 1)
        return said, variance

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        level = self.schedule.level(draws.stratified("time"))
        noise = draws.normal("noise", self.form.shape)
        noisy = level.noisy(x, noise)
        said, variance = self.predict(noisy, level, label)
        each = denoising_loss(said, x, noise, level, self.settings.kind)
        told = {"error": each.detach()}
        if variance is not None:
            clean = level.clean(said, noisy, self.settings.kind).detach()
            term = self._terms(x, clean, level.t, variance)
            each = each + BOUND * len(self.schedule) * term
            told["bound"] = term.detach()
        return each, told

    def _terms(self, x: Tensor, clean: Tensor, t: Tensor, variance: Tensor | None) -> Tensor:
        """[n] nats a dimension of one step of the bound: KL(q(x_t-1|x_t,x) || p), or at t = 0 the shades themselves."""
        posterior = Posterior.at(self.schedule, t)
        from_clean, true_log, log_beta = (
            v[:, None, None, None] for v in (posterior.from_clean, posterior.log_variance, posterior.log_beta)
        )
        wider = torch.zeros_like(true_log) if variance is None else (variance + 1) / 2 * (log_beta - true_log)
        log = true_log + wider
        clean = clean.clamp(-1, 1)
        apart = (from_clean * (x - clean)) ** 2
        divergence = 0.5 * (torch.expm1(-wider) + wider + apart * torch.exp(-log))
        each = torch.where(t[:, None, None, None] == 0, -normal_mass(x, clean, log), divergence)
        return each.flatten(1).mean(1)

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """L_0 + sum_t L_t + L_T: the first term itself, the sum from a few times of each picture. Terms fall as 1/t, so
        times are drawn with that density: log t is uniform, one in each equal part."""
        steps, first = len(self.schedule), torch.zeros(len(x), dtype=torch.long, device=x.device)
        total = self._term(x, first, label, draws, "first")
        for i in range(STRATA):
            log_t = (draws.stratified(f"time {i}") + i) / STRATA * math.log(steps)
            t = log_t.exp().long().clamp(1, steps - 1)
            chance = torch.log1p(1 / t) / math.log(steps)
            total = total + self._term(x, t, label, draws, f"noise {i}") / (chance * STRATA)
        signal = self.schedule.alphas[-1].float() ** 2
        prior = 0.5 * (signal * x**2 - signal - torch.log1p(-signal)).flatten(1).mean(1)
        return bits(total + prior, 1)

    def _term(self, x: Tensor, t: Tensor, label: Tensor | None, draws: Draws, name: str) -> Tensor:
        level = self.schedule.at(t)
        noisy = level.noisy(x, draws.normal(name, self.form.shape))
        said, variance = self.predict(noisy, level, label)
        return self._terms(x, level.clean(said, noisy, self.settings.kind), t, variance)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device = next(self.net.parameters()).device
        spacing: Spacing = "linspace" if self.settings.solver == "ddpm" else "trailing"  # both begin at noise alone
        solver = Solver(Run(self.settings.solver, self.settings.steps, spacing), self.scheduler, device)
        noise = torch.randn(count, *self.form.shape, generator=generator).to(device)

        def denoise(x: Tensor, level: Level) -> Prediction:
            level = level.expand(len(x))
            said, variance = self.predict(x, level, label)
            return Prediction(level.clean(said, x, self.settings.kind).clamp(-1, 1), variance)

        *_, last = sample(denoise, solver, solver.start(noise), generator)
        return last.clamp(-1, 1)


def normal_mass(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log P of a shade x in [-1,1] under a normal distribution: its mass within half a shade, beyond at both ends.

    Taken in the tail where both bounds are small, so that a shade far from the mean has its own small chance too.
    """
    narrow, half = torch.exp(-0.5 * log_variance.double()), 1 / (SHADES - 1)
    apart = (x.double() - mean.double()) * narrow
    far = torch.full_like(apart, math.inf)
    above = torch.where(x > 1 - half, far, apart + half * narrow)
    below = torch.where(x < -1 + half, -far, apart - half * narrow)
    right = above + below > 0
    upper, lower = torch.where(right, -below, above), torch.where(right, -above, below)
    most, least = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log: Tensor = most + torch.log(-torch.expm1((least - most).clamp(max=-1e-15)))
    return log.float()
