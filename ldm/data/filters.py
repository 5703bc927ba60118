"""Filters on pictures [H,W] or [H,W,C]: Gaussian, gradient, dilation of grey values by a disc. Borders are repeated."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Array: TypeAlias = npt.NDArray[np.float32]


def gaussian(picture: Array, sigma: float) -> Array:
    """Convolution with exp(-x^2 / 2 sigma^2), cut at 3 sigma; hardly any sigma changes nothing."""
    if sigma < 0.1:
        return picture.copy()
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    taps = torch.exp(-0.5 * (x / sigma) ** 2)
    taps = taps / taps.sum()
    planes = _planes(picture)
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), taps.view(1, 1, 1, -1))
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), taps.view(1, 1, -1, 1))
    return _picture(planes, picture)


def gradient(picture: Array) -> tuple[Array, Array]:
    """Sobel derivatives (d/dx, d/dy) in value per pixel. Of several channels, the one that changes most at each pixel.

    Taking the strongest channel finds edges between colours of the same brightness.
    """
    p = np.pad(picture, [(1, 1), (1, 1)] + [(0, 0)] * (picture.ndim - 2), mode="edge")
    rows: Array = p[:-2] + 2 * p[1:-1] + p[2:]
    columns: Array = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    dx: Array = (rows[:, 2:] - rows[:, :-2]) * np.float32(0.125)
    dy: Array = (columns[2:] - columns[:-2]) * np.float32(0.125)
    if picture.ndim == 2:
        return dx, dy
    strongest = np.argmax(dx**2 + dy**2, axis=2)[..., None]
    return np.take_along_axis(dx, strongest, 2)[..., 0], np.take_along_axis(dy, strongest, 2)[..., 0]


def dilate(mask: Array, radius: float) -> Array:
    """The greatest value within `radius` pixels (a disc). Rows of the disc share one table of running maxima."""
    reach = int(radius)
    if reach <= 0:
        return mask.copy()
    height, width = mask.shape
    padded = np.pad(mask, reach, mode="edge")
    spans = [padded]  # spans[k][:, i]: greatest of 2^k values from i on
    while 2 ** len(spans) <= 2 * reach + 1:
        step, last = 2 ** (len(spans) - 1), spans[-1]
        spans.append(np.maximum(last[:, : last.shape[1] - step], last[:, step:]))
    result = np.zeros_like(mask)
    for dy in range(-reach, reach + 1):
        half = int(math.sqrt(radius**2 - dy**2))
        k = (2 * half + 1).bit_length() - 1
        rows = spans[k][reach + dy : reach + dy + height]
        left = reach - half
        right = reach + half + 1 - 2**k
        np.maximum(result, np.maximum(rows[:, left : left + width], rows[:, right : right + width]), out=result)
    return result


def _planes(picture: Array) -> torch.Tensor:
    """[H,W] or [H,W,C] as [C,1,H,W]: a filter treats each channel alone."""
    channels = picture[..., None] if picture.ndim == 2 else picture
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1), dtype=np.float32))[:, None]


def _picture(planes: torch.Tensor, like: Array) -> Array:
    array = planes[:, 0].numpy()
    return array[0] if like.ndim == 2 else np.ascontiguousarray(array.transpose(1, 2, 0))
