"""Both towers of CLIP, from nothing or from weights: pictures and captions learn to find each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.attention import quick_attention
from ldm.models.clip import prepare, token_rows
from ldm.models.open_clip_config import image_facts, side_of
from ldm.models.tokenizer import Vocabulary
from ldm.store.clip import OpenClip, save_clip
from train.clip_model import MOST, saved_state, start
from train.contrastive import Features, Pull, found, pull, sigmoid_loss, softmax_loss
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.settings import ClipSettings

_SHOWN, _CELL = 12, 32  # pictures in a preview, and the side of each
_WORDS = "vocabulary_hash"  # buffer: a checkpoint knows the tokenizer that its numbers belong to


class ClipTask:
    """open_clip's model and loss.

    The tokenizer and the preparation of pictures are fixed at the start; an architecture that could not be written for
    others at the end is refused at the start, too.
    """

    exact = True
    exception = ""

    def __init__(self, settings: ClipSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        model, self.about = start(settings, setting.captions, setting.seed)
        self.model: Any = model
        self.side = side_of(self.about.config)
        patches = (self.side // int(image_facts(self.about.config)["patch_size"])) ** 2
        self.tokens = max(patches + 1, int(model.context_length))  # of the longer sequence
        self.vocabulary = Vocabulary(self.about.tokenizer, int(model.context_length))
        self.pair_loss = softmax_loss if settings.loss == "clip" else sigmoid_loss
        model.register_buffer(_WORDS, _fingerprint(self.about))
        self._checked = False

    def networks(self) -> dict[str, nn.Module]:
        return {"clip": self.model}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def phases(self) -> list[Phase]:
        return [Phase("clip", [p for p in self.model.parameters() if p.requires_grad], average=True)]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> Pull:
        """The derivative of the whole batch's loss by every feature.

        The first micro-batch comes last and keeps its graph: it need not run again, and a batch in one piece costs no
        more than without all this.
        """
        self._check_words()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MOST)
        rows = [self._rows(micro) for micro in micros]
        with torch.no_grad():
            others = [self._features(micro, r) for micro, r in zip(micros[1:], rows[1:], strict=True)]
        torch.clear_autocast_cache()  # what was cast without gradients is of no use with them; not every torch knows
        with torch.enable_grad():
            first = self._features(micros[0], rows[0])
        whole = Features(
            torch.cat([f.image.detach() for f in (first, *others)]),
            torch.cat([f.text.detach() for f in (first, *others)]),
            first.scale,
            first.bias,
        )
        groups = torch.cat([self._groups(micro, r) for micro, r in zip(micros, rows, strict=True)])
        made = pull(torch.cat([micro.places for micro in micros]), groups, whole, self.pair_loss)
        made.first.append((micros[0].places, first))
        return made

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        known: Pull = turn.context if turn.context is not None else self.context(turn, [batch])
        features = known.take(batch.places)
        if features is None:
            features = self._features(batch, self._rows(batch))
        return known.part(batch.places, features)

    @torch.no_grad()
    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        """Loss and retrieval within the batch: 1 where the nearest caption (picture) is a right one."""
        self._check_words()
        rows = self._rows(batch)
        groups = self._groups(batch, rows)
        logits, equal = self._features(batch, rows).logits(), groups[:, None] == groups[None]
        to_text, to_image = found(logits, equal)
        return {"loss": self.pair_loss(logits, equal), "image_to_text": to_text, "text_to_image": to_image}

    @torch.no_grad()
    def preview(self, seed: int) -> dict[str, Tensor]:
        """Some training pictures, one a row, and how probable each of their captions is: a bright diagonal is right."""
        device = next(self.model.parameters()).device
        batch = next(iter(self.setting.look(_SHOWN)))[:_SHOWN].to(device)
        logits = self._features(batch, self._rows(batch)).logits()
        shown = logits.softmax(1) if self.settings.loss == "clip" else logits.sigmoid()
        pictures = F.interpolate(_pictures(batch), (_CELL, _CELL), mode="bilinear", antialias=True).clamp(-1, 1)
        column = pictures.permute(1, 0, 2, 3).reshape(3, -1, _CELL)
        table = (shown * 2 - 1).repeat_interleave(_CELL, 0).repeat_interleave(_CELL, 1)
        return {"similarity": torch.cat([column, table.expand(3, -1, -1)], dim=2)[None].float().cpu()}

    def save(self, folder: Path) -> None:
        """For open_clip, for transformers, and for `ldm.store.clip.load_clip`."""
        about = self.about
        state = {n: t for n, t in saved_state(self.model, about.config).items() if n != _WORDS}
        save_clip(OpenClip(about.config, about.tokenizer, state, about.mean, about.std), folder)

    def _rows(self, batch: Batch) -> Tensor:
        """[n,L] on the CPU: the captions as the tower reads them."""
        return token_rows(self.vocabulary, batch.text)

    def _features(self, batch: Batch, rows: Tensor) -> Features:
        image = prepare(_pictures(batch), self.side, self.about.mean, self.about.std)
        with nullcontext() if self._recomputes() else quick_attention(self.tokens, image.device):
            out = self.model(image, rows.to(image.device))
        bias = out.get("logit_bias") if self.settings.loss == "siglip" else None
        return Features(
            out["image_features"].float(),
            out["text_features"].float(),
            out["logit_scale"].float().reshape(()),
            None if bias is None else bias.float().reshape(()),
        )

    def _recomputes(self) -> bool:
        """Whether activations are made anew in the backward pass: then by the same kernels, outside any context."""
        return any(getattr(module, "grad_checkpointing", False) for module in self.model.modules())

    def _groups(self, batch: Batch, rows: Tensor) -> Tensor:
        """[n] int64: equal where the tower reads the same words; without `merge_equal`, every example is its own."""
        if not self.settings.merge_equal:
            return batch.places
        digests = [hashlib.sha256(row.tobytes()).digest() for row in rows.numpy()]
        return torch.tensor([_number(digest[:8]) for digest in digests], device=batch.places.device)

    def _check_words(self) -> None:
        """Once, after a checkpoint may have been read: its numbers mean the words of this run's tokenizer."""
        if self._checked:
            return
        known = getattr(self.model, _WORDS)
        if not torch.equal(known.cpu(), _fingerprint(self.about)):
            raise LdmError(
                Code.MODEL,
                "The checkpoint belongs to another tokenizer.",
                "The captions of the data set have changed since this run began, and its tokenizer is made from them.",
                "Restore the data set, or start in a new run folder; task.tokenizer may name the old tokenizer there.",
            )
        self._checked = True


def _pictures(batch: Batch) -> Tensor:
    if batch.image is None or len(batch.text) != len(batch):
        raise LdmError(
            Code.USAGE,
            "Examples without a picture or a caption cannot train a CLIP.",
            "It learns which caption belongs to which picture.",
            "Give each picture a caption, and leave latent caches out.",
        )
    return batch.image


def _fingerprint(about: OpenClip) -> Tensor:
    """[4] int64: the SHA-256 of the tokenizer's file."""
    digest = hashlib.sha256(about.tokenizer.backend_tokenizer.to_str().encode()).digest()
    return torch.tensor([_number(digest[i : i + 8]) for i in range(0, 32, 8)])


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little", signed=True)
