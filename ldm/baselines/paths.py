"""Families whose samples flow along an equation dx/dt = v(x,t) that training never integrates: likelihood and latents
come with it (the probability flow, Song 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from ldm.baselines.bijections import normal_log_density
from ldm.baselines.family import Family, Form
from ldm.baselines.odes import Velocity, carried, carried_with_density, signs
from ldm.baselines.pixels import PixelNet
from ldm.baselines.shades import density_bits, dequantised, requantised
from ldm.data.draws import Draws

BEND = 4


class PathFamily(Family):
    """x at `nearest` is all but data in [-1,1], at 1 standard normal; subclasses tell the velocity between.

    A likelihood takes `steps` of four passes each; samples, which need not be as exact, take `drawn`."""

    nearest: ClassVar[float] = 1e-4  # the time at which data begins

    def __init__(self, form: Form, width: int, layers: int, steps: int, drawn: int) -> None:
        super().__init__()
        self.form, self.steps, self.drawn = form, steps, drawn
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
        start = self.shaken(x, draws)
        e = signs(draws, self.form.shape)
        begin = self.nearest ** (1 / BEND)
        end, gained = carried_with_density(self._bent(label), start, begin, 1.0, self.steps, e)
        return density_bits(-(normal_log_density(end) + gained), self.form.dims) - 1

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return carried(self._bent(label), x, self.nearest ** (1 / BEND), 1.0, self.steps)

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self._back(z, label, self.steps)

    def _back(self, z: Tensor, label: Tensor | None, steps: int) -> Tensor:
        x = carried(self._bent(label), z, 1.0, self.nearest ** (1 / BEND), steps)
        return requantised((x.clamp(-1, 1) + 1) / 2)  # x lies between the shades, as `shaken` pictures do

    def _bent(self, label: Tensor | None) -> Velocity:
        """dx/du with t = u^4: steps are short near data, where the velocity turns fastest. Twelve of them are within
        0.02 bits a number for pixels of any spread; twelve equal steps of t are whole bits off for smooth pictures."""

        def velocity(x: Tensor, u: Tensor) -> Tensor:
            return self.velocity(x, u**BEND, label) * (BEND * u ** (BEND - 1))[:, None, None, None]

        return velocity

    def shaken(self, x: Tensor, draws: Draws) -> Tensor:
        """Pictures as numbers between the shades, which is where the likelihood is taken."""
        return 2 * dequantised(x, draws.uniform("within a shade", self.form.shape)) - 1

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, *self.form.shape, generator=generator)
        return self._back(z.to(next(self.net.parameters()).device), label, self.drawn)
