"""What training draws beside noise: holes to paint in, and hints as edge finders and hands would draw them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from train.draws import Draws

_WHOLE, _BOX, _OVAL = 0.15, 0.45, 0.7  # shares of [0,1): all of the picture, a box, an oval; the rest: a stroke
_OUTSIDE = 0.15  # of boxes and ovals that are turned inside out: the frame is painted


def holes(draws: Draws, height: int, width: int) -> Tensor:
    """[n,1,H,W] of 0 and 1, 1 is painted: the whole picture, a box, an oval, or a thick stroke of three segments.

    A network that never saw an empty picture cannot paint one from words alone, hence the whole ones.
    """
    kind, turned = draws.uniform("hole.kind"), draws.uniform("hole.turned")
    place = draws.uniform("hole.place", (4,))
    device = place.device
    y = ((torch.arange(height, device=device) + 0.5) / height)[None, :, None]
    x = ((torch.arange(width, device=device) + 0.5) / width)[None, None, :]
    cx, cy = place[:, 0, None, None], place[:, 1, None, None]
    rx, ry = ((0.1 + 0.35 * place[:, i]).view(-1, 1, 1) for i in (2, 3))
    across, down = (x - cx) / rx, (y - cy) / ry
    box = (across.abs() < 1) & (down.abs() < 1)
    oval = across**2 + down**2 < 1
    kinds = kind.view(-1, 1, 1)
    shape = torch.where(kinds < _BOX, box, oval) ^ (turned.view(-1, 1, 1) < _OUTSIDE)
    shape = torch.where(kinds < _OVAL, shape, _stroke(draws, y, x)) | (kinds < _WHOLE)
    return shape[:, None].float()


def _stroke(draws: Draws, y: Tensor, x: Tensor) -> Tensor:
    """[n,H,W] bool: what is near a line through four points; pixel places y [1,H,1] and x [1,1,W] in [0,1]."""
    corners = draws.uniform("hole.corners", (4, 2))
    reach = (0.03 + 0.09 * draws.uniform("hole.reach")).view(-1, 1, 1)
    near = torch.zeros(len(corners), y.shape[1], x.shape[2], dtype=torch.bool, device=corners.device)
    for i in range(3):
        ax, ay, bx, by = (corners[:, i + j, k, None, None] for j in (0, 1) for k in (0, 1))
        dx, dy = bx - ax, by - ay
        along = (((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2).clamp(min=1e-6)).clamp(0, 1)
        near |= (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 < reach**2
    return near


def varied(hint: Tensor, draws: Draws) -> Tensor:
    """Hints [n,3,H,W] in [0,1]: a third thicker, a third with gaps, and three in ten a little aside.

    The unit is a pixel in small pictures, and a 256th of the side in large ones.
    """
    unit = max(1, max(hint.shape[-2:]) // 256)
    height, width = (-(-side // unit) for side in hint.shape[-2:])
    change, aside = draws.uniform("hint.change").view(-1, 1, 1, 1), draws.uniform("hint.aside").view(-1, 1, 1, 1)
    thick = functional.max_pool2d(functional.pad(hint, (0, unit, 0, unit)), 1 + unit, 1)
    kept = (draws.uniform("hint.gaps", (1, height, width)) < 0.85).float()
    kept = functional.interpolate(kept, scale_factor=unit)[..., : hint.shape[-2], : hint.shape[-1]]
    hint = torch.where(change < 1 / 3, thick, torch.where(change < 2 / 3, hint * kept, hint))
    return torch.where(aside < 0.15, hint.roll(unit, 2), torch.where(aside < 0.3, hint.roll(unit, 3), hint))
