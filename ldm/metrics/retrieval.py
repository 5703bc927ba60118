"""Whether a picture is found again: asked for a thing in a style, is it nearest to real pictures of both?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 5


@dataclass(frozen=True)
class Gallery:
    """Real pictures: features [n,d], what each shows (several names where it was drawn for several), its style."""

    features: Tensor
    names: tuple[frozenset[str], ...]
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What was asked for: any of `names`, in `style`. Shares are taken in each group, then their mean."""

    names: frozenset[str]
    style: str
    group: str


def hits(features: Tensor, wanted: Sequence[Wanted], gallery: Gallery, top: int = TOP) -> list[bool]:
    """For each picture: one of the `top` nearest of its style shows the thing, and the nearest of all has the style.

    features [m,d] and those of the gallery have length 1.
    """
    alike = features @ gallery.features.T
    of_style = {
        style: torch.tensor([i for i, s in enumerate(gallery.styles) if s == style]) for style in set(gallery.styles)
    }
    nearest = alike.argmax(1).tolist()
    found = []
    for row, want in enumerate(wanted):
        places = of_style[want.style]
        best = places[alike[row, places].topk(min(top, len(places))).indices].tolist()
        thing = any(gallery.names[place] & want.names for place in best)
        found.append(thing and gallery.styles[nearest[row]] == want.style)
    return found


def mean_over_groups(found: Sequence[bool], wanted: Sequence[Wanted]) -> float:
    """The mean of the groups' shares: a group of many pictures counts no more than one of few."""
    each: dict[str, list[bool]] = defaultdict(list)
    for hit, want in zip(found, wanted, strict=True):
        each[want.group].append(hit)
    return sum(sum(group) / len(group) for group in each.values()) / len(each)
