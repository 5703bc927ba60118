"""Residual blocks of convolutions, and the layers that halve and double the side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.base import Part


class Resnet(Part):
    """Two convolutions beside a way past them; the time, where there is one, is added in between."""

    def __init__(
        self, inside: int, out: int, time: int | None, *, groups: int, eps: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inside, eps)
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1)
        self.time_emb_proj = None if time is None else nn.Linear(time, out)
        self.norm2 = nn.GroupNorm(groups, out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = None if inside == out else nn.Conv2d(inside, out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.conv_shortcut is not None:  # processes that train together want gradients of one layout
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return torch.as_tensor(x + h)


class Downsample(nn.Module):
    """Half the side. Padding 0 is that of the autoencoder: one row below and one column on the right."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Twice the side, or `size` where that is odd."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        if len(x) >= 64 or 2 * x.numel() > 2**31:
            x = x.contiguous()  # the kernel for other layouts fails with so many numbers
        if size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=list(size), mode="nearest")
        out: Tensor = self.conv(x)
        return out
