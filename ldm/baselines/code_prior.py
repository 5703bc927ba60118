"""A gated PixelCNN over codes: p(codes) = prod_i p(c_i | c_<i, h), in the order of reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ldm.baselines.logistics import gumbel
from ldm.baselines.pixelcnn import Layer, read_on


class CodePrior(nn.Module):
    """h [n,told] is known of the picture, or [n,told,h,w] of each place."""

    def __init__(self, codes: int, width: int, told: int, layers: int, kernel: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.layers = nn.ModuleList(Layer(width, width, told, kernel, i == 0) for i in range(layers))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv2d(width, codes, 1))

    def nats(self, index: Tensor, h: Tensor) -> Tensor:
        """[n]: -log p of codes [n,h,w]."""
        v = y = self.embed(index).permute(0, 3, 1, 2)
        for layer in self.layers:
            v, y = layer(v, y, h)
        return F.cross_entropy(self.leave(y), index, reduction="none").flatten(1).sum(1)

    def draw(self, side: int, h: Tensor, generator: Generator) -> Tensor:
        """[n,side,side]."""
        drawn, weight = list[Tensor](), self.embed.weight

        def draw(y: Tensor) -> Tensor:
            logits = self.leave(y)[..., 0, 0]
            drawn.append((logits + gumbel(logits.shape, generator).to(logits.device)).argmax(1))
            vector: Tensor = self.embed(drawn[-1])
            return vector

        x = torch.zeros(len(h), weight.shape[1], side, side, device=weight.device)
        read_on(cast("Sequence[Layer]", self.layers), x, h, draw)
        return torch.stack(drawn, 1).view(len(h), side, side)
