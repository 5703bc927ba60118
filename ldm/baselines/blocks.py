"""Convolutional blocks that several families are built of. Norms look at one example alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """Groups of about eight channels."""
    groups = next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class Told(nn.Module):
    """A class as a vector [n,d]; None, and a label below zero, is the vector of "any"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor | None, count: int) -> Tensor:
        vector: Tensor = self.table(row_of(label, count, self.table.weight.device))
        return vector


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) shifted and scaled by h))); the last convolution begins at zero."""

    def __init__(self, narrow: int, wide: int, told: int = 0) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(narrow, wide, 3, padding=1), nn.Conv2d(wide, wide, 3, padding=1)
        self.norm_1, self.norm_2 = norm(narrow), norm(wide)
        self.skip = nn.Conv2d(narrow, wide, 1) if narrow != wide else nn.Identity()
        self.tell = nn.Linear(told, 2 * wide) if told else None
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        y = self.norm_2(self.first(F.silu(self.norm_1(x))))
        if self.tell is not None and h is not None:
            scale, shift = self.tell(h)[:, :, None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.second(F.silu(y))
        return out


class Stack(nn.Module):
    """Residual blocks between two convolutions, without a change of size; the output begins at zero."""

    def __init__(self, into: int, width: int, out: int, blocks: int, told: int = 0) -> None:
        super().__init__()
        self.enter = nn.Conv2d(into, width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(width, width, told) for _ in range(blocks))
        self.leave = nn.Conv2d(width, out, 3, padding=1)
        self.norm = norm(width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        y = self.enter(x)
        for block in self.blocks:
            y = block(y, h)
        out: Tensor = self.leave(F.silu(self.norm(y)))
        return out


class Down(nn.Module):
    """Pictures to [n,width,4,4]: a residual block and a halving on each size, `widths[i]` channels at side / 2^i."""

    def __init__(self, channels: int, widths: list[int], told: int = 0) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = zip(widths, [*widths[1:], widths[-1]], strict=True)
        self.blocks = nn.ModuleList(Residual(narrow, wide, told) for narrow, wide in pairs)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        y: Tensor = self.enter(x)
        for i, block in enumerate(self.blocks):
            y = block(y, h)
            if i + 1 < len(self.blocks):
                y = F.avg_pool2d(y, 2)
        return y


class Up(nn.Module):
    """[n,widths[-1],4,4] to [n,out,side,side]: the way of `Down` back."""

    def __init__(self, widths: list[int], out: int, told: int = 0) -> None:
        super().__init__()
        back = widths[::-1]
        pairs = zip(back, [*back[1:], back[-1]], strict=True)
        self.blocks = nn.ModuleList(Residual(wide, narrow, told) for wide, narrow in pairs)
        self.norm, self.leave = norm(back[-1]), nn.Conv2d(back[-1], out, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, h)
            if i + 1 < len(self.blocks):
                x = F.interpolate(x, scale_factor=2.0)
        out: Tensor = self.leave(F.silu(self.norm(x)))
        return out


def sizes(side: int) -> int:
    """How many sizes there are from `side` down to 4."""
    count = 1
    while side > 4:
        side, count = side // 2, count + 1
    return count


def widening(width: int, side: int) -> list[int]:
    """Channels of each size from `side` down to 4: twice as many on each, up to four times."""
    return [width * min(2**i, 4) for i in range(sizes(side))]


def row_of(label: Tensor | None, count: int, device: torch.device) -> Tensor:
    """[count]: the row of a table of classes whose first is "any": 0 where nobody says which, and for a label of -1."""
    return torch.zeros(count, dtype=torch.long, device=device) if label is None else label + 1
