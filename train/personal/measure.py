"""What the pictures of a checkpoint say: is it the subject, does it follow words, what else changed, what is a copy.

All figures are cosines of features and what is made of them; which features, is part of the report. For photos P, their
likeness to each other is the ceiling: no picture can be expected to be nearer to them than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from train.personal.copies import CLOSE, Shown

MARGIN = 0.03  # of cosines, from the base to the ceiling, below which nothing can be told of the way between
LEAST = 0.005  # of a cosine: a base that tells its own prompts apart by less understands none of them


Each = tuple[float | None, float | None]


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
    prompt: float | None  # of the base's own understanding, the mean over prompts; None: no text tower at hand
    drift: float
    leak: float | None  # how far the kind without the token has gone from the base to the ceiling
    copies: float
    copied: tuple[tuple[int, int], ...]  # (sample, photo) of near copies
    nearest: tuple[tuple[int, float], ...] = ()  # of each sample the nearest photo, and how far it is
    chance: float = 0.0  # the share of near copies among new photos, of which none is a copy
    close: int = 0  # of the near copies those that hardly any new photo would be
    each: tuple[Each, ...] = ()  # of each prompt: the subject, and how it is followed

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
        followed, leak = self._followed(drawn.seen), None
        if len(drawn.kind):
            leak = self._way(_mean(drawn.kind @ self.photos.T), _mean(self.base.kind @ self.photos.T))
        return Measures(
            self._way(_mean(likeness), self.floor),
            _mean(likeness),
            _mean_of(followed),
            self._drift(drawn.unrelated),
            leak,
            len(copied) / max(1, len(near)),
            tuple(copied),
            tuple(near),
            self.shown.chance,
            sum(away < CLOSE * nearest for _, away in near),
            self._each(likeness, followed),
        )

    def _way(self, reached: float, start: float) -> float | None:
        """How far from a start to the ceiling; None where the two are no distance apart."""
        return (reached - start) / (self.ceiling - start) if self.ceiling - start >= MARGIN else None

    def _drift(self, unrelated: Tensor) -> float:
        moved = _mean(1 - (unrelated * self.base.unrelated).sum(1))
        return moved / max(_mean(1 - (self.again * self.base.unrelated).sum(1)), 1e-3)

    def _followed(self, seen: Tensor | None) -> tuple[float | None, ...]:
        """Of each prompt: how much more its pictures are like it than others are, from 0 to as much as the base's own
        (1), with its kind or a thing it knows in the subject's place. None where the base cannot do it either:
        one prompt that is drawn all the better without the subject makes up for no other."""
        if seen is None or self.base.seen is None or self.prompts is None or len(self.prompts) < 2:
            return ()
        base, ours = (_told_apart(pictures, self.prompts) for pictures in (self.base.seen, seen))
        return tuple(min(1.0, max(0.0, o / b)) if b > LEAST else None for o, b in zip(ours, base, strict=True))

    def _each(self, likeness: Tensor, followed: Sequence[float | None]) -> tuple[Each, ...]:
        count = len(followed)
        reached = (self._way(_mean(likeness[place::count]), self.floor) for place in range(count))
        return tuple(zip(reached, followed, strict=True))


def _told_apart(pictures: Tensor, prompts: Tensor) -> list[float]:
    """Of each prompt, how much more its own pictures are like it than those of other prompts are: 0 where every prompt
    gets the same picture. Picture i was made for prompt i modulo their number."""
    each = pictures @ prompts.T
    own = torch.arange(len(pictures)) % len(prompts)
    return [_mean(each[own == place, place]) - _mean(each[own != place, place]) for place in range(len(prompts))]


def _mean_of(values: Sequence[float | None]) -> float | None:
    """Of those that could be told."""
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


def _mean(x: Tensor) -> float:
    return float(x.double().mean())
