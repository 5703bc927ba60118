"""How much of a picture comes back: error, structure, and what a network sees; of pictures [n,3,H,W] in [0,1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the structural similarity, as in the paper
K1, K2 = 0.01, 0.03


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """10 log10(1 / mean (a - b)^2) in dB, at most 100, `made` cut to [0,1] as a saved picture is. In fp32, which every
    device has."""
    error = (made.float().clamp(0, 1) - real.float()).square().flatten(1).mean(1)
    return 10 * (1 / error.clamp(min=1e-10)).log10()


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Structural similarity (Wang 2004): the mean over places and channels of

    (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)), moments under a normal window.
    """
    channels = real.shape[1]
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    one = (-(at**2) / (2 * SIGMA**2)).exp()
    kernel = torch.outer(one, one)
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        padded = F.pad(x, [WINDOW // 2] * 4, mode="reflect")
        return F.conv2d(padded, kernel, groups=channels)

    a, b = made.double().clamp(0, 1), real.double()
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    each = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return each.flatten(1).mean(1)


def feature_distance(made: Tensor, real: Tensor) -> Tensor:
    """Of features [n,d]: |a - b| beside the mean distance between different real pictures: 1 is a stranger's."""
    strangers = torch.cdist(real.double(), real.double())
    typical = strangers.sum() / (len(real) * (len(real) - 1))
    apart: Tensor = (made.double() - real.double()).norm(dim=1) / typical
    return apart
