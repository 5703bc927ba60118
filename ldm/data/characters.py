"""Drawn creatures: a few pictures of one and the same, in other poses, and as many others as one likes.

What a creature is (`character`) and how it stands in a picture (`draw`) come from two seeds, so that learning it can be
told from learning a picture.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
OVER = 4  # drawn so many times larger, then averaged
INK: Colour = (60, 45, 40)
GROUNDS: tuple[Colour, ...] = ((255, 255, 255), (255, 255, 255), (223, 240, 255), (255, 243, 214), (226, 247, 222))
Head = Literal["round", "square", "pear", "drop"]
Ears = Literal["none", "pointed", "round", "feelers", "horns", "long"]
Marks = Literal["none", "stripes", "spots", "belly", "mask"]


@dataclass(frozen=True)
class Character:
    """What stays the same in all pictures of one creature."""

    skin: Colour
    mark: Colour
    head: Head
    ears: Ears
    marks: Marks
    eyes: int  # 1 to 3
    tooth: bool
    tail: bool


@dataclass(frozen=True)
class Pose:
    """What differs from picture to picture."""

    tilt: float  # degrees
    scale: float
    shift: tuple[float, float]
    arms: tuple[float, float]  # how high each hand is, -1 to 1
    mirrored: bool
    open_mouth: bool
    ground: Colour


def character(seed: int) -> Character:
    """One creature; two seeds give two that differ in several ways."""
    draw = random.Random(f"character {seed}")
    hue = draw.random()
    return Character(
        _colour(hue, draw.uniform(0.55, 0.85), draw.uniform(0.75, 0.95)),
        _colour(hue + draw.uniform(0.25, 0.75), draw.uniform(0.4, 0.8), draw.uniform(0.7, 0.98)),
        draw.choice(("round", "square", "pear", "drop")),
        draw.choice(("none", "pointed", "round", "feelers", "horns", "long")),
        draw.choice(("none", "stripes", "spots", "belly", "mask")),
        draw.choice((1, 2, 2, 2, 3)),
        draw.random() < 0.5,
        draw.random() < 0.5,
    )


def pose(seed: int) -> Pose:
    """One way to stand in a picture."""
    draw = random.Random(f"pose {seed}")
    return Pose(
        draw.uniform(-14, 14),
        draw.uniform(0.86, 1.05),
        (draw.uniform(-0.05, 0.05), draw.uniform(-0.04, 0.04)),
        (draw.uniform(-1, 1), draw.uniform(-1, 1)),
        draw.random() < 0.5,
        draw.random() < 0.5,
        draw.choice(GROUNDS),
    )


def draw_character(who: Character, how: Pose, size: int = 64) -> Image.Image:
    """An RGB picture of `size` pixels a side."""
    side = size * OVER
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = _Pen(ImageDraw.Draw(layer), side)
    if who.tail:
        pen.line([(0.66, 0.80), (0.82, 0.78), (0.86, 0.64)], who.skin, 0.055)
    for sign, height in zip((-1, 1), how.arms, strict=True):
        pen.line([(0.5 + 0.20 * sign, 0.68), (0.5 + 0.36 * sign, 0.68 - 0.16 * height)], who.skin, 0.07)
    for sign in (-1, 1):
        pen.oval(0.5 + 0.11 * sign, 0.92, 0.085, 0.05, who.skin)
    pen.oval(0.5, 0.74, 0.22, 0.20, who.skin)
    if who.marks == "belly":
        pen.oval(0.5, 0.77, 0.13, 0.13, who.mark, bare=True)
    _ears(pen, who)
    _head(pen, who)
    _marks(pen, who)
    _face(pen, who, how)
    if how.mirrored:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(how.tilt, Image.Resampling.BICUBIC)
    scaled = layer.resize((round(side * how.scale),) * 2, Image.Resampling.LANCZOS)
    page = Image.new("RGB", (side, side), how.ground)
    middle = (side - scaled.width) // 2
    page.paste(scaled, (middle + round(how.shift[0] * side), middle + round(how.shift[1] * side)), scaled)
    return page.resize((size, size), Image.Resampling.BOX)


class _Pen:
    """Shapes in units of the picture's side, with an outline."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int) -> None:
        self.draw, self.side = draw, side
        self.edge = max(1, round(0.014 * side))

    def at(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.side, y * self.side) for x, y in points]

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, bare: bool = False) -> None:
        box = [v * self.side for v in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.ellipse(box, fill=fill, outline=None if bare else INK, width=self.edge)

    def shape(self, points: list[tuple[float, float]], fill: Colour, bare: bool = False) -> None:
        self.draw.polygon(self.at(points), fill=fill)
        if not bare:
            self.draw.line([*self.at(points), self.at(points)[0]], fill=INK, width=self.edge, joint="curve")

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        for colour, wide in ((INK, width + 0.028), (fill, width)):
            self.draw.line(self.at(points), fill=colour, width=round(wide * self.side), joint="curve")
            for x, y in points:
                r = wide / 2
                self.draw.ellipse([v * self.side for v in (x - r, y - r, x + r, y + r)], fill=colour)

    def stroke(self, points: list[tuple[float, float]], width: float = 0.018) -> None:
        self.draw.line(self.at(points), fill=INK, width=round(width * self.side), joint="curve")


def _outline(head: Head) -> list[tuple[float, float]]:
    """The head's edge, about (0.5, 0.38)."""
    points = []
    for step in range(72):
        a = 2 * math.pi * step / 72
        c, s = math.cos(a), math.sin(a)
        rx = ry = 0.26
        if head == "square":
            power = 0.45
            c, s = math.copysign(abs(c) ** power, c), math.copysign(abs(s) ** power, s)
            rx = ry = 0.235
        if head == "pear":
            rx = 0.25 + 0.06 * s
        if head == "drop":
            rx, ry = 0.26 + 0.05 * s, 0.26 + (0.08 if s < 0 else 0.0) * abs(s) ** 3
        points.append((0.5 + rx * c, 0.38 + ry * s))
    return points


def _head(pen: _Pen, who: Character) -> None:
    pen.shape(_outline(who.head), who.skin)


def _ears(pen: _Pen, who: Character) -> None:
    for sign in (-1, 1):
        x = 0.5 + 0.17 * sign
        if who.ears == "pointed":
            pen.shape([(x - 0.08, 0.24), (x + 0.05 * sign, 0.04), (x + 0.09, 0.24)], who.mark)
        elif who.ears == "round":
            pen.oval(x + 0.04 * sign, 0.17, 0.09, 0.09, who.mark)
        elif who.ears == "feelers":
            pen.line([(x, 0.2), (x + 0.05 * sign, 0.06)], who.skin, 0.02)
            pen.oval(x + 0.05 * sign, 0.06, 0.04, 0.04, who.mark)
        elif who.ears == "horns":
            pen.shape([(x - 0.05, 0.2), (x + 0.10 * sign, 0.05), (x + 0.05, 0.2)], (245, 238, 220))
        elif who.ears == "long":
            pen.oval(x, 0.12, 0.055, 0.13, who.mark)


def _marks(pen: _Pen, who: Character) -> None:
    if who.marks == "stripes":
        for x, height in ((0.42, 0.10), (0.50, 0.12), (0.58, 0.10)):
            pen.shape([(x - 0.02, 0.145), (x + 0.02, 0.145), (x, 0.145 + height)], who.mark, bare=True)
    elif who.marks == "spots":
        for x, y, r in ((0.33, 0.29, 0.035), (0.68, 0.25, 0.045), (0.62, 0.17, 0.028), (0.31, 0.45, 0.028)):
            pen.oval(x, y, r, r, who.mark, bare=True)
    elif who.marks == "mask":
        pen.oval(0.5, 0.36, 0.21, 0.085, who.mark, bare=True)


def _face(pen: _Pen, who: Character, how: Pose) -> None:
    places = {1: (0.5,), 2: (0.41, 0.59), 3: (0.37, 0.5, 0.63)}[who.eyes]
    radius = {1: 0.085, 2: 0.06, 3: 0.048}[who.eyes]
    for x in places:
        pen.oval(x, 0.36, radius, radius, (255, 255, 255))
        pen.oval(x + 0.012, 0.365, radius * 0.5, radius * 0.5, INK, bare=True)
    if how.open_mouth:
        pen.oval(0.5, 0.515, 0.07, 0.05, (150, 40, 50))
        if who.tooth:
            pen.shape([(0.47, 0.47), (0.53, 0.47), (0.5, 0.51)], (255, 255, 255), bare=True)
        return
    curve = [(0.41 + 0.18 * t / 12, 0.49 + 0.035 * math.sin(math.pi * t / 12)) for t in range(13)]
    pen.stroke(curve)
    if who.tooth:
        pen.shape([(0.53, 0.515), (0.57, 0.505), (0.553, 0.55)], (255, 255, 255))


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue
