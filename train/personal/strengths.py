"""The chosen adapter at several weights, as `ldm generate --lora FILE:WEIGHT` draws with it."""

from __future__ import annotations

import logging
from pathlib import Path

from ldm.images import save_image
from ldm.store.write import remove
from pipelines.pipeline import Pipeline
from pipelines.request import LoraUse, Request
from pipelines.suited import suited
from train.personal.plan import Plan
from train.signals import Stop, resume_command

log = logging.getLogger("train.personal")
WEIGHTS = (0.5, 0.75, 1.0, 1.25)


def draw_strengths(plan: Plan, adapter: Path, word: Path | None, folder: Path, stop: Stop) -> tuple[float, ...]:
    """One picture for each prompt and weight, from the same seed, into `folder`. `word`: the one that was learned
    first, without which the adapter is not what it was trained to be."""
    remove(folder)
    folder.mkdir(parents=True)
    pipeline = Pipeline.load(plan.base.path, device=plan.wish.device or "auto")
    for weight in WEIGHTS:
        for place, text in enumerate(plan.prompts.subject):
            if stop.wanted:
                log.warning("Stopped before the report was whole. Go on with: %s", resume_command())
            stop.check()
            fields = suited(plan.base.path, text, {}) | {"prompt": text, "seed": plan.wish.seed}
            fields |= {"width": plan.size, "height": plan.size, "loras": (LoraUse(path=adapter, weight=weight),)}
            fields |= {"embeddings": () if word is None else (word,)}
            (result,) = pipeline.results(Request(**fields))
            save_image(result.picture, folder / f"{place:02d}-{weight:g}.png")
    return WEIGHTS
