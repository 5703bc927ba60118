"""The alphabet of the scenes: a palette of nine colours and five shapes, each drawn with soft edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Inside = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.bool_]]

# Chosen so that any two colours are at least 0.34 apart in RGB: a picture can be read back by the nearest colour.
PALETTE: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.86, 0.12, 0.14),
        "orange": (0.98, 0.52, 0.06),
        "yellow": (0.99, 0.90, 0.18),
        "green": (0.12, 0.60, 0.22),
        "blue": (0.12, 0.30, 0.86),
        "purple": (0.58, 0.20, 0.72),
        "white": (0.97, 0.97, 0.97),
        "grey": (0.52, 0.52, 0.52),
        "black": (0.05, 0.05, 0.06),
    }
)

# Each shape lives in the square |u|, |v| <= 1, where v points down; a thing of radius r is the shape, r times as large.
SHAPES: Mapping[str, Inside] = MappingProxyType(
    {
        "circle": lambda u, v: u**2 + v**2 <= 1.0,
        "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.88,
        "triangle": lambda u, v: (v <= 0.85) & (v >= 1.9 * np.abs(u) - 0.98),
        "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.31) & (np.maximum(np.abs(u), np.abs(v)) <= 0.98),
        "ring": lambda u, v: (u**2 + v**2 <= 1.0) & (u**2 + v**2 >= 0.52**2),
    }
)

_FINE = 4  # samples per pixel side


def coverage(shape: str, x: float, y: float, radius: float, size: tuple[int, int]) -> Array:
    """How much of each pixel the shape covers, [H,W] in [0,1]; x, y and radius in pixels, size is (height, width)."""
    height, width = size
    top, left = max(int(y - radius) - 1, 0), max(int(x - radius) - 1, 0)
    bottom, right = min(int(y + radius) + 2, height), min(int(x + radius) + 2, width)
    result = np.zeros(size, np.float32)
    if bottom <= top or right <= left:
        return result
    v = (top + (np.arange((bottom - top) * _FINE) + 0.5) / _FINE - y) / radius
    u = (left + (np.arange((right - left) * _FINE) + 0.5) / _FINE - x) / radius
    inside = SHAPES[shape](u[None, :], v[:, None])
    result[top:bottom, left:right] = inside.reshape(bottom - top, _FINE, right - left, _FINE).mean((1, 3))
    return result


@lru_cache(maxsize=16)
def moments(shape: str) -> tuple[float, float]:
    """(area, centre below the middle) of the shape at radius 1: what turns a measured area into a radius."""
    mass = coverage(shape, 32.0, 32.0, 30.0, (64, 64)).astype(np.float64)
    v = (np.arange(64) + 0.5 - 32.0) / 30.0
    return float(mass.sum() / 30.0**2), float((mass * v[:, None]).sum() / mass.sum())
