"""CLIP tokenizers made here: byte-level BPE in CLIP's own files, learned from captions.

Any text tokenises, down to single bytes. The same captions, in any order, give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.prompt import clean
from ldm.models.tokenizer import clip_tokenizer
from ldm.store.clip import write_tokenizer
from ldm.store.find import find_model
from ldm.store.tokenizers import tokenizer_at

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of GPT-2 and CLIP vocabularies.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def learn_tokenizer(captions: Iterable[str], size: int, length: int = 77) -> ClipTokenizer:
    """At most `size` entries, learned from captions by byte-pair encoding (Sennrich et al. 2016); `length` places.

    The entries stand in CLIP's order: 256 bytes, 256 bytes that end a word, merges by rank, start, end. Fewer than
    `size` come out when the captions hold no further pair twice.
    """
    symbols = byte_symbols()
    bytes_ = [*symbols, *(s + "</w>" for s in symbols)]
    if size <= len(bytes_) + 2:
        raise LdmError(
            Code.USAGE,
            f"task.vocabulary={size} is too small.",
            f"{len(bytes_)} entries are bytes, so that every text can be written, and 2 are the ends of a text.",
            f"Choose at least {len(bytes_) + 3}; a few thousand suit most sets of captions.",
        )
    blank = _tokenizer(bytes_, [], length).backend_tokenizer
    learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    # The bytes are named as special tokens because those are numbered first and in this order. Without that the library
    # numbers "x</w>" in the order of a hash table, by which ties between pairs would fall differently in every process.
    trainer = BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        special_tokens=bytes_,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator((clean(caption) for caption in captions), trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return _tokenizer(bytes_, merges, length)


def _tokenizer(bytes_: Sequence[str], merges: Sequence[tuple[str, str]], length: int) -> ClipTokenizer:
    tokens = dict.fromkeys([*bytes_, *(left + right for left, right in merges), START, END])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return ClipTokenizer(vocabulary, merges, length=length)


def train_tokenizer(captions: Iterable[str], size: int, folder: Path, length: int = 77) -> int:
    """Learns a tokenizer from captions and writes it into a new folder; returns how many entries it has."""
    tokenizer = learn_tokenizer(captions, size, length)
    write_tokenizer(tokenizer, folder)
    return len(tokenizer)


def open_tokenizer(
    where: Path | Literal["clip"] | None, captions: Iterable[str], size: int, length: int
) -> ClipTokenizer:
    """The tokenizer that a run file names: a folder (its own, or a model's), CLIP's own, or None: from the captions."""
    if where is None:
        return learn_tokenizer(captions, size, length)
    if where == "clip":
        return clip_tokenizer()
    folder = find_model(str(where))
    return tokenizer_at(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
