"""Masks without a network: from transparency, a colour, a box or a polygon; grown, shrunk, feathered. 1: paint here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from ldm.data.filters import Array, dilate, gaussian
from ldm.errors import Code, LdmError
from ldm.images import Picture

Point = tuple[float, float]
ROWS = 16  # sub-rows per pixel row when the edge of a polygon is smoothed


def from_alpha(picture: Picture) -> Array:
    """The transparent part [H,W] in 0..1: paint where nothing is; half transparent pixels are half painted."""
    if picture.alpha is None:
        name = picture.name or "the picture"
        raise _refused(f"{name}: has no alpha channel", "a mask from alpha needs one", "give a mask file instead")
    greatest = np.iinfo(picture.alpha.dtype).max
    return np.asarray(1 - picture.alpha.astype(np.float32) / greatest, np.float32)


def from_colour(rgb: Array, colour: str | Sequence[int], tolerance: float = 0) -> Array:
    """Where no channel differs by more than `tolerance` from `colour`: #rrggbb, or three numbers; all in 0..255."""
    if not (math.isfinite(tolerance) and 0 <= tolerance <= 255):
        raise _refused(f"tolerance {tolerance}: not possible", "a step is a 255th", "give a number from 0 to 255")
    wanted = np.array(_colour(colour), np.float32)
    distance = np.abs(np.round(rgb * 255) - wanted).max(axis=2)
    return np.asarray(distance <= tolerance, np.float32)


def from_box(size: tuple[int, int], box: tuple[float, float, float, float]) -> Array:
    """A box (left, top, right, bottom) in pixels, right and bottom not included; part of a pixel paints it in part."""
    width, height = _legal(size)
    left, top, right, bottom = _finite(box, 4, "box")
    if left >= right or top >= bottom:
        raise _refused(f"box {box}: is empty", "right and bottom must be greater", "give left,top,right,bottom")
    across = np.clip(np.minimum(np.arange(1, width + 1), right) - np.maximum(np.arange(width), left), 0, 1)
    down = np.clip(np.minimum(np.arange(1, height + 1), bottom) - np.maximum(np.arange(height), top), 0, 1)
    return _inside(np.outer(down, across).astype(np.float32), f"box {box}", size)


def from_polygon(size: tuple[int, int], points: Sequence[Point], *, smooth: bool = True) -> Array:
    """A polygon of (x, y) corners, inside by the even-odd rule. Smooth: a pixel holds the part that is covered.

    Each pixel row is cut into sub-rows; along each, the spans between crossings are added exactly.
    """
    width, height = _legal(size)
    if len(points) < 3:
        raise _refused(f"polygon of {len(points)} points: has no inside", "three are needed", "add points")
    corners = np.array([_finite(p, 2, "point") for p in points])
    ends = np.roll(corners, -1, axis=0)
    rows = ROWS if smooth else 1
    result = np.zeros((height, width), np.float64)
    for row in range(height * rows):
        y = (row + 0.5) / rows
        result[row // rows] += _covered(np.sort(_crossings(corners, ends, y)), width, smooth) / rows
    return _inside(result.astype(np.float32), f"polygon of {len(points)} points", size)


def grow(mask: Array, pixels: float) -> Array:
    """Every value spreads over a disc of this radius."""
    return dilate(mask, _radius(pixels))


def shrink(mask: Array, pixels: float) -> Array:
    """The opposite of `grow`. The border of the picture is no edge: a mask that touches it stays there."""
    return np.asarray(1 - dilate(np.asarray(1 - mask, np.float32), _radius(pixels)), np.float32)


def feather(mask: Array, pixels: float) -> Array:
    """A soft edge, `pixels` wide, that lies wholly inside: where the mask is 0 it stays 0, and nothing rises."""
    width = _radius(pixels)
    if width <= 0:
        return mask.copy()
    return np.asarray(np.minimum(mask, gaussian(shrink(mask, width / 2), width / 4)), np.float32)


def _crossings(starts: np.ndarray, ends: np.ndarray, y: float) -> np.ndarray:
    """Where the sides of a polygon cross a height."""
    crosses = (starts[:, 1] <= y) != (ends[:, 1] <= y)
    a, b = starts[crosses], ends[crosses]
    return np.asarray(a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]))


def _covered(crossings: np.ndarray, width: int, smooth: bool) -> np.ndarray:
    """How much of each pixel of a row lies between the first and second crossing, the third and fourth, ..."""
    left = np.arange(width, dtype=np.float64)
    covered = np.zeros(width)
    for start, end in zip(crossings[::2], crossings[1::2], strict=True):
        if smooth:
            covered += np.clip(np.minimum(left + 1, end) - np.maximum(left, start), 0, 1)
        else:
            covered += (left + 0.5 >= start) & (left + 0.5 < end)
    return np.clip(covered, 0, 1)


def _inside(mask: Array, what: str, size: tuple[int, int]) -> Array:
    if not mask.any():
        why = f"the picture is {size[0]}x{size[1]}, and no pixel of it is covered"
        raise _refused(f"{what}: lies outside the picture", why, "give coordinates in pixels from the top left")
    return mask


def _colour(colour: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(colour, str):
        form = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", colour.strip())
        values = tuple(int(part, 16) for part in form.groups()) if form else ()
    else:
        values = tuple(colour)
    if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
        raise _refused(f"colour {colour!r}: is none", "a colour is #rrggbb or three numbers of 0..255", "write #ff0000")
    return values


def _legal(size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1:
        raise _refused(f"size {size}: is empty", "a mask has a width and a height", "give the size of the picture")
    return size


def _finite(values: Sequence[float], count: int, what: str) -> tuple[float, ...]:
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise _refused(f"{what} {tuple(values)}: is none", f"it needs {count} finite numbers", f"give {count} numbers")
    return tuple(values)


def _radius(pixels: float) -> float:
    if not (math.isfinite(pixels) and 0 <= pixels <= 1024):
        raise _refused(f"{pixels} pixels: not possible", "a radius is from 0 to 1024", "give a smaller radius")
    return pixels


def _refused(what: str, why: str, fix: str) -> LdmError:
    return LdmError(Code.USAGE, what, why, fix)
