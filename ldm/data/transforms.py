"""From a picture of any size to the part of it that is shown: resized once so that it covers, then cut and turned.

Resizing is the costly half and knows no chance, so its result can be kept; cutting and mirroring are views of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.data.source import Pixels

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Cut:
    """The window [top : top + height, left : left + width] of the covering picture, shown at `size`, maybe mirrored."""

    cover: Size  # of the resized picture
    left: int
    top: int
    width: int
    height: int
    size: Size
    flip: bool = False

    @property
    def numbers(self) -> tuple[int, ...]:
        """Everything but `flip` that says which part is shown, for the keys of caches."""
        return (*self.cover, self.left, self.top, self.width, self.height)


def cover_size(picture: Size, size: Size, zoom: float = 1.0) -> Size:
    """The least size of the picture's shape that covers `size` x zoom: s = max(w / W, h / H)."""
    width, height = math.ceil(size[0] * zoom), math.ceil(size[1] * zoom)
    scale = max(width / picture[0], height / picture[1])
    return max(width, round(picture[0] * scale)), max(height, round(picture[1] * scale))


def centred(picture: Size, size: Size, zoom: float = 1.0) -> Cut:
    """The largest window of the right shape in the middle."""
    return chosen(picture, size, zoom, (0.5, 0.5, 0.0))


def chosen(picture: Size, size: Size, zoom: float, chance: tuple[float, float, float], flip: bool = False) -> Cut:
    """A window by three numbers in [0,1): where it lies across and down, and how close (zoom^closer) it is."""
    (across, down, closer), cover = chance, cover_size(picture, size, zoom)
    share = zoom**closer if zoom > 1 else 1.0
    width, height = (min(c, round(math.ceil(s * zoom) / share)) for c, s in zip(cover, size, strict=True))
    left, top = int(across * (cover[0] - width + 1)), int(down * (cover[1] - height + 1))
    return Cut(cover, left, top, width, height, size, flip)


def resized(pixels: Pixels, size: Size) -> Pixels:
    """[H,W] or [H,W,3] at another (width, height): Lanczos, which averages when it shrinks."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def shrunk(pixels: Pixels, factor: float) -> Pixels:
    """[H,W] or [H,W,3] with its sides times a factor, each at least one pixel; never enlarged."""
    if factor >= 1:
        return pixels
    height, width = pixels.shape[:2]
    return resized(pixels, (max(1, round(width * factor)), max(1, round(height * factor))))


def shown(cover: Pixels, cut: Cut) -> Pixels:
    """The part of a covering picture that `cut` says, [h,w] or [h,w,3] of `cut.size`. Mirroring is the batch's."""
    part = cover[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    return resized(part, cut.size)
