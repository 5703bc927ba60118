"""Families with a density of pictures as real numbers: trained by it, and measured by it in bits per dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.baselines.family import Family, Form, Losses
from ldm.baselines.shades import density_bits, dequantised
from ldm.data.draws import Draws


class DensityFamily(Family):
    """Whole shades are made real numbers by uniform noise, so the bits are those of a bound that is as tight as the
    model is smooth within a shade; as everywhere, it is called exact."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def log_density(self, y: Tensor, label: Tensor | None) -> Tensor:
        """[n]: of y [n,C,H,W] in [0,1)."""
        raise NotImplementedError

    def bits(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        """[n], with a way back."""
        y = dequantised(x, draws.uniform("within a shade", self.form.shape))
        return density_bits(-self.log_density(y, label), self.form.dims)

    def loss(self, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        told = self.bits(x, label, draws)
        return told, {"bits": told.detach()}

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, label: Tensor | None, draws: Draws) -> Tensor:
        return self.bits(x, label, draws)
