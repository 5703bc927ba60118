"""Edges without a network: Canny's thin ones, soft ones over several scales, and thick ones as drawn by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ldm.data.filters import Array, dilate, gaussian, gradient

Bits = npt.NDArray[np.bool_]
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def canny(rgb: Array, sigma: float = 0.8, low: float = 0.1, high: float = 0.25) -> Bits:
    """Edges one pixel wide [H,W] (Canny 1986): smooth, differentiate, keep ridges, keep what is joined to strong ones.

    The thresholds are heights of steps in 0..1, whatever sigma is.
    """
    height, dx, dy = steps(rgb, sigma)
    # Rounding makes the two sides of a symmetric step equal, so that the same side wins along the whole edge.
    height = np.round(height, 3).astype(np.float32)
    ridge = thin(height, dx, dy)
    edge = joined(ridge & (height >= low), ridge & (height >= high))
    return edge | (bridges(edge) & (height >= low))


def steps(rgb: Array, sigma: float) -> tuple[Array, Array, Array]:
    """Height of the step at each pixel, seen at scale sigma, and the gradient (d/dx, d/dy).

    A step h smoothed by a Gaussian has the slope h / (sqrt(2 pi) sigma); Sobel's smoothing adds 1/2 to the variance.
    """
    dx, dy = gradient(gaussian(rgb, sigma))
    return np.asarray(np.hypot(dx, dy) * np.sqrt(2 * np.pi * (sigma**2 + 0.5)), np.float32), dx, dy


def thin(slope: Array, dx: Array, dy: Array) -> Bits:
    """Non-maximum suppression: the pixels that are highest across the edge; of two equals, the right or lower one."""
    height, width = slope.shape
    padded = np.pad(slope, 1)  # zero outside: an edge at the border may stay

    def shifted(y: int, x: int) -> Array:
        return padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    angle = np.mod(np.arctan2(dy, dx), np.pi)
    sector = np.mod(np.round(angle / (np.pi / 4)).astype(int), 4)
    result = np.zeros(slope.shape, bool)
    for i, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        result |= (sector == i) & (slope > shifted(y, x)) & (slope >= shifted(-y, -x))
    return result & (slope > 0)


def bridges(edge: Bits) -> Bits:
    """Pixels that would join two ends of an edge: a sharp corner is no ridge in any direction, and breaks an outline.

    Walking round a pixel, its neighbours must hold two separate pieces (four changes), at least one of them an end.
    """
    height, width = edge.shape
    padded = np.pad(edge, 1)
    ring = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in RING]
    count = np.sum(ring, axis=0)
    changes = np.sum([a != b for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)], axis=0)
    end = np.pad(edge & ((count <= 1) | ((count == 2) & (changes == 2))), 1)
    ends = np.any([end[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in RING], axis=0)
    return np.asarray(~edge & (changes >= 4) & ends)


def joined(weak: Bits, strong: Bits) -> Bits:
    """Hysteresis: the weak pixels that are joined to a strong one through weak ones (8 neighbours)."""
    height, width = weak.shape
    open_ = np.pad(weak & ~strong, 1)
    result = np.pad(strong, 1)
    y, x = np.nonzero(result)
    while len(y):
        ys = np.concatenate([y + a for a, _ in RING])
        xs = np.concatenate([x + b for _, b in RING])
        keep = open_[ys, xs]
        y, x = np.divmod(np.unique(ys[keep] * (width + 2) + xs[keep]), width + 2)
        open_[y, x] = False
        result[y, x] = True
    return result[1 : 1 + height, 1 : 1 + width]


def soft(rgb: Array, scales: tuple[float, ...] = (1.0, 2.0, 4.0), half: float = 0.12) -> Array:
    """Soft edges [H,W] in 0..1: steps that are seen at every scale, so that texture fades; a stand-in for HED.

    The geometric mean c of the heights becomes c^2 / (c^2 + half^2).
    """
    heights = [steps(rgb, sigma)[0] for sigma in _fitting(scales, rgb)]
    contrast = np.prod(np.stack(heights), axis=0) ** (1 / len(heights))
    return np.asarray(contrast**2 / (contrast**2 + half**2), np.float32)


def scribble(rgb: Array) -> Array:
    """Thick, simple outlines [H,W] of 0 and 1, as drawn with a marker: coarse edges, short strokes dropped, widened."""
    size = min(rgb.shape[:2])
    edges = canny(rgb, sigma=max(0.8, size / 170))
    long = components(edges, at_least=max(4, size // 16))
    return dilate(long.astype(np.float32), max(1.0, size / 200))


def components(edges: Bits, at_least: int) -> Bits:
    """The 8-connected pieces of at least so many pixels."""
    result = np.zeros_like(edges)
    rest = edges.copy()
    for y, x in zip(*np.nonzero(edges), strict=True):
        if not rest[y, x]:
            continue
        piece = _piece(rest, int(y), int(x))
        if len(piece) >= at_least:
            ys, xs = zip(*piece, strict=True)
            result[ys, xs] = True
    return result


def _piece(rest: Bits, y: int, x: int) -> list[tuple[int, int]]:
    """The piece that holds (y, x), taken out of `rest`."""
    height, width = rest.shape
    rest[y, x] = False
    piece = [(y, x)]
    for here in piece:  # grows while it is walked
        for dy, dx in RING:
            ny, nx = here[0] + dy, here[1] + dx
            if 0 <= ny < height and 0 <= nx < width and rest[ny, nx]:
                rest[ny, nx] = False
                piece.append((ny, nx))
    return piece


def _fitting(scales: tuple[float, ...], rgb: Array) -> list[float]:
    """Scales that fit the picture: on small ones the coarse scales would see the whole shape."""
    limit = max(0.5, min(rgb.shape[:2]) / 48)
    return sorted({min(s, limit) for s in scales})
