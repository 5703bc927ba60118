"""Several sources as one: examples are counted through, and each part keeps its weight for the order of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ldm.data.source import About, Source, sorted_names
from ldm.images import Picture


@dataclass(eq=False)
class Mixture(Source):
    """Example starts[p] + i is example i of part p. Class names of the parts are joined."""

    parts: Sequence[Source]
    shares: Sequence[float]  # of each part in all draws, in any unit
    repeats: Sequence[int]
    title: str = "the mix"
    labels: tuple[str, ...] = ()
    starts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)]).astype(np.int64)
        self.foreign = tuple(name for part in self.parts for name in part.foreign)
        self.quick = all(part.quick for part in self.parts)
        if len(self.parts) == 1:
            self.title, self.labels = self.parts[0].title, self.parts[0].labels
        elif all(part.labels for part in self.parts):
            self.labels = tuple(sorted_names(name for part in self.parts for name in part.labels))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[Source, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.parts[part], index - int(self.starts[part]), part

    def name(self, index: int) -> str:
        source, inner, _ = self._find(index)
        return source.name(inner) if len(self.parts) == 1 else f"{source.title}: {source.name(inner)}"

    def inner_name(self, index: int) -> str:
        """The name in its part: the same wherever the part lies, and whatever it is mixed with."""
        source, inner, _ = self._find(index)
        return source.name(inner)

    def about(self, index: int) -> About:
        source, inner, part = self._find(index)
        found = source.about(inner)
        label = found.label
        if label is not None and len(self.parts) > 1:
            label = self.labels.index(source.labels[label]) if self.labels else None
        return About(self.name(index), found.captions, label, found.size, found.weight * self.repeats[part])

    def content(self, index: int) -> str:
        source, inner, _ = self._find(index)
        return source.content(inner)

    def picture(self, index: int) -> Picture:
        source, inner, _ = self._find(index)
        return source.picture(inner)

    def size(self, index: int) -> tuple[int, int]:
        source, inner, _ = self._find(index)
        return source.size(inner)

    def hint(self, index: int) -> Picture | None:
        source, inner, _ = self._find(index)
        return source.hint(inner)

    def mask(self, index: int) -> Picture | None:
        source, inner, _ = self._find(index)
        return source.mask(inner)

    def weights(self) -> npt.NDArray[np.int64] | None:
        if all(r == 1 for r in self.repeats) and all(part.weights() is None for part in self.parts):
            return None
        each = [part.weights() for part in self.parts]
        ones = [np.ones(len(part), np.int64) if w is None else w for part, w in zip(self.parts, each, strict=True)]
        return np.concatenate([w * r for w, r in zip(ones, self.repeats, strict=True)])

    def spans(self) -> list[tuple[int, int, float]]:
        """First example, end and share of each part."""
        pairs = zip(self.starts[:-1], self.starts[1:], self.shares, strict=True)
        return [(int(first), int(end), share) for first, end, share in pairs]
