"""Masks without a network, told in a line: `alpha`, `colour:#00ff00:20`, `box:x,y,w,h`, `polygon:x,y x,y x,y`.

The line becomes the name of the mask, so that a recipe can make the same mask again from the same picture.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ldm.errors import Code, LdmError
from ldm.images import Picture, from_rgb

RULES = ("alpha", "colour", "color", "box", "polygon")
FORMS = "write it as alpha, colour:#00ff00:20, box:x,y,w,h or polygon:x,y x,y x,y"
BOX = "write box:x,y,width,height, in pixels from the top left"
TOLERANCE = 20.0  # of 255, when the rule names none


def is_rule(text: str) -> bool:
    """Whether a text is a mask rule and not the name of a file."""
    kind, colon, rest = text.partition(":")
    return text == "alpha" or (kind in RULES[1:] and bool(colon) and bool(rest))


def mask_from_rule(rule: str, image: Picture) -> Picture:
    """The mask [H,W] that a rule makes of a picture: white where to paint."""
    from ldm.data import masks

    kind, _, rest = rule.partition(":")
    size = (image.width, image.height)
    if kind == "alpha":
        mask = masks.from_alpha(image)
    elif kind == "box":
        x, y, w, h = _numbers(rule, rest.replace(" ", ""), ",", 4)
        if w <= 0 or h <= 0:
            raise _bad(rule, "its width and height must be greater than 0", BOX)
        if max(x, 0) >= min(x + w, size[0]) or max(y, 0) >= min(y + h, size[1]):
            raise _bad(rule, f"the picture is {size[0]}x{size[1]}, and no pixel of it is in the box", BOX)
        mask = masks.from_box(size, (x, y, x + w, y + h))
    elif kind == "polygon":
        points = [_numbers(rule, point, ",", 2) for point in rest.split()]
        if len(points) < 3:
            raise _bad(rule, f"it has {len(points)} points, and a polygon needs 3 or more")
        mask = masks.from_polygon(size, [(x, y) for x, y in points])
    else:
        colour, _, tolerance = rest.partition(":")
        (allowed,) = _numbers(rule, tolerance, ",", 1) if tolerance else (TOLERANCE,)
        mask = masks.from_colour(image.rgb(), colour, allowed)
    grey = np.repeat(np.asarray(mask, np.float32)[..., None], 3, axis=2)
    return dataclasses.replace(from_rgb(grey, None), name=rule)


def _numbers(rule: str, text: str, gap: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(gap))
    except ValueError:
        values = ()
    if len(values) != count or not all(np.isfinite(values)):
        raise _bad(rule, f"{text[:40]!r} is not {count} number{'s' if count > 1 else ''}")
    return values


def _bad(rule: str, why: str, fix: str = FORMS) -> LdmError:
    return LdmError(Code.USAGE, f"the mask {rule[:80]!r} cannot be made", why, fix)
