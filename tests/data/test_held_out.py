"""Held-out combinations: a tenth of the pairs, a fifth of the triples; training draws none, captions tell them."""

from __future__ import annotations

from collections import Counter

from ldm.data.held_out import is_held_out, pair_is_held_out, tells_held_out, triple_is_held_out
from ldm.data.scene_reader import POSITIONS
from ldm.data.scenes import PALETTE, SHAPES, draw, matches, read, sample_scene


def test_a_tenth_of_the_pairs_and_a_fifth_of_the_triples() -> None:
    pairs = [(s, c) for s in SHAPES for c in PALETTE if pair_is_held_out(s, c)]
    triples = [(s, c, p) for s in SHAPES for c in PALETTE for p in POSITIONS if triple_is_held_out(s, c, p)]
    assert len(pairs) == 5 and len(triples) == 45
    assert len({s for s, _ in pairs}) == len({c for _, c in pairs}) == 5  # no shape and no colour misses more than one
    assert set(Counter((s, c) for s, c, _ in triples).values()) == {1}
    assert set(Counter(p for *_, p in triples).values()) == {9}


def test_training_never_sees_them_and_the_test_always_asks_for_them() -> None:
    assert not any(is_held_out(sample_scene(i, 0, "seen")) for i in range(500))
    asked = [sample_scene(i, 0, "held_out") for i in range(200)]
    assert all(tells_held_out(scene) and is_held_out(scene) for scene in asked)


def test_all_is_what_it_was_and_each_split_is_a_function_of_index_and_seed() -> None:
    seen = [sample_scene(i, 3, "seen") for i in range(100)]
    every = [sample_scene(i, 3) for i in range(100)]
    assert seen == [sample_scene(i, 3, "seen") for i in range(100)]
    assert all(a == b for a, b in zip(seen, every, strict=True) if not is_held_out(b))
    assert sum(a != b for a, b in zip(seen, every, strict=True)) > 10


def test_the_checker_reads_held_out_renders() -> None:
    scenes = [sample_scene(i, 5, "held_out") for i in range(150)]
    right = [all(matches(read(draw(scene)), scene).values()) for scene in scenes]
    assert sum(right) >= 0.99 * len(right)
