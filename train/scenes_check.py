"""Reads pictures of scenes back: how many show what their captions tell, how many follow their hints; and a sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.data.scenes import Scene, matches, read
from ldm.images import from_rgb, save_image

CLOSE = 2 / 32  # of the side: a thing this near to its outline is in its place


def tally(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """For each attribute that captions tell, and for all of one together: how many pictures show it, of how many."""
    told: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for picture, scene in zip(pictures, scenes, strict=True):
        verdict = matches(read(picture), scene)
        verdict["all"] = all(verdict.values())
        told.update(verdict.keys())
        shown.update(name for name, right in verdict.items() if right)
    return {name: (shown[name], told[name]) for name in sorted(told)}


def along_edges(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, float]:
    """How often a picture has the shapes of the hint, and has a thing within 2 pixels of 32 of each one of them."""
    shape = place = 0
    for picture, scene in zip(pictures, scenes, strict=True):
        found = read(picture)
        shape += sorted(str(t.shape) for t in found.things) == sorted(t.shape for t in scene.things)
        near = [min((max(abs(s.x - t.x), abs(s.y - t.y)) for s in found.things), default=1.0) for t in scene.things]
        place += max(near) <= CLOSE
    return {"shape": round(shape / len(scenes), 4), "place": round(place / len(scenes), 4)}


def save_sheet(path: Path, pictures: Sequence[np.ndarray], columns: int = 12, zoom: int = 3) -> None:
    """The pictures [H,W,3] in rows, enlarged without smoothing."""
    side = max(p.shape[0] for p in pictures) + 2
    sheet = np.full((-(-len(pictures) // columns) * side, columns * side, 3), 0.8, np.float32)
    for index, picture in enumerate(pictures):
        top, left = index // columns * side + 1, index % columns * side + 1
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    save_image(from_rgb(sheet.repeat(zoom, 0).repeat(zoom, 1)), path)


def beside(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One of the left, one of the right, and so on."""
    return [picture for pair in zip(left, right, strict=True) for picture in pair]
