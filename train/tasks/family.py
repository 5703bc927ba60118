"""Any family of generative models (`ldm.baselines`) as a task: its parts are phases, its loss is the loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.baselines.family import Family, Form, make
from ldm.baselines.stored import save_family
from ldm.data.batch import Batch
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.latents import picture
from train.tasks.sampling import evaluating, examples
from train.tasks.settings import FamilySettings

SHOWN = 16  # pictures of a preview


class FamilyTask:
    """With classes in the data set, a model that is told them; where nobody says which, of all of them."""

    def __init__(self, settings: FamilySettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.classes = setting.classes if settings.conditional else ()
        self.form = Form(setting.size, len(self.classes))
        self.model = make(settings.family, settings.options, self.form, setting.seed)
        self.exact, self.exception = self.model.exact, self.model.exception
        began = time.perf_counter()
        first = examples(setting, self.model.first)
        self.model.begin(picture(first), self._label(first))
        self.begun = time.perf_counter() - began  # seconds, which a budget of time counts

    def networks(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def phases(self) -> list[Phase]:
        return phases_of(self.model, self.setting.steps)

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        return None

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        each, told = self.model.loss(turn.phase, picture(batch), self._label(batch), turn.draws)
        return turn.mean(each), {name: turn.mean(value.detach()) for name, value in told.items()}

    @torch.no_grad()
    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        """Bits per dimension where the family tells them, else what its first part loses."""
        x, label = picture(batch), self._label(batch)
        with evaluating(self.model):
            if self.model.facts.likelihood != "none":
                return {"bits": self.model.bits_per_dim(x, label, draws)}
            return {"loss": self.model.loss(self.model.parts()[0].name, x, label, draws)[0]}

    def preview(self, seed: int) -> dict[str, Tensor]:
        """Samples from the same noise each time, of the classes in turn."""
        label = torch.arange(SHOWN) % len(self.classes) if self.classes else None
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            told = None if label is None else label.to(device)
            return {"samples": self.model.sample(SHOWN, told, torch.Generator().manual_seed(seed))}

    def save(self, folder: Path) -> None:
        own = self.settings
        save_family(folder, own.family, own.options, self.model, self.form, self.classes, self.setting.name)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch.label if self.classes else None


def phases_of(model: Family, steps: int) -> list[Phase]:
    """Shares of the run become steps; the last ones end with it."""
    return [
        Phase(
            part.name,
            part.params,
            part.rate,
            part.every,
            round(part.start * steps),
            None if part.end >= 1 else round(part.end * steps),
            part.average,
        )
        for part in model.parts()
    ]
