"""Captions to what a U-Net is told: hidden states of the CLIP text towers of a model, trained along or frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.clip import token_rows
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.latent import Cond
from ldm.models.text_tower import Tower
from train.draws import Draws
from train.tasks.learned import Learned


class Words(nn.Module):
    """The sha256 of the tokenizers as a buffer: so a checkpoint knows whose numbers its embeddings belong to."""

    def __init__(self, tokenizers: Sequence[ClipTokenizer]) -> None:
        super().__init__()
        self.own = torch.cat([_digest(tokenizer) for tokenizer in tokenizers])
        self.digest: Tensor
        self.register_buffer("digest", self.own.clone())
        self._checked = False

    def check(self) -> None:
        """Once, after a checkpoint may have been read."""
        if self._checked:
            return
        if not torch.equal(self.digest.cpu(), self.own):
            raise LdmError(
                Code.MODEL,
                "the checkpoint belongs to another tokenizer",
                "the captions of the data set have changed since this run began, and its tokenizer is made from them",
                "Restore the data set, or start in a new run folder; task.tokenizer may name the old tokenizer there.",
            )
        self._checked = True


def _digest(tokenizer: ClipTokenizer) -> Tensor:
    """[32] uint8, of vocabulary and merges."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    text = json.dumps([model["vocab"], model["merges"]], sort_keys=True)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)


class Captions:
    """The text towers of a model (two of XL), and captions as the U-Net is told them."""

    def __init__(
        self,
        towers: Sequence[tuple[ClipTokenizer, Any]],
        trained: bool,
        *,
        xl: bool = False,
        zero_null: bool = False,
    ) -> None:
        self.trained, self.xl, self.zero_null = trained, xl, zero_null
        self.towers = tuple(Tower(model, tokenizer) for tokenizer, model in towers)
        self.tokenizers = tuple(tokenizer for tokenizer, _ in towers)
        self.words = Words(self.tokenizers)
        self.model: Any = self.towers[0].model if len(towers) == 1 else nn.ModuleList(t.model for t in self.towers)
        self.learned: Learned | None = None
        self._empty: Cond | None = None

    @property
    def tokenizer(self) -> ClipTokenizer:
        return self.tokenizers[0]

    @property
    def width(self) -> int:
        """Of what cross-attention reads: the towers stand side by side."""
        return sum(tower.width for tower in self.towers)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """[n,L] on the CPU: start, text, end, padding; the text cleaned as prompts are."""
        return token_rows(self.towers[0].vocabulary, texts)

    def read(self, texts: Sequence[str]) -> Cond:
        """Hidden states behind the final norm; of XL those before the last layer, and the pooled text. Equal captions
        are read once."""
        self.words.check()
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        device = next(self.model.parameters()).device
        learns = self.trained or self.learned is not None
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            read = [self._tower(place, list(rows), device) for place in range(len(self.towers))]
        states, pooled = torch.cat([text for text, _ in read], dim=-1), read[-1][1]
        if len(rows) < len(texts):
            index = torch.tensor([rows[text] for text in texts], device=device)
            states, pooled = states[index], None if pooled is None else pooled[index]
        return Cond(text=states, pooled=pooled)

    def states(self, texts: Sequence[str]) -> Tensor:
        """[n,L,D] of a model with one tower."""
        states = self.read(texts).text
        assert states is not None
        return states

    def _tower(self, place: int, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor | None]:
        tower: Any = self.towers[place]
        if self.learned is not None:
            with self.learned.put_in(place, tower, texts) as ids:
                read = tower.model(ids.to(device))
        else:
            read = tower.model(token_rows(tower.vocabulary, texts).to(device))
        if not self.xl:
            return tower.final_norm(read.states[-1]), None
        return read.states[-2], read.pooled if tower.projects else None

    def told(self, draws: Draws, batch: Batch, drop: float) -> Cond:
        """A batch as the U-Net is told it, each caption dropped to the empty prompt with the chance `drop`.

        States that were cached are taken where nothing of the text is learned.
        """
        if not batch.text and "text_states" not in batch.extra:
            return self.null(len(batch))
        dropped = dropped_captions(draws, drop)
        cached = batch.extra.get("text_states")
        if cached is not None and not self.trained and self.learned is None:
            null = self.null(len(batch))
            assert null.text is not None
            states = torch.where(dropped.view(-1, 1, 1), null.text, cached.float())
            if null.pooled is None:
                return Cond(text=states)
            pooled = torch.where(dropped.view(-1, 1), null.pooled, batch.extra["text_pooled"].float())
            return Cond(text=states, pooled=pooled)
        if not batch.text:
            raise LdmError(
                Code.USAGE,
                "the captions of the data set are not there",
                "something of the text is trained along, and only its cached states were given",
                "Leave the text cache out, or set task.train_text to false.",
            )
        texts = ["" if gone else text for text, gone in zip(batch.text, dropped.tolist(), strict=True)]
        cond = self.read(texts)
        return _without(cond, dropped) if self.zero_null else cond

    def null(self, count: int) -> Cond:
        """The empty prompt; of a model that is told nothing at all instead (XL), zeros."""
        if self.trained and not self.zero_null:
            return _repeated(self.read([""]), count)
        if self._empty is None:
            read = self.read([""])
            self._empty = Cond(text=_fixed(read.text, self.zero_null), pooled=_fixed(read.pooled, self.zero_null))
        return _repeated(self._empty, count)

    def empty(self, count: int) -> Tensor:
        """[count,L,D] of the empty prompt."""
        states = self.null(count).text
        assert states is not None
        return states

    def cached(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a text cache keeps of captions."""
        read = self.read(texts)
        assert read.text is not None
        return {"text_states": read.text} | ({} if read.pooled is None else {"text_pooled": read.pooled})


def _without(cond: Cond, dropped: Tensor) -> Cond:
    """Zeros where a caption is dropped."""
    kept = (~dropped).float()
    assert cond.text is not None
    pooled = None if cond.pooled is None else cond.pooled * kept.view(-1, 1)
    return Cond(text=cond.text * kept.view(-1, 1, 1), pooled=pooled)


def _fixed(read: Tensor | None, zero: bool) -> Tensor | None:
    return None if read is None else read.detach().float() * (0.0 if zero else 1.0)


def _repeated(one: Cond, count: int) -> Cond:
    assert one.text is not None
    pooled = None if one.pooled is None else one.pooled.expand(count, -1)
    return Cond(text=one.text.expand(count, -1, -1), pooled=pooled)


def dropped_captions(draws: Draws, drop: float) -> Tensor:
    """[n]: which captions of a batch are dropped to the empty prompt."""
    return draws.uniform("drop caption") < drop
