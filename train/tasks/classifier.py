"""A small classifier of caption words: a perceptual measure for those who have neither CLIP nor LPIPS."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.perceptual import SmallClassifier
from ldm.store.write import staged, write_weights
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.latents import picture
from train.tasks.parts import seeded
from train.tasks.perceptual import WEIGHTS
from train.tasks.settings import ClassifierSettings

_WORD = re.compile(r"[^\W_]+")
_COMMON = 0.9  # a word that more captions than this have says nothing


class NoWordsError(LdmError):
    """Captions that tell no picture from another."""


class ClassifierTask:
    """One phase. The loss is the binary cross-entropy of each word; places in a picture vote alike."""

    exact = True
    exception = ""

    def __init__(self, settings: ClassifierSettings, setting: Setting) -> None:
        self.setting = setting
        self.words = common_words(setting.captions(), settings.words)
        self.number = {word: i for i, word in enumerate(self.words)}
        with seeded(setting.seed):
            self.net = SmallClassifier(len(self.words), settings.widths)

    def networks(self) -> dict[str, nn.Module]:
        return {"classifier": self.net}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def phases(self) -> list[Phase]:
        return [Phase("classifier", list(self.net.parameters()), average=True)]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        """Nothing that is known of a whole batch matters."""

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        return turn.mean(self._loss(self.net.logits(picture(batch)), self._wanted(batch))), {}

    @torch.no_grad()
    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        """`found`: of a picture with k words, the share of them among its k most probable."""
        logits, wanted = self.net.logits(picture(batch)).float(), self._wanted(batch)
        count = wanted.sum(1)
        rank = logits.argsort(1, descending=True).argsort(1)
        hits = ((rank < count[:, None]) & (wanted > 0)).sum(1)
        return {"loss": self._loss(logits, wanted), "found": hits / count.clamp(min=1)}

    def preview(self, seed: int) -> dict[str, Tensor]:
        """It makes no pictures."""
        return {}

    def save(self, folder: Path) -> None:
        with staged(folder) as stage:
            stage.mkdir()
            write_weights(stage / WEIGHTS, self.net.state_dict(), {"ldm.run": self.setting.name})
            config = {**self.net.config, "words": self.words}
            (stage / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _wanted(self, batch: Batch) -> Tensor:
        """[n,words] of 0 and 1."""
        wanted = torch.zeros(len(batch), len(self.words))
        for row, text in enumerate(batch.text):
            for word in _WORD.findall(text.lower()):
                if (number := self.number.get(word)) is not None:
                    wanted[row, number] = 1.0
        return wanted.to(batch.places.device)

    def _loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(1)


def common_words(captions: Iterable[str], most: int) -> list[str]:
    """The commonest words that more than one caption has, and not nearly all; those of one count by the alphabet."""
    counts: Counter[str] = Counter()
    total = 0
    for caption in captions:
        counts.update(set(_WORD.findall(caption.lower())))
        total += 1
    telling = [(word, n) for word, n in counts.items() if 1 < n <= _COMMON * total]
    words = [word for word, _ in sorted(telling, key=lambda pair: (-pair[1], pair[0]))[:most]]
    if len(words) < 2:
        raise NoWordsError(
            Code.USAGE,
            f"The {total} captions have no words to tell pictures apart by.",
            "A word must stand in several captions, and not in nearly all.",
            "Give the pictures captions, or use the image tower of a CLIP (task clip).",
        )
    return words
