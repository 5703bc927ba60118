"""What all normalising flows of pictures share: dequantised shades, an exact density, samples by the way back."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ldm.baselines.bijections import Bijection, normal_log_density
from ldm.baselines.blocks import Told
from ldm.baselines.densities import DensityFamily
from ldm.baselines.family import Form
from ldm.baselines.shades import dequantised, requantised


class FlowFamily(DensityFamily):
    """`layers` takes y [n,C,H,W] in [0,1) to z [n,C*H*W] and back; z is standard normal.

    log p(y) = log N(z; 0, 1) + log|det dz/dy|.
    """

    def __init__(self, form: Form, told: int) -> None:
        super().__init__(form)
        self.told = Told(form.classes, told)
        self.layers: Bijection

    def log_density(self, y: Tensor, label: Tensor | None) -> Tensor:
        """[n]: of y in [0,1)."""
        z, change = self.layers(y, self.told(label, len(y)))
        told: Tensor = normal_log_density(z) + change
        return told

    @torch.no_grad()
    def begin(self, x: Tensor, label: Tensor | None) -> None:
        """A first pass sets the scales that are taken from data."""
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
        self.log_density(dequantised(x, noise), label)

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
