"""Previews for next to nothing: by the tiny decoder of a model, else by a linear map fitted to its autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.models.autoencoder import Autoencoder


class TinyPreview:
    """Pictures at full size, by a tiny autoencoder that was taught the same latents."""

    def __init__(self, tiny: Autoencoder) -> None:
        self.tiny = tiny

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> list[np.ndarray]:
        """[B,C,h,w] as B arrays [H,W,3] in 0..1."""
        pictures = (self.tiny.decode(latents).float().cpu() + 1) / 2
        return [np.asarray(p.permute(1, 2, 0)) for p in pictures.clamp(0, 1)]


@dataclass(frozen=True)
class Preview:
    """colour = latent @ weight, with a last row for the constant; weight [C+1,3]."""

    weight: Tensor

    @classmethod
    def fit(cls, vae: Autoencoder, samples: int = 4, side: int = 8) -> Preview:
        """Least squares between smooth random latents and the mean colour of the pixels that each decodes to."""
        drawn = torch.Generator("cpu").manual_seed(0)
        coarse = torch.randn(samples, vae.channels, 3, 3, generator=drawn) * 1.5
        latents = F.interpolate(coarse, size=(side, side), mode="bilinear")
        colours = F.avg_pool2d(vae.decode(latents).cpu(), vae.factor).permute(0, 2, 3, 1).reshape(-1, 3)
        known = _with_one(latents)
        return cls(torch.linalg.lstsq(known, colours).solution)

    def __call__(self, latents: Tensor) -> list[np.ndarray]:
        """[B,C,h,w] as B arrays [h,w,3] in 0..1, one pixel a latent."""
        height, width = latents.shape[-2:]
        colours = (_with_one(latents.float().cpu()) @ self.weight).reshape(len(latents), height, width, 3)
        return [np.asarray(c) for c in ((colours + 1) / 2).clamp(0, 1).numpy()]


def _with_one(latents: Tensor) -> Tensor:
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
