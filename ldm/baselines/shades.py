"""Densities of pictures of 256 shades: between whole numbers and the real line, and bits per dimension."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHADES = 256
_NARROWEST = -7.0  # of a logistic's log scale, in [-1,1]: a fourteenth of a shade


def shades(x: Tensor) -> Tensor:
    """[-1,1] to 0..255, int64."""
    return ((x + 1) * ((SHADES - 1) / 2)).round().clamp(0, SHADES - 1).long()


def picture(shade: Tensor) -> Tensor:
    """0..255 to [-1,1]."""
    return shade.float() * (2 / (SHADES - 1)) - 1


def dequantised(x: Tensor, noise: Tensor) -> Tensor:
    """y = (shade + u) / 256 in [0,1) with u in [0,1): the mean log density of y bounds the log probability of the
    shades from below (Theis 2016)."""
    return (shades(x) + noise) / SHADES


def requantised(y: Tensor) -> Tensor:
    """[0,1) to the picture [-1,1] of that shade."""
    return picture((y * SHADES).floor().clamp(0, SHADES - 1))


def bits(nats: Tensor, dims: int) -> Tensor:
    """Of -log p of whole shades."""
    return nats / (dims * math.log(2))


def density_bits(nats: Tensor, dims: int) -> Tensor:
    """Of -log p(y) of y in [0,1): a shade is 1/256 wide, which is 8 bits."""
    return bits(nats, dims) + math.log2(SHADES)


def discrete_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of a shade under a logistic distribution (Salimans 2017): its mass between x - 1/255 and x + 1/255, and
    beyond at both ends; of the shape of x in [-1,1]."""
    centred, narrow = x - mean, torch.exp(-log_scale.clamp(min=_NARROWEST))
    half = 1 / (SHADES - 1)
    above, below = narrow * (centred + half), narrow * (centred - half)
    inside = _log_difference(above, below)
    end = 1 - 0.5 * half
    return torch.where(x < -end, F.logsigmoid(above), torch.where(x > end, F.logsigmoid(-below), inside))


def _log_difference(above: Tensor, below: Tensor) -> Tensor:
    """log(sigmoid(above) - sigmoid(below)) without loss where both are near 0 or near 1:

    = logsigmoid(above) + logsigmoid(-below) + log(1 - exp(below - above))
    """
    return F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above))
