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
    """Real pictures, each once: features [n,d], what it shows (several names where it was drawn for several), and
    whose style it is (several where teams share a picture)."""

    features: Tensor
    names: tuple[frozenset[str], ...]
    styles: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Wanted:
    """What was asked for: any of `names`, in `style`. Shares are taken in each group, then their mean."""

    names: frozenset[str]
    style: str
    group: str


def hits(
    features: Tensor,
    wanted: Sequence[Wanted],
    gallery: Gallery,
    top: int = TOP,
    without: Sequence[int] | None = None,
) -> list[bool]:
    """For each picture: one of the `top` nearest of its style shows the thing, and the nearest of all has the style.

    features [m,d] and those of the gallery have length 1. `without`: a place of the gallery for each picture that is
    not looked at: what is itself a picture of the gallery would find itself.
    """
    alike = features @ gallery.features.T
    if without is not None:
        alike[torch.arange(len(alike)), torch.tensor(without)] = -torch.inf
    of_style = {
        style: torch.tensor([i for i, known in enumerate(gallery.styles) if style in known])
        for style in {style for known in gallery.styles for style in known}
    }
    nearest = alike.argmax(1).tolist()
    found = []
    for row, want in enumerate(wanted):
        places = of_style[want.style]
        best = places[alike[row, places].topk(min(top, len(places))).indices].tolist()
        thing = any(gallery.names[place] & want.names for place in best)
        found.append(thing and want.style in gallery.styles[nearest[row]])
    return found


def mean_over_groups(found: Sequence[bool], wanted: Sequence[Wanted]) -> float:
    """The mean of the groups' shares: a group of many pictures counts no more than one of few."""
    each: dict[str, list[bool]] = defaultdict(list)
    for hit, want in zip(found, wanted, strict=True):
        each[want.group].append(hit)
    return sum(sum(group) / len(group) for group in each.values()) / len(each)
