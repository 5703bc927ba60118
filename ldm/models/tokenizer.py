"""The CLIP tokenizer without a download, and token ids with their place in the text."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import BOS, EOS, ClipTokenizer

_MERGES = 49152 - 256 - 2  # merge rules in use; the file holds more
CLIPS_OWN = 49408  # entries of the vocabulary that every large model shares
_CHUNK = 77  # positions of every CLIP text tower of Stable Diffusion
_WITHOUT_LIMIT = 100_000  # transformers writes an astronomic `model_max_length` when a folder names none


def clip_tokenizer(pad_token: str = EOS) -> ClipTokenizer:
    """CLIP's tokenizer (49,408 entries), built from the merge rules that open_clip ships.

    `pad_token`: SD 1 and the first tower of XL pad with EOS; SD 2, XL's second tower and open_clip with "!" (id 0).
    """
    lines = gzip.decompress(_rules().read_bytes()).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = _byte_letters()
    entries = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges), BOS, EOS]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return ClipTokenizer(vocab, merges, pad=pad_token, length=_CHUNK)


def _rules() -> Path:
    """The file of merge rules. Found without importing open_clip, which takes seconds."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise LdmError(
            Code.FILE,
            "open_clip is not installed",
            "CLIP's merge rules are read from that package",
            "run `pip install open-clip-torch`",
        )
    return Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"


def _byte_letters() -> list[str]:
    """One printable letter for each byte, in the order of CLIP's vocabulary: printable Latin-1 first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [*(chr(b) for b in printable), *(chr(256 + i) for i in range(len(others)))]


class Spot(NamedTuple):
    """A token id and the part of the text it stands for, text[start:end]."""

    id: int
    start: int
    end: int


class Vocabulary:
    """A tokenizer as the text encoder needs it: plain text to ids; BOS, EOS, padding; and nothing that changes it.

    Works on a private copy: the original keeps padding and truncation of earlier calls, and takes special tokens that
    a user typed ("!" of SD 2 among them) for the real ones.
    """

    def __init__(self, tokenizer: ClipTokenizer, positions: int | None = None) -> None:
        if positions is None:
            declared = int(tokenizer.model_max_length)
            positions = declared if declared < _WITHOUT_LIMIT else _CHUNK
        self.positions = positions  # of one chunk, BOS and EOS included
        self.bos, self.eos, self.pad = (
            int(tokenizer.bos_token_id),
            int(tokenizer.eos_token_id),
            int(tokenizer.pad_token_id),
        )
        self._backend: Any = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        comma = self.spots([","])[0]
        self.comma = comma[0].id if len(comma) == 1 else None

    @property
    def size(self) -> int:
        """Entries."""
        return int(self._backend.get_vocab_size())

    def text(self, entry: int) -> str:
        """What an entry stands for, without the mark of a word's end."""
        return str(self._backend.id_to_token(entry) or "").removesuffix("</w>")

    @property
    def room(self) -> int:
        """Tokens of text that fit into one chunk: 75 of 77."""
        return self.positions - 2

    def spots(self, texts: Sequence[str]) -> list[list[Spot]]:
        """Ids of each text, without BOS and EOS around them. What a small vocabulary does not know comes out as EOS."""
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [[Spot(i, a, b) for i, (a, b) in zip(e.ids, e.offsets, strict=True)] for e in encoded]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """[BOS, ids, EOS, padding] of `positions` entries."""
        return [self.bos, *ids, self.eos, *[self.pad] * (self.room - len(ids))]
