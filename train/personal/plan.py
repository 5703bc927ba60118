"""From what was asked to a run file: how long, how fast, on what. Everything that nobody said is chosen here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm.data.settings import DataSettings, Part
from ldm.models.tokenizer import Vocabulary
from ldm.store.find import find_model
from ldm.store.parts import Parts, load_parts
from pipelines.device import pick_device
from train.config import OptimSettings, RunFile, RunSettings
from train.personal.photos import Photos
from train.personal.probe import CAPTIONS, PHOTO, Prompts, filled, own_prompts, prompts_for
from train.personal.settings import Wish
from train.personal.token import remarks
from train.tasks.settings import InversionSettings, LoraSettings

SMALL = 100_000_000  # parameters of a U-Net below which it is one of ours, trained fast and at high rates
PRIOR = 96  # pictures of the model itself
PART = 1 / 3  # of each batch that they are
DROPPED = 0.1  # of captions
ZOOM = 1.15  # photos are shown enlarged up to this
PRESERVED = 18.0  # weight of what the model says of them (docs/decisions.md says what it brings, and what it costs)


@dataclass(frozen=True)
class Base:
    """What must be known of the model before anything is planned."""

    path: Path
    size: int  # of its pictures
    small: bool
    known: frozenset[str]
    vocabulary: Vocabulary


def base_of(model: str) -> Base:
    """Of the weights nothing is kept: training loads its own."""
    path = find_model(model)
    parts: Parts = load_parts(path)
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    size = int(parts.unet.config.sample_size or 64) * factor
    count = sum(p.numel() for p in parts.unet.parameters())
    tokenizer, tower = parts.towers[0]
    return Base(path, size, count < SMALL, parts.words, Vocabulary(tokenizer, tower.config.max_position_embeddings))


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first step."""

    wish: Wish
    base: Base
    size: int
    steps: int
    prior: int
    prompts: Prompts
    notes: tuple[str, ...]

    @property
    def every(self) -> int:
        """Steps between two checkpoints."""
        return -(-self.steps // self.wish.checkpoints)

    @property
    def seeds(self) -> int:
        """Pictures of each prompt of the subject at a checkpoint; of a large model they cost more than training."""
        return 4 if self.base.small else 1

    @property
    def other_seeds(self) -> int:
        """Pictures of each prompt without the subject."""
        return min(2, self.seeds)

    @property
    def batch(self) -> int:
        """Photos of a step."""
        return self.wish.batch or (4 if self.base.small else 1)

    @property
    def together(self) -> int:
        """Photos of a step, and beside them pictures of the model itself."""
        return math.ceil(self.batch / (1 - PART))

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """Half where a large model meets a card; a processor without its instructions is slower at it."""
        if self.wish.precision is not None:
            return self.wish.precision
        cpu = pick_device(self.wish.device or "auto").type == "cpu"
        return "fp32" if self.base.small or cpu else "bf16"

    def run_file(self, photos: Photos, prior: Path | None) -> RunFile:
        """What the trainer is told. A run of the same wish has the same."""
        wish, run = self.wish, self.wish.out / "run" / self.wish.name  # which is the adapter's title
        mask = "beside" if photos.masked else "none"
        training = photos.training.resolve()  # a run of data elsewhere is another one, and --out may be said otherwise
        parts = [Part(path=str(training), repeats=self._repeats(len(list(training.glob("*.png")))), weight=1 - PART)]
        if prior is not None:
            parts.append(Part(path=str(prior.resolve()), repeats=self._repeats(self.prior), weight=PART))
        return RunFile(
            task=self._task(),
            data=DataSettings(
                mix=parts, size=self.size, mask=mask, flip=0.5 if wish.flip else 0.0, crop="random", zoom=ZOOM
            ),
            optim=OptimSettings(
                lr=self._rate(), warmup=min(20, self.steps // 5), decay="linear", decay_from=0.5, ema=0.98
            ),
            run=RunSettings(
                out=run,
                seed=wish.seed,
                steps=self.steps,
                batch=self.together if prior is not None else self.batch,
                precision=self.precision,
                device=wish.device,
                checkpointing=not self.base.small,
                save=self.every,
                preview=0,
                evaluate=0,
            ),
        )

    def _repeats(self, count: int) -> int:
        """A batch holds each example once; a set smaller than a batch comes several times."""
        return -(-2 * self.batch // count)

    def _task(self) -> LoraSettings | InversionSettings:
        wish = self.wish
        common = {"model": self.base.path, "token": wish.token, "licence": wish.licence}
        if self.prior > 0:
            common |= {"preserve": True, "preserve_weight": PRESERVED}
        begin = wish.called or wish.token.split()[-1]
        if wish.method == "inversion":
            return InversionSettings(type="inversion", begin=begin, vectors=4, **common)
        word = {"vectors": 2, "begin": begin} if wish.method == "pivotal" else {}
        return LoraSettings(type="lora", rank=wish.rank, drop_caption=DROPPED, **word, **common)

    def _rate(self) -> float:
        if self.wish.rate is not None:
            return self.wish.rate
        if self.wish.method == "inversion":
            return 5e-3 if self.base.small else 5e-4
        return 2e-3 if self.base.small else 1e-4


def captions_for(token: str, base: Base) -> tuple[str, ...]:
    """Of photos without words of their own."""
    own = own_prompts(base.path).captions
    return tuple(filled(text, token) for text in own or (CAPTIONS if base.small else PHOTO))


def planned(wish: Wish, base: Base, photos: int) -> Plan:
    """What will be done."""
    steps = wish.steps or (1200 if base.small else max(400, min(1500, 100 * photos)))
    prior = wish.prior if wish.prior is not None else (PRIOR if base.small and wish.method != "inversion" else 0)
    prompts = prompts_for(wish.token, wish.called, base.path, base.known, wish.prompts, wish.unrelated)
    notes = tuple(remarks(wish.token, wish.called, base.vocabulary, base.known))
    return Plan(wish, base, wish.size or base.size, steps, prior, prompts, notes)
