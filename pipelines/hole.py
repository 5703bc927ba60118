"""Masks and what stands in the hole before painting: reading, softening inside, filling."""

from __future__ import annotations

import math

import numpy as np
from torch import Generator, rand

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from pipelines.frame import Filter, resize
from pipelines.request import ImageInput, Request


def read_mask(mask: ImageInput, size: tuple[int, int], *, may_resize: bool) -> np.ndarray:
    """Float32 [H,W] in 0..1: the brightest channel times alpha, so that 0 is black or transparent and nothing else."""
    picture = open_image(mask)
    if picture.size != size and not may_resize:
        raise LdmError(
            Code.USAGE,
            f"mask is {picture.width}x{picture.height}, but the picture is {size[0]}x{size[1]}",
            "A mask says for each pixel of the upright picture whether it is painted.",
            "Give a mask of the picture's size, or set resize_mask.",
        )
    return resize(mask_values(picture)[..., None], size, Filter.BOX)[..., 0]


def mask_values(picture: Picture) -> np.ndarray:
    """Samples of a mask as float32 [H,W] in 0..1; no colour profile: a mask is numbers, not light."""
    values = picture.pixels.max(axis=2).astype(np.float32) / np.float32(np.iinfo(picture.pixels.dtype).max)
    if picture.alpha is not None:
        values = values * (picture.alpha.astype(np.float32) / np.float32(np.iinfo(picture.alpha.dtype).max))
    return np.asarray(values, np.float32)


def soften(mask: np.ndarray, radius: float) -> np.ndarray:
    """mask * min(1, d / (radius + 1)) with d the distance to the nearest black pixel: a ramp inside, 0 stays 0.

    A Gaussian would leak outside, and would erase a hole that is narrower than itself; a distance does neither.
    """
    if radius <= 0 or mask.all() or not mask.any():
        return mask
    return np.asarray(mask * np.minimum(1, distance(mask == 0, math.ceil(radius) + 1) / (radius + 1)), np.float32)


def distance(target: np.ndarray, reach: int) -> np.ndarray:
    """Euclidean distance [H,W] to the nearest True, up to `reach`: columns, then rows (Saito and Toriwaki 1994)."""
    far = np.float32(reach)
    down = np.where(target, np.float32(0), far)
    for y in range(1, len(down)):
        np.minimum(down[y], down[y - 1] + 1, out=down[y])
    for y in range(len(down) - 2, -1, -1):
        np.minimum(down[y], down[y + 1] + 1, out=down[y])
    columns = np.minimum(down, far) ** 2
    best = columns.copy()
    for shift in range(1, min(reach, columns.shape[1] - 1) + 1):
        np.minimum(best[:, shift:], columns[:, :-shift] + shift**2, out=best[:, shift:])
        np.minimum(best[:, :-shift], columns[:, shift:] + shift**2, out=best[:, :-shift])
    return np.asarray(np.minimum(np.sqrt(best), far))


def fill_hole(rgb: np.ndarray, mask: np.ndarray, request: Request, generator: Generator) -> np.ndarray:
    """Floats [h,w,3] with `request.fill` in the hole, mixed by the mask [h,w]; only "noise" draws numbers."""
    if request.fill == "original":
        return rgb
    if request.fill == "blur":
        filled = from_around(rgb, mask)
    elif request.fill == "noise":
        filled = rand(rgb.shape, generator=generator).numpy()
    else:
        filled = np.broadcast_to(np.asarray(request.fill_colour, np.float32) / 255, rgb.shape)
    m = mask[..., None]
    return np.where(m > 0, m * filled + (1 - m) * rgb, rgb).astype(np.float32)


def from_around(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours [h,w,3] that flow into the hole from its rim; nothing of the hole itself remains.

    Halve while weights are missing, then fill from coarse to fine (push-pull, Gortler 1996).
    """
    weight = (mask <= 0).astype(np.float32)[..., None]
    if not weight.any():
        return np.broadcast_to(rgb.mean(axis=(0, 1), dtype=np.float32), rgb.shape)
    if weight.all() or max(weight.shape[:2]) == 1:
        return rgb
    half = ((mask.shape[1] + 1) // 2, (mask.shape[0] + 1) // 2)
    coarse_weight = resize(weight, half, Filter.BOX)
    coarse = resize(rgb * weight, half, Filter.BOX) / np.maximum(coarse_weight, 1e-6)
    coarse = from_around(coarse.astype(np.float32), (coarse_weight[..., 0] <= 0).astype(np.float32))
    below = resize(np.clip(coarse, 0, 1), (mask.shape[1], mask.shape[0]), Filter.BILINEAR)
    return np.asarray(weight * rgb + (1 - weight) * below, np.float32)
