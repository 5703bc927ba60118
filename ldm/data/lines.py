"""Straight lines by the Hough transform: a stand-in for the MLSD line detector, without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ldm.data.edges import canny
from ldm.data.filters import Array, gaussian, gradient

ANGLES = 180  # one bin per degree
SPREAD = 8  # a pixel votes for its own direction and this many degrees beside it
Ints = npt.NDArray[np.intp]


def lines(rgb: Array, most: int = 400) -> Array:
    """The straight segments of the picture, white and one pixel wide on black [H,W]."""
    result = np.zeros(rgb.shape[:2], np.float32)
    for y0, x0, y1, x1 in segments(rgb, most):
        n = max(abs(y1 - y0), abs(x1 - x0)) + 1
        result[np.round(np.linspace(y0, y1, n)).astype(int), np.round(np.linspace(x0, x1, n)).astype(int)] = 1.0
    return result


def segments(rgb: Array, most: int = 400) -> Iterator[tuple[int, int, int, int]]:
    """Segments (y0, x0, y1, x1), most voted first. Each edge pixel votes for x cos a + y sin a = rho near its normal.

    A found segment takes its votes back, so that a thick line is not found twice.
    """
    size = max(rgb.shape[:2])
    shortest, gap, sigma = max(6, size // 25), max(2, size // 100), max(0.8, size / 256)
    y, x = np.nonzero(canny(rgb, sigma))
    if len(y) < shortest:
        return
    dx, dy = gradient(gaussian(rgb, sigma))
    normal = np.degrees(np.arctan2(dy[y, x], dx[y, x]))
    bins = np.round(normal).astype(int)[:, None] + np.arange(-SPREAD, SPREAD + 1)  # [N, 2 SPREAD + 1]
    bins = np.mod(bins, ANGLES)
    angle = np.radians(bins)
    offset = math.ceil(math.hypot(*rgb.shape[:2]))
    rho = np.round(x[:, None] * np.cos(angle) + y[:, None] * np.sin(angle)).astype(int) + offset
    cells = bins * (2 * offset + 1) + rho
    votes = np.bincount(cells.ravel(), minlength=ANGLES * (2 * offset + 1))
    alive = np.ones(len(y), bool)
    for _ in range(4 * most):
        cell = int(votes.argmax())
        if votes[cell] < shortest or most <= 0:
            return
        run = _longest_run(cell, y, x, alive, bins, offset, gap)
        if len(run) < 2 or _extent(y[run], x[run]) < shortest - 1:
            votes[cell] = 0  # scattered pixels, no segment
            continue
        alive[run] = False
        np.subtract.at(votes, cells[run].ravel(), 1)
        most -= 1
        yield _ends(cell, offset, y[run], x[run])


def _longest_run(cell: int, y: Ints, x: Ints, alive: npt.NDArray[np.bool_], bins: Ints, offset: int, gap: int) -> Ints:
    """The pixels of the longest unbroken stretch along a line, of those whose own direction agrees with it."""
    degrees, rho = divmod(cell, 2 * offset + 1)
    a = math.radians(degrees)
    near = np.abs(x * math.cos(a) + y * math.sin(a) - (rho - offset)) <= 1.0
    on = np.nonzero(alive & near & (bins == degrees).any(axis=1))[0]
    if len(on) == 0:
        return on
    along = y[on] * math.cos(a) - x[on] * math.sin(a)
    order = np.argsort(along, kind="stable")
    breaks = np.nonzero(np.diff(along[order]) > gap + 1)[0] + 1
    runs = np.split(on[order], breaks)
    return max(runs, key=len)


def _extent(y: Ints, x: Ints) -> int:
    return int(max(np.ptp(y), np.ptp(x)))


def _ends(cell: int, offset: int, y: Ints, x: Ints) -> tuple[int, int, int, int]:
    """The two ends of a run, taken from its first and last pixels along the line."""
    a = math.radians(cell // (2 * offset + 1))
    along = y * math.cos(a) - x * math.sin(a)
    first, last = int(along.argmin()), int(along.argmax())
    return int(y[first]), int(x[first]), int(y[last]), int(x[last])
