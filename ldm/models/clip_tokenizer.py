"""CLIP's tokenizer: byte pairs of lower-case words (Sennrich 2016, Radford 2021), in the files of stock code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WITHOUT_LIMIT = int(1e30)  # what stock code says of a tokenizer that names no length
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LARGEST = 20_000_000  # bytes of a file of a tokenizer


class ClipTokenizer:
    """Entries and the rules that join them. `backend_tokenizer` is of the library `tokenizers`."""

    def __init__(
        self, vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], *, pad: str = EOS, bos: str = BOS,
        eos: str = EOS, unknown: str = EOS, length: int = WITHOUT_LIMIT,
    ) -> None:  # fmt: skip
        self.special = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "pad_token": pad}
        self.model_max_length = length
        self.added: dict[str, int] = {}
        backend = Tokenizer(
            BPE(dict(vocab), list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=unknown)
        )
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(self.special.values())])
        self.backend_tokenizer: Any = backend
        end, begin = (eos, self.eos_token_id), (bos, self.bos_token_id)
        backend.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    @property
    def vocab(self) -> dict[str, int]:
        """Every entry with its number."""
        return dict(self.backend_tokenizer.get_vocab())

    @property
    def bos_token_id(self) -> int:
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int:
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int:
        return self._id("pad_token")

    def _id(self, name: str) -> int:
        return int(self.backend_tokenizer.token_to_id(self.special[name]))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From vocab.json and merges.txt, or from tokenizer.json alone."""
        said, added = _json(folder / "tokenizer_config.json"), _added(folder)
        if "added_tokens_decoder" not in said:  # of older age, in which the other file has the last word
            said |= _json(folder / "special_tokens_map.json")
        vocab, merges = _entries(folder)
        names = {"pad_token": "pad", "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
        fields: dict[str, Any] = {short: _text(said[name]) for name, short in names.items() if said.get(name)}
        length = said.get("model_max_length")
        made = cls(vocab, merges, length=WITHOUT_LIMIT if length is None else int(length), **fields)
        made.add({number: entry for number, entry in added.items() if entry not in vocab})
        return made

    def add(self, entries: Mapping[int, str]) -> None:
        """Words that stand for themselves, such as a new one that a model has learned, and their numbers."""
        for number, entry in sorted(entries.items()):
            if self.backend_tokenizer.token_to_id(entry) is None:
                self.backend_tokenizer.add_tokens([AddedToken(entry, normalized=False)])
            if self.backend_tokenizer.token_to_id(entry) != number:
                raise ValueError(f"the added token {entry!r} cannot have the number {number}")
        self.added.update({entry: number for number, entry in entries.items()})

    def save(self, folder: Path) -> None:
        """The files of both ages: tokenizer.json, and vocab.json with merges.txt."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend_tokenizer.save(str(folder / "tokenizer.json"))
        self.backend_tokenizer.model.save(str(folder))
        if self.added:
            (folder / "added_tokens.json").write_text(json.dumps(self.added, indent=2) + "\n", encoding="utf-8")
        told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.model_max_length, **self.special}
        text = json.dumps(told, indent=2, sort_keys=True) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _added(folder: Path) -> dict[int, str]:
    """Entries beyond the vocabulary, in the three places where they may be written down."""
    found = {int(number): str(entry) for entry, number in _json(folder / "added_tokens.json").items()}
    for token in _json(folder / "tokenizer.json").get("added_tokens", ()):
        found[int(token["id"])] = str(token["content"])
    for number, token in _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        found[int(number)] = _text(token)
    return found


def _entries(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        pairs = [line.split() for line in lines if line and not line.startswith("#version")]
        return _json(folder / "vocab.json"), [(left, right) for left, right in pairs]
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return dict(model["vocab"]), [(left, right) for left, right in pairs]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is too large")
    told = json.loads(path.read_text("utf-8"))
    if not isinstance(told, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return told


def _text(token: Any) -> str:
    """Old files write a token with its rules."""
    return str(token["content"] if isinstance(token, dict) else token)
