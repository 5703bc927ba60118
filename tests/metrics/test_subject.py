"""One subject or two, as the CLIP that ships sees drawn creatures: sets of one are left alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.data.characters import character, draw_character, pose
from ldm.data.subject import Floats, two_groups
from ldm.metrics.features import clips, extracted
from ldm.store.clip import load_clip

SETS = 40
See = Callable[[int, Iterable[int]], Floats]


@pytest.fixture(scope="module")
def seen() -> See:
    """What it makes of a creature in these poses."""
    see = clips([load_clip(Path(ldm.__file__).parent / "pretrained" / "emoji-clip").eval()])

    def features(who: int, poses: Iterable[int]) -> Floats:
        drawn: list[Image.Image] = [draw_character(character(who), pose(how), 64) for how in poses]
        pictures = torch.from_numpy(np.stack([np.asarray(d, np.float32) / 255 for d in drawn]))
        return extracted(see, pictures.permute(0, 3, 1, 2)).numpy()

    return features


@pytest.mark.torture
def test_poses_of_one_creature_are_one_subject_and_two_creatures_are_often_told(seen: See) -> None:
    draw = random.Random(0)
    one, two = 0, 0
    for who in range(SETS):
        poses = draw.sample(range(100), 8)
        one += two_groups(seen(who, poses[:5])) is not None
        two += two_groups(np.concatenate([seen(who, poses[:4]), seen(who + SETS, poses[4:])])) is not None
    assert one <= SETS // 10, f"{one} of {SETS} sets of one creature are called two subjects"
    assert two >= SETS // 2, f"{two} of {SETS} sets of two creatures are called two subjects"
