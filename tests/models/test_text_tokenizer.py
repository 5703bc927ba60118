"""The tokenizer made from open_clip's merge rules, and small ones from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from ldm.models.clip_tokenizer import ClipTokenizer
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


def test_of_old_files_the_map_of_special_tokens_has_the_last_word(tmp_path: Path) -> None:
    """As in folders of SD 2, whose texts are padded with "!"."""
    components.tokenizer().backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    for more, pad in (({}, "!"), ({"added_tokens_decoder": {}}, "<|endoftext|>")):
        told = {"pad_token": "<|endoftext|>", "model_max_length": 77, **more}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
        assert CLIPTokenizer.from_pretrained(tmp_path).pad_token == pad
        assert ClipTokenizer.read(tmp_path).special["pad_token"] == pad


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_learned_word_of_a_saved_pipeline_stays_one(tmp_path: Path, place: str) -> None:
    stock = components.tokenizer()
    stock.add_tokens("<cat-toy>")
    stock.save_pretrained(tmp_path)
    stock.backend_tokenizer.model.save(str(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    if place == "tokenizer_config.json":
        config["added_tokens_decoder"] = {str(len(stock) - 1): {"content": "<cat-toy>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if place != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    if place == "added_tokens.json":
        (tmp_path / place).write_text(json.dumps({"<cat-toy>": len(stock) - 1}))
    ours = ClipTokenizer.read(tmp_path)
    ours.save(tmp_path / "again")
    for each in (ours, ClipTokenizer.read(tmp_path / "again")):
        assert len(each) == len(stock)
        text = "a red <cat-toy> circle"
        assert each.backend_tokenizer.encode(text).ids == stock(text).input_ids
