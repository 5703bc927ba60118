"""Captions to what a U-Net is told: hidden states of one CLIP text tower, trained along or frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.clip import token_rows
from ldm.models.text_tower import Tower
from train.draws import Draws


class Words(nn.Module):
    """The sha256 of a tokenizer as a buffer: so a checkpoint knows whose numbers its embeddings belong to."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.own = _digest(tokenizer)
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


def _digest(tokenizer: CLIPTokenizer) -> Tensor:
    """[32] uint8, of vocabulary and merges."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    text = json.dumps([model["vocab"], model["merges"]], sort_keys=True)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)


class Captions:
    """A tokenizer and its tower. Captions are plain text here, no weights, no brackets; cut to the tower's length."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel, trained: bool) -> None:
        self.tokenizer, self.trained = tokenizer, trained
        self.tower = Tower(model, tokenizer)
        self.words = Words(tokenizer)
        self._empty: Tensor | None = None

    @property
    def model(self) -> Any:
        return self.tower.model

    @property
    def width(self) -> int:
        return self.tower.width

    def ids(self, texts: Sequence[str]) -> Tensor:
        """[n,L] on the CPU: start, text, end, padding; the text cleaned as prompts are."""
        return token_rows(self.tower.vocabulary, texts)

    def states(self, texts: Sequence[str]) -> Tensor:
        """[n,L,D] hidden states behind the final norm; equal captions are read once."""
        self.words.check()
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        device = next(self.model.parameters()).device
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            read: Tensor = self.model(self.ids(list(rows)).to(device)).last_hidden_state
        if len(rows) == len(texts):
            return read
        return read[torch.tensor([rows[text] for text in texts], device=device)]

    def told(self, draws: Draws, batch: Batch, drop: float) -> Tensor:
        """[n,L,D] of a batch, each caption dropped to the empty prompt with the chance `drop`.

        States that were cached are taken where the tower is frozen.
        """
        if not batch.text and "text_states" not in batch.extra:
            return self.empty(len(batch))
        dropped = draws.uniform("drop caption") < drop
        cached = batch.extra.get("text_states")
        if cached is not None and not self.trained:
            return torch.where(dropped.view(-1, 1, 1), self.empty(len(batch)), cached.float())
        if not batch.text:
            raise LdmError(
                Code.USAGE,
                "the captions of the data set are not there",
                "the text tower is trained along, and only its cached states were given",
                "Leave the text cache out, or set task.train_text to false.",
            )
        return self.states(["" if gone else text for text, gone in zip(batch.text, dropped.tolist(), strict=True)])

    def empty(self, count: int) -> Tensor:
        """[count,L,D] of the empty prompt."""
        if self.trained:
            return self.states([""]).expand(count, -1, -1)
        if self._empty is None:
            self._empty = self.states([""]).float()
        return self._empty.expand(count, -1, -1)
