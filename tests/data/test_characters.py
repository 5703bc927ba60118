"""Drawn creatures: one stays itself in every pose, and is unlike the others."""

from __future__ import annotations

import numpy as np

from ldm.data.characters import character, draw_character, pose


def test_a_creature_is_the_same_in_every_pose_and_unlike_the_others() -> None:
    assert character(3) == character(3) and len({character(i) for i in range(50)}) == 50
    first, again, other = (np.asarray(draw_character(character(3), pose(p))) for p in (1, 1, 2))
    assert first.shape == (64, 64, 3) and np.array_equal(first, again) and not np.array_equal(first, other)
    means = np.array(
        [[np.asarray(draw_character(character(c), pose(p))).mean((0, 1)) for p in range(4)] for c in (3, 4)]
    )
    assert means.std(1).mean() < np.abs(means[0].mean(0) - means[1].mean(0)).mean()
