"""What the pictures of a checkpoint say: is it the subject, does it follow words, what else changed, what is a copy.

All figures are cosines of features and what is made of them; which features, is part of the report. For photos P, their
likeness to each other is the ceiling: no picture can be expected to be nearer to them than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ldm.metrics.interval import Estimate
from train.personal.copies import CLOSE, Shown
from train.personal.following import followed, told_apart

MARGIN = 0.03  # of cosines, from the base to the ceiling, below which nothing can be told of the way between
THERE = 0.3  # of the way, below which the subject is not to be seen in a picture

Each = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Features [n,d] of a checkpoint's pictures: of the subject's prompts, of its kind, of unrelated prompts."""

    subject: Tensor
    kind: Tensor  # [0,d] where nobody says what the subject is
    unrelated: Tensor
    copies: Tensor  # of the subject's prompts, to be held against what is shown of the photos
    seen: Tensor | None = None  # of the subject's prompts as a CLIP sees them, which can be held against texts


@dataclass(frozen=True)
class Measures:
    """1 is full and 0 none, but for `drift` (of the distance between two seeds of the base) and `copies` (a share)."""

    subject: float | None  # how far from the base to the ceiling; None: these features do not tell them apart
    likeness: float  # the bare cosine to the photos
    prompt: float | None  # of the base's own understanding; None: no text tower at hand, or the base has none
    drift: float
    leak: float | None  # how far the kind without the token has gone from the base to the ceiling
    copies: float
    copied: tuple[tuple[int, int], ...]  # (sample, photo) of near copies
    nearest: tuple[tuple[int, float], ...] = ()  # of each sample the nearest photo, and how far it is
    chance: float = 0.0  # the share of near copies among new photos, of which none is a copy
    close: int = 0  # of the near copies those that hardly any new photo would be
    each: tuple[Each, ...] = ()  # of each prompt: the subject, and how it is told from others, now and by the base
    prompt_range: tuple[float, float] = (0.0, 1.0)  # the interval of `prompt`
    alone: bool = False  # held against one photo, of which nobody knows how like another one would be

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What a checkpoint is held against: photos [n,d], the base's pictures at the same seeds, and at others."""

    photos: Tensor
    base: Drawn  # with the plain kind (or nothing) where the token will be
    again: Tensor  # the base's unrelated pictures from other seeds
    shown: Shown  # of the photos, to find copies by
    prompts: Tensor | None = None  # [p,d] the subject's prompts, said with the plain kind, as a text tower reads them
    count: int = 1  # of those prompts

    @property
    def ceiling(self) -> float:
        """The mean likeness of a photo to the others; of a single photo 1."""
        n = len(self.photos)
        return float((self.photos @ self.photos.T).fill_diagonal_(0).sum() / (n * (n - 1))) if n > 1 else 1.0

    @property
    def floor(self) -> float:
        """The mean likeness of the base's pictures to the photos."""
        return _mean(self.base.subject @ self.photos.T)

    def measure(self, drawn: Drawn) -> Measures:
        """Of one checkpoint."""
        likeness = drawn.subject @ self.photos.T
        near = [(int(row.argmin()), float(row.min())) for row in self.shown.away(drawn.copies)]
        nearest = self.shown.nearest
        copied = [(i, photo) for i, (photo, away) in enumerate(near) if away < nearest]
        each = self._each(likeness, drawn.seen)
        prompt = self._followed(drawn.seen, each)
        # Where no kind was said, the subject may still come into prompts that have nothing to do with it.
        plain, before = (pictures.kind if len(pictures.kind) else pictures.unrelated for pictures in (drawn, self.base))
        leak = self._way(_mean(plain @ self.photos.T), _mean(before @ self.photos.T))
        return Measures(
            self._way(_mean(likeness), self.floor),
            _mean(likeness),
            None if prompt is None else _within(prompt.value),
            self._drift(drawn.unrelated),
            leak,
            len(copied) / max(1, len(near)),
            tuple(copied),
            tuple(near),
            self.shown.chance,
            sum(away < CLOSE * nearest for _, away in near),
            each,
            (0.0, 1.0) if prompt is None else (_within(prompt.low), _within(prompt.high)),
            len(self.photos) == 1,
        )

    def _way(self, reached: float, start: float) -> float | None:
        """How far from a start to the ceiling; None where the two are no distance apart."""
        return (reached - start) / (self.ceiling - start) if self.ceiling - start >= MARGIN else None

    def _drift(self, unrelated: Tensor) -> float:
        moved = _mean(1 - (unrelated * self.base.unrelated).sum(1))
        return moved / max(_mean(1 - (self.again * self.base.unrelated).sum(1)), 1e-3)

    def _each(self, likeness: Tensor, seen: Tensor | None) -> tuple[Each, ...]:
        count = self.count if self.prompts is None else len(self.prompts)
        reached = [self._way(_mean(likeness[place::count]), self.floor) for place in range(count)]
        if seen is None or self.base.seen is None or self.prompts is None or count < 2:
            return tuple((way, None, None) for way in reached)
        ours, before = (told_apart(pictures, self.prompts).mean(0).tolist() for pictures in (seen, self.base.seen))
        return tuple(zip(reached, ours, before, strict=True))

    def _followed(self, seen: Tensor | None, each: Sequence[Each]) -> Estimate | None:
        if seen is None or self.base.seen is None or self.prompts is None or len(each) < 2:
            return None
        return followed(seen, self.base.seen, self.prompts, [way is None or way >= THERE for way, *_ in each])


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _mean(x: Tensor) -> float:
    return float(x.double().mean())
