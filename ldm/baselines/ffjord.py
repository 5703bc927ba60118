"""FFJORD (Grathwohl 2019): a flow of continuous time trained by its likelihood; any network may be the velocity."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.bijections import Logit, normal_log_density
from ldm.baselines.blocks import Told
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.baselines.odes import carried, carried_with_density, signs
from ldm.baselines.shades import density_bits, dequantised, requantised
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    width: int = Field(48, gt=0)
    layers: int = Field(3, gt=0)
    steps: int = Field(4, gt=0)  # of the integration while training
    steps_after: int = Field(12, gt=0)  # of what is measured and drawn
    kinetic: float = Field(0.01, ge=0)  # weight of |v|^2, which keeps paths straight (Finlay 2020)


class Velocity(nn.Module):
    """Convolutions told of the time and of the class; smooth, for its slope is integrated."""

    def __init__(self, form: Form, width: int, layers: int) -> None:
        super().__init__()
        widths = [form.channels, *[width] * layers]
        self.layers = nn.ModuleList(nn.Conv2d(narrow, wide, 3, padding=1) for narrow, wide in pairwise(widths))
        self.tell = nn.ModuleList(nn.Linear(width + 1, 2 * width) for _ in range(layers))
        self.leave = nn.Conv2d(width, form.channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        told = torch.cat([t[:, None].to(x.dtype), h], 1)
        for layer, tell in zip(self.layers, self.tell, strict=True):
            scale, shift = tell(told)[:, :, None, None].chunk(2, 1)
            x = F.softplus(layer(x) * (1 + scale) + shift) - 0.7
        out: Tensor = self.leave(x)
        return out


class Model(Family):
    """x at t = 0 is data on the real line, at t = 1 standard normal; log p(x) = log N(x_1) + the integral of div v."""

    facts = Facts(
        name="FFJORD", paper="Grathwohl 2019", group="flow", likelihood="exact", passes="4 a step", free_form=True,
        cannot="Training integrates an equation at every step; its determinant is an estimate, right on average.",
    )  # fmt: skip

    log_scale: Tensor
    shift: Tensor

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        self.logit, self.told = Logit(), Told(form.classes, settings.width)
        self.velocity = Velocity(form, settings.width, settings.layers)
        self.register_buffer("log_scale", torch.zeros(form.channels, 1, 1))  # of data on the real line, from the first
        self.register_buffer("shift", torch.zeros(form.channels, 1, 1))

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
        line, _ = self.logit(dequantised(x, noise))
        self.shift.copy_(line.mean((0, 2, 3))[:, None, None])
        self.log_scale.copy_(line.std((0, 2, 3)).clamp(min=1e-3).log()[:, None, None])

    def log_density(
        self, y: Tensor, label: Tensor | None, e: Tensor, steps: int, create: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Of y [n,C,H,W] in [0,1), with e [n,C,H,W] of signs; and the mean of |v|^2 where the path begins [n]."""
        line, change = self.logit(y)
        x, h = (line - self.shift) * (-self.log_scale).exp(), self.told(label, len(y))
        narrowed = -self.log_scale.sum() * self.form.side**2

        def velocity(at: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.velocity(at, t, h)
            return out

        end, gained = carried_with_density(velocity, x, 0.0, 1.0, steps, e, create)
        fast = velocity(x, x.new_zeros(len(x))).square().flatten(1).mean(1)
        return normal_log_density(end) + gained + change + narrowed, fast

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        y = dequantised(x, draws.uniform("within a shade", self.form.shape))
        e = signs(draws, self.form.shape)
        log_density, fast = self.log_density(y, label, e, self.settings.steps, create=True)
        told = density_bits(-log_density, self.form.dims)
        return told + self.settings.kinetic * fast, {"bits": told.detach(), "speed": fast.detach()}

    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        y = dequantised(x, draws.uniform("within a shade", self.form.shape))
        e = signs(draws, self.form.shape)
        with torch.no_grad():
            log_density, _ = self.log_density(y, label, e, self.settings.steps_after)
        return density_bits(-log_density, self.form.dims)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, *self.form.shape, generator=generator).to(self.shift.device)
        h = self.told(label, count)
        x = carried(lambda at, t: self.velocity(at, t, h), z, 1.0, 0.0, self.settings.steps_after)
        return requantised(self.logit.inverse(x * self.log_scale.exp() + self.shift))
