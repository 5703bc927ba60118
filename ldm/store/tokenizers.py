"""The tokenizers of a model, from their files alone: no weights are read, and torch is not needed for a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.tokenizer import Vocabulary, clip_tokenizer
from ldm.store.header import printable
from ldm.store.shards import read_json


class Reader(NamedTuple):
    """What a text tower reads: its entries, and the width of the vectors that stand for them."""

    vocabulary: Vocabulary
    width: int


def readers_of(path: Path) -> list[Reader]:
    """One for each text tower of a model, as `Tower` has them."""
    if path.is_dir():
        there = [suffix for suffix in ("", "_2") if (path / f"text_encoder{suffix}").is_dir()]
        return [_reader(load_tokenizer(path, suffix), _config(path, suffix)) for suffix in there]
    from ldm.store.single import tower_configs  # late: it brings torch

    return [_reader(clip_tokenizer(), config) for config in tower_configs(path)]


def _reader(tokenizer: ClipTokenizer, config: dict[str, Any]) -> Reader:
    positions = min(int(config.get("max_position_embeddings", 77)), int(tokenizer.model_max_length))
    return Reader(Vocabulary(tokenizer, positions), int(config.get("hidden_size", 512)))


def _config(path: Path, suffix: str) -> dict[str, Any]:
    return read_json(path / f"text_encoder{suffix}" / "config.json", 1_000_000)


def load_tokenizer(path: Path, suffix: str) -> ClipTokenizer:
    """The folder's own tokenizer, from its files alone; the shipped CLIP one if it has none."""
    folder = path / f"tokenizer{suffix}"
    if not folder.is_dir():
        gelu = _config(path, suffix).get("hidden_act") == "gelu"
        return clip_tokenizer(pad_token="!" if gelu else "<|endoftext|>")  # towers of open_clip pad with token 0
    return tokenizer_at(folder)


def tokenizer_at(folder: Path) -> ClipTokenizer:
    """The CLIP tokenizer in a folder, from its files alone."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name, 20_000_000):
            raise LdmError(
                Code.REFUSED,
                f"{folder / name} is refused: it holds the key 'auto_map'.",
                "Such keys make other programs run code.",
                "Get the model from a source that you trust.",
            )
    try:
        return ClipTokenizer.read(folder)
    except Exception as error:  # the library raises many kinds here, and a damaged tokenizer is the user's to mend
        raise LdmError(
            Code.FILE,
            f"{folder} is not a CLIP tokenizer.",
            f"{type(error).__name__}: {printable(str(error), 200)}.",
            "Restore vocab.json and merges.txt, or tokenizer.json, of the original model.",
        ) from error
