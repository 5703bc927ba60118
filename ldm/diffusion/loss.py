"""The one loss of every task that denoises: squared error in the network's own output space, optionally weighted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ldm.diffusion.level import Kind, Level

Weighting = Literal["none", "min_snr"]


def target(clean: Tensor, noise: Tensor, level: Level, kind: Kind) -> Tensor:
    """What a perfect network of this kind puts out at x = alpha * clean + sigma * noise; shapes as clean [B,...].

    Equal to `level.output(clean, x, kind)`, but taken from the noise itself: exact also where sigma is 0.
    """
    if kind == "sample":
        return clean
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return _wide(level.alpha, clean) * noise - _wide(level.sigma, clean) * clean
    return noise - clean


def min_snr_weight(level: Level, kind: Kind, gamma: float = 5.0) -> Tensor:
    """[B] weights min(SNR, gamma) * |d clean / d output|^2, SNR = alpha^2 / sigma^2 (Hang et al. 2023, eq. 5).

    The paper weighs the error of the clean latent; the second factor carries that into the output space of this kind:
    1/SNR for epsilon, sigma^2 = 1/(SNR + 1) for v, 1 for the sample itself, sigma^2 for flow.
    """
    snr = (level.alpha / level.sigma.clamp(min=1e-8)) ** 2
    capped = snr.clamp(max=gamma)
    if kind == "sample":
        return capped
    if kind == "epsilon":
        return torch.where(snr > 0, capped / snr.clamp(min=1e-12), torch.ones_like(snr))
    return capped * level.sigma**2


def denoising_loss(
    output: Tensor,
    clean: Tensor,
    noise: Tensor,
    level: Level,
    kind: Kind,
    *,
    weighting: Weighting = "none",
    gamma: float = 5.0,
) -> Tensor:
    """[B] losses w(level) * mean |output - target|^2 over all but the batch (Ho et al. 2020, eq. 14; w = 1 there).

    One number an example, not their mean, so that a task can weigh, mask or log them; taken in fp32 whatever the type
    of the network.
    """
    error = (output.float() - target(clean, noise, level, kind).float()) ** 2
    each = error.flatten(1).mean(1)
    return each if weighting == "none" else each * min_snr_weight(level, kind, gamma).to(each)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,...,1], in the type of `like`."""
    return value.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))
