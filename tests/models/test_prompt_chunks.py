"""Where long prompts are cut in each dialect, what is dropped, and what `explain` shows."""

from __future__ import annotations

import time

import pytest

from ldm.models.prompt import BACKTRACK, DIALECTS, MAX_CHUNKS, Layout, explain, lay_out, parse
from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from tests import components


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(clip_tokenizer())


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    """Six tokens to a chunk."""
    return Vocabulary(clip_tokenizer(), positions=8)


def layout(text: str, vocabulary: Vocabulary, dialect: str = "a1111", learned: dict[str, int] | None = None) -> Layout:
    prompt = parse(text, dialect, steps=20)
    return lay_out(prompt.sections(), vocabulary, prompt.dialect, learned)


def words(found: Layout) -> list[str]:
    return [" ".join(token.text for token in chunk) for chunk in found.chunks]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_empty_prompt_is_one_empty_chunk(small: Vocabulary, dialect: str) -> None:
    for text in ("", "  ", "()"):
        assert layout(text, small, dialect).chunks[0] == () or text == "()"
        assert len(layout(text, small, dialect).chunks) == 1


def test_without_a_comma_a_chunk_is_filled(small: Vocabulary) -> None:
    assert words(layout("a b c d e f g h", small)) == ["a b c d e f", "g h"]
    assert len(layout(" ".join("abcdef"), small).chunks) == 1


def test_a1111_cuts_after_the_last_near_comma(small: Vocabulary) -> None:
    assert words(layout("a b c, d e f g", small)) == ["a b c ,", "d e f g"]
    assert words(layout("a b c, d e", small)) == ["a b c , d e"]
    assert words(layout("a b c d e f, g", small)) == ["a b c d e f", ", g"]  # the comma itself does not fit
    assert words(layout("a b c d e, f", small)) == ["a b c d e ,", "f"]
    for other in ("comfy", "compel"):
        assert words(layout("a b c , d e f g", small, other)) == ["a b c , d e", "f g"]


def test_the_comma_may_be_among_the_last_twenty_and_no_further(vocabulary: Vocabulary) -> None:
    for after, expected in ((BACKTRACK - 1, 75 - (BACKTRACK - 1)), (BACKTRACK, 75)):
        text = "a " * (74 - after) + ", " + "b " * (after + 3)
        found = layout(text, vocabulary)
        assert [len(c) for c in found.chunks] == [expected, 78 - expected]


def test_comfy_keeps_short_words_whole_and_cuts_long_ones(small: Vocabulary) -> None:
    long = "zqxj" * 10  # many tokens, one word
    assert words(layout("a b c d e f,g", small, "comfy")) == ["a b c d e", "f , g"]
    assert words(layout("a b c d e f,g", small, "compel")) == ["a b c d e f", ", g"]
    found = layout(f"a b {long}", small, "comfy")
    assert len(found.chunks[0]) == 6
    assert "".join(t.text for c in found.chunks for t in c) == f"ab{long}"


def test_break_begins_a_chunk(small: Vocabulary) -> None:
    assert words(layout("a BREAK b c BREAK d", small)) == ["a", "b c", "d"]
    assert words(layout("a BREAK", small)) == ["a"]
    assert words(layout("BREAK a", small)) == ["", "a"]
    assert words(layout("a BREAK BREAK b", small)) == ["a", "", "b"]
    assert words(layout("a b c d e f BREAK g", small)) == ["a b c d e f", "g"]


def test_weights_and_pieces_follow_the_tokens(small: Vocabulary) -> None:
    found = layout("a (b c:1.5) d", small)
    assert [(t.text, t.weight, t.piece) for t in found.chunks[0]] == [
        ("a", 1.0, 0),
        ("b", 1.5, 1),
        ("c", 1.5, 1),
        ("d", 1.0, 2),
    ]


def test_learned_vectors_stand_in_one_chunk(small: Vocabulary) -> None:
    learned = {"<toy>": 3, "My-Style": 2, "toy": 1}
    found = layout("a b c d <toy> e, MY-STYLE x my-styles", small, learned=learned)
    assert [[t.name or t.text for t in c] for c in found.chunks] == [
        ["a", "b", "c", "d"],
        ["<toy>", "<toy>", "<toy>", "e", ","],
        ["My-Style", "My-Style", "x", "my", "-", "styles"],
    ]
    assert [t.row for t in found.chunks[1][:3]] == [0, 1, 2]
    assert [t.name for t in layout("(<toy>:1.2)s, toys toy", small, learned=learned).chunks[0]].count("toy") == 0
    assert [t.weight for t in layout("(<toy>:1.2)", small, learned=learned).chunks[0]] == [1.2] * 3
    longer = layout("a <toy>", small, learned={"<toy>": 8})
    assert [len(c) for c in longer.chunks] == [6, 3]
    prefixed = layout("embedding:<toy>, x", small, "comfy", learned)
    assert [t.name for t in prefixed.chunks[0]] == ["<toy>"] * 3 + [None, None]


def test_ten_times_as_many_words_take_about_ten_times_as_long(vocabulary: Vocabulary) -> None:
    """Ten thousand take 0.05 to 0.1 s; work that grew with the square would take a hundred times as long."""
    text = "a " * 10_000

    def seconds(words: str, dialect: str) -> float:
        started = time.process_time()  # of the processor, not of the clock: others may share the machine
        layout(words, vocabulary, dialect)
        return time.process_time() - started

    for dialect in DIALECTS:
        few, many = (min(seconds("a " * count, dialect) for _ in range(5)) for count in (1_000, 10_000))
        assert many <= 25 * few
        found = layout(text, vocabulary, dialect)
        assert len(found.chunks) == MAX_CHUNKS
        assert len(found.dropped) == 10_000 - 75 * MAX_CHUNKS


def test_dropped_words_are_whole_and_in_order(small: Vocabulary) -> None:
    text = " ".join(f"w{i:03d}" for i in range(60))
    prompt = parse(text)
    found = lay_out(prompt.sections(), small, prompt.dialect, limit=2)
    kept = "".join(t.text for c in found.chunks for t in c)
    assert len(found.chunks) == 2
    assert found.dropped == tuple(text.split()[-len(found.dropped) :])
    assert text.split()[: 60 - len(found.dropped)] == [w for w in text.split() if w in kept][: 60 - len(found.dropped)]


def test_what_a_small_vocabulary_lacks_is_reported_and_is_no_end_of_text() -> None:
    stock = components.tokenizer()
    small_vocab = {k: v for k, v in stock.get_vocab().items() if k not in ("z", "z</w>")}
    ids = {k: i for i, k in enumerate(sorted(small_vocab, key=lambda k: small_vocab[k]))}
    from transformers import CLIPTokenizer

    poor = Vocabulary(CLIPTokenizer(vocab=ids, merges=[], model_max_length=77))
    found = layout("a z cat", poor)
    assert "z" in found.unknown
    assert poor.eos not in [t.id for t in found.chunks[0]]
    assert "unknown" in str(explain("a z cat", poor))


def test_explanation_shows_tokens_chunks_weights_and_drops(vocabulary: Vocabulary, small: Vocabulary) -> None:
    found = explain("a (red:1.3) cat BREAK [night:day:0.5] toy", vocabulary, learned={"toy": 2})
    text = str(found)
    assert text.splitlines()[:3] == [
        "prompt   a (red:1.3) cat BREAK night toy",
        "dialect  a1111",
        "chunk 1 of 2: 3 of 75 tokens",
    ]
    assert [line.split() for line in text.splitlines()[3:6]] == [
        ["1", "a", "320", "1.000"],
        ["2", "red", "736", "1.300"],
        ["3", "cat", "2368", "1.000"],
    ]
    assert "toy[1]" in text
    assert "dropped  nothing" in text
    assert "the text changes at 50 % of the run" in text
    later = explain("[night:day:0.5]", vocabulary, at=0.5)
    assert "day" in str(later)
    cut = explain("a " * 200 + "last", small, limit=2)
    assert "last" in cut.dropped
    assert "beyond the limit of 2 chunks" in str(cut)
    assert "limited to 20" in str(explain("(a:900)", vocabulary))
    assert "\x1b" not in str(explain("a \u202e\u200b b", vocabulary))
