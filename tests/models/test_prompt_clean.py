"""Cleaning: the tokenizers of transformers and of open_clip read any text the same way, and nothing raises (F14)."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from ldm.errors import LdmError
from ldm.models.prompt import DIALECTS, MAX_BYTES, check_size, clean, explain, resolve
from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from tests import components

PROMPTS = [
    "",
    " ",
    "a photo of a red circle",
    "A Photo, Of: (nothing)  in\tparticular;\n\nreally?",
    "it's the dog's, they'll say, I'd go, we've won, you're in, I'm DON'T",
    "12345 x2 3.14 1,000",
    "naïve café Ångström",
    "a\u0301 e\u0301 decomposed",
    "日本語の猫、青い空",
    "한국어 조합 \u1112\u1161\u11ab",
    "中文提示词，（强调：1.2）",
    "ความสวยงาม",
    "हिन्दी में",
    "مرحبا بالعالم",
    "שלום עולם",
    "\u202eright to left\u202c \u2067isolate\u2069",
    "ΑΣ ΟΔΥΣΣΕΥΣ Ά Σ",
    "İstanbul ıI ß ẞ ǅ ſtart 'ſ don'ſ",
    "ﬁne ﬂow Ⅷ ½ ² ①",
    "😀 👩\u200d👩\u200d👧 🏳️\u200d🌈 🇩🇪 👍🏽",
    "z̸̡̢̛͓̲͇̏̈́a͈͗l̷̰̍g̴̬̈́o̸̦͠",
    "nul\x00 bell\x07 escape\x1b[31m del\x7f tab\t",
    "\x80\x85\x9f C1",
    "lone \ud800 and \udfff and pair \ud83d\ude00",
    "\ufeffbom \u200bzero \u00adsoft\u2028line\u2029par",
    "\U000e0041\U000e0042 tags \ufe0f",
    "\ue000 private \ufffe not a character \u0378 unassigned \U0001faff",
    "\u1fb3 \u0345 iota below",
    "<|endoftext|>",
    "<|startoftext|> a cat <|endoftext|> a dog",
    "<start_of_text><end_of_text> <END_OF_TEXT> <|EndOfText|>",
    "<|endof\x00text|> &lt;|endoftext|&gt; <|<|endoftext|>|> <|pad|>",
    "&amp;amp; &lt;b&gt; &#x41; &#0; &copy; &nosuch;",
    "â€œmojibakeâ€\x9d schÃ¶n",
    "“curly” ‘quotes’ …",
    "fullwidth ＡＢＣ １２３ （brackets）",
    "emoji)))((( [[:]] {{|}} \\\\ \\( __",
    "a</w> Ġ ## </s> [MASK] <unk> !!! !",
    "http://x.y/z?q=1&r=2#frag user@host C:\\path",
    "x" * 400,
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(clip_tokenizer())


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


def _agree(text: str, vocabulary: Vocabulary, reference: SimpleTokenizer) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")  # what goes into a picture's metadata
    assert clean(cleaned) == cleaned
    ids = [spot.id for spot in vocabulary.spots([cleaned])[0]]
    assert ids == reference.encode(cleaned)
    assert not {vocabulary.bos, vocabulary.eos} & set(ids)


@pytest.mark.parametrize("text", PROMPTS)
def test_forty_prompts_have_the_ids_of_open_clip(text: str, vocabulary: Vocabulary, reference: SimpleTokenizer) -> None:
    _agree(text, vocabulary, reference)


def test_the_stock_tokenizer_itself_agrees_on_clean_text(reference: SimpleTokenizer) -> None:
    tokenizer = components.stock(clip_tokenizer())
    assert len(PROMPTS) == 40
    for text in PROMPTS:
        assert tokenizer(clean(text), add_special_tokens=False).input_ids == reference.encode(clean(text))


def test_500_random_strings_have_the_ids_of_open_clip(
    vocabulary: Vocabulary, reference: SimpleTokenizer, torture: int
) -> None:
    odd = st.sampled_from(["<|endoftext|>", "<end_of_text>", "'s", "'ſ", "Σ", "&lt;", "\u0345", "\x00", "\ud800", "|>"])
    anything = st.characters(codec=None, exclude_categories=())

    @settings(max_examples=500 * torture, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.one_of(st.text(anything, max_size=12), odd), max_size=6).map("".join))
    def check(text: str) -> None:
        _agree(text, vocabulary, reference)

    check()


def test_code_points_agree_alone_and_between_letters(
    vocabulary: Vocabulary, reference: SimpleTokenizer, torture: int
) -> None:
    stride = max(1, 61 // torture)
    for code in range(0, 0x20000, stride):
        _agree(f"{chr(code)} a{chr(code)}B", vocabulary, reference)


def test_no_random_prompt_raises_in_any_dialect(vocabulary: Vocabulary) -> None:
    syntax = st.sampled_from(
        ["(", ")", "[", "]", ":1.2)", ":0.5]", "|", "\\", "+", "--", "BREAK", ")1.3", "a", " ", ","]
    )
    anything = st.characters(codec=None, exclude_categories=())

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(syntax, st.text(anything, max_size=4)), max_size=25).map("".join))
    def check(text: str) -> None:
        for dialect in DIALECTS:
            found = explain(text, vocabulary, dialect, steps=20)
            assert all(unicodedata.category(c) != "Cc" for c in str(found).replace("\n", ""))

    check()


def test_what_is_removed_and_what_stays() -> None:
    assert clean("a\x00b\x1f\tc\nd\x7f") == "ab\tc\nd"
    assert clean("x\ud800y \ud83d\ude00") == "xy 😀"
    assert clean("e\u0301") == "é"
    assert clean("<|endoftext|>") == "<| endoftext |>"
    assert clean("<lora:name:0.8> (Word:1.3), BREAK") == "<lora:name:0.8> (Word:1.3), BREAK"


def test_long_text_is_refused_before_it_is_looked_at() -> None:
    started = time.perf_counter()
    with pytest.raises(LdmError) as error:
        resolve("x" * 1_000_000, seed=0)
    assert time.perf_counter() - started < 0.01
    assert str(MAX_BYTES) in error.value.fix
    check_size("x" * MAX_BYTES)
    with pytest.raises(LdmError):
        check_size("é" * (MAX_BYTES // 2 + 1))
