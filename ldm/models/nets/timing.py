"""How a network is told the time: sinusoids (Vaswani 2017), and two layers over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(t: Tensor, size: int, *, cosine_first: bool = True, shift: float = 0.0) -> Tensor:
    """[B] to [B,size] in fp32: sines and cosines of t at frequencies from 1 down to 1/10,000."""
    half = size // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[:, None].float() * torch.exp(exponent / (half - shift))[None]
    parts = [angles.cos(), angles.sin()] if cosine_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, size % 2))


class TimeEmbedding(nn.Module):
    """Two layers; `told` is the width of what is told besides, such as a guidance scale (Meng 2022)."""

    def __init__(self, inside: int, width: int, told: int | None = None) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inside, width), nn.Linear(width, width)
        self.cond_proj = None if told is None else nn.Linear(told, inside, bias=False)

    def forward(self, embedded: Tensor, told: Tensor | None = None) -> Tensor:
        if told is not None and self.cond_proj is not None:
            embedded = embedded + self.cond_proj(told)
        out: Tensor = self.linear_2(F.silu(self.linear_1(embedded)))
        return out
