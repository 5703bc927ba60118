"""Changes of pictures that a critic sees in place of them (ADA, Karras 2020). Each happens with a chance below one, so
unchanged pictures stay the commonest, and what the maker learns is undistorted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.draws import Draws

Happens = Callable[[str], Tensor]
Within = Callable[[str, float, float], Tensor]


def augmented(x: Tensor, draws: Draws, name: str, chance: float) -> Tensor:
    """[n,C,H,W]: flipped, moved, scaled, turned, brighter, of other contrast and colour, each with this chance."""
    if chance <= 0:
        return x

    def happens(what: str) -> Tensor:
        return draws.uniform(f"{name} {what}?") < chance

    def within(what: str, low: float, high: float) -> Tensor:
        return low + (high - low) * draws.uniform(f"{name} {what}")

    flipped = happens("flip") & (draws.uniform(f"{name} flip") < 0.5)  # never oftener than not
    x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    x = _placed(x, happens, within)
    return _coloured(x, happens, within)


def _placed(x: Tensor, happens: Happens, within: Within) -> Tensor:
    """One affine map for each picture; what comes in from outside is a mirror image."""
    one, none = x.new_ones(len(x)), x.new_zeros(len(x))
    scale = torch.where(happens("scale"), 2 ** within("scale", -0.3, 0.3), one)
    turn = torch.where(happens("turn"), within("turn", -math.pi / 8, math.pi / 8), none)
    right = torch.where(happens("right"), within("right", -0.25, 0.25), none)
    down = torch.where(happens("down"), within("down", -0.25, 0.25), none)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    maps = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    moved = F.grid_sample(
        x, F.affine_grid(maps, list(x.shape), align_corners=False), padding_mode="reflection", align_corners=False
    )
    still = (scale == 1) & (turn == 0) & (right == 0) & (down == 0)
    return torch.where(still[:, None, None, None], x, moved)


def _coloured(x: Tensor, happens: Happens, within: Within) -> Tensor:
    one, none = x.new_ones(len(x)), x.new_zeros(len(x))
    brighter = torch.where(happens("brightness"), within("brightness", -0.3, 0.3), none)
    contrast = torch.where(happens("contrast"), 2 ** within("contrast", -0.5, 0.5), one)
    colour = torch.where(happens("colour"), within("colour", 0.0, 2.0), one)
    grey = x.mean(1, keepdim=True)
    x = x + (x - grey) * (colour - 1)[:, None, None, None]
    return x * contrast[:, None, None, None] + brighter[:, None, None, None]
