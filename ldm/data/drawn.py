"""The scenes as a data set: drawn when asked for, at the training size, with captions and outlines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ldm.data.scenes import Scene, caption, draw, outline, sample_scene
from ldm.data.settings import Part
from ldm.data.source import About, Source, filled
from ldm.images import Picture, from_rgb


@dataclass(eq=False)
class Scenes(Source):
    """Scenes 0 .. count-1 of `part.scene_seed`; those of the split `held_out` are never drawn for `seen`."""

    part: Part
    side: int
    title: str = "the scenes"
    quick: bool = True
    _last: tuple[int, Scene] | None = None  # asked for twice in a row: for its words and for its picture

    def __len__(self) -> int:
        return self.part.count

    def scene(self, index: int) -> Scene:
        last = self._last  # threads may ask for others meanwhile
        if last is None or last[0] != index:
            self._last = last = index, sample_scene(index, self.part.scene_seed, self.part.combinations)
        return last[1]

    def name(self, index: int) -> str:
        return f"scene {index}"

    def about(self, index: int) -> About:
        text = caption(self.scene(index))
        texts = filled(self.part.templates, {"text": text}, self.title) if self.part.templates else (text,)
        return About(self.name(index), texts, None, (self.side, self.side))

    def content(self, index: int) -> str:
        return hashlib.sha256(f"{self.scene(index)} at {self.side}".encode()).hexdigest()

    def picture(self, index: int) -> Picture:
        return from_rgb(draw(self.scene(index), self.side))

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def hint(self, index: int) -> Picture | None:
        return from_rgb(outline(self.scene(index), self.side))
