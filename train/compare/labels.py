"""Words beside dots: each as near to its dot as it can be without covering another word or another dot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 5.4, 11.0  # of the small words, about: how wide a letter is, and how high
GAP = 2.0
RINGS = range(0, 200, 6)  # ever farther from the dot
DIRECTIONS = (90, 0, 180, 270, 45, 135, 315, 225)  # below first, then to the right, ...
FAR = 12  # from which on a line leads to the word


@dataclass(frozen=True)
class Dot:
    name: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Box:
    x: float  # its middle
    y: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        apart = abs(self.x - other.x), abs(self.y - other.y)
        return 2 * apart[0] < self.width + other.width and 2 * apart[1] < self.height + other.height

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point that is nearest to another."""
        across, down = self.width / 2, self.height / 2
        return min(max(x, self.x - across), self.x + across), min(max(y, self.y - down), self.y + down)

    def within(self, side: float) -> bool:
        across = self.width / 2 <= self.x <= side - self.width / 2
        return across and self.height / 2 <= self.y <= side - self.height / 2


def box_of(word: str, x: float, y: float) -> Box:
    """Of a small word whose middle is there."""
    return Box(x, y, LETTER * len(word), LINE)


def placed(dots: Sequence[Dot], side: float, taken: Sequence[Box]) -> Iterator[tuple[Dot, Box, bool]]:
    """A place for the word of each dot in a square picture, and whether it is so far that a line must lead there."""
    full = [*taken, *(Box(dot.x, dot.y, 2 * dot.radius, 2 * dot.radius) for dot in dots)]
    for dot in dots:
        box, ring = next(_free(dot, side, full), (box_of(dot.name, dot.x, dot.y), 0))
        full.append(box)
        yield dot, box, ring >= FAR


def _free(dot: Dot, side: float, full: Sequence[Box]) -> Iterator[tuple[Box, int]]:
    word = box_of(dot.name, 0, 0)
    for ring in RINGS:
        away = dot.radius + GAP + ring
        for degrees in DIRECTIONS:
            right, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            box = box_of(dot.name, dot.x + right * (away + word.width / 2), dot.y + down * (away + word.height / 2))
            if box.within(side) and not any(box.meets(other) for other in full):
                yield box, ring
