"""The scenes as a data set: drawn when asked for, at the training size, with captions and outlines."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from ldm.data.scenes import Scene, caption, draw, outline, sample_scene
from ldm.data.settings import Part
from ldm.data.source import About, Source, filled
from ldm.images import Picture, from_rgb

REMEMBERED = 200_000  # captions, about 40 MB: a scene is drawn up again for each showing otherwise


@dataclass(eq=False)
class Scenes(Source):
    """Scenes 0 .. count-1 of `part.scene_seed`; those of the split `held_out` are never drawn for `seen`."""

    part: Part
    side: int
    title: str = "the scenes"
    quick: bool = True
    _last: tuple[int, Scene] | None = None  # asked for twice in a row: for its words and for its picture
    _known: dict[int, tuple[str, str]] = field(default_factory=dict, repr=False)  # caption and content

    def __len__(self) -> int:
        return self.part.count

    def scene(self, index: int) -> Scene:
        last = self._last  # threads may ask for others meanwhile
        if last is None or last[0] != index:
            self._last = last = index, self._draw(index)
        return last[1]

    def _draw(self, index: int) -> Scene:
        part = self.part
        return sample_scene(index, part.scene_seed, part.combinations, part.crowded)

    def name(self, index: int) -> str:
        return f"scene {index}"

    def about(self, index: int) -> About:
        text = self._told(index)[0]
        texts = filled(self.part.templates, {"text": text}, self.title) if self.part.templates else (text,)
        return About(self.name(index), texts, None, (self.side, self.side))

    def content(self, index: int) -> str:
        return self._told(index)[1]

    def _told(self, index: int) -> tuple[str, str]:
        """The caption; and what the picture is a function of, the same in every process and run."""
        known = self._known.get(index)
        if known is None:
            scene = self.scene(index)
            shown = f"{scene.things} on {scene.background} at {self.side}"
            known = caption(scene), hashlib.sha256(shown.encode()).hexdigest()
            if len(self._known) < REMEMBERED:
                self._known[index] = known
        return known

    def picture(self, index: int) -> Picture:
        return from_rgb(draw(self.scene(index), self.side))

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def hint(self, index: int) -> Picture | None:
        return from_rgb(outline(self.scene(index), self.side))
