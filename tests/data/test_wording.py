"""Captions are shuffled, dropped and kept as kohya's options say, each by (seed, place) alone."""

from __future__ import annotations

import torch

from ldm.data.draws import Draws
from ldm.data.settings import DataSettings
from ldm.data.wording import plain, worded

TAGS = "sks dog, red, green, blue, white"


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({"path": "x", "size": 8, **changes})


def said(texts: list[str], places: range = range(1000), epoch: int = 0, **changes: object) -> list[str]:
    draws = Draws(7, torch.tensor(list(places)), 16)
    return worded([texts] * len(places), [epoch] * len(places), settings(**changes), draws)


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def test_a_caption_is_left_as_it_is() -> None:
    assert set(said(["a,b , c"])) == {"a,b , c"}
    assert set(said([])) == {""}
    assert plain("a,b , c", settings(shuffle_caption=True)) == "a,b , c"


def test_of_several_captions_each_has_its_turn() -> None:
    found = said(["one", "two", "three"])
    assert all(250 < found.count(text) < 420 for text in ("one", "two", "three"))


def test_shuffling_keeps_the_front_and_loses_nothing() -> None:
    found = said([TAGS], shuffle_caption=True, keep_tokens=1)
    assert {parts(text)[0] for text in found} == {"sks dog"}
    assert {tuple(sorted(parts(text))) for text in found} == {tuple(sorted(parts(TAGS)))}
    assert len(set(found)) == 24  # every order of the other four
    free = said([TAGS], shuffle_caption=True)
    assert {parts(text)[0] for text in free} == set(parts(TAGS))


def test_captions_without_a_free_part_stay_as_they_are() -> None:
    """As those of a kohya folder `10_sks dog` are, where no picture has words of its own."""
    changes = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.5, "keep_tokens": 1}
    assert set(said(["sks dog"], **changes)) == {"sks dog"}
    assert set(said([], **changes)) == {""}


def test_a_separator_keeps_front_and_end() -> None:
    found = said(["a, b ||| c, d, e ||| z"], shuffle_caption=True, keep_tokens_separator="|||")
    assert {tuple(parts(text)[:2]) for text in found} == {("a", "b")}
    assert {parts(text)[-1] for text in found} == {"z"}
    assert len(set(found)) == 6
    assert set(said(["a ||| b"], keep_tokens_separator="|||")) == {"a, b"}
    assert plain("a ||| b", settings(keep_tokens_separator="|||")) == "a, b"


def test_parts_are_dropped_at_their_rate() -> None:
    found = said([TAGS], caption_tag_dropout_rate=0.25, keep_tokens=1)
    assert {parts(text)[0] for text in found} == {"sks dog"}
    kept = sum(len(parts(text)) - 1 for text in found) / 4000
    assert 0.72 < kept < 0.78


def test_whole_captions_are_dropped_at_their_rate_and_in_their_epochs() -> None:
    found = said([TAGS], caption_dropout_rate=0.1)
    assert set(found) == {TAGS, ""}
    assert 70 < found.count("") < 130
    empty = [set(said(["x"], epoch=e, caption_dropout_every_n_epochs=3)) == {""} for e in range(8)]
    assert empty == [False, False, False, True, False, False, True, False]


def test_prefix_and_suffix() -> None:
    assert set(said(["a dog"], caption_prefix="photo of", caption_suffix="outside")) == {"photo of a dog outside"}
    assert set(said([], caption_prefix="photo of")) == {""}


def test_a_caption_does_not_depend_on_its_neighbours() -> None:
    changes = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.3, "caption_dropout_rate": 0.2}
    whole = said([TAGS], range(64), **changes)
    assert whole == [said([TAGS], range(n, n + 1), **changes)[0] for n in range(64)]
    draws = Draws(7, torch.arange(2), 16)
    longer = worded([[TAGS], [", ".join(map(str, range(40)))]], [0, 0], settings(**changes), draws)
    assert longer[0] == whole[0]
