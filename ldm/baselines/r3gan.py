"""R3GAN (Huang 2024): a relativistic loss with zero-centred slopes on both sides, and plain residual networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.adversaries import gradient_norms
from ldm.baselines.blocks import Told, widening
from ldm.baselines.family import Facts, Family, Form, Losses, Part
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    latents: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    gamma: float = Field(2.0, ge=0)  # weight of the slopes


class Plain(nn.Module):
    """x + conv1(act(conv3(act(conv1(x))))) without norms; the last convolution begins at zero (Fixup, Zhang 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.into = nn.Conv2d(width, inner, 1, bias=False)
        groups = next(g for g in range(max(1, inner // 16), 0, -1) if inner % g == 0)  # of about sixteen channels
        self.middle = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)
        self.out = nn.Conv2d(inner, width, 1, bias=False)
        self.bias_1, self.bias_2 = nn.Parameter(torch.zeros(inner, 1, 1)), nn.Parameter(torch.zeros(inner, 1, 1))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.into(x) + self.bias_1, 0.2) * math.sqrt(2)
        y = F.leaky_relu(self.middle(y) + self.bias_2, 0.2) * math.sqrt(2)
        out: Tensor = x + self.out(y)
        return out


class Model(Family):
    """critic: softplus(-(D(x) - D(G(z)))) + gamma/2 (|dD/dx|^2 + |dD/dG(z)|^2); maker: softplus(-(D(G(z)) - D(x)))."""

    facts = Facts(
        name="R3GAN", paper="Huang 2024", group="gan", likelihood="none", passes="1", free_form=True,
        cannot="It has no likelihood and no encoder.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        widths = widening(settings.width, form.side)
        self.told_maker, self.told_critic = Told(form.classes, settings.latents), Told(form.classes, widths[-1])
        self.enter = nn.Linear(2 * settings.latents, widths[-1] * 16)
        self.corner, back = (widths[-1], 4, 4), widths[::-1]
        self.up = nn.ModuleList(nn.Sequential(Plain(w), Plain(w)) for w in back)
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(back, [*back[1:], form.channels], strict=True))
        self.wide = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip([form.channels, *widths], widths, strict=False))
        self.down = nn.ModuleList(nn.Sequential(Plain(w), Plain(w)) for w in widths)
        self.score = nn.Linear(widths[-1] * 16, widths[-1])

    def parts(self) -> list[Part]:
        critic = [*self.wide.parameters(), *self.down.parameters(), *self.score.parameters()]
        maker = [*self.enter.parameters(), *self.up.parameters(), *self.narrow.parameters()]
        return [
            Part("critic", [*critic, *self.told_critic.parameters()], average=False),
            Part("maker", [*maker, *self.told_maker.parameters()]),
        ]

    def make(self, z: Tensor, label: Tensor | None) -> Tensor:
        y = self.enter(torch.cat([z, self.told_maker(label, len(z))], 1)).view(-1, *self.corner)
        for i, (block, narrow) in enumerate(zip(self.up, self.narrow, strict=True)):
            y = narrow(block(F.interpolate(y, scale_factor=2.0, mode="bilinear") if i else y))
        picture: Tensor = y
        return picture

    def judge(self, x: Tensor, label: Tensor | None) -> Tensor:
        """[n]: the features of a picture, as far as they lie along its class."""
        y = x
        for i, (wide, block) in enumerate(zip(self.wide, self.down, strict=True)):
            y = block(wide(F.avg_pool2d(y, 2) if i else y))
        h = self.told_critic(label, len(x))
        score: Tensor = (self.score(y.flatten(1)) * h).sum(1) / math.sqrt(h.shape[1])
        return score

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        z = draws.normal("latent", (self.settings.latents,))
        if part == "maker":
            with torch.no_grad():
                real = self.judge(x, label)
            return F.softplus(real - self.judge(self.make(z, label), label)), {}
        with torch.no_grad():
            made = self.make(z, label)
        real, fake = self.judge(x, label), self.judge(made, label)
        slopes = [gradient_norms(lambda y: self.judge(y, label), each).square() for each in (x, made)]
        loss = F.softplus(fake - real) + 0.5 * self.settings.gamma * (slopes[0] + slopes[1])
        told = {"real": real.detach(), "made": fake.detach(), "slope": slopes[0].detach()}
        return loss, told

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, self.settings.latents, generator=generator).to(self.enter.weight.device)
        return self.make(z, label).clamp(-1, 1)
