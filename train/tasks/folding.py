"""Latents of mean 0 and variance 1, by weights alone: the data's statistics are folded into the outer 1x1 convolutions.

Stock pipelines then need no scale, and a shift, which they ignore, is not there. Pictures do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.nets.coder import KLCoder, VQCoder

UNIT = {"scaling_factor": 1.0}  # what the configuration of a folded autoencoder says
_UNIT_KL = {**UNIT, "shift_factor": None, "latents_mean": None, "latents_std": None}
_LEAST = 1e-6  # a channel with a smaller deviation says nothing, and keeps its scale


@dataclass(frozen=True)
class Moments:
    """Of latents over data: mean [C], covariance [C,C] and the mean posterior variance [C] (0 for codes); float64."""

    mean: Tensor
    covariance: Tensor
    noise: Tensor

    @property
    def std(self) -> Tensor:
        """[C]: of a latent that is drawn, var z = var(mean of the posterior) + E(variance of the posterior)."""
        return (self.covariance.diagonal() + self.noise).sqrt()


@torch.no_grad()
def measured(encode: Callable[[Tensor], tuple[Tensor, Tensor]], pictures: Iterable[Tensor]) -> Moments:
    """Moments over pictures [n,3,H,W]; `encode` gives mean and deviation [n,C,h,w]."""
    count, total, squares, noise = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for picture in pictures:
        mean, std = (t.double().cpu().transpose(0, 1).flatten(1) for t in encode(picture))
        count += mean.shape[1]
        total = total + mean.sum(1)
        squares = squares + mean @ mean.T
        noise = noise + (std**2).sum(1)
    if count == 0:
        raise LdmError(
            Code.FILE,
            "The data set gave no pictures to measure latents on.",
            "Scale and shift of the latents are computed over the training pictures.",
            "Look at the data with `ldm data check`.",
        )
    mean = total / count
    return Moments(mean, squares / count - mean[:, None] * mean[None, :], noise / count)


def with_outer(vae: KLCoder) -> KLCoder:
    """The same autoencoder with both outer 1x1 convolutions: where the architecture has none, they do nothing yet."""
    lacking = [name for name in ("quant_conv", "post_quant_conv") if getattr(vae, name) is None]
    if not lacking:
        return vae
    with torch.random.fork_rng(devices=[]):  # its new weights are all replaced, and the generator outside stays
        wider = KLCoder.from_config({**vae.config, **{f"use_{name}": True for name in lacking}})
    state = dict(vae.state_dict())
    for name in lacking:
        layer = getattr(wider, name)
        state[f"{name}.weight"] = torch.eye(layer.out_channels)[:, :, None, None]
        state[f"{name}.bias"] = torch.zeros(layer.out_channels)
    wider.load_state_dict(state)
    return wider.train(vae.training)


def folded(vae: Any, moments: Moments) -> Any:
    """A copy on the CPU in fp32 whose latents have mean 0 and variance 1 in each channel; the pictures are the same."""
    unit = copy.deepcopy(vae).cpu().float().eval().requires_grad_(False)
    if isinstance(unit, VQCoder):
        _fold_codes(unit, moments)
        unit.reconfigured(**UNIT)
    else:
        _fold_gaussian(unit, moments)
        unit.reconfigured(**_UNIT_KL)
    return unit


@torch.no_grad()
def _fold_gaussian(vae: Any, moments: Moments) -> None:
    """z' = (z - m) / s per channel: moments (mean, logvar) -> ((mean - m) / s, logvar - 2 log s)."""
    std = _safe(moments.std)
    first: nn.Conv2d = vae.quant_conv
    factor = torch.cat([1 / std, torch.ones_like(std)])
    offset = torch.cat([-moments.mean / std, -2 * std.log()])
    _set(first, first.weight.double() * factor.view(-1, 1, 1, 1), _bias(first) * factor + offset)
    _unfold(vae.post_quant_conv, std.diag(), moments.mean)


@torch.no_grad()
def _fold_codes(vae: VQCoder, moments: Moments) -> None:
    """h' = R (h - m) / s for the latents and for every code, R a rotation and s one number.

    The nearest code stays the nearest only if all distances change by one factor, so channels cannot be scaled each by
    its own. But some rotation spreads the variance evenly over them, and then one factor makes each of them 1.
    """
    turn = even_rotation(moments.covariance)
    std = _safe((moments.covariance.trace() / len(turn)).sqrt()[None])
    first: nn.Conv2d = vae.quant_conv
    weight = turn @ first.weight.double()[:, :, 0, 0] / std
    _set(first, weight[:, :, None, None], turn @ (_bias(first) - moments.mean) / std)
    codes = vae.quantize.embedding.weight
    codes.copy_((codes.double() - moments.mean) @ turn.T / std)
    _unfold(vae.post_quant_conv, std * turn.T, moments.mean)


def _unfold(last: nn.Conv2d, back: Tensor, mean: Tensor) -> None:
    """The decoder's side: `last` of z = back z' + mean."""
    weight = last.weight.double()[:, :, 0, 0]
    _set(last, (weight @ back)[:, :, None, None], _bias(last) + weight @ mean)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.double()


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)


def _safe(std: Tensor) -> Tensor:
    return torch.where(std > _LEAST, std, torch.ones_like(std))


def even_rotation(covariance: Tensor) -> Tensor:
    """[C,C] R with R R' = 1 such that every diagonal entry of R cov R' is the mean of the eigenvalues.

    Schur and Horn say that it exists. One turn in the plane of a channel below that mean and one above brings the first
    to it, so C - 1 turns do: for entries (a, m; m, b) and t = tan(angle), (b - mean) t^2 - 2 m t + (a - mean) = 0.
    """
    c = covariance.clone()
    turn = torch.eye(len(c), dtype=c.dtype)
    mean = c.trace() / len(c)
    for _ in range(len(c) - 1):
        low, high = int(c.diagonal().argmin()), int(c.diagonal().argmax())
        below, above, mixed = c[low, low] - mean, c[high, high] - mean, c[low, high]
        if above <= 1e-12 * mean:
            break
        tangent = (mixed + (mixed**2 - above * below).sqrt()) / above
        cosine = 1 / (1 + tangent**2).sqrt()
        sine = tangent * cosine
        plane = torch.eye(len(c), dtype=c.dtype)
        plane[low, low] = plane[high, high] = cosine
        plane[low, high], plane[high, low] = -sine, sine
        c, turn = plane @ c @ plane.T, plane @ turn
    return turn
