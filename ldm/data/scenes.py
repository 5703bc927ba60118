"""Coloured shapes with exact captions: a world small enough to train in minutes and to check without a network.

A scene is one to three equal things, or a pair of different ones, on a plain ground. Scenes and captions are functions
of (seed, index) alone. A caption names only some of what is drawn (`told`), in one of many wordings, and never lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ldm.data.held_out import Split, is_held_out, tells_held_out
from ldm.data.scene_reader import POSITIONS, Found, Seen, position_word, read, size_word
from ldm.data.settings import CROWDED
from ldm.data.shapes import PALETTE, SHAPES, Array, coverage
from ldm.errors import Code, LdmError

__all__ = [
    "CROWDED",
    "PALETTE",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "Found",
    "Scene",
    "Seen",
    "Thing",
    "caption",
    "draw",
    "make_scene",
]
__all__ += ["matches", "outline", "read", "sample_scene"]

SIZES = ("small", "big")

_RADIUS = {None: (0.15, 0.30), "small": (0.15, 0.18), "big": (0.26, 0.30)}
_SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "cross", "plus"),
    "ring": ("ring", "ring", "hoop"),
}
_PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}
_COLOUR_WORDS = {"grey": ("grey", "gray"), "purple": ("purple", "purple", "violet")}
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "big": ("big", "big", "large", "huge")}
_PLACE_WORDS = {
    "left": ("on the left", "at the left", "to the left", "on the left side"),
    "right": ("on the right", "at the right", "to the right", "on the right side"),
    "top": ("at the top", "on top", "at the top of the picture"),
    "bottom": ("at the bottom", "at the bottom of the picture"),
    "centre": ("in the centre", "in the center", "in the middle", "at the centre"),
}
_OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ")


@dataclass(frozen=True)
class Thing:
    """One shape: the middle (x right, y down) and the radius are fractions of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn; `told` are the attributes that the caption names, `wording` chooses its words."""

    things: tuple[Thing, ...]
    background: str
    told: frozenset[str]
    wording: int = 0


def make_scene(
    shape: str = "circle",
    colour: str = "red",
    *,
    count: int = 1,
    size: str | None = None,
    position: str | None = None,
    background: str | None = None,
    seed: int = 0,
) -> Scene:
    """A scene of equal things; what is not given is drawn from the seed and not told."""
    _check("shape", shape, SHAPES)
    _check("colour", colour, PALETTE)
    _check("size", size, (None, *SIZES))
    _check("position", position, (None, *POSITIONS))
    _check("background", background, [None, *(c for c in PALETTE if c != colour)])
    _check("count", count, (1, 2, 3))
    rng = np.random.default_rng((seed, 1))
    told = {"shape", "colour", "count"}
    told |= {name for name, value in (("size", size), ("position", position), ("background", background)) if value}
    ground = background or _other(rng, [colour])
    return Scene(_place(rng, [(shape, colour)] * count, size, position), ground, frozenset(told), seed)


def sample_scene(index: int, seed: int = 0, split: Split = "all", crowded: float = CROWDED) -> Scene:
    """Scene `index` of the endless list `seed`. Of those that are `crowded` half hold two or three equal things, half
    a pair of different ones; the others hold one.

    "seen" draws again until nothing in the scene is held out; "held_out" until the caption asks for something that is.
    """
    attempt = 0
    while True:
        scene = _any_scene(np.random.default_rng((seed, index, 2, *([attempt] if attempt else []))), crowded)
        if (
            split == "all"
            or (split == "seen" and not is_held_out(scene))
            or (split == "held_out" and tells_held_out(scene))
        ):
            return scene
        attempt += 1


def _any_scene(rng: np.random.Generator, crowded: float) -> Scene:
    wording = int(rng.integers(2**31))
    told = {"shape", "colour", "count"} | {n for n in ("background", "size", "position") if rng.random() < 0.6}
    told -= {n for n in ("shape", "colour") if rng.random() < 0.04}
    shape, colour = str(rng.choice(list(SHAPES))), str(rng.choice(list(PALETTE)))
    kind = rng.random()
    if kind < 1 - crowded:
        size = str(rng.choice(SIZES)) if "size" in told else None
        position = str(rng.choice(POSITIONS)) if "position" in told else None
        ground = _other(rng, [colour])
        return Scene(_place(rng, [(shape, colour)], size, position), ground, frozenset(told), wording)
    names = [(shape, colour)] * int(rng.integers(2, 4))
    told -= {"size", "position"}
    if kind > 1 - crowded / 2:
        names = [(shape, colour), (_another(rng, shape), _other(rng, [colour]))]
        told |= {"shape", "colour"}
    ground = _other(rng, [c for _, c in names])
    return Scene(_place(rng, names), ground, frozenset(told), wording)


def draw(scene: Scene, size: int | tuple[int, int] = 32) -> Array:
    """The picture [H,W,3] in [0,1]; size is a side, or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    rgb = np.broadcast_to(np.array(PALETTE[scene.background], np.float32), (height, width, 3))
    for t in scene.things:
        share = coverage(t.shape, t.x * width, t.y * height, t.radius * min(height, width), (height, width))[..., None]
        rgb = rgb * (1.0 - share) + np.array(PALETTE[t.colour], np.float32) * share
    return np.ascontiguousarray(rgb, np.float32)


def outline(scene: Scene, size: int | tuple[int, int] = 32) -> Array:
    """The edges of the things, one pixel wide, white on black: [H,W,3] of 0 and 1."""
    height, width = (size, size) if isinstance(size, int) else size
    edge = np.zeros((height, width), bool)
    for t in scene.things:
        inside = coverage(t.shape, t.x * width, t.y * height, t.radius * min(height, width), (height, width)) >= 0.5
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        edge |= inside & ~core
    return np.repeat(edge[..., None], 3, -1).astype(np.float32)


def caption(scene: Scene) -> str:
    """One sentence that names the told attributes, worded after `scene.wording`."""
    rng = np.random.default_rng((scene.wording, 3))
    first, count = scene.things[0], len(scene.things)
    if len({(t.shape, t.colour) for t in scene.things}) == 1:
        subject = _phrase(rng, scene, first, count)
    else:
        subject = " and ".join(_phrase(rng, scene, thing, 1) for thing in scene.things)
    place = _pick(rng, _PLACE_WORDS[position_word(first.x, first.y)]) if "position" in scene.told else ""
    ground = _colour(rng, scene.background) if "background" in scene.told else ""
    if ground and rng.random() < 0.15:  # tags, as many prompts are written
        return ", ".join(part for part in (subject, place, f"{ground} background") if part)
    named = f"{_article(ground)} {ground} background" if ground else ""
    tail = _pick(rng, (f"on {named}", f"on {named}", f"on {ground}", f"with {named}")) if ground else ""
    return " ".join(part for part in (_pick(rng, _OPENINGS).strip(), subject, place, tail) if part)


def matches(found: Found, scene: Scene) -> dict[str, bool]:
    """For each attribute that the caption tells, whether the picture that was read shows it (and no other)."""
    seen, wanted = found.things, scene.things
    one = seen[0] if len(seen) == 1 and len(wanted) == 1 else None
    verdict = {
        "shape": {s.shape for s in seen} == {t.shape for t in wanted},
        "colour": {s.colour for s in seen} == {t.colour for t in wanted},
        "count": len(seen) == len(wanted),
        "background": found.background == scene.background,
        "size": one is not None and one.size == size_word(wanted[0].radius),
        "position": one is not None and one.position == position_word(wanted[0].x, wanted[0].y),
    }
    told = {name: verdict[name] for name in verdict if name in scene.told}
    if len({(t.shape, t.colour) for t in wanted}) > 1:
        told["binding"] = {(s.shape, s.colour) for s in seen} == {(t.shape, t.colour) for t in wanted}
    return told


def _place(
    rng: np.random.Generator, names: list[tuple[str, str]], size: str | None = None, position: str | None = None
) -> tuple[Thing, ...]:
    """Things of these (shape, colour) that lie apart from each other and from the rim."""
    if len(names) == 1:
        radius = rng.uniform(*_RADIUS[size])
        x, y = _middle(rng, radius, position)
        return (Thing(*names[0], x, y, radius),)
    while True:  # one try in three succeeds for the fullest scenes
        radius = rng.uniform(0.15, 0.19 if len(names) == 2 else 0.165)
        spots = rng.uniform(radius + 0.02, 0.98 - radius, (len(names), 2))
        apart = [np.abs(a - b).max() for i, a in enumerate(spots) for b in spots[:i]]
        if min(apart) >= 2 * radius + 0.06:
            return tuple(Thing(*name, float(x), float(y), radius) for name, (x, y) in zip(names, spots, strict=True))


def _middle(rng: np.random.Generator, radius: float, position: str | None) -> tuple[float, float]:
    """The middle of a single thing: near the told side and well inside its class, or anywhere."""
    low = radius + 0.02
    if position is None:
        return float(rng.uniform(low, 1 - low)), float(rng.uniform(low, 1 - low))
    if position == "centre":
        return float(rng.uniform(0.45, 0.55)), float(rng.uniform(0.45, 0.55))
    near, across = float(rng.uniform(low, max(low, 0.32))), float(rng.uniform(0.43, 0.57))
    x, y = (near, across) if position in ("left", "top") else (1 - near, across)
    return (x, y) if position in ("left", "right") else (y, x)


def _phrase(rng: np.random.Generator, scene: Scene, thing: Thing, count: int) -> str:
    """The noun with what is told about it: "a small red circle", "two rings"."""
    noun = _pick(rng, _SHAPE_WORDS[thing.shape] if "shape" in scene.told else ("thing", "shape"))
    colour = _colour(rng, thing.colour) if "colour" in scene.told else ""
    size = _pick(rng, _SIZE_WORDS[size_word(thing.radius)]) if "size" in scene.told else ""
    rest = " ".join(part for part in (size, colour, noun if count == 1 else _plural(noun)) if part)
    if count > 1:
        return f"{_pick(rng, (('two', '2'), ('three', '3'))[count - 2])} {rest}"
    article = _article(rest)
    return f"{_pick(rng, (article, article, article, 'one', ''))} {rest}".strip()


def _colour(rng: np.random.Generator, colour: str) -> str:
    return _pick(rng, _COLOUR_WORDS.get(colour, (colour,)))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _other(rng: np.random.Generator, taken: list[str]) -> str:
    return str(rng.choice([c for c in PALETTE if c not in taken]))


def _another(rng: np.random.Generator, shape: str) -> str:
    return str(rng.choice([s for s in SHAPES if s != shape]))


def _check(field: str, value: object, allowed: Iterable[object]) -> None:
    options = list(allowed)
    if value not in options:
        why = f"scenes know these only: {', '.join(str(o) for o in options if o is not None)}"
        raise LdmError(Code.USAGE, f"{field} {value!r} is not part of a scene", why, f"choose another {field}")
