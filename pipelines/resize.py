"""Work pictures at another size."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def resized(rgb: np.ndarray, size: tuple[int, int], how: Literal["lanczos", "bicubic", "nearest"]) -> np.ndarray:
    """[H,W,3] in 0..1 at another (width, height), channel by channel in floats; the same array if the size is right."""
    if rgb.shape[1::-1] == size:
        return rgb
    planes = [
        Image.fromarray(np.ascontiguousarray(rgb[..., c], np.float32)).resize(size, FILTERS[how]) for c in range(3)
    ]
    return np.stack([np.asarray(p) for p in planes], axis=-1).clip(0, 1)
