"""The tokenizer made from open_clip's merge rules, and small ones from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from tests import components


def test_it_is_open_clips_vocabulary() -> None:
    tokenizer, reference = clip_tokenizer(), SimpleTokenizer()
    assert len(tokenizer) == 49_408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (reference.sot_token_id, reference.eot_token_id)
    ours = {i: token for token, i in tokenizer.vocab.items()}
    assert [ours[i] for i in range(49_406)] == [reference.decoder[i] for i in range(49_406)]
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(("pad", "number"), [("<|endoftext|>", 49407), ("!", 0)])
def test_padding(pad: str, number: int) -> None:
    tokenizer = clip_tokenizer(pad)
    padded = components.stock(tokenizer)("a cat", padding="max_length", max_length=77, truncation=True).input_ids
    assert padded == [49406, 320, 2368, 49407] + [number] * 73
    assert Vocabulary(tokenizer).wrap([320, 2368]) == padded


def test_what_a_user_types_is_no_special_token_and_the_original_stays_as_it_is() -> None:
    tokenizer = components.stock(clip_tokenizer("!"))
    tokenizer("warm up", padding="max_length", max_length=9, truncation=True)  # leaves its padding behind
    before = tokenizer.backend_tokenizer.to_str()
    vocabulary = Vocabulary(tokenizer)
    assert [s.id for s in vocabulary.spots(["wow! " * 20])[0]] == SimpleTokenizer().encode("wow! " * 20)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_spots_name_their_place_in_the_text() -> None:
    text = "Two  Cats, 日本!"
    spots = Vocabulary(clip_tokenizer()).spots([text])[0]
    assert [text[s.start : s.end] for s in spots][:3] == ["Two", "Cats", ","]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_a_folder_with_vocab_and_merges_is_enough(tmp_path: Path, pad: str) -> None:
    original = components.tokenizer(pad)
    original.backend_tokenizer.model.save(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    loaded = CLIPTokenizer.from_pretrained(tmp_path, pad_token=pad)
    ours, stock = Vocabulary(loaded), Vocabulary(original)
    assert ours.positions == 77  # the folder names no length
    assert ours.spots(["a red circle, zebra"]) == stock.spots(["a red circle, zebra"])
    assert ours.wrap([1, 2]) == stock.wrap([1, 2])
