"""Generative adversarial networks with convolutions (Goodfellow 2014, Radford 2016), and the losses proposed since."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm.baselines.adversaries import LOSSES, gradient_norms
from ldm.baselines.blocks import Told, norm, widening
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    loss: Literal["original", "least_squares", "wasserstein", "hinge"] = "original"
    latents: int = Field(128, gt=0)
    width: int = Field(64, gt=0)
    penalty: float = Field(0.0, ge=0)  # of the gradient: 10 with wasserstein is WGAN-GP (Gulrajani 2017)
    clip: float = Field(0.0, ge=0)  # of the critic's weights: 0.01 with wasserstein is WGAN (Arjovsky 2017)
    spectral: bool = False  # weights of the critic over their largest singular value (Miyato 2018)
    critic_turns: int = Field(1, gt=0)  # for one of the maker

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.spectral and self.clip:
            raise ValueError("spectral takes the scale of weights away, so clip would do nothing; give one of them")
        return self


class Maker(nn.Module):
    """z [n,latents] and a class to pictures: a 4x4 beginning, doubled by transposed convolutions."""

    def __init__(self, latents: int, told: int, widths: list[int], channels: int) -> None:
        super().__init__()
        self.corner = (widths[-1], 4, 4)
        self.enter = nn.Linear(latents + told, widths[-1] * 16)
        back = widths[::-1]
        steps: list[nn.Module] = [norm(back[0]), nn.ReLU()]
        for wide, narrow in pairwise(back):
            steps += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), norm(narrow), nn.ReLU()]
        self.steps = nn.Sequential(*steps, nn.Conv2d(back[-1], channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        picture: Tensor = self.steps(self.enter(torch.cat([z, h], 1)).view(-1, *self.corner))
        return picture


class Critic(nn.Module):
    """Pictures to one score; with a class by projection (Miyato & Koyama 2018): score + <class, features>, where this
    is a mean of products, or with weights of a bounded norm, which would make that all but nothing, their sum."""

    def __init__(self, told: int, widths: list[int], channels: int, spectral: bool = False) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in pairwise(widths):
            steps += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.steps = nn.Sequential(*steps)
        self.spectral = spectral
        self.gain = math.sqrt(2) ** len(widths) if spectral else 1.0  # what half of the units being shut takes away
        self.score, self.project = nn.Linear(widths[-1] * 16, 1), nn.Linear(told, widths[-1] * 16, bias=False)
        for layer in list(self.modules()):  # as in the paper; without norms its own scale matters more
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, 0.2)
            if spectral and isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y = self.gain * self.steps(x).flatten(1)
        along = self.project(h) * y
        told = along.sum(1) / math.sqrt(h.shape[1]) if self.spectral else along.mean(1)
        score: Tensor = self.score(y)[:, 0] + told
        return score


class Model(Family):
    """Two parts in turn: the critic tells made pictures from real ones, the maker is taught by what it says."""

    facts = Facts(
        name="DCGAN", paper="Radford 2016", group="gan", likelihood="none", passes="1", free_form=True,
        cannot="It has no likelihood and no encoder, and nothing makes it draw every kind of picture.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        if settings.spectral:  # each pass of a critic in training brings its singular values nearer to the truth
            self.exact, self.exception = False, "each micro-batch moves the singular values that weights are divided by"
        widths = widening(settings.width, form.side)
        told = settings.width
        self.maker, self.critic = (
            Maker(settings.latents, told, widths, form.channels),
            Critic(told, widths, form.channels, settings.spectral),
        )
        self.told_maker, self.told_critic = Told(form.classes, told), Told(form.classes, told)
        self.cost = LOSSES[settings.loss]

    @classmethod
    def facts_by(cls, settings: Settings) -> Facts:
        papers = {
            "original": "Radford 2016",
            "least_squares": "Mao 2017",
            "hinge": "Lim & Ye 2017",
            "wasserstein": "Gulrajani 2017" if settings.penalty else "Arjovsky 2017",
        }
        name = cls.facts.name
        if settings.loss == "wasserstein":
            name = "WGAN-GP" if settings.penalty else "WGAN"
        paper = papers[settings.loss] + (", Miyato 2018" if settings.spectral else "")
        return replace(cls.facts, name=name, paper=paper)

    def parts(self) -> list[Part]:
        critic = [*self.critic.parameters(), *self.told_critic.parameters()]
        maker = [*self.maker.parameters(), *self.told_maker.parameters()]
        return [
            Part("critic", critic, average=False),
            Part("maker", maker, every=self.settings.critic_turns),
        ]

    def make(self, z: Tensor, label: Tensor | None) -> Tensor:
        picture: Tensor = self.maker(z, self.told_maker(label, len(z)))
        return picture

    def judge(self, x: Tensor, label: Tensor | None) -> Tensor:
        score: Tensor = self.critic(x, self.told_critic(label, len(x)))
        return score

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        z = draws.normal("latent", (self.settings.latents,))
        if part == "maker":
            return self.cost.maker(self.judge(self.make(z, label), label)), {}
        if self.settings.clip:
            self._clip()
        with torch.no_grad():
            made = self.make(z, label)
        real, fake = self.judge(x, label), self.judge(made, label)
        loss = self.cost.critic(real, fake)
        told = {"real": real.detach(), "made": fake.detach()}
        if self.settings.penalty:
            share = draws.uniform("between")[:, None, None, None]
            between = share * x + (1 - share) * made
            norms = gradient_norms(lambda y: self.judge(y, label), between)
            loss = loss + self.settings.penalty * (norms - 1) ** 2
            told["slope"] = norms.detach()
        return loss, told

    @torch.no_grad()
    def _clip(self) -> None:
        for weight in self.critic.parameters():
            weight.clamp_(-self.settings.clip, self.settings.clip)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, self.settings.latents, generator=generator)
        return self.make(z.to(self.maker.enter.weight.device), label)
