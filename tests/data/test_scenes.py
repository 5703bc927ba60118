"""The checker reads what was drawn, and is at chance where it should be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data import scenes
from ldm.data.scenes import PALETTE, POSITIONS, SHAPES, SIZES, Scene, Thing, caption, draw, make_scene, matches, read
from ldm.errors import LdmError

COUNT = 500


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [scenes.sample_scene(index, seed=3) for index in range(COUNT)]


@pytest.fixture(scope="module")
def found(drawn: list[Scene]) -> list[scenes.Found]:
    return [read(draw(scene)) for scene in drawn]


def rates(found: list[scenes.Found], wanted: list[Scene]) -> dict[str, float]:
    told: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for f, w in zip(found, wanted, strict=True):
        verdict = matches(f, w)
        told.update(verdict.keys())
        right.update(name for name, ok in verdict.items() if ok)
    return {name: right[name] / told[name] for name in told}


def test_reads_its_own_drawings(drawn: list[Scene], found: list[scenes.Found]) -> None:
    accuracy = rates(found, drawn)
    assert set(accuracy) == {"shape", "colour", "count", "background", "size", "position", "binding"}
    assert min(accuracy.values()) >= 0.99, accuracy


def test_is_at_chance_on_other_captions(drawn: list[Scene], found: list[scenes.Found]) -> None:
    accuracy = rates(found, drawn[1:] + drawn[:1])
    assert accuracy["shape"] < 0.25
    assert accuracy["colour"] < 0.17
    assert accuracy["background"] < 0.17
    assert accuracy["position"] < 0.3
    assert accuracy["binding"] < 0.05


def test_sees_nothing_in_noise(drawn: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    noise = [read(rng.random((32, 32, 3)).astype(np.float32)) for _ in range(50)]
    assert sum(f.has(shape=shape) for f in noise for shape in SHAPES) == 0
    smooth = [read(_smooth(rng)) for _ in range(50)]
    accuracy = rates(smooth, drawn[:50])
    assert accuracy["shape"] < 0.15
    assert accuracy["colour"] < 0.15


def _smooth(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.random((4, 4, 3)).repeat(8, 0).repeat(8, 1)
    return coarse.astype(np.float32)


def test_survives_noise_and_blur(drawn: list[Scene]) -> None:
    """A generated picture is never exact: an error of 5 % a pixel and a soft rim must not change the reading."""
    rng = np.random.default_rng(1)
    worn = []
    for scene in drawn[:150]:
        rgb = draw(scene)
        rgb = 0.8 * rgb + 0.05 * sum(np.roll(rgb, s, a) for s in (1, -1) for a in (0, 1))
        worn.append(read(rgb + rng.normal(0, 0.05, rgb.shape)))
    accuracy = rates(worn, drawn[:150])
    assert min(accuracy.values()) >= 0.95, accuracy


@pytest.mark.parametrize("size", [32, 64, 256, (32, 48), (40, 32)])
def test_reads_other_sizes(size: int | tuple[int, int]) -> None:
    for shape in SHAPES:
        scene = make_scene(shape, "yellow", background="blue", size="big", seed=5)
        verdict = matches(read(draw(scene, size)), scene)
        assert verdict["shape"], (shape, size)
        assert verdict["colour"]
        assert verdict["background"]


def test_reads_parts_of_a_picture() -> None:
    left, right = Thing("circle", "red", 0.25, 0.5, 0.18), Thing("cross", "white", 0.75, 0.5, 0.18)
    rgb = draw(Scene((left, right), "blue", frozenset()))
    assert [t.shape for t in read(rgb, within=(0, 0, 16, 32)).things] == ["circle"]
    mask = np.zeros((32, 32), bool)
    mask[:, 16:] = True
    part = read(rgb, within=mask)
    assert part.has("cross", "white")
    assert not part.has("circle")
    assert part.background == "blue"
    assert len(read(rgb).things) == 2


def test_draws_the_same_for_the_same_index() -> None:
    assert scenes.sample_scene(7, 1) == scenes.sample_scene(7, 1)
    assert scenes.sample_scene(7, 1) != scenes.sample_scene(8, 1)
    assert scenes.sample_scene(7, 1) != scenes.sample_scene(7, 2)
    scene = scenes.sample_scene(7, 1)
    assert np.array_equal(draw(scene), draw(scene))
    assert caption(scene) == caption(scene)


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10**6), seed=st.integers(0, 10**6))
def test_scenes_are_whole(index: int, seed: int) -> None:
    """Everything lies inside the picture, stands out, and is named by words that the tokenizer knows."""
    scene = scenes.sample_scene(index, seed)
    assert 1 <= len(scene.things) <= 3
    for thing in scene.things:
        assert thing.colour != scene.background
        assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
    rgb = draw(scene)
    assert rgb.shape == (32, 32, 3)
    assert rgb.dtype == np.float32
    assert 0.0 <= rgb.min() <= rgb.max() <= 1.0


@pytest.mark.parametrize("crowded", [0.0, scenes.CROWDED, 1.0])
def test_so_many_hold_several_things(crowded: float) -> None:
    drawn = [scenes.sample_scene(index, 5, "all", crowded) for index in range(400)]
    several = [scene for scene in drawn if len(scene.things) > 1]
    mixed = [scene for scene in several if len({(t.shape, t.colour) for t in scene.things}) == 2]
    assert abs(len(several) / 400 - crowded) <= 0.07
    assert abs(len(mixed) - len(several) / 2) <= 0.15 * max(1, len(several))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_told_is_drawn(position: str, size: str) -> None:
    for seed in range(20):
        scene = make_scene("square", "green", size=size, position=position, background="white", seed=seed)
        seen = read(draw(scene)).things
        assert [(t.shape, t.colour, t.size, t.position) for t in seen] == [("square", "green", size, position)]


def test_captions_name_what_is_told_and_nothing_else() -> None:
    full = make_scene("circle", "red", size="big", position="left", background="blue", seed=1)
    text = caption(full)
    assert "red" in text
    assert "blue" in text
    assert "left" in text
    bare = make_scene("circle", "red", seed=1)
    named = set(caption(bare).replace(",", "").split())
    assert not named & (set(PALETTE) - {"red"})
    assert not named & {"left", "right", "top", "bottom", "background"}
    assert len({caption(make_scene("circle", "red", background="orange", seed=s)) for s in range(60)}) > 15
    assert not any("a orange" in caption(make_scene("ring", "red", background="orange", seed=s)) for s in range(60))


def test_outline_lies_on_the_rim() -> None:
    scene = make_scene("square", "red", size="big", position="centre", background="white", seed=2)
    edge = scenes.outline(scene)
    assert edge.shape == (32, 32, 3)
    assert set(np.unique(edge)) == {0.0, 1.0}
    rgb = draw(scene)
    change = np.abs(np.diff(rgb, axis=0, prepend=rgb[:1])).sum(-1) + np.abs(np.diff(rgb, axis=0, append=rgb[-1:])).sum(
        -1
    )
    change += np.abs(np.diff(rgb, axis=1, prepend=rgb[:, :1])).sum(-1) + np.abs(
        np.diff(rgb, axis=1, append=rgb[:, -1:])
    ).sum(-1)
    assert (change[edge[..., 0] > 0] > 0).all()


@pytest.mark.parametrize(
    "wrong", [{"shape": "dog"}, {"colour": "pink"}, {"count": 4}, {"background": "red"}, {"size": "odd"}]
)
def test_unknown_words_are_explained(wrong: dict[str, object]) -> None:
    with pytest.raises(LdmError) as caught:
        make_scene(**wrong)  # type: ignore[arg-type]
    assert next(iter(wrong)) in caught.value.what
    assert "scenes know these only" in caught.value.why


def test_shipped_tokenizer_spells_every_text() -> None:
    import transformers

    folder = Path(scenes.__file__).parents[1] / "pretrained" / "scenes" / "tokenizer"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    for word in (*SHAPES, *PALETTE):
        assert len(tokenizer(word).input_ids) == 3, word
    strange = tokenizer("zebra 猫 ünïcode 🦓").input_ids
    assert tokenizer.decode(strange, skip_special_tokens=True) == "zebra 猫 ünïcode 🦓"
