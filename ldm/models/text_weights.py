"""What the weight of a token does to its hidden state: the three dialects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_NO_MEAN = 1e-4  # a1111: means below this part of the root mean square are rounding, and are not divided by
_LEAST = 1e-5  # compel: a weight below this counts as this, because tan() has no end at 0


def restored_mean(z: Tensor, weights: Tensor) -> Tensor:
    """a1111: y = w z, then y * mean(z) / mean(y), the mean over one chunk. z [1,L,D], weights [L].

    Where there is no mean to restore (an untrained final norm makes it 0), y stays: else rounding would be blown up.
    """
    weighted = z * _over(weights, z)
    before, after = z.mean(), weighted.mean()
    least = _NO_MEAN * z.pow(2).mean().sqrt()
    return weighted * (before / after) if bool((before.abs() > least) & (after.abs() > least)) else weighted


def from_empty(z: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """comfy: e + (z - e) w, with e the hidden states of the empty prompt. z and e [1,L,D], weights [L]."""
    w = _over(weights, z)
    return torch.where(w == 1, z, empty + (z - empty) * w)  # a weight of 1 changes no bit


def blended(z: Tensor, without: Sequence[tuple[float, Tensor]]) -> Tensor:
    """compel's weights below 1: (z + sum t_i z_i) / (1 + sum t_i), t_i = tan((1 - w_i) pi / 2).

    z_i [1,L,D] is the prompt without the piece of weight w_i: at w = 1/2 the result is half-way between the two.
    """
    total, share = z, 1.0
    for weight, other in without:
        pull = math.tan((1 - max(_LEAST, weight)) * math.pi / 2)
        total, share = total + pull * other, share + pull
    return total / share


def _over(weights: Tensor, z: Tensor) -> Tensor:
    return weights.to(z).view(1, -1, 1)
