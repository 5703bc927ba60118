"""Random numbers that are a function of (seed, place, name): never of rank, batch size, device or what ran before.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a counter goes in, four numbers
come out, nothing is remembered. So a run that is resumed needs no generator state, and a sample's noise is the same
whether it is drawn alone, in a batch, or on another machine of the cluster.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four tensors of 32-bit words for four tensors of such; kept in int64, since torch has no uint32 arithmetic."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps, but its low 64 bits are those of the product
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """What is random for the examples at `places` [n]: a place is step * total + position in the whole batch.

    Each quantity has a name; the same name gives the same numbers again. `scope` keeps the turns of several phases at
    one step apart, and training from validation.
    """

    seed: int
    places: Tensor
    total: int
    scope: str = ""

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """[n,*shape] fp32 in [0,1): the upper 24 bits of each word, which fp32 holds exactly."""
        words = self.words(name, math.prod(shape))
        return ((words >> 8).float() * 2.0**-24).view(len(words), *shape)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """[n,*shape] fp32, standard normal by Box and Muller: sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v)."""
        count = math.prod(shape)
        words = self.words(name, count + count % 2)
        u, v = (words[:, 0::2] + 1).float() * 2.0**-32, words[:, 1::2].float() * (2.0**-32 * 2 * math.pi)
        radius = (-2 * u.log()).sqrt()
        both = torch.stack([radius * v.cos(), radius * v.sin()], dim=2).flatten(1)
        return both[:, :count].reshape(len(words), *shape)

    def below(self, name: str, high: int) -> Tensor:
        """[n] int64 in 0 .. high-1."""
        return (self.words(name, 1)[:, 0] * high) >> 32

    def stratified(self, name: str) -> Tensor:
        """[n] fp32 in [0,1): over the whole batch, one in each of its `total` equal parts, so less noisy.

        Which part is drawn for each step, by a permutation that all its examples compute alike: a picture that always
        has the same row of a batch (no shuffling, or a batch of the whole set) still meets every part.
        """
        step, row = self.places // self.total, self.places % self.total
        part = torch.empty_like(row)
        for one in sorted(set(step.tolist())):
            whole = torch.arange(self.total, device=row.device) + one * self.total
            drawn = replace(self, places=whole).words(f"part of {name}", 1)[:, 0]
            here = step == one
            part[here] = drawn.argsort(stable=True)[row[here]]
        return ((part.float() + self.uniform(name)) / self.total).clamp(max=1 - 2.0**-24)

    def words(self, name: str, count: int) -> Tensor:
        """[n,count] words of 32 bits in int64, from a counter (block, place low, place high, name) and a key from the
        seed. Fewer words are the first of more, so a row may ask for what it needs."""
        blocks = torch.arange(-(-count // 4), device=self.places.device)[None]
        place = self.places[:, None]
        zero = torch.zeros_like(blocks + place)
        named = zlib.crc32(f"{self.scope}/{name}".encode())
        digest = hashlib.sha256(str(self.seed).encode()).digest()
        key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
        words = philox((zero + blocks, zero + (place & _MASK), zero + ((place >> 32) & _MASK), zero + named), key)
        return torch.stack(words, dim=2).flatten(1)[:, :count]
