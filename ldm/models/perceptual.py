"""Distance between pictures as a trained network sees them: features of our own CLIP tower, of a small classifier that
is trained here, or LPIPS for those who have its weights. Nothing is downloaded.

All towers take [n,3,H,W] in [-1,1] and give features [n,C,h,w] of several depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def distance(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """[n]: sum over depths of mean over places of sum_c w_c (a_c/|a| - b_c/|b|)^2 (Zhang et al. 2018, eq. 1).

    Features are pairs of [n,C,h,w]; weights are [C] each, and without them a depth counts by its mean over depths.
    """
    total = a[0].new_zeros(len(a[0]), dtype=torch.float32)
    for depth, (one, other) in enumerate(zip(a, b, strict=True)):
        apart = (_unit(one.float()) - _unit(other.float())) ** 2
        if weights is None:
            total = total + apart.sum(1).flatten(1).mean(1) / len(a)
        else:
            total = total + (apart * weights[depth].view(1, -1, 1, 1)).sum(1).flatten(1).mean(1)
    return total


def _unit(features: Tensor) -> Tensor:
    """Each place's vector at length 1; the root is taken of something positive, so its gradient is finite at 0 too."""
    return features / ((features**2).sum(1, keepdim=True) + 1e-10).sqrt()


class Perceptual(nn.Module):
    """`distance` of two pictures by the features of a tower, with LPIPS's learned weights where there are any."""

    def __init__(self, tower: nn.Module, weights: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.tower = tower
        self.depths = None if weights is None else len(weights)
        for depth, weight in enumerate(weights or ()):
            self.register_buffer(f"weight_{depth}", weight.detach().float().clone())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[n]; no gradient is kept for what needs none, so the tower's activations of `b`'s original are freed."""
        weights = None if self.depths is None else [getattr(self, f"weight_{d}") for d in range(self.depths)]
        return distance(self.tower(a), self.tower(b), weights)


class SmallClassifier(nn.Module):
    """A residual network of about a million weights that names pictures; its features serve as a perceptual measure.

    Each stage halves the picture and has two blocks. `forward` gives the features of every stage, `logits` the names.
    `config` is the constructor call.
    """

    def __init__(self, classes: int, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.config = {"_class_name": "SmallClassifier", "classes": classes, "widths": list(widths)}
        self.first = nn.Conv2d(3, widths[0], 3, 1, 1)
        stages = []
        for narrow, wide in zip((widths[0], *widths), widths, strict=False):
            stages.append(nn.Sequential(_Block(narrow, wide), _Block(wide, wide)))
        self.stages = nn.ModuleList(stages)
        self.last = nn.Linear(widths[-1], classes)

    def forward(self, picture: Tensor) -> list[Tensor]:
        x = self.first(picture)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else functional.avg_pool2d(x, 2))
            features.append(x)
        return features

    def logits(self, picture: Tensor) -> Tensor:
        """[n,classes] from the mean over places of the last features."""
        names: Tensor = self.last(functional.relu(self(picture)[-1]).mean((2, 3)))
        return names


class _Block(nn.Module):
    """x + f(x) with two normed convolutions; a 1x1 convolution where the width changes."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8 if w % 8 == 0 else 1, w) for w in (narrow, wide)])
        self.convolutions = nn.ModuleList([nn.Conv2d(narrow, wide, 3, 1, 1), nn.Conv2d(wide, wide, 3, 1, 1)])
        self.skip = nn.Identity() if narrow == wide else nn.Conv2d(narrow, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(functional.silu(norm(h)))
        out: Tensor = self.skip(x) + h
        return out


class ClipFeatures(nn.Module):
    """Hidden states of a CLIP image tower (transformers' CLIPVisionModel), as maps, from evenly spread layers.

    Pictures are brought to the tower's own side without a crop, and to the mean and deviation it was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vision: Any, mean: Sequence[float], std: Sequence[float], depths: int = 4) -> None:
        super().__init__()
        self.vision = vision
        count = int(vision.config.num_hidden_layers)
        self.layers = sorted({round((i + 1) * count / min(depths, count)) for i in range(min(depths, count))})
        self.side, self.patch = int(vision.config.image_size), int(vision.config.patch_size)
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1))

    def forward(self, picture: Tensor) -> list[Tensor]:
        size = (self.side, self.side)
        if picture.shape[-2:] != size:
            picture = functional.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)
        pixels = ((picture + 1) / 2 - self.mean) / self.std
        states = self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
        grid = self.side // self.patch
        return [states[layer][:, 1:].transpose(1, 2).unflatten(2, (grid, grid)) for layer in self.layers]
