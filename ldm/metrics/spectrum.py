"""Power by frequency: upsampling leaves too much or too little of the fine ones (Durall 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.metrics.interval import Estimate, bootstrap
from ldm.metrics.pictures import unit

AT_ONCE = 500


def power(image: Tensor) -> Tensor:
    """[n,size//2]: the mean power of each picture [n,3,size,size], in [0,1] or bytes, on rings of equal frequency,
    without its mean."""
    return torch.cat([_power(unit(part)) for part in torch.split(image, AT_ONCE)])


def _power(image: Tensor) -> Tensor:
    size = image.shape[-1]
    grey = image.double().mean(1)
    window = torch.hann_window(size, periodic=False, dtype=torch.float64)
    grey = (grey - grey.mean((1, 2), keepdim=True)) * window * window[:, None]
    strength = torch.fft.fft2(grey).abs().square() / size**2
    axis = torch.fft.fftfreq(size, 1 / size)
    ring = torch.hypot(axis, axis[:, None]).round().long()
    rings = size // 2
    inside = (ring >= 1) & (ring <= rings)
    places = (ring[inside] - 1).expand(len(image), -1)
    sums = torch.zeros(len(image), rings, dtype=torch.float64).scatter_add_(1, places, strength[:, inside])
    return sums / torch.bincount(ring[inside] - 1, minlength=rings)


def spectrum_distance(made: Tensor, real: Tensor, generator: torch.Generator, rounds: int = 100) -> Estimate:
    """The mean over frequencies of |log mean power of the samples - log mean power of the data|, in decibels, of powers
    [n,rings] and [m,rings]."""
    want = real.mean(0).clamp(min=1e-12).log10()

    def apart(rows: Tensor) -> float:
        return float(10 * (rows.mean(0).clamp(min=1e-12).log10() - want).abs().mean())

    return bootstrap(apart, made, generator, rounds).within(0)
