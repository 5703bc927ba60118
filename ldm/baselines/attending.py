"""Transformers over sequences of codes: one that sees what came before, and one that sees all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.baselines.blocks import row_of

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, causal: bool, cache: Cache | None = None, place: int = 0) -> Tensor:
        """With a `cache` x is the newest position alone; keys and values of those before lie there."""
        n, length, width = x.shape
        q, k, v = (
            t.view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for t in self.into(self.norm_1(x)).chunk(3, 2)
        )
        if cache is not None:
            if place < len(cache):
                k, v = torch.cat([cache[place][0], k], 2), torch.cat([cache[place][1], v], 2)
                cache[place] = (k, v)
            else:
                cache.append((k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal and cache is None)
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class Transformer(nn.Module):
    """Tokens [n,L] after a first position for the class, to logits [n,L,codes]; beside the codes there is a mask."""

    def __init__(
        self, codes: int, length: int, classes: int, width: int, layers: int, heads: int, causal: bool
    ) -> None:
        super().__init__()
        self.codes, self.causal = codes, causal
        self.table, self.classes = nn.Embedding(codes + 1, width), nn.Embedding(classes + 1, width)
        self.places = nn.Parameter(torch.randn(length + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, codes)
        for embedding in (self.table, self.classes):
            nn.init.normal_(embedding.weight, std=0.02)

    def first(self, label: Tensor | None, count: int) -> Tensor:
        """[n,1,width]: the class, which comes before all codes."""
        told = row_of(label, count, self.places.device)
        first: Tensor = self.classes(told)[:, None] + self.places[:1]
        return first

    def forward(self, index: Tensor, label: Tensor | None) -> Tensor:
        """Causal: position i tells of code i, from the class and the codes before it. Else: of all places, from all."""
        x = torch.cat([self.first(label, len(index)), self.table(index) + self.places[1:]], 1)
        x = x[:, :-1] if self.causal else x
        for block in self.blocks:
            x = block(x, self.causal)
        x = x if self.causal else x[:, 1:]
        out: Tensor = self.leave(self.norm(x))
        return out

    def step(self, x: Tensor, cache: Cache) -> Tensor:
        """[n,codes]: of the next code, from the newest position [n,1,width]."""
        for place, block in enumerate(self.blocks):
            x = block(x, True, cache, place)
        out: Tensor = self.leave(self.norm(x))[:, 0]
        return out
