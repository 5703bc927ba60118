"""The losses of tasks that denoise: squared error in the network's own output space, optionally weighted; the bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.diffusion.level import Kind, Level
from ldm.diffusion.training import Posterior


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


def min_snr_weight(level: Level, kind: Kind, gamma: float = 5.0, floor: float = 0.0) -> Tensor:
    """[B] weights max(floor, min(SNR, gamma)) * |d clean / d output|^2, SNR = alpha^2 / sigma^2 (Hang et al. 2023).

    The paper weighs the error of the clean latent; the second factor carries that into the output space of this kind:
    1/SNR for epsilon, sigma^2 = 1/(SNR + 1) for v, 1 for the sample itself, sigma^2 for flow. `floor` is ours: with the
    paper's 0 the highest noise has next to no weight, and there it is decided where things go.
    """
    snr = (level.alpha / level.sigma.clamp(min=1e-8)) ** 2
    capped = snr.clamp(min=floor, max=gamma)
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
    mask: Tensor | None = None,
) -> Tensor:
    """[B] losses: mean |output - target|^2 over all but the batch (Ho et al. 2020, eq. 14).

    One number an example, not their mean, so that a task can weigh or log them; taken in fp32 whatever the type of the
    network. `mask` [B,1,h,w] in [0,1] says what counts: the mean is taken over that much.
    """
    return _mean((output.float() - target(clean, noise, level, kind).float()) ** 2, mask)


def variational_bound(
    clean: Tensor,
    predicted: Tensor,
    x: Tensor,
    variance: Tensor,
    t: Tensor,
    posterior: Posterior,
    mask: Tensor | None = None,
) -> Tensor:
    """[B] terms L_t of the bound on -log p(clean), in bits a dimension (Nichol & Dhariwal 2021, section 3.1).

    t > 0: KL(q(x_{t-1} | x_t, clean) || p), t = 0: -log p(clean | x_0), a density since latents are continuous. p has
    the mean that belongs to the `predicted` clean latent, and log variance = f log beta + (1 - f) log beta~ with
    f = (variance + 1) / 2. The mean is held fixed: the bound teaches variances alone. `mask` as in `denoising_loss`.
    """
    wide = [_wide(v, x) for v in (posterior.from_clean, posterior.log_variance, posterior.log_beta)]
    from_clean, true_log, log_beta = wide
    share = (variance.float() + 1) / 2
    narrower = share * (true_log - log_beta)  # by what the true log variance is below the predicted one
    log = true_log - narrower
    apart = (from_clean * (clean - predicted.detach())).float() ** 2  # the part of x_t is common to both means
    divergence = 0.5 * (torch.expm1(narrower) - narrower + apart * (-log).exp())  # no 1 is added and taken away
    density = 0.5 * (math.log(2 * math.pi) + log + apart * (-log).exp())
    each = torch.where(_wide(t, x) == 0, density, divergence)
    return _mean(each, mask) / math.log(2)


def pseudo_huber(a: Tensor, b: Tensor, size: float) -> Tensor:
    """[B] means of sqrt((a - b)^2 + size^2) - size: a square near 0, absolute far off (Song & Dhariwal 2023, 3.3)."""
    return (((a.float() - b.float()) ** 2 + size**2).sqrt() - size).flatten(1).mean(1)


def _mean(each: Tensor, mask: Tensor | None) -> Tensor:
    """[B] means of [B,C,h,w], over what `mask` [B,1,h,w] counts."""
    if mask is None:
        return each.flatten(1).mean(1)
    return (each * mask).flatten(1).sum(1) / mask.expand_as(each).flatten(1).sum(1).clamp(min=1e-6)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """[B] as [B,1,...,1], in the type of `like`."""
    return value.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))
