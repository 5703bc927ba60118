"""Families whose samples flow along an equation dx/dt = v(x,t) that training never integrates: likelihood and latents
come with it (the probability flow, Song 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from ldm.baselines.bijections import normal_log_density
from ldm.baselines.family import Family, Form
from ldm.baselines.odes import carried, carried_with_density, signs
from ldm.baselines.pixels import PixelNet
from ldm.baselines.shades import density_bits, dequantised
from ldm.data.draws import Draws


class PathFamily(Family):
    """x at `nearest` is all but data in [-1,1], at 1 standard normal; subclasses tell the velocity between."""

    nearest: ClassVar[float] = 1e-3

    def __init__(self, form: Form, width: int, layers: int, steps: int) -> None:
        super().__init__()
        self.form, self.steps = form, steps
        self.net = PixelNet(form, width, form.channels, layers)

    def said(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """The network's output at times t [n] in [0,1]."""
        out: Tensor = self.net(x, t * 999, label)
        return out.float()

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise NotImplementedError

    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """Exact but for the steps of the integration and a divergence that is right on average. In [-1,1] a density is
        half of that in [0,1]: one bit a number."""
        start = 2 * dequantised(x, draws.uniform("within a shade", self.form.shape)) - 1
        e = signs(draws, self.form.shape)
        end, gained = carried_with_density(
            lambda at, t: self.velocity(at, t, label), start, self.nearest, 1.0, self.steps, e
        )
        return density_bits(-(normal_log_density(end) + gained), self.form.dims) - 1

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return carried(lambda at, t: self.velocity(at, t, label), x, self.nearest, 1.0, self.steps)

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return carried(lambda at, t: self.velocity(at, t, label), z, 1.0, self.nearest, self.steps).clamp(-1, 1)

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, *self.form.shape, generator=generator)
        return self.decode(z.to(next(self.net.parameters()).device), label)
