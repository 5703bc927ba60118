"""A small CLIP tokenizer: byte-level BPE in CLIP's own files, learned from a list of words.

Every listed word becomes one token; every other text still tokenises, down to single bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
Word = tuple[str, ...]


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of GPT-2 and CLIP vocabularies.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """The merges that make each word one token: the most frequent pair first (Sennrich et al. 2016), ties by name.

    Words are ASCII, where a byte's symbol is the character itself.
    """
    spelled: list[Word] = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]


def save_tokenizer(words: Sequence[str], folder: Path, length: int = 77) -> int:
    """Writes vocab.json, merges.txt and the settings as CLIP tokenizers have them; returns the vocabulary's size."""
    merges = learn_merges(words)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", "utf-8")
    return len(tokens)


def _merged(word: Word, pair: tuple[str, str]) -> Word:
    result: list[str] = []
    rest = list(word)
    while rest:
        if tuple(rest[:2]) == pair:
            result.append(rest[0] + rest[1])
            rest = rest[2:]
        else:
            result.append(rest.pop(0))
    return tuple(result)
