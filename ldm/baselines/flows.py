"""What all normalising flows of pictures share: dequantised shades, an exact density, samples by the way back."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ldm.baselines.bijections import Bijection, normal_log_density
from ldm.baselines.blocks import Told
from ldm.baselines.family import Family, Form, Losses
from ldm.baselines.shades import density_bits, dequantised, requantised
from ldm.data.draws import Draws


class FlowFamily(Family):
    """`layers` takes y [n,C,H,W] in [0,1) to z [n,C*H*W] and back; z is standard normal.

    log p(y) = log N(z; 0, 1) + log|det dz/dy|. Whole shades are made real numbers by uniform noise, so the bits are
    those of a bound that is as tight as the model is smooth within a shade; as everywhere, it is called exact.
    """

    def __init__(self, form: Form, told: int) -> None:
        super().__init__()
        self.form, self.told = form, Told(form.classes, told)
        self.layers: Bijection

    def log_density(self, y: Tensor, label: Tensor | None) -> Tensor:
        """[n]: of y in [0,1)."""
        z, change = self.layers(y, self.told(label, len(y)))
        told: Tensor = normal_log_density(z) + change
        return told

    def _bits(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        y = dequantised(x, draws.uniform("within a shade", self.form.shape))
        return density_bits(-self.log_density(y, label), self.form.dims)

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """A first pass sets the scales that are taken from data."""
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
        self.log_density(dequantised(x, noise), label)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        told = self._bits(x, label, draws)
        return told, {"bits": told.detach()}

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return self._bits(x, label, draws)

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """z [n,C*H*W] of the middles of shades."""
        z: Tensor = self.layers(dequantised(x, torch.full_like(x, 0.5)), self.told(label, len(x)))[0]
        return z.flatten(1)

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return requantised(self.layers.inverse(z, self.told(label, len(z))))

    @torch.no_grad()
    def sample(self, count: int, label: Tensor | None, generator: Generator) -> Tensor:
        z = torch.randn(count, self.form.dims, generator=generator)
        return self.decode(z.to(self.told.table.weight.device), label)
