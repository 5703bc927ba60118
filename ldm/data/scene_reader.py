"""Reads a scene back from pixels, without any network: segmentation by colour, then analysis by synthesis.

Each blob that stands out from the background is compared with every shape, drawn at the blob's own place and area; the
best overlap names it. A blob that fits no shape is kept as an unknown thing, so that noise never counts as a hit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ldm.data.shapes import PALETTE, SHAPES, Array, coverage, moments

Box = tuple[float, float, float, float]
Mask = npt.NDArray[np.bool_]

POSITIONS = ("left", "right", "top", "bottom", "centre")

_NAMES = tuple(PALETTE)
_LEAST_AREA = 0.012  # of the picture; smaller blobs are specks
_LEAST_FIT = 0.72  # overlap (intersection over union) under which a blob has no shape
_LARGEST = 48  # pixels a side that are enough to read a scene


@dataclass(frozen=True)
class Seen:
    """One thing found: place and radius are fractions of the picture's side; `fit` is its overlap with the shape."""

    shape: str | None
    colour: str
    x: float
    y: float
    radius: float
    area: float
    fit: float

    @property
    def position(self) -> str:
        return position_word(self.x, self.y)

    @property
    def size(self) -> str:
        return size_word(self.radius)


@dataclass(frozen=True)
class Found:
    """What a picture shows: the colour of the ground, and the things on it from the largest to the smallest."""

    background: str
    things: tuple[Seen, ...]

    def has(self, shape: str | None = None, colour: str | None = None) -> bool:
        """Whether one thing has this shape and this colour (None: any)."""
        return any((shape in (None, t.shape)) and (colour in (None, t.colour)) for t in self.things)


def position_word(x: float, y: float) -> str:
    """left, right, top, bottom or centre: the side towards which a point lies furthest from the middle."""
    dx, dy = x - 0.5, y - 0.5
    if max(abs(dx), abs(dy)) < 0.1:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def size_word(radius: float) -> str:
    """small (under 0.2 of the side), big (over 0.24), medium between."""
    return "small" if radius < 0.2 else "big" if radius > 0.24 else "medium"


def read(rgb: npt.NDArray[np.floating], within: npt.NDArray[np.generic] | Box | None = None) -> Found:
    """The scene in rgb [H,W,3] in [0,1]. With `within` (a mask [H,W], or a box left, top, right, bottom in pixels) only
    the things that lie for the greater part inside are kept; the ground is still judged on the whole picture."""
    pixels = np.clip(np.nan_to_num(np.asarray(rgb, np.float32)), 0.0, 1.0)
    inside = _inside(within, pixels.shape[:2])
    step = max(1, min(pixels.shape[:2]) // _LARGEST)
    pixels, inside = _pooled(pixels, step), _pooled(inside, step)
    labels = nearest_colour(pixels)
    ground = int(np.bincount(labels.ravel(), minlength=len(_NAMES)).argmax())
    ground_rgb = pixels[labels == ground].mean(0)
    blobs = _components(labels != ground)
    things = (_seen(pixels, labels, blob, blobs, ground_rgb) for blob in blobs)
    kept = [thing for thing, share in things if thing is not None and _share(share, inside) >= 0.5]
    return Found(_NAMES[ground], tuple(sorted(kept, key=lambda t: -t.area)))


def nearest_colour(rgb: Array) -> npt.NDArray[np.int64]:
    """The index of the nearest palette colour of each pixel, [H,W]."""
    palette = np.array(list(PALETTE.values()), np.float32)
    distance = ((rgb[..., None, :] - palette) ** 2).sum(-1)
    return np.asarray(distance.argmin(-1), np.int64)


def _seen(
    pixels: Array, labels: npt.NDArray[np.int64], blob: Mask, blobs: list[Mask], ground: Array
) -> tuple[Seen | None, Array]:
    """One blob as a thing, and how much of each pixel it covers."""
    height, width = blob.shape
    far = np.linalg.norm(pixels - ground, axis=-1)
    core = blob & (far >= np.median(far[blob]))  # rims are mixed with the ground, the farther half is the thing itself
    colour = int(np.bincount(labels[core], minlength=len(_NAMES)).argmax())
    own = pixels[core & (labels == colour)].mean(0) - ground
    reach = _grown(blob)
    for other in blobs:
        reach &= ~other if other is not blob else True
    share = np.clip((pixels - ground) @ own / max(float(own @ own), 1e-6), 0.0, 1.0) * reach
    area = float(share.sum())
    if area < _LEAST_AREA * blob.size:
        return None, share
    y = float((share.sum(1) * (np.arange(height) + 0.5)).sum() / area)
    x = float((share.sum(0) * (np.arange(width) + 0.5)).sum() / area)
    fit, shape, radius = max(_fits(share, x, y, area))
    named = shape if fit >= _LEAST_FIT else None
    middle = y - moments(shape)[1] * radius if named else y
    place = (x / width, middle / height, radius / min(height, width))
    return Seen(named, _NAMES[colour], *place, area / blob.size, fit), share


def _fits(share: Array, x: float, y: float, area: float) -> list[tuple[float, str, float]]:
    """(overlap, shape, radius) for every shape at a few radii about the one that the area asks for."""
    size = (share.shape[0], share.shape[1])
    result = []
    for shape in SHAPES:
        mass, below = moments(shape)
        for factor in (0.94, 1.0, 1.06):
            radius = factor * float(np.sqrt(area / mass))
            drawn = coverage(shape, x, y - below * radius, radius, size)
            overlap = float(np.minimum(drawn, share).sum() / np.maximum(drawn, share).sum())
            result.append((overlap, shape, radius))
    return result


def _components(mask: Mask) -> list[Mask]:
    """The parts of a mask that hang together over edges, by spreading the largest index until nothing changes."""
    index = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, np.max(_neighbours(index), axis=0), 0)
        if np.array_equal(spread, index):
            break
        index = spread
    names, counts = np.unique(index[mask], return_counts=True)
    least = max(3.0, 0.5 * _LEAST_AREA * mask.size)
    return [index == name for name, count in zip(names, counts, strict=True) if count >= least]


def _grown(mask: Mask) -> Mask:
    """The mask and its direct neighbours."""
    return np.asarray(np.any(_neighbours(mask), axis=0), np.bool_)


def _neighbours(image: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """The image itself, and shifted by one pixel each way; zeros come in at the rim."""
    p = np.pad(image, 1)
    return [p[1:-1, 1:-1], p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]]


def _inside(within: npt.NDArray[np.generic] | Box | None, size: tuple[int, ...]) -> Array:
    if within is None:
        return np.ones(size, np.float32)
    if isinstance(within, np.ndarray):
        return within.astype(np.float32).reshape(size)
    left, top, right, bottom = within
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None, :] + 0.5
    return ((x > left) & (x < right) & (y > top) & (y < bottom)).astype(np.float32)


def _pooled(image: Array, step: int) -> Array:
    """Means over step x step pixels; a remainder at the right and the bottom is left out."""
    height, width = image.shape[0] // step, image.shape[1] // step
    tiles = image[: height * step, : width * step].reshape(height, step, width, step, *image.shape[2:])
    return np.asarray(tiles.mean((1, 3)), np.float32)


def _share(part: Array, inside: Array) -> float:
    return float((part * inside).sum() / max(float(part.sum()), 1e-6))
