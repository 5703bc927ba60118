"""The tokenizer that is built here behaves as CLIP's: whole words, and every text down to its bytes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from train.tokenizer import byte_symbols, train_tokenizer

WORDS = ["red", "green", "greens", "a", "background", "3"]


def test_a_word_that_is_common_is_one_token(tmp_path: Path) -> None:
    """Enough places for all merges: then every word of the captions is whole."""
    size = train_tokenizer([f"{word} {word}" for word in WORDS], 2000, tmp_path / "made")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "made")
    assert len(tokenizer) == size
    for word in WORDS:
        assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids)[1:-1] == [f"{word}</w>"]
    assert tokenizer.bos_token_id == size - 2
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.unk_token_id == size - 1


def test_padding_is_clips(tmp_path: Path) -> None:
    size = train_tokenizer(WORDS * 2, 2000, tmp_path / "made")
    ids = CLIPTokenizer.from_pretrained(tmp_path / "made")("red", padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    assert ids[2:] == [size - 1] * 75


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["C", "Z", "M"]), min_size=1, max_size=20))
def test_every_text_tokenises_without_unknowns(text: str) -> None:
    tokenizer = _shared()
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:-1]
    assert pieces
    assert tokenizer.eos_token not in pieces


def test_symbols_are_those_of_gpt2() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert symbols[0] == "!"
    assert chr(0x120) in symbols  # what a space becomes


def _shared() -> CLIPTokenizer:
    from ldm.data import scenes

    return CLIPTokenizer.from_pretrained(Path(scenes.__file__).parents[1] / "pretrained" / "scenes" / "tokenizer")
