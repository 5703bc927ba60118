"""Masks: exact areas, soft borders that stay inside, and refusals in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data import masks
from ldm.errors import LdmError
from ldm.images import Picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_transparent_part_is_painted(dtype: type) -> None:
    top = np.iinfo(dtype).max
    alpha = np.array([[0, top, top // 2]], dtype)
    picture = Picture(pixels=np.zeros((1, 3, 3), dtype), alpha=alpha)
    assert np.allclose(masks.from_alpha(picture), [[1, 0, 0.5]], atol=0.01)
    with pytest.raises(LdmError, match="no alpha"):
        masks.from_alpha(Picture(pixels=np.zeros((1, 3, 3), dtype)))


def test_a_colour_is_found_within_its_tolerance() -> None:
    rgb = np.array([[[255, 0, 0], [250, 5, 0], [249, 0, 0], [0, 0, 255]]], np.float32) / 255
    assert masks.from_colour(rgb, "#ff0000").tolist() == [[1, 0, 0, 0]]
    assert masks.from_colour(rgb, (255, 0, 0), 5).tolist() == [[1, 1, 0, 0]]
    assert masks.from_colour(rgb, "FF0000", 6).tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("colour", ["red", "#ff00", (1, 2), (0, 0, 256), (0.5, 0, 0)])
def test_what_is_no_colour_is_refused(colour: object) -> None:
    with pytest.raises(LdmError, match="colour"):
        masks.from_colour(np.zeros((2, 2, 3), np.float32), colour)  # type: ignore[arg-type]


def test_a_box_covers_its_pixels_and_parts_of_pixels() -> None:
    mask = masks.from_box((6, 4), (1, 1, 3.5, 3))
    assert mask.shape == (4, 6)
    assert mask[1].tolist() == [0, 1, 1, 0.5, 0, 0] and mask[0].max() == 0 and mask[3].max() == 0
    assert masks.from_box((6, 4), (-9, -9, 99, 99)).min() == 1


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60)), min_size=3, max_size=3),
)
@settings(max_examples=80, deadline=None)
def test_a_triangle_inside_the_picture_has_its_area(size: tuple[int, int], points: list[tuple[float, float]]) -> None:
    width, height = size
    points = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in points]
    (ax, ay), (bx, by), (cx, cy) = points
    area = abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2
    try:
        mask = masks.from_polygon(size, points)
    except LdmError:
        assert area < max(width, height) / 8  # thinner than a sub-row
        return
    assert abs(float(mask.sum()) - area) <= 0.05 + (width + height) / 16
    assert mask.min() >= 0 and mask.max() <= 1


def test_a_polygon_equals_the_box_it_draws() -> None:
    box = (2.25, 1.5, 7.75, 6.5)
    corners = [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])]
    assert np.abs(masks.from_polygon((10, 8), corners) - masks.from_box((10, 8), box)).max() < 1e-6


def test_a_hard_polygon_holds_the_pixels_whose_middle_is_inside() -> None:
    circle = [(32 + 20 * math.cos(t), 32 + 20 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 90, endpoint=False)]
    circle = [(32 + 20 * math.cos(t), 32 + 20 * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 90, endpoint=False)]
    hard = masks.from_polygon((64, 64), circle, smooth=False)
    y, x = np.mgrid[0:64, 0:64] + 0.5
    distance = np.hypot(x - 32, y - 32)
    assert set(np.unique(hard)) == {0, 1}
    assert hard[distance < 19.9].min() == 1 and hard[distance > 20].max() == 0


def test_a_star_has_a_hole_by_the_even_odd_rule() -> None:
    star = [(20 + 18 * math.sin(4 * math.pi * i / 5), 20 - 18 * math.cos(4 * math.pi * i / 5)) for i in range(5)]
    mask = masks.from_polygon((40, 40), star)
    assert mask[20, 20] == 0 and mask[6, 20] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: masks.from_box((8, 8), (4, 4, 4, 6)),
        lambda: masks.from_box((8, 8), (9, 9, 12, 12)),
        lambda: masks.from_box((8, 8), (0, 0, math.nan, 4)),
        lambda: masks.from_box((0, 8), (0, 0, 4, 4)),
        lambda: masks.from_polygon((8, 8), [(0, 0), (4, 4)]),
        lambda: masks.from_polygon((8, 8), [(0, 0), (4, math.inf), (1, 1)]),
        lambda: masks.from_polygon((8, 8), [(20, 20), (30, 20), (20, 30)]),
        lambda: masks.from_colour(np.zeros((2, 2, 3), np.float32), "#000000", math.nan),
        lambda: masks.grow(np.zeros((2, 2), np.float32), -1),
        lambda: masks.feather(np.zeros((2, 2), np.float32), math.inf),
    ],
)
def test_what_is_no_mask_is_refused_in_words(make: object) -> None:
    with pytest.raises(LdmError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.what and caught.value.why and caught.value.fix


def test_grown_and_shrunk_again_a_disc_is_itself() -> None:
    y, x = np.mgrid[0:64, 0:64]
    disc = (np.hypot(x - 32, y - 32) <= 12).astype(np.float32)
    grown = masks.grow(disc, 6)
    assert abs(grown.sum() / (math.pi * 18**2) - 1) < 0.05
    assert np.abs(masks.shrink(grown, 6) - disc).sum() <= 0.05 * disc.sum()
    assert np.array_equal(masks.grow(disc, 0), disc)


grey_masks = st.integers(0, 10**6).map(
    lambda seed: np.clip(np.random.default_rng(seed).normal(0.2, 0.6, (24, 30)), 0, 1).astype(np.float32)
)


@given(grey_masks, st.floats(0, 9))
@settings(max_examples=60, deadline=None)
def test_shrink_and_feather_never_leave_the_mask_and_grow_never_loses_it(mask: np.ndarray, pixels: float) -> None:
    assert (masks.grow(mask, pixels) >= mask).all()
    assert (masks.shrink(mask, pixels) <= mask + 1e-6).all()
    soft = masks.feather(mask, pixels)
    assert (soft <= mask).all() and (soft[mask == 0] == 0).all() and soft.min() >= 0


def test_a_feathered_edge_is_as_wide_as_asked_and_not_at_the_border_of_the_picture() -> None:
    mask = np.zeros((40, 60), np.float32)
    mask[:, 30:] = 1
    soft = masks.feather(mask, 12)
    assert soft[:, :30].max() == 0 and soft[:, 44:].min() > 0.99
    assert (np.diff(soft[20]) >= -1e-6).all() and 0.4 < float(soft[20, 35]) < 0.6
    assert (np.diff(soft[20, 29:43]) < 0.3).all()  # no jump
