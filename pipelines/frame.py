"""Where on the canvas a model works: a box, scaled into the work size, padded by reflection; and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width, height
Filter = Image.Resampling


@dataclass(frozen=True)
class Frame:
    """`box` of the canvas, scaled to `scaled`, in the top left corner of `work`; the rest is its reflection."""

    box: Box
    scaled: Size
    work: Size

    @property
    def box_size(self) -> Size:
        left, top, right, bottom = self.box
        return right - left, bottom - top

    @property
    def place(self) -> tuple[slice, slice]:
        """The box as an index of arrays [H,W,...]."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    def forward(self, part: np.ndarray, how: Filter = Filter.LANCZOS) -> np.ndarray:
        """Floats [bh,bw,C] of the box as [h,w,C] of the work size."""
        inner = resize(part, self.scaled, how)
        grow = (self.work[1] - self.scaled[1], self.work[0] - self.scaled[0])
        return np.pad(inner, ((0, grow[0]), (0, grow[1]), (0, 0)), mode="symmetric")

    def back(self, work: np.ndarray) -> np.ndarray:
        """Floats [h,w,C] of the work size as [bh,bw,C] of the box."""
        inner = resize(work[: self.scaled[1], : self.scaled[0]], self.box_size, Filter.LANCZOS)
        return np.asarray(np.clip(inner, 0, 1))


def resize(array: np.ndarray, size: Size, how: Filter) -> np.ndarray:
    """Floats [H,W,C] at another size, by channel in float32, clipped to 0..1 (Lanczos rings)."""
    if (array.shape[1], array.shape[0]) == size:
        return array
    planes = [np.asarray(Image.fromarray(np.ascontiguousarray(p)).resize(size, how)) for p in np.moveaxis(array, 2, 0)]
    return np.asarray(np.clip(np.stack(planes, axis=2), 0, 1))


def whole(canvas: Size, size: Size | None) -> Frame:
    """The whole canvas: unscaled and padded to a multiple of 8, or scaled to fit inside `size` without distortion."""
    return contain((0, 0, *canvas), size)


def cover(canvas: Size, size: Size) -> Frame:
    """The largest centred box with the aspect of `size`, scaled to exactly `size`."""
    width, height = canvas
    w, h = size
    scale = max(w / width, h / height)
    bw, bh = min(width, max(1, round(w / scale))), min(height, max(1, round(h / scale)))
    left, top = (width - bw) // 2, (height - bh) // 2
    return Frame((left, top, left + bw, top + bh), size, size)


def around(mask: np.ndarray, padding: int, size: Size | None) -> Frame:
    """The bounding box of mask > 0 with `padding` around it, widened to the aspect of `size`, inside the canvas."""
    height, width = mask.shape
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right = max(0, int(columns[0]) - padding), min(width, int(columns[-1]) + 1 + padding)
    top, bottom = max(0, int(rows[0]) - padding), min(height, int(rows[-1]) + 1 + padding)
    bw, bh = right - left, bottom - top
    if size is None:
        bw, bh = up_to_8(bw), up_to_8(bh)
    else:
        bw, bh = max(bw, math.ceil(bh * size[0] / size[1])), max(bh, math.ceil(bw * size[1] / size[0]))
    left, right = widened(left, right, bw, width)
    top, bottom = widened(top, bottom, bh, height)
    return contain((left, top, right, bottom), size)


def contain(box: Box, size: Size | None) -> Frame:
    """A box as large as it fits into `size`; None: unscaled, in the next multiples of 8."""
    bw, bh = box[2] - box[0], box[3] - box[1]
    if size is None:
        return Frame(box, (bw, bh), (up_to_8(bw), up_to_8(bh)))
    scale = min(size[0] / bw, size[1] / bh)
    scaled = min(size[0], math.ceil(bw * scale - 1e-6)), min(size[1], math.ceil(bh * scale - 1e-6))
    return Frame(box, scaled, size)


def widened(low: int, high: int, want: int, limit: int) -> tuple[int, int]:
    """An interval of length min(want, limit) about [low, high), moved inside [0, limit)."""
    want = min(want, limit)
    low = min(max(0, low - (want - (high - low)) // 2), limit - want)
    return low, low + want


def up_to_8(side: int) -> int:
    return -(-side // 8) * 8
