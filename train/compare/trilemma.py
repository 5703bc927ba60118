"""The trilemma of the textbooks as a picture: quality, coverage, and the speed of drawing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.compare.table import Row

SIDE, EDGE = 460, 70
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
            found.append((row, (-math.log(max(kid.value, 1e-6)), coverage.value, math.log(speed))))
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
        _word(top[0], top[1] - 18, "quality"), _word(left[0], left[1] + 30, "coverage"),
        _word(right[0], right[1] + 30, "fast drawing"),
    ]  # fmt: skip
    taken: list[tuple[float, float]] = []
    for mark in sorted(found, key=lambda m: -(m.quality + m.coverage + m.speed)):
        shares = [(s + 0.05) ** 1.5 for s in (mark.quality, mark.coverage, mark.speed)]
        total = sum(shares)
        x = sum(s * corner[0] for s, corner in zip(shares, (top, left, right), strict=True)) / total
        y = sum(s * corner[1] for s, corner in zip(shares, (top, left, right), strict=True)) / total
        radius = 4 + 7 * (mark.quality + mark.coverage + mark.speed) / 3
        tone = GROUP_TONES[mark.group]
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' fill='{tone}' fill-opacity='.75'/>")
        parts.append(_word(*_free(x, y + radius + 12, taken), mark.name, "small"))
    return "".join([*parts, "</svg>"])


def legend(found: Sequence[Mark]) -> str:
    """The tones of the groups that are there."""
    there = {mark.group for mark in found}
    spans = [f"<span style='color:{tone}'>&#9679; {g}</span>" for g, tone in GROUP_TONES.items() if g in there]
    return f"<p class=legend>{''.join(spans)}</p>" if spans else ""


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """A place for a word that no other word has, moved down until there is one."""
    while any(abs(x - a) < 70 and abs(y - b) < 12 for a, b in taken):
        y += 12
    taken.append((x, y))
    return x, y


def _at(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _word(x: float, y: float, text: str, kind: str = "corner") -> str:
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='middle'>{html.escape(text)}</text>"
