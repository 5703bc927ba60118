"""Pictures larger than memory, or than the model: a network that works in overlapping tiles is a network again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction
from ldm.models.latent import Cond, Control, Network

Box = tuple[int, int, int, int]  # top, left, bottom, right


def tiles(height: int, width: int, size: int, overlap: int) -> Iterator[Box]:
    """Boxes of `size` that cover the plane, neighbours overlapping by `overlap` or more; the last end at the border."""
    for top in _starts(height, size, overlap):
        for left in _starts(width, size, overlap):
            yield top, left, min(top + size, height), min(left + size, width)


def in_latents(size: int, overlap: int | None, factor: int) -> tuple[int, int]:
    """Size and overlap of tiles in latents, from pixels; no overlap given: a quarter."""
    side = max(size // factor, 2)
    return side, min(side // 4 if overlap is None else overlap // factor, side - 1)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return sorted({round(i * (length - size) / (count - 1)) for i in range(count)}) if count > 1 else [0]


def window(height: int, width: int, ramp: int) -> Tensor:
    """Blending weights [height,width]: 1 inside, falling linearly over `ramp` towards the border, never 0."""

    def side(length: int) -> Tensor:
        distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 1
        return (distance / (ramp + 1)).clamp(max=1.0)

    return side(height)[:, None] * side(width)[None, :]


def tiled(network: Network, size: int, overlap: int, factor: int) -> Network:
    """Predict tiles of `size` latents and blend the clean predictions (Bar-Tal 2023); `factor`: pixels a latent."""

    def over_tiles(x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
        height, width = x.shape[-2:]
        sums = [torch.zeros_like(x) for _ in conds]
        variances: list[Tensor | None] = [None for _ in conds]
        total = torch.zeros_like(x[:1, :1])
        for box in tiles(height, width, size, overlap):
            top, left, bottom, right = box
            said = network(x[..., top:bottom, left:right], level, crop(conds, box, factor))
            weight = window(bottom - top, right - left, overlap).to(x)
            total[..., top:bottom, left:right] += weight
            for i, prediction in enumerate(said):
                sums[i][..., top:bottom, left:right] += prediction.clean * weight
                if prediction.variance is not None:
                    learned = variances[i] = torch.zeros_like(x) if variances[i] is None else variances[i]
                    assert learned is not None
                    learned[..., top:bottom, left:right] += prediction.variance * weight
        return [Prediction(s / total, None if v is None else v / total) for s, v in zip(sums, variances, strict=True)]

    return over_tiles


def crop(conds: Sequence[Cond], box: Box, factor: int) -> list[Cond]:
    """What a tile is told: maps are cut to it; words, labels and sizes stay. Shared controls stay shared."""
    top, left, bottom, right = box
    cut: dict[Control, Control] = {}
    for control in (c for cond in conds for c in cond.controls):
        if control not in cut:
            mask = None if control.mask is None else control.mask[..., top:bottom, left:right]
            hint = control.hint[..., top * factor : bottom * factor, left * factor : right * factor]
            cut[control] = replace(control, hint=hint, mask=mask)
    return [
        replace(
            cond,
            controls=tuple(cut[c] for c in cond.controls),
            channels=None if cond.channels is None else cond.channels[..., top:bottom, left:right],
        )
        for cond in conds
    ]


def pooled_mask(mask: Tensor, factor: int) -> Tensor:
    """A mask of pixels as one of latents: a latent is painted as strongly as the most painted of its pixels."""
    return F.max_pool2d(mask, factor)
