"""Words that a small model never read are named, with the known ones that are most like them."""

from __future__ import annotations

import pytest

from ldm.models.prompt import parse, remark, vocabulary
from ldm.models.prompt.words import near, unknown, words

KNOWN = frozenset({"a", "crying", "face", "rocket", "ship", "style", "noto", "octopus", "cats", "don't"})


def test_words_are_read_as_a_tokenizer_reads_them() -> None:
    assert words("Crying FACE, 3 noto-style, don’t!") == ["crying", "face", "noto", "style", "don't"]


def test_a_vocabulary_is_sorted_and_may_leave_rare_words_out() -> None:
    captions = ["red face", "Red heart", "blue face"]
    assert vocabulary(captions) == ["blue", "face", "heart", "red"]
    assert vocabulary(captions, least=2) == ["face", "red"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("crying face, noto style", ""),
        ("(crying:1.3) face", ""),
        ("", ""),
        ("rockett", "the model never read 'rockett' (known: rocket): no word of the prompt is known, "),
        ("cat face", "the model never read 'cat' (known: cats)"),
        ("qqq face", "the model never read 'qqq'"),
        ("\N{OCTOPUS}", "no word of the prompt is known, "),
        ("123?!", "no word of the prompt is known, "),
        (" ", ""),
    ],
)
def test_strange_words_are_named_with_the_nearest_known_ones(prompt: str, expected: str) -> None:
    told = remark(parse(prompt), KNOWN)
    assert told.startswith(expected) and bool(told) == bool(expected)


def test_of_very_many_strange_words_a_few_are_told_and_fewer_looked_up() -> None:
    strange = [f"crying{chr(97 + i)}" for i in range(26)]
    found = unknown(parse(" ".join(strange)), KNOWN)
    assert list(found) == strange and [bool(near) for near in found.values()] == [True] * 10 + [False] * 16
    assert "and 6 more words" in remark(parse(" ".join(strange)), KNOWN)


def test_each_part_of_a_schedule_is_read() -> None:
    assert list(unknown(parse("[octopus:squid:0.5] face"), KNOWN)) == ["squid"]


def test_very_short_words_are_like_nothing() -> None:
    assert near("x", KNOWN) == []
