"""What is shown covers its size, keeps the shape of things, and lies where the numbers say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ldm.data.transforms import centred, chosen, cover_size, resized, shown

sides = st.integers(1, 300)
chances = st.floats(0, 1, exclude_max=True)


@given(sides, sides, st.integers(8, 80), st.integers(8, 80), st.floats(1, 4), chances, chances, chances)
def test_every_window_lies_inside(
    width: int, height: int, w: int, h: int, zoom: float, across: float, down: float, closer: float
) -> None:
    cut = chosen((width, height), (w, h), zoom, (across, down, closer))
    assert cut.left >= 0 and cut.left + cut.width <= cut.cover[0]
    assert cut.top >= 0 and cut.top + cut.height <= cut.cover[1]
    assert cut.cover[0] >= w and cut.cover[1] >= h
    assert cut.width >= w - 1 and cut.height >= h - 1
    assert abs(cut.width / cut.height - w / h) <= 0.51 * (1 / cut.height + cut.width / cut.height**2) + 0.13 * w / h
    cover = np.zeros((cut.cover[1], cut.cover[0], 3), np.uint8)
    assert shown(cover, cut).shape == (h, w, 3)


@given(sides, sides, st.integers(8, 80))
def test_one_side_fits_exactly(width: int, height: int, size: int) -> None:
    cover = cover_size((width, height), (size, size))
    assert min(cover) == size
    long, short = max(width, height), min(width, height)
    assert abs(max(cover) - size * long / short) <= 0.5 + 1e-6  # the shape is kept
    cut = centred((width, height), (size, size))
    assert (cut.width, cut.height) == (size, size)
    assert abs(2 * cut.left - (cover[0] - size)) <= 1 and abs(2 * cut.top - (cover[1] - size)) <= 1


def test_every_random_window_has_its_turn() -> None:
    lefts = {chosen((40, 20), (20, 20), 1.0, (u / 1000, 0.5, 0.0)).left for u in range(1000)}
    assert lefts == set(range(21))
    near, far = (chosen((40, 40), (20, 20), 2.0, (0.5, 0.5, c)) for c in (0.999, 0.0))
    assert (near.width, far.width, near.cover) == (20, 40, (40, 40))


def test_resizing_averages_and_leaves_equal_sizes_alone() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert resized(noise, (64, 64)) is noise
    small = resized(noise, (8, 8)).astype(float)
    blocks = noise.reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert np.abs(small - blocks).max() < 30  # unfiltered: up to 128
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 64, 0)
    assert np.all(np.diff(resized(ramp, (16, 16)).astype(int), axis=1) > 0)


def test_numbers_say_which_part_is_shown() -> None:
    rng = np.random.default_rng(1)
    cover = rng.integers(0, 256, (20, 50, 3)).astype(np.uint8)
    cut = chosen((50, 20), (20, 20), 1.0, (0.7, 0.2, 0.9))
    assert np.array_equal(shown(cover, cut), cover[:, cut.left : cut.left + 20])
    assert cut.numbers == (50, 20, cut.left, 0, 20, 20)
