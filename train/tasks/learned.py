"""Words that are learned (textual inversion, Gal 2022): vectors in the place of a token, for each text tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.adapters import Embedding
from ldm.models.prompt import Piece, clean, lay_out
from ldm.models.text_tower import Tower


class Learned(nn.Module):
    """`token` stands for n vectors in each tower; at first those of the words in `begin`, told again and again."""

    def __init__(self, token: str, count: int, towers: Sequence[Tower], begin: str) -> None:
        super().__init__()
        self.token = clean(token)
        self.vectors = nn.ParameterList(nn.Parameter(_first(tower, begin, count)) for tower in towers)

    def recomputes(self, unet: Any) -> None:
        """`run.checkpointing` acts on the U-Net that these are learned through."""
        self.recompute = unet.recompute

    @contextmanager
    def put_in(self, place: int, tower: Tower, texts: Sequence[str]) -> Iterator[Tensor]:
        """The ids [n,L] of captions; while this is open, the tower's embeddings of the token are its vectors."""
        vectors, vocabulary = self.vectors[place], tower.vocabulary
        filler = 0 if vocabulary.eos != 0 else 1  # any but EOS, which marks the end and the pooled position
        spots: list[tuple[int, int, int]] = []  # caption, column, vector
        ids = []
        for row, text in enumerate(texts):
            chunk = lay_out(((Piece(clean(text)),),), vocabulary, "a1111", {self.token: len(vectors)}, limit=1).chunks[
                0
            ]
            ids.append(vocabulary.wrap([filler if t.name is not None else t.id for t in chunk]))
            spots += [(row, i, t.row) for i, t in enumerate(chunk, start=1) if t.name is not None]  # 0 is BOS

        def replace(module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor:
            if not spots:  # captions without the word: its gradient is zero, not missing
                untouched: Tensor = embedded + 0.0 * vectors.sum()
                return untouched
            embedded = embedded.clone()
            rows, columns, which = zip(*spots, strict=True)
            embedded[list(rows), list(columns)] = vectors[list(which)].to(embedded)
            return embedded

        handle = tower.model.tokens().register_forward_hook(replace)
        try:
            yield torch.tensor(ids)
        finally:
            handle.remove()

    def embedding(self, source: str, family: str) -> Embedding:
        """As it is saved and shared."""
        names = ("clip_l", "clip_g") if len(self.vectors) > 1 else ("clip_l",)
        vectors = {name: v.detach().float().cpu().clone() for name, v in zip(names, self.vectors, strict=True)}
        return Embedding(self.token, vectors, family, source)


def _first(tower: Tower, begin: str, count: int) -> Tensor:
    """[n,D]: the embeddings of the words to begin with, in turn."""
    vocabulary = tower.vocabulary
    known = [spot.id for spot in vocabulary.spots([clean(begin)])[0] if spot.id not in (vocabulary.bos, vocabulary.eos)]
    if not known:
        raise LdmError(
            Code.USAGE,
            f"task.begin={begin!r} says nothing to the text tower.",
            "A new word begins as a word that the model knows, and none of these is in its vocabulary.",
            "Name the kind of thing that is learned, such as task.begin=dog.",
        )
    table: Tensor = tower.model.tokens().weight
    return table[[known[i % len(known)] for i in range(count)]].detach().float().clone()
