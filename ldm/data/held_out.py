"""Combinations that training never sees: whoever draws them right understood the words, and learned nothing by heart.

Both rules are Latin squares, so every shape, colour and position is seen in training, and equally often:
a tenth of the shape-colour pairs (each shape lacks one colour, a different one) and a fifth of the
shape-colour-position triples (each pair lacks one position).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ldm.data.scene_reader import POSITIONS, position_word
from ldm.data.shapes import PALETTE, SHAPES

if TYPE_CHECKING:
    from ldm.data.scenes import Scene

Split = Literal["all", "seen", "held_out"]


def pair_is_held_out(shape: str, colour: str) -> bool:
    """5 of the 45: shape number s lacks colour number 2 s."""
    return list(PALETTE).index(colour) == 2 * list(SHAPES).index(shape)


def triple_is_held_out(shape: str, colour: str, position: str) -> bool:
    """45 of the 225: position number (s + 2 c) mod 5 of shape s and colour c."""
    s, c = list(SHAPES).index(shape), list(PALETTE).index(colour)
    return POSITIONS.index(position) == (s + 2 * c) % len(POSITIONS)


def is_held_out(scene: Scene) -> bool:
    """Whether any thing of the scene is a held-out pair, or lies where its triple is held out, told or not."""
    return any(
        pair_is_held_out(t.shape, t.colour) or triple_is_held_out(t.shape, t.colour, position_word(t.x, t.y))
        for t in scene.things
    )


def tells_held_out(scene: Scene) -> bool:
    """Whether the caption itself asks for something held out: the pair by name, or the triple with its position."""
    if not {"shape", "colour"} <= scene.told:
        return False
    pair = any(pair_is_held_out(t.shape, t.colour) for t in scene.things)
    triple = "position" in scene.told and any(
        triple_is_held_out(t.shape, t.colour, position_word(t.x, t.y)) for t in scene.things
    )
    return pair or triple
