"""One CLIP text tower: chunks of token ids to hidden states, with learned vectors put in for the call only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.nets.known import ours
from ldm.models.nets.text import ProjectedTextTower, TextTower
from ldm.models.prompt import Token
from ldm.models.tokenizer import Vocabulary


@dataclass(frozen=True)
class Hidden:
    """The hidden states [1,L,D] after one layer, and the projected pooled text [1,P], if the tower projects."""

    state: Tensor
    pooled: Tensor | None


class Tower:
    """A text tower with its tokenizer. Neither is ever changed."""

    def __init__(self, model: TextTower | ProjectedTextTower, tokenizer: ClipTokenizer) -> None:
        positions, entries = int(model.config.max_position_embeddings), int(model.config.vocab_size)
        declared = int(tokenizer.model_max_length)
        if len(tokenizer) > entries:
            raise LdmError(
                Code.MODEL,
                f"the tokenizer has {len(tokenizer)} entries and the text encoder {entries}",
                "they do not belong together",
                "take the tokenizer and the text encoder from the same model",
            )
        self.model: Any = ours(model)
        self.vocabulary = Vocabulary(tokenizer, min(positions, declared))
        self.learned: dict[str, Tensor] = {}

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def final_norm(self) -> nn.Module:
        """The layer norm behind the last layer."""
        norm: nn.Module = self.model.final_layer_norm
        return norm

    @property
    def projects(self) -> bool:
        return isinstance(self.model, ProjectedTextTower)

    @property
    def lengths(self) -> Mapping[str, int]:
        """How many vectors each learned token has in this tower."""
        return {name: len(vectors) for name, vectors in self.learned.items()}

    @torch.no_grad()
    def read(self, chunk: Sequence[Token], index: int = -1, masked: Sequence[int] = ()) -> Hidden:
        """Encode one chunk; `index` of the layer, -1 the last (before the final norm).

        `masked` places of the chunk are kept from the attention, as if those tokens were not there.
        """
        # A learned vector needs some id in its place: any but EOS, which marks the end and the pooled position.
        filler = 0 if self.vocabulary.eos != 0 else 1
        ids = self.vocabulary.wrap([filler if token.name is not None else token.id for token in chunk])
        device = self.model.device
        mask = None
        if masked:
            mask = torch.ones(1, len(ids), dtype=torch.long, device=device)
            mask[0, [i + 1 for i in masked]] = 0
        with self._put_in(chunk):
            read = self.model(torch.tensor([ids], device=device), mask)
        return Hidden(read.states[index], read.pooled if self.projects else None)

    @contextmanager
    def _put_in(self, chunk: Sequence[Token]) -> Iterator[None]:
        """While this is open, the embedding of each learned token is its vector. Position 0 is BOS."""
        rows = {i + 1: self.learned[t.name][t.row] for i, t in enumerate(chunk) if t.name is not None}

        def replace(module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor:
            embedded = embedded.clone()
            for place, vector in rows.items():
                embedded[:, place] = vector.to(embedded)
            return embedded

        handle = self.model.tokens().register_forward_hook(replace) if rows else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
