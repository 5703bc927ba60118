"""The trilemma of the textbooks as a picture: quality, coverage, and the speed of drawing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.compare.labels import Dot, box_of, placed
from train.compare.table import Row

SIDE, EDGE = 460, 50
GROUP_TONES = {
    "simple": "#8a8a93", "vae": "#2f7dd1", "gan": "#d1492f", "flow": "#2e9a5b", "autoregressive": "#9a5bd1",
    "energy": "#b8860b", "diffusion": "#d12f8f",
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A family with its three shares of 0..1: the best of the comparison has 1, the worst 0."""

    name: str
    group: str
    quality: float
    coverage: float
    speed: float


def marks(rows: Sequence[Row]) -> list[Mark]:
    """Quality by the kernel distance and speed by pictures a second, both on a logarithmic scale; coverage as it is."""
    found = []
    for row in rows:
        kid, coverage, speed = row.figure("kid"), row.figure("coverage"), row.per_second
        if kid is not None and coverage is not None and speed:
            least = max((kid.high - kid.low) / 2, 1e-6)  # nearer than chance can tell: at zero a logarithm has no end
            found.append((row, (-math.log(max(kid.value, least)), coverage.value, math.log(speed))))
    if len(found) < 2:
        return []
    scaled = [_scaled([told[i] for _, told in found]) for i in range(3)]
    return [
        Mark(row.name, row.facts.group, *(column[place] for column in scaled)) for place, (row, _) in enumerate(found)
    ]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def picture(found: Sequence[Mark]) -> str:
    """An SVG: a family is drawn towards the corners that it is good at, the larger the better it is in all."""
    if not found:
        return ""
    top, left, right = (SIDE / 2, EDGE), (EDGE, SIDE - EDGE), (SIDE - EDGE, SIDE - EDGE)
    parts = [
        f"<svg viewBox='0 0 {SIDE} {SIDE}' role='img' aria-label='quality, coverage and speed of each family'>",
        f"<path class='frame' d='M{_at(top)}L{_at(left)}L{_at(right)}Z'/>",
    ]
    words = {
        "quality": (top[0], top[1] - 18),
        "coverage": (left[0], left[1] + 30),
        "fast drawing": (right[0], right[1] + 30),
    }
    parts += [_word(x, y, word) for word, (x, y) in words.items()]
    ordered = sorted(found, key=lambda m: -(m.quality + m.coverage + m.speed))
    dots = [_dot(mark, (top, left, right)) for mark in ordered]
    circles, names = list[str](), list[str]()
    for mark, dot in zip(ordered, dots, strict=True):
        where = f"cx='{dot.x:.1f}' cy='{dot.y:.1f}' r='{dot.radius:.1f}'"
        circles.append(f"<circle {where} fill='{GROUP_TONES[mark.group]}' fill-opacity='.75'/>")
    for dot, box, far in placed(dots, SIDE, [box_of(word, x, y) for word, (x, y) in words.items()]):
        if far:
            parts.append(f"<path class='lead' d='M{_at((dot.x, dot.y))}L{_at(box.nearest(dot.x, dot.y))}'/>")
        names.append(_word(box.x, box.y + 3.5, dot.name, "small"))
    return "".join([*parts, *circles, *names, "</svg>"])


def _dot(mark: Mark, corners: Sequence[tuple[float, float]]) -> Dot:
    """Among the corners, in proportion to its shares."""
    shares = [(s + 0.05) ** 1.5 for s in (mark.quality, mark.coverage, mark.speed)]
    x, y = (sum(s * corner[i] for s, corner in zip(shares, corners, strict=True)) / sum(shares) for i in (0, 1))
    return Dot(mark.name, x, y, 4 + 7 * (mark.quality + mark.coverage + mark.speed) / 3)


def legend(found: Sequence[Mark]) -> str:
    """The tones of the groups that are there."""
    there = {mark.group for mark in found}
    spans = [f"<span style='color:{tone}'>&#9679; {g}</span>" for g, tone in GROUP_TONES.items() if g in there]
    return f"<p class=legend>{''.join(spans)}</p>" if spans else ""


def _at(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _word(x: float, y: float, text: str, kind: str = "corner") -> str:
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='middle'>{html.escape(text)}</text>"
