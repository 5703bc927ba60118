"""An energy-based model (Du & Mordatch 2019), sampled by short runs of Langevin's equation (Nijkamp 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from ldm.baselines.blocks import row_of, widening
from ldm.baselines.family import Facts, Family, Form, Losses
from ldm.config import Strict
from ldm.data.draws import Draws


class Settings(Strict):
    width: int = Field(64, gt=0)
    steps: int = Field(20, gt=0)  # of Langevin's equation
    pull: float = Field(10.0, gt=0)  # step along the slope
    noise: float = Field(0.01, ge=0)  # of a step
    blur: float = Field(0.03, ge=0)  # noise on the data, without which energies have cliffs
    small: float = Field(0.1, ge=0)  # weight of the energies' squares, which keeps them in sight


class Model(Family):
    """p(x) is proportional to exp(-E(x)). E falls on data and rises on what the run found: its gradient is that of

    -log p on average, as far as the run's samples are those of the model."""

    facts = Facts(
        name="Energy model", paper="Du & Mordatch 2019", group="energy", likelihood="none", passes="one a step",
        free_form=True, cannot="Its likelihood has an unknown constant, and a short run finds few of its pictures.",
    )  # fmt: skip

    def __init__(self, settings: Settings, form: Form) -> None:
        super().__init__()
        self.settings, self.form = settings, form
        widths = widening(settings.width, form.side)
        self.enter = nn.Conv2d(form.channels, widths[0], 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(narrow, wide, 3, padding=1)
            for narrow, wide in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.leave = nn.Linear(widths[-1], form.classes + 1)

    def energy(self, x: Tensor, label: Tensor | None) -> Tensor:
        """[n]: that of the class, or where nobody says which, of pictures as such."""
        y = F.silu(self.enter(x))
        for i, layer in enumerate(self.layers):
            y = F.silu(layer(y))
            if i + 1 < len(self.layers):
                y = F.avg_pool2d(y, 2)
        each = self.leave(y.sum((2, 3)))
        own: Tensor = each.gather(1, row_of(label, len(x), x.device)[:, None])[:, 0]
        return own

    def run(self, x: Tensor, label: Tensor | None, noises: list[Tensor]) -> Tensor:
        """From x: so many steps down the slope, each with noise."""
        with torch.enable_grad():
            for noise in noises:
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.energy(x, label).sum(), x)
                x = (x - self.settings.pull * slope.clamp(-0.01, 0.01) + self.settings.noise * noise).clamp(-1, 1)
        return x.detach()

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        shape, own = self.form.shape, self.settings
        start = 2 * draws.uniform("start", shape) - 1
        found = self.run(start, label, [draws.normal(f"step {i}", shape) for i in range(own.steps)])
        real = self.energy(x + own.blur * draws.normal("blur", shape), label)
        made = self.energy(found, label)
        return real - made + own.small * (real**2 + made**2), {"real": real.detach(), "made": made.detach()}

    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        device, shape = self.leave.weight.device, self.form.shape
        start = 2 * torch.rand(count, *shape, generator=generator).to(device) - 1
        noises = [torch.randn(count, *shape, generator=generator).to(device) for _ in range(self.settings.steps)]
        return self.run(start, label, noises)
