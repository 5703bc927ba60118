"""Tokenizers learned from captions: CLIP's format, stock behaviour, the same for the same captions."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from ldm.data.scenes import caption, sample_scene
from ldm.errors import LdmError
from ldm.models.clip import token_rows
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from train.tokenizer import END, START, byte_symbols, learn_tokenizer, open_tokenizer, train_tokenizer

CAPTIONS = [caption(sample_scene(index, 3)) for index in range(400)] + ["Café au lait", "café noir", "日本の山", "日本"]


@pytest.fixture(scope="module")
def made() -> ClipTokenizer:
    return learn_tokenizer(CAPTIONS[:50], 540)


def test_the_vocabulary_stands_in_clips_order() -> None:
    made = learn_tokenizer(CAPTIONS, 620)
    entries = sorted(made.vocab, key=made.vocab.__getitem__)
    symbols = byte_symbols()
    assert set(symbols) == set(ByteLevel.alphabet())
    assert entries[:512] == [*symbols, *(s + "</w>" for s in symbols)]
    assert entries[-2:] == [START, END]
    assert len(entries) == 620
    clips = sorted(vocab := clip_tokenizer().vocab, key=vocab.__getitem__)
    assert clips[:512] == entries[:512]


@pytest.mark.parametrize("size", [515, 560, 600])
def test_the_size_is_as_asked(tmp_path: Path, size: int) -> None:
    assert train_tokenizer(CAPTIONS, size, tmp_path / "made") == size
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "made")) == size
    merges = (tmp_path / "made" / "merges.txt").read_text("utf-8").splitlines()
    assert merges[0].startswith("#version")
    assert len(merges) - 1 == size - 514
    assert len(json.loads((tmp_path / "made" / "vocab.json").read_text("utf-8"))) == size


def test_no_more_is_learned_than_the_captions_tell() -> None:
    made = learn_tokenizer(["red red", "a red"], 5000)
    assert sorted(set(made.vocab) - set(learn_tokenizer(["x"], 515).vocab)) == ["ed</w>", "red</w>"]
    with pytest.raises(LdmError, match="vocabulary=514 is too small"):
        learn_tokenizer(CAPTIONS, 514)


def test_the_same_captions_give_the_same_files_in_any_order(tmp_path: Path) -> None:
    """The library's hash tables are seeded anew in each call: left to itself, six calls gave six vocabularies."""
    for name in range(6):
        shuffled = random.Random(name).sample(CAPTIONS, len(CAPTIONS))
        train_tokenizer(iter(shuffled), 650, tmp_path / str(name))
    first, *others = (_digests(tmp_path / str(name)) for name in range(6))
    assert {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"} <= first.keys()
    assert all(other == first for other in others)


def test_the_files_name_no_place(tmp_path: Path) -> None:
    train_tokenizer(CAPTIONS, 560, tmp_path / "made")
    assert not any(str(tmp_path) in p.read_text("utf-8") for p in (tmp_path / "made").iterdir())


def test_stock_classes_read_it_the_same_way(tmp_path: Path) -> None:
    """As transformers does, from either kind of file; and as open_clip does with the same merges."""
    train_tokenizer(CAPTIONS, 650, tmp_path / "made", length=16)
    made = CLIPTokenizer.from_pretrained(tmp_path / "made")
    old = tmp_path / "old"
    old.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (old / name).write_bytes((tmp_path / "made" / name).read_bytes())
    texts = ["A RED circle!", "café  noir\n日本の", "x y z " * 20, "", "it's 42% blue"]
    padded = {"padding": "max_length", "max_length": 16, "truncation": True}
    ids = made(texts, **padded).input_ids
    assert CLIPTokenizer.from_pretrained(old)(texts, **padded).input_ids == ids
    assert all(len(row) == 16 and row[0] == made.bos_token_id and made.eos_token_id in row for row in ids)
    assert made.pad_token_id == made.eos_token_id == len(made) - 1
    assert made.model_max_length == 16
    assert made.decode(ids[0], skip_special_tokens=True) == "a red circle !"

    theirs = open_clip.tokenizer.SimpleTokenizer(bpe_path=_as_open_clip(tmp_path))
    theirs.encoder = made.get_vocab()
    found = [[made.bos_token_id, *theirs.encode(t)[:14], made.eos_token_id] for t in texts]
    assert [row[: row.index(made.eos_token_id) + 1] for row in ids] == found


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=30))
def test_every_text_becomes_a_row(made: ClipTokenizer, text: str) -> None:
    row = token_rows(Vocabulary(made), [text])[0].tolist()
    assert len(row) == 77
    assert row[0] == made.bos_token_id
    end = row.index(made.eos_token_id)
    assert row[end:] == [made.eos_token_id] * (77 - end)
    assert made.bos_token_id not in row[1:end]


def test_special_words_in_a_caption_are_letters(made: ClipTokenizer) -> None:
    row = token_rows(Vocabulary(made), [f"red {END} blue"])[0].tolist()
    entries = {number: entry for entry, number in made.vocab.items()}
    pieces = [entries[number] for number in row[1 : row.index(made.eos_token_id)]]
    assert "".join(pieces).replace("</w>", " ").endswith("blue ")


def test_what_a_run_file_may_name(tmp_path: Path) -> None:
    train_tokenizer(CAPTIONS, 600, tmp_path / "model" / "tokenizer")
    for place in (tmp_path / "model", tmp_path / "model" / "tokenizer"):
        assert len(open_tokenizer(place, [], 4096, 77)) == 600
    assert len(open_tokenizer("clip", [], 4096, 77)) == 49_408
    assert len(open_tokenizer(None, CAPTIONS, 590, 20)) == 590
    with pytest.raises(LdmError, match="was not found"):
        open_tokenizer(tmp_path / "nothing", [], 4096, 77)


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _as_open_clip(folder: Path) -> str:
    """merges.txt, zipped as open_clip keeps its own."""
    path = folder / "merges.txt.gz"
    path.write_bytes(gzip.compress((folder / "made" / "merges.txt").read_bytes()))
    return str(path)
