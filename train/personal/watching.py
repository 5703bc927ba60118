"""At every checkpoint: the adapter is kept, pictures are drawn from the same noise, and all of it is measured.

Before the first step the same is done with the model as it is: that is what checkpoints are held against.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.images import from_rgb, open_image, save_image
from ldm.metrics.features import squares
from ldm.models.memory import is_out_of_memory, release
from ldm.store.sampling import read_sampling
from ldm.store.shards import read_json
from ldm.store.weights import load_weights
from ldm.store.write import remove, staged, write_weights
from train.draws import Draws
from train.personal.copies import Shown, look, views
from train.personal.judge import Judge
from train.personal.measure import Drawn, Measures, Yardstick
from train.personal.photos import Photos
from train.personal.plan import ZOOM, Plan
from train.personal.verdict import Checkpoint, is_done
from train.signals import resume_command
from train.tasks.sampling import Look, start_noise
from train.tasks.subject import SubjectTask
from train.trainer import Trainer

log = logging.getLogger("train.personal")
LOOK = Look()  # where the model says nothing
GROUPS, BASE = ("subject", "kind", "unrelated"), "base.safetensors"
FORMAT = {"ldm.look": "2"}  # of that file: which pictures are looked at, and how
Tell = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Watching:
    """`tell` hears each measured checkpoint; `finished` is set once more training has stopped paying."""

    plan: Plan
    photos: Photos
    judge: Judge
    folder: Path
    tell: Tell = lambda told: None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    finished: bool = False

    def __post_init__(self) -> None:
        self._check_format()
        self.home = self.folder / "measures"  # a file for each checkpoint, whole or not there
        kept = sorted(self.home.glob("*.json"), key=lambda path: int(path.stem))
        self.checkpoints = [_checkpoint(read_json(path), self.unseen) for path in kept]
        self.finished = is_done(self.checkpoints)
        self._yardstick: Yardstick | None = None

    def _check_format(self) -> None:
        """What was measured by another rule is not gone on with."""
        base = self.folder / BASE
        if base.is_file() and any(load_weights(base).metadata.get(key) != value for key, value in FORMAT.items()):
            what, why = f"{self.folder} was begun by another version.", "It measures by other pictures or other rules."
            raise LdmError(Code.FILE, what, why, "Choose another --out, and begin anew.")

    def before(self, trainer: Trainer) -> None:
        """The model as it is, before its first step."""
        base = self.folder / BASE
        if base.is_file():
            return
        remove(self.folder / "samples" / "0")
        prompts = self.plan.prompts
        drawn = self._drawn(trainer, 0, prompts.kind or prompts.subject)
        seen = drawn.seen if prompts.kind else self.judge.seen(self._pictures(trainer, prompts.before, self.plan.seeds))
        again = self._pictures(trainer, prompts.unrelated, self.plan.other_seeds, 1)
        photos = [open_image(path) for path in self.photos.files()]
        tensors = {name: getattr(drawn, name) for name in (*GROUPS, "copies")} | {"again": self.judge.look(again)}
        tensors["photos"] = self.judge.look(squares(photos, self.plan.size))
        tensors["shown"] = views(photos, self.plan.size, ZOOM, self.plan.wish.flip, self.plan.wish.seed)
        if seen is not None:
            tensors["seen"] = seen
        if (read := self.judge.read(prompts.before)) is not None:
            tensors["prompts"] = read
        with staged(base) as stage:
            write_weights(stage, {name: tensor.contiguous() for name, tensor in tensors.items()}, FORMAT)

    def at(self, trainer: Trainer, step: int) -> None:
        """An action of the trainer. Its state is saved first: a look takes long, and may be stopped or run out of room;
        then it is done again, and training is not."""
        if any(c.step == step for c in self.checkpoints):
            return
        trainer.keep()
        began = time.perf_counter()
        kept, shown = self.folder / "checkpoints" / str(step), self.folder / "samples" / str(step)
        remove(kept)
        remove(shown)
        try:
            trainer.save(kept)
            drawn = self._drawn(trainer, step, self.plan.prompts.subject)
            measures = self.yardstick.measure(drawn)
            checkpoint = Checkpoint(step, measures, self._validation(trainer), self.unseen)
            told = {"step": step, "measures": measures.as_dict(), "validation": checkpoint.validation,
                    "seconds": round(time.perf_counter() - began, 2)}  # fmt: skip
            with staged(self.home / f"{step}.json") as stage:
                stage.write_text(json.dumps(told) + "\n", "utf-8")
        except LdmError as error:
            if error.code is not Code.RESOURCE or step == trainer.run.steps:  # the last one must not be missing
                raise
            log.warning("%s %s The look at step %d is left out; training goes on.", error.what, error.why, step)
            for part in (kept, shown):
                remove(part)
            return
        self.checkpoints.append(checkpoint)
        self.finished = is_done(self.checkpoints)
        self.tell(told)

    @property
    def whole(self) -> bool:
        """Whether all is measured that training is to bring: there is nothing left but to choose."""
        return self.finished or (bool(self.checkpoints) and self.checkpoints[-1].step >= self.plan.steps)

    @property
    def unseen(self) -> bool:
        """Whether the validation loss is of a photo that is not trained on."""
        return self.photos.aside is not None

    @property
    def yardstick(self) -> Yardstick:
        """What the base's pictures and the photos say."""
        if self._yardstick is None:
            found = load_weights(self.folder / BASE)
            t = {name: tensor.clone() for name, tensor in found.items()}
            base = Drawn(t["subject"], t["kind"], t["unrelated"], t["copies"], t.get("seen"))
            count = len(self.plan.prompts.subject)
            self._yardstick = Yardstick(t["photos"], base, t["again"], Shown(t["shown"]), t.get("prompts"), count)
        return self._yardstick

    def _drawn(self, trainer: Trainer, step: int, subject: tuple[str, ...]) -> Drawn:
        """Pictures of the three groups, kept as files; picture i of a group always begins with the same noise."""
        prompts = {"subject": subject, "kind": self.plan.prompts.kind, "unrelated": self.plan.prompts.unrelated}
        features: dict[str, Tensor] = {}
        seen, known = None, dict[tuple[str, ...], Tensor]()
        for group, texts in prompts.items():
            seeds = self.plan.seeds if group == "subject" else self.plan.other_seeds
            if texts not in known:  # before training the subject is its kind
                known[texts] = self._pictures(trainer, texts, seeds)
            pictures = known[texts][: seeds * len(texts)]
            self._keep(pictures, step, group)
            if group == "subject":
                seen = self.judge.seen(pictures)
                features[group], features["copies"] = self.judge.look(pictures, seen), look(pictures)
            else:
                features[group] = self.judge.look(pictures) if len(pictures) else self._nothing(features)
        return Drawn(**features, seen=seen)

    def _nothing(self, features: dict[str, Tensor]) -> Tensor:
        return features["subject"].new_zeros(0, features["subject"].shape[1])

    def _pictures(self, trainer: Trainer, texts: tuple[str, ...], seeds: int, seed: int = 0) -> Tensor:
        """[n seeds,3,H,W] in [0,1] of texts, by the averaged weights."""
        task = trainer.task
        assert isinstance(task, SubjectTask)
        asked = list(texts) * seeds
        side = self.plan.size // task.vae.factor
        device = trainer.processes.device
        noise = start_noise(self.plan.wish.seed + seed, (task.vae.channels, side, side), len(asked), device)
        made, size = [torch.zeros(0, 3, self.plan.size, self.plan.size)], max(1, 2 * self.plan.batch)
        with trainer.averaged(), torch.no_grad(), trainer.turns.autocast():
            hole, look = task.whole_hole(len(asked)), self._look()
            for first in range(0, len(asked), size):
                self._check(trainer)
                some = slice(first, first + size)
                made.append(self._few(task, asked[some], noise[some], look, None if hole is None else hole[some]))
        return torch.cat(made).clamp(0, 1)

    def _few(self, task: SubjectTask, texts: list[str], noise: Tensor, look: Look, hole: Tensor | None) -> Tensor:
        """Pictures at once; in halves where memory runs out."""
        try:
            return (task.pictures(texts, noise, look, hole).float().cpu() + 1) / 2
        except Exception as error:
            if len(texts) == 1 or not is_out_of_memory(error):
                raise
            log.warning("memory ran out: %d pictures are drawn in halves", len(texts))
        release()
        half = -(-len(texts) // 2)
        parts = (slice(half), slice(half, None))
        return torch.cat([self._few(task, texts[p], noise[p], look, None if hole is None else hole[p]) for p in parts])

    def _check(self, trainer: Trainer) -> None:
        """A stop while pictures are drawn: the look is done again, and nothing of the training is lost."""
        if trainer.stop.wanted:
            log.warning("Stopped while looking at step %d. Go on with: %s", trainer.step, resume_command())
            trainer.stop.check()

    def _look(self) -> Look:
        told = read_sampling(self.plan.base.path)
        steps = min(told.steps or LOOK.steps, LOOK.steps)
        return Look(told.solver or LOOK.solver, steps, LOOK.scale if told.guidance is None else told.guidance)

    def _keep(self, pictures: Tensor, step: int, group: str) -> None:
        folder = self.folder / "samples" / str(step)
        for number, picture in enumerate(pictures):
            save_image(
                from_rgb(picture.permute(1, 2, 0).numpy().astype(np.float32)), folder / f"{group}-{number:02d}.png"
            )

    def _validation(self, trainer: Trainer) -> float:
        """The loss at fixed noise: of the photo that was kept aside, or of all, where none could be spared."""
        home = self.photos.folder / ("aside" if self.unseen else "train")
        files = sorted(home.glob("*.png"))
        image = squares([open_image(path) for path in files], self.plan.size) * 2 - 1
        texts = tuple(path.with_suffix(".txt").read_text("utf-8").splitlines()[0] for path in files)
        places = torch.arange(len(files))
        extra = {}
        if self.photos.masked:
            masks = [open_image(path.parent / "masks" / path.name) for path in files]
            extra["mask"] = squares(masks, self.plan.size)[:, :1]
        batch = Batch(places, places, image, texts, None, extra).to(trainer.processes.device)
        draws = Draws(self.plan.wish.seed, batch.places, len(files), "validation")
        with trainer.averaged(), torch.no_grad(), trainer.turns.autocast():
            return float(trainer.task.validate(draws, batch)["loss"].mean())


def _checkpoint(told: dict[str, Any], unseen: bool) -> Checkpoint:
    kept = told["measures"]
    pairs = {name: tuple(tuple(pair) for pair in kept[name]) for name in ("copied", "nearest", "each")}
    pairs["prompt_range"] = tuple(kept["prompt_range"])
    return Checkpoint(told["step"], Measures(**kept | pairs), told["validation"], unseen)
