"""A prompt to what the U-Net is told: towers, chunks, clip-skip, weights and learned tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.prompt import MAX_CHUNKS, Explanation, Layout, Prompt, Token, clean, explain, lay_out, parse
from ldm.models.text_tower import Hidden, Tower
from ldm.models.text_weights import blended, from_empty, restored_mean

__all__ = ["Encoded", "TextEncoder", "Tower"]


@dataclass(frozen=True)
class Encoded:
    """An encoded prompt: text [1, chunks * positions, D]; pooled [1,P] of the first chunk, where a tower projects."""

    text: Tensor
    pooled: Tensor | None
    dropped: tuple[str, ...] = ()  # words beyond the chunk limit


class TextEncoder:
    """The text towers of a model, side by side.

    SD 1: one tower, layer "last", final_norm. SD 2: the same for a folder whose tower has 23 layers, "penultimate" and
    final_norm for one with 24. XL: two towers (the refiner: the second one), "penultimate", no final_norm.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        *,
        layer: Literal["last", "penultimate"] = "last",
        final_norm: bool = True,
        max_chunks: int = MAX_CHUNKS,
    ) -> None:
        if not towers:
            raise ValueError("a text encoder needs at least one tower")
        self.towers = tuple(towers)
        self.layer, self.final_norm, self.max_chunks = layer, final_norm, max_chunks

    def encode(
        self,
        prompt: str | Prompt,
        *,
        dialect: str = "a1111",
        clip_skip: int = 0,
        at: float = 0.0,
        chunks: int | None = None,
        steps: int | None = None,
    ) -> Encoded:
        """What holds at the fraction `at` of the run. `chunks`: pad with empty chunks to so many.

        `clip_skip` leaves out that many more layers, as stock diffusers counts; `steps` as in `parse`.
        """
        parsed = self._parsed(prompt, dialect, steps)
        layouts = self._layouts(parsed, at)
        needed = max(len(layout.chunks) for layout in layouts)
        if chunks is not None and chunks < needed:
            raise ValueError(f"the prompt needs {needed} chunks, more than the {chunks} it was to be padded to")
        texts, pooled = [], None
        for tower, layout in zip(self.towers, layouts, strict=True):
            reader = _Reader(tower, self._index(tower, clip_skip), self.final_norm, layout)
            padded = [*layout.chunks, *[()] * ((chunks or needed) - len(layout.chunks))]
            texts.append(torch.cat([reader.weighted(chunk, parsed.dialect) for chunk in padded], dim=1))
            projected = reader.read(padded[0]).pooled
            pooled = pooled if projected is None else projected
        dropped = max((layout.dropped for layout in layouts), key=len)
        return Encoded(torch.cat(texts, dim=-1), pooled, dropped)

    def chunks(
        self, prompt: str | Prompt, *, dialect: str = "a1111", at: float | None = None, steps: int | None = None
    ) -> int:
        """How many chunks the prompt needs at the fraction `at`; None: the most it needs at any part of the run."""
        parsed = self._parsed(prompt, dialect, steps)
        texts = {parsed.at(fraction): fraction for fraction in ((0.0, *parsed.switches) if at is None else (at,))}
        return max(len(layout.chunks) for fraction in texts.values() for layout in self._layouts(parsed, fraction))

    def explain(
        self, prompt: str | Prompt, dialect: str = "a1111", *, at: float = 0.0, steps: int | None = None
    ) -> Explanation:
        """The prompt as the first tower reads it. Without a model at hand: `ldm.models.prompt.explain`."""
        tower, parsed = self.towers[0], self._parsed(prompt, dialect, steps)
        return explain(parsed, tower.vocabulary, at=at, learned=tower.lengths, limit=self.max_chunks)

    def add_embedding(self, token: str, vectors: Sequence[Tensor | None]) -> None:
        """`token` stands for vectors [n,D] or [D] from now on, one entry per tower; None: that tower reads the word."""
        name = clean(token)
        if not name:
            raise _unfit(token, "its name is empty", "give the embedding a name that can be written in a prompt")
        if any(name.lower() == known.lower() for tower in self.towers for known in tower.learned):
            raise _unfit(token, "there is an embedding of that name already", "rename one of the two files")
        if len(vectors) != len(self.towers) or all(v is None for v in vectors):
            why = f"it has vectors for {len(vectors)} text encoders, and the model has {len(self.towers)}"
            raise _unfit(token, why, "use an embedding made for this model family")
        checked = [None if v is None else _checked(token, v, t) for v, t in zip(vectors, self.towers, strict=True)]
        for tower, vector in zip(self.towers, checked, strict=True):
            if vector is not None:
                tower.learned[name] = vector

    def clear_embeddings(self) -> None:
        """Forget every token that was added; models and tokenizers were never touched."""
        for tower in self.towers:
            tower.learned.clear()

    def _parsed(self, prompt: str | Prompt, dialect: str, steps: int | None) -> Prompt:
        return parse(prompt, dialect, steps=steps) if isinstance(prompt, str) else prompt

    def _layouts(self, prompt: Prompt, at: float) -> list[Layout]:
        sections = prompt.sections(at)
        return [lay_out(sections, t.vocabulary, prompt.dialect, t.lengths, self.max_chunks) for t in self.towers]

    def _index(self, tower: Tower, clip_skip: int) -> int:
        """Which hidden state is used, counted from the last one: -1 is the last layer's."""
        index = -(1 if self.layer == "last" else 2) - clip_skip
        layers = int(tower.model.config.num_hidden_layers)
        if clip_skip < 0 or -index > layers + 1:
            raise LdmError(
                Code.USAGE,
                f"clip_skip {clip_skip} leaves no layer",
                f"a text encoder of this model has {layers} layers",
                f"choose a clip_skip from 0 to {layers + 1 + index + clip_skip}",
            )
        return index


class _Reader:
    """Reads the chunks of one prompt with one tower. Each different chunk is encoded once, and alone."""

    def __init__(self, tower: Tower, index: int, final_norm: bool, layout: Layout) -> None:
        self.tower, self.index, self.final_norm = tower, index, final_norm
        self.light = {t.piece: t.weight for chunk in layout.chunks for t in chunk if t.weight < 1}
        self._known: dict[tuple[tuple[tuple[int, str | None, int], ...], tuple[int, ...]], Hidden] = {}

    def read(self, chunk: Sequence[Token], masked: Sequence[int] = ()) -> Hidden:
        key = tuple((t.id, t.name, t.row) for t in chunk), tuple(masked)
        if key not in self._known:
            self._known[key] = self.tower.read(chunk, self.index, masked)
        return self._known[key]

    @torch.no_grad()
    def state(self, chunk: Sequence[Token], masked: Sequence[int] = ()) -> Tensor:
        z = self.read(chunk, masked).state
        return self.tower.final_norm(z) if self.final_norm else z

    def weighted(self, chunk: Sequence[Token], dialect: str) -> Tensor:
        """The hidden states [1,L,D] of a chunk after its weights have acted, in the type of the tower."""
        z = self.state(chunk)
        if all(token.weight == 1 for token in chunk):
            return z  # and compel's blend is of equal parts then
        weights = torch.ones(z.shape[1])
        weights[1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
        if dialect == "a1111":
            return restored_mean(z.float(), weights).to(z.dtype)
        empty = self.state(()).float()
        scaled = from_empty(z.float(), empty, weights)
        if dialect == "compel":  # a light piece of another chunk pulls towards this chunk as it is
            places = {piece: [i for i, t in enumerate(chunk) if t.piece == piece] for piece in self.light}
            gone = {piece: self.state(chunk, masked).float() for piece, masked in places.items() if masked}
            without = [
                (weight, from_empty(gone[piece], empty, weights) if piece in gone else scaled)
                for piece, weight in self.light.items()
            ]
            scaled = blended(scaled, without)
        return scaled.to(z.dtype)


def _checked(token: str, vectors: Tensor, tower: Tower) -> Tensor:
    vectors = vectors.detach()
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or vectors.shape[1] != tower.width or len(vectors) == 0:
        why = f"its vectors are {list(vectors.shape)}, and a text encoder of this model reads [n, {tower.width}]"
        raise _unfit(token, why, "use an embedding made for this model family")
    if not bool(torch.isfinite(vectors).all()):
        raise _unfit(token, "its vectors hold numbers that are not finite", "fetch or train the embedding again")
    return vectors.clone()


def _unfit(token: str, why: str, fix: str) -> LdmError:
    return LdmError(Code.MODEL, f"embedding {token!r} cannot be used", why, fix)
