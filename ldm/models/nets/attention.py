"""Attention of pixels to each other and to the words of a prompt (Rombach 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.base import Part
from ldm.models.nets.kept import Kept

Rows = Mapping[str, Tensor]  # prefix of layers -> which rows of the batch are perturbed, bool [B]
FEW = 256  # tokens up to which attention is written out; its matrix would grow with their square


class Words:
    """A prompt that is read at every step: each layer computes its keys and values once."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self._known: dict[Attention, Kept[tuple[Tensor, Tensor]]] = {}

    def keys_and_values(self, layer: Attention) -> tuple[Tensor, Tensor]:
        kept = self._known.setdefault(layer, Kept())
        return kept.get((layer.to_k.weight, layer.to_v.weight), lambda: layer.keys_and_values(self.states))


class Attention(nn.Module):
    """Heads side by side; `words`: the width of what is attended to, None for the pixels themselves."""

    def __init__(self, width: int, heads: int, words: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(words or width, width, bias=False)
        self.to_v = nn.Linear(words or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor, words: Tensor | Words | None = None, perturb: Tensor | None = None) -> Tensor:
        """`perturb`: rows in which each position sees its own value alone (perturbed attention, Ahn 2024)."""
        if isinstance(words, Words) and not torch.is_grad_enabled():
            k, v = words.keys_and_values(self)
        else:
            k, v = self.keys_and_values(x if words is None else words.states if isinstance(words, Words) else words)
        q = self._split(self.to_q(x))
        mixed = (
            _written_out(q, k, v)
            if better_written_out(x.shape[1], x.device)
            else F.scaled_dot_product_attention(q, k, v)
        )
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        if perturb is not None:
            mixed = torch.where(perturb[:, None, None], v.transpose(1, 2).reshape(x.shape), mixed)
        out: Tensor = self.to_out[0](mixed)
        return out

    def keys_and_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.to_k(seen)), self._split(self.to_v(seen))

    def _split(self, x: Tensor) -> Tensor:
        """[B,L,C] to [B,heads,L,C/heads]."""
        return x.view(len(x), -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


def better_written_out(tokens: int, device: torch.device) -> bool:
    """In half precision on a processor the fused backward pass over few tokens is the slower one: over 64 tokens it
    alone is a quarter of a step of training (docs/decisions.md)."""
    learns = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return learns and device.type == "cpu" and tokens <= FEW


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return scores.to(v.dtype) @ v


class FeedForward(nn.Module):
    """Each position by itself, through a gate (GEGLU, Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gate(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class Gate(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = self.proj(x).chunk(2, dim=-1)
        return torch.as_tensor(kept * F.gelu(gate))


class Block(nn.Module):
    """To each other, to the words, and each by itself."""

    def __init__(self, width: int, heads: int, words: int, only_words: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads, words if only_words else None)
        self.attn2 = Attention(width, heads, words)
        self.ff = FeedForward(width)
        self.only_words = only_words

    def forward(self, x: Tensor, words: Tensor | Words | None, perturb: Tensor | None = None) -> Tensor:
        x = self.attn1(self.norm1(x), words if self.only_words else None, None if self.only_words else perturb) + x
        x = self.attn2(self.norm2(x), words) + x
        return torch.as_tensor(self.ff(self.norm3(x)) + x)


class Transformer(Part):
    """Blocks over the pixels of a feature map, beside a way past them."""

    name = ""  # its place in the network, by which perturbed layers are called

    def __init__(
        self, width: int, heads: int, words: int, *, layers: int, groups: int, linear: bool, only_words: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, heads, words, only_words) for _ in range(layers)])
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, words: Tensor | Words | None, perturb: Rows | None = None) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(pixels(h)) if self.linear else pixels(self.proj_in(h))
        for i, block in enumerate(self.transformer_blocks):
            h = block(h, words, None if perturb is None else self._perturbed(i, perturb))
        h = picture(self.proj_out(h), x) if self.linear else self.proj_out(picture(h, x))
        return torch.as_tensor(h + x)

    def _perturbed(self, block: int, perturb: Rows) -> Tensor | None:
        """The rows that any of the prefixes asks a block of this place to perturb."""
        layer = f"{self.name}.transformer_blocks.{block}.attn1"
        mine = [rows for prefix, rows in perturb.items() if layer.startswith(prefix)]
        return torch.stack(mine).any(0) if mine else None


def pixels(x: Tensor) -> Tensor:
    """[B,C,H,W] to [B,H*W,C]."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def picture(x: Tensor, like: Tensor) -> Tensor:
    """[B,H*W,C] back to [B,C,H,W]."""
    height, width = like.shape[-2:]
    return x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()
