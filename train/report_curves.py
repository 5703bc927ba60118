"""Curves of a report as inline SVG. Lines stretch with the page; words stand beside them as HTML and stay readable."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]  # step, value
MOST = 900  # points of a line: more than a screen has columns
SMOOTH = 30  # a line is smoothed over this part of its points
STRETCHES = 60  # of a line, whose medians are shown whole
FEWEST = 24  # a shorter one is shown as it is
WIDE = 30.0  # a greatest value that is so many times the least asks for a logarithmic axis


@dataclass(frozen=True)
class Series:
    """One line. `tone` names a colour of the page; noisy ones are drawn twice: as they are, and smoothed."""

    name: str
    points: Sequence[Point]
    tone: str = "a"
    noisy: bool = True


@dataclass(frozen=True)
class Axis:
    """Values low .. high on 0 .. 1, straight or logarithmic, with ticks at round numbers."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, 1e-300)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        if not self.log:
            return round_numbers(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        parts = (1, 2, 5) if last - first <= 2 else (1,)
        found = [part * 10.0**power for power in range(first, last + 1) for part in parts]
        inside = [value for value in found if self.low <= value <= self.high]
        return inside[:: max(1, -(-len(inside) // (count + 2)))]


def plot(title: str, series: Sequence[Series], *, tall: bool = False, unit: str = "", positive: bool = False) -> str:
    """A figure: title, latest values, lines, axes; what lies under the pointer is told by the page's script."""
    shown = [s for s in series if s.points]
    if not shown:
        return ""
    everything = [point for s in shown for point in s.points]
    steps = Axis(*_apart(min(x for x, _ in everything), max(x for x, _ in everything)))
    values = axis_of(shown, positive)
    lines = "".join(_drawn(s, steps, values) for s in shown)
    grid = "".join(f'<line x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>' for y in _down(values))
    left = "".join(
        f'<span class=y style="top:{y:.2f}%">{number(value)}</span>'
        for value, y in zip(values.ticks(), _down(values), strict=True)
    )
    ticks = [*(t for t in steps.ticks(4) if 0.02 < steps.at(t) < (0.94 if tall else 0.84)), steps.high]
    below = "".join(f'<span class=x style="left:{100 * steps.at(t):.2f}%">{number(t)}</span>' for t in ticks)
    key = "".join(
        f'<span class="key {s.tone}"><i></i>{html.escape(s.name)} <b>{number(s.points[-1][1])}{unit}</b></span>'
        for s in shown
    )
    told = json.dumps(
        {
            "x": [steps.low, steps.high],
            "s": [{"n": s.name, "t": s.tone, "p": [[x, float(f"{y:.5g}")] for x, y in thin(smooth(s))]} for s in shown],
        }
    ).replace("<", "\\u003c")
    size = " tall" if tall else ""
    scale = "<small>logarithmic</small>" if values.log else ""
    return (
        f'<figure class="plot{size}"><figcaption><h3>{html.escape(title)}{scale}</h3>'
        f"<div class=keys>{key}</div></figcaption><div class=field>"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio=none role=img aria-label="{html.escape(title)}">'
        f"<g class=grid>{grid}</g>{lines}</svg>{left}{below}<div class=cursor hidden></div><output hidden></output>"
        f"<script type=application/json>{told}</script></div></figure>"
    )


def axis_of(series: Sequence[Series], positive: bool = False) -> Axis:
    """The values' axis: of noisy lines the middle 98 %, and the medians of short stretches, so that the beginning is
    seen and one spike does not flatten all; logarithmic where positive values span decades."""
    values = sorted(y for s in series for _, y in ([*_medians(s.points), *_middle(s.points)] if s.noisy else s.points))
    low, high = values[0], values[-1]
    if positive and low > 0 and high / low > WIDE:
        return Axis(low * 0.9, high * 1.1, True)
    low, high = _apart(low, high)
    room = 0.06 * (high - low)
    return Axis(0.0 if 0 <= low < 0.4 * high else low - room, high + room)


def smooth(series: Series) -> list[Point]:
    """The mean of the points around each: a window of a thirtieth of all, narrower towards the ends."""
    points = list(series.points)
    if not series.noisy or len(points) < FEWEST:
        return points
    half = max(2, len(points) // SMOOTH)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    made = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        made.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return made


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST` points: the least and the greatest of each stretch, so that spikes stay."""
    if len(points) <= MOST:
        return list(points)
    size = -(-2 * len(points) // MOST)
    made: list[Point] = []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        made += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return made if made[-1] == points[-1] else [*made, points[-1]]


def number(value: float) -> str:
    """Short enough for an axis: 12,000 is 12k, 0.000012 is 1.2e-5."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        text = f"{value:.2e}" if size < 1e-4 or size >= 1e9 else f"{value / 1e6:.3g}M"
        head, e, power = text.partition("e")
        return f"{head.rstrip('0').rstrip('.') if '.' in head else head}e{int(power)}" if e else text
    return f"{value / 1000:.4g}k" if size >= 10_000 else f"{value:.4g}"


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten within low .. high."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(part * power for part in (1, 2, 5, 10) if part * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _drawn(series: Series, steps: Axis, values: Axis) -> str:
    raw = thin(series.points)
    bold = smooth(series)
    parts = []
    if series.noisy and len(series.points) >= FEWEST:
        parts.append(f'<path class="raw {series.tone}" d="{_way(raw, steps, values)}"/>')
    parts.append(f'<path class="line {series.tone}" d="{_way(thin(bold), steps, values)}"/>')
    if len(series.points) == 1:
        x, y = 100 * steps.at(series.points[0][0]), 100 * (1 - values.at(series.points[0][1]))
        parts.append(f'<path class="line {series.tone} dot" d="M{x:.2f} {y:.2f}h.01"/>')
    return "".join(parts)


def _way(points: Sequence[Point], steps: Axis, values: Axis) -> str:
    """An SVG path; what lies outside the field is cut at its edge."""
    spots = [(100 * steps.at(x), 100 * (1 - min(1.02, max(-0.02, values.at(y))))) for x, y in points]
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in spots)


def _down(values: Axis) -> list[float]:
    return [100 * (1 - values.at(tick)) for tick in values.ticks()]


def _middle(points: Sequence[Point]) -> list[Point]:
    """Without the outermost hundredth on each side, and without the first twentieth, where a loss falls."""
    if len(points) < FEWEST:
        return list(points)
    later = sorted(points[len(points) // 20 :], key=lambda p: p[1])
    cut = -(-len(later) // 100)
    return later[cut : len(later) - cut]


def _medians(points: Sequence[Point]) -> list[Point]:
    """The median of each of `STRETCHES` stretches."""
    size = -(-len(points) // STRETCHES)
    parts = [sorted(points[i : i + size], key=lambda p: p[1]) for i in range(0, len(points), size)]
    return [part[len(part) // 2] for part in parts]


def _apart(low: float, high: float) -> tuple[float, float]:
    """Two different numbers."""
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)
