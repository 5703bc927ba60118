"""Copies of drawn creatures, cut anew: they are found; other poses of the same creature are not taken for any."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.characters import character, draw_character, pose
from ldm.images import Picture, from_rgb
from ldm.metrics.features import squares
from train.personal.copies import CLOSE, CUTS, Shown, look, views

SIDE, CREATURES = 64, 12


def drawn(who: int, how: int) -> Picture:
    return from_rgb(np.asarray(draw_character(character(who), pose(how), 2 * SIDE), np.float32) / 255)


def cut(picture: Picture, chance: random.Random) -> Tensor:
    """[1,3,64,64]: a part of it, down to 1 / 1.15 of its side, mirrored or not."""
    side = round(2 * SIDE / chance.uniform(1, 1.15))
    left, top = (chance.randrange(2 * SIDE - side + 1) for _ in range(2))
    image = torch.from_numpy(picture.pixels[top : top + side, left : left + side]).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
    return image.flip(-1) if chance.random() < 0.5 else image


@pytest.mark.torture
def test_photos_cut_anew_are_copies_and_other_poses_are_not() -> None:
    chance = random.Random(0)
    again, new, close = [], [], []
    for who in range(CREATURES):
        poses = chance.sample(range(1000), 15)
        photos = [drawn(who, how) for how in poses[:5]]
        shown = Shown(views(photos, SIDE, 1.15, flip=True, seed=0))
        assert shown.views.shape[:2] == (2 * (1 + CUTS), 5)
        copied = look(torch.cat([cut(photo, chance) for photo in photos]))
        others = look(squares([drawn(who, how) for how in poses[5:]], SIDE))
        again.append(shown.away(copied).amin(1) / shown.nearest)
        new.append(shown.away(others).amin(1) / shown.nearest)
        close.append(shown.away(copied).argmin(1) == torch.arange(5))
    found, mistaken, which = torch.cat(again), torch.cat(new), torch.cat(close)
    assert (found < 1).float().mean() > 0.8 and (found < CLOSE).float().mean() > 0.5
    assert (mistaken < 1).float().mean() < 0.4 and (mistaken < CLOSE).float().mean() < 0.05
    assert which.float().mean() > 0.8  # and which photo it is


def test_views_are_a_function_of_the_seed_and_without_mirrors_where_training_shows_none() -> None:
    photos = [drawn(0, how) for how in range(3)]
    once, again, other = (views(photos, SIDE, 1.15, flip=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other) and len(once) == 1 + CUTS
    assert torch.allclose(once[0], look(squares(photos, SIDE)), atol=1e-6)  # the middle of each comes first
