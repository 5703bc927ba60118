"""Hint pictures: outlines are thin, closed and in place; every detector takes any picture; no network is asked."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data import edges, lines
from ldm.data.filters import dilate, gaussian, gradient
from ldm.data.hints import HINTS, READY, make_hint
from ldm.data.scenes import PALETTE, draw, make_scene
from ldm.data.shapes import SHAPES
from ldm.errors import LdmError


def house(size: int = 256) -> np.ndarray:
    """A picture of straight and round things, with noise and texture."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    rgb = np.stack([0.5 + 0.3 * y, 0.6 + 0.25 * y, 0.9 - 0.1 * y], -1)
    rgb[(x > 0.3) & (x < 0.62) & (y > 0.45) & (y < 0.8)] = [0.75, 0.4, 0.3]
    rgb[(x - 0.82) ** 2 + (y - 0.2) ** 2 < 0.01] = [1.0, 0.95, 0.4]
    return np.clip(gaussian(rgb.astype(np.float32), 0.7) + rng.normal(size=rgb.shape) * 0.01, 0, 1).astype(np.float32)


def reached_from_outside(edge: np.ndarray) -> np.ndarray:
    """The pixels that a walk in four directions reaches from the border without stepping on an edge."""
    free = np.pad(~edge, 1, constant_values=True)
    seen = np.zeros_like(free)
    seen[0, 0] = True
    while True:
        p = np.pad(seen, 1)
        wider = free & (seen | p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:])
        if (wider == seen).all():
            return seen[1:-1, 1:-1]
        seen = wider


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", PALETTE)
def test_canny_closes_thin_outlines_around_flat_shapes(shape: str, colour: str) -> None:
    assert sum(closed(shape, colour, seed) for seed in range(6)) >= 2


@pytest.mark.torture
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", PALETTE)
def test_canny_closes_outlines_everywhere(shape: str, colour: str) -> None:
    assert sum(closed(shape, colour, seed) for seed in range(400)) >= 100


def closed(shape: str, colour: str, seed: int) -> bool:
    """Checks one outline; False if there is nothing to check: cut open by the border of the picture, or too thin."""
    rgb = draw(make_scene(shape, colour, seed=seed), 32)
    inside = np.abs(rgb - np.array(PALETTE[colour])).max(axis=2) < 0.02
    if inside[[0, -1]].any() or inside[:, [0, -1]].any():
        return False
    outside = (~inside).astype(np.float32)
    edge = edges.canny(rgb)
    deep = dilate(outside, 1) == 0
    if not deep.any():
        return False  # thinner than three pixels: nothing can leak
    assert not (reached_from_outside(edge) & deep).any()
    along = (dilate(inside.astype(np.float32), 2) > 0) & (dilate(outside, 2) > 0)
    assert not (edge & ~along).any()
    blocks = edge[:-1, :-1] & edge[1:, :-1] & edge[:-1, 1:] & edge[1:, 1:]
    assert blocks.sum() <= 3  # one pixel wide, but for sharp corners
    return True


def test_canny_finds_edges_between_colours_of_one_brightness() -> None:
    rgb = np.zeros((32, 32, 3), np.float32)
    rgb[:, :16, 0], rgb[:, 16:, 1] = 0.587, 0.299  # the same luma
    assert np.ptp(make_hint("grey", rgb)) < 0.01
    assert edges.canny(rgb)[:, 15:17].any(axis=1).all()


def test_weak_edges_stay_only_where_they_are_joined_to_strong_ones() -> None:
    weak, strong = np.zeros((9, 60), bool), np.zeros((9, 60), bool)
    weak[2, :50] = weak[6, 10:20] = True
    strong[2, 3] = True
    result = edges.joined(weak, strong)
    assert result[2, :50].all() and not result[6].any() and not result[2, 50:].any()


def test_the_step_height_does_not_depend_on_the_scale() -> None:
    rgb = np.zeros((64, 64, 3), np.float32)
    rgb[:, 32:] = 0.4
    heights = [float(edges.steps(rgb, sigma)[0][:, 30:34].max()) for sigma in (0.8, 1.5, 3.0)]
    assert all(abs(h - 0.4) < 0.05 for h in heights)


def test_soft_edges_are_bright_on_outlines_and_dark_on_texture() -> None:
    rgb = house()
    soft = edges.soft(rgb)
    wall = slice(130, 190)
    assert soft[wall, 74:80].max(axis=1).min() > 0.7
    assert float(np.median(soft[:60, :150])) < 0.02  # sky with noise


def test_scribble_is_two_valued_thick_and_without_specks() -> None:
    drawn = edges.scribble(house())
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert drawn[160, 70:84].sum() >= 3
    assert drawn[:60, :150].sum() == 0


def test_lines_are_the_straight_ones() -> None:
    found = list(lines.segments(house()))
    walls = [(115, 77, 205, 77), (115, 158, 205, 158), (115, 77, 115, 158), (205, 77, 205, 158)]
    for wall in walls:
        assert sum(overlap(wall, s) for s in found) > 0.8, wall
    y, x = np.nonzero(lines.lines(house()))
    round_ = np.hypot(x - 0.82 * 256, y - 0.2 * 256) < 30
    assert round_.sum() <= 0.3 * 2 * math.pi * 25.6  # of a circle, a few chords


def overlap(wall: tuple[int, int, int, int], segment: tuple[int, int, int, int]) -> float:
    """The part of an upright or level line that a segment covers, 0 if it is more than two pixels beside it."""
    axis = 0 if wall[1] == wall[3] else 1
    low, high = sorted((segment[axis], segment[axis + 2]))
    beside = max(abs(segment[1 - axis] - wall[1 - axis]), abs(segment[3 - axis] - wall[1 - axis]))
    if beside > 2:
        return 0.0
    return (min(high, wall[axis + 2]) - max(low, wall[axis])) / (wall[axis + 2] - wall[axis])


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 128, 163])
def test_a_line_of_any_direction_is_found_once(degrees: int) -> None:
    y, x = np.mgrid[0:96, 0:96] - 47.5
    a = math.radians(degrees)
    rgb = np.repeat(((x * math.cos(a) + y * math.sin(a)) > 4).astype(np.float32)[..., None], 3, 2)
    found = [s for s in lines.segments(gaussian(rgb, 0.8)) if math.dist(s[:2], s[2:]) > 30]
    assert len(found) == 1
    y0, x0, y1, x1 = found[0]
    direction = math.degrees(math.atan2(y1 - y0, x1 - x0)) % 180
    assert min(abs(direction - (degrees + 90) % 180), 180 - abs(direction - (degrees + 90) % 180)) < 3
    for py, px in ((y0, x0), (y1, x1)):
        assert abs((px - 47.5) * math.cos(a) + (py - 47.5) * math.sin(a) - 4) < 2


def test_palette_and_tile_keep_the_mean_colours() -> None:
    rgb = house()
    for name in ("palette", "tile", "blur"):
        assert np.abs(make_hint(name, rgb).mean((0, 1)) - rgb.mean((0, 1))).max() < 0.01
    cells = make_hint("palette", rgb).reshape(8, 32, 8, 32, 3)
    assert np.ptp(cells, axis=(1, 3)).max() == 0
    assert np.allclose(cells[2, 0, 3, 0], rgb[64:96, 96:128].mean((0, 1)), atol=1e-5)


def test_grey_is_luma_and_recolour_is_lightness() -> None:
    rgb = np.array([[[1, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]]], np.float32)
    assert np.allclose(make_hint("grey", rgb)[0, :, 0], [1, 0, 0.299, 0.5], atol=1e-6)
    assert np.allclose(make_hint("recolour", rgb)[0, :, 0], [1, 0, 0.5324, 0.5339], atol=1e-3)  # CIE L* of sRGB


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 7), (33, 31), (64, 96)])
def test_every_hint_takes_any_size_and_answers_in_range(name: str, size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(1).random((*size, 3)).astype(np.float32)
    kept = rgb.copy()
    hint = make_hint(name, rgb)
    assert hint.shape == rgb.shape and hint.dtype == np.float32
    assert np.isfinite(hint).all() and hint.min() >= 0 and hint.max() <= 1
    assert np.array_equal(rgb, kept)
    assert np.array_equal(hint, make_hint(name, rgb))


@pytest.mark.parametrize("name", ["canny", "soft", "lines", "scribble"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_picture_has_no_edges(name: str, value: float) -> None:
    assert make_hint(name, np.full((40, 40, 3), value, np.float32)).max() < 1e-6


def test_a_ready_hint_passes_unchanged() -> None:
    rgb = house(64)
    assert np.array_equal(make_hint("none", rgb), rgb)


@pytest.mark.parametrize(
    ("name", "rgb", "words"),
    [
        ("cany", np.zeros((4, 4, 3), np.float32), "write canny"),
        ("xyz", np.zeros((4, 4, 3), np.float32), "a hint picture made elsewhere is none"),
        ("canny", np.zeros((4, 4), np.float32), "4x4"),
        ("canny", np.full((4, 4, 3), np.nan, np.float32), "non-finite"),
        ("canny", np.zeros((0, 4, 3), np.float32), "0x4x3"),
    ],
)
def test_what_cannot_be_a_hint_is_refused_in_words(name: str, rgb: np.ndarray, words: str) -> None:
    with pytest.raises(LdmError, match=words):
        make_hint(name, rgb)


def test_a_gaussian_spreads_a_point_as_its_formula_says() -> None:
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    x = np.arange(-20, 21)
    row = np.exp(-0.5 * (x / 3.0) ** 2)
    assert np.abs(gaussian(point, 3.0)[20] - row * row[20] / row.sum() ** 2).max() < 1e-4


def test_the_gradient_of_a_slope_is_its_steepness() -> None:
    y, x = np.mgrid[0:9, 0:9].astype(np.float32)
    dx, dy = gradient(0.02 * x + 0.03 * y)
    assert np.allclose(dx[1:-1, 1:-1], 0.02, atol=1e-6) and np.allclose(dy[1:-1, 1:-1], 0.03, atol=1e-6)


@given(st.integers(0, 7), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_dilation_is_the_greatest_value_in_a_disc(radius: int, height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width]
    near = (y[..., None, None] - y) ** 2 + (x[..., None, None] - x) ** 2 <= radius**2
    wanted = np.where(near, mask[None, None], -1).max((2, 3))
    assert np.array_equal(dilate(mask, radius), wanted)


if importlib.util.find_spec("cv2") is not None:  # only where the extra `control` is installed

    def test_canny_agrees_with_opencv() -> None:
        import cv2

        rgb = house()
        theirs = cv2.Canny((gaussian(rgb, 0.8) * 255).round().astype(np.uint8), 60, 120) > 0
        ours = edges.canny(rgb)
        near = dilate(theirs.astype(np.float32), 1) > 0
        assert (ours & near).sum() > 0.9 * ours.sum()


@pytest.mark.parametrize("name", READY)
def test_hints_of_other_programs_are_taken_as_they_are(name: str) -> None:
    rgb = np.random.default_rng(0).random((8, 8, 3), np.float32)
    assert np.array_equal(make_hint(name, rgb), rgb)
