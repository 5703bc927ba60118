"""Checkpoints at several weights, as `ldm generate --lora FILE:WEIGHT` draws with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from ldm.errors import Code, LdmError
from ldm.images import save_image
from ldm.models.memory import is_out_of_memory, release
from ldm.store.find import LORA_WEIGHTS
from ldm.store.write import remove
from pipelines.pipeline import Pipeline
from pipelines.request import LoraUse, Request
from pipelines.suited import suited
from train.personal.plan import Plan
from train.personal.verdict import Checkpoint
from train.signals import Stop, resume_command
from train.tasks.subject_files import WORD

log = logging.getLogger("train.personal")
WEIGHTS = (0.5, 0.75, 1.0, 1.25)  # of the chosen checkpoint
OTHERS = (0.5, 1.0)  # of every other one, where the model is small: of a large one they cost more than training
AT_WEIGHTS = Path("samples") / "weights"  # in the run's folder
Weighed = dict[int, tuple[float, ...]]  # weights by step
Made = TypeVar("Made")


def weighed(plan: Plan, chosen: Checkpoint, checkpoints: Sequence[Checkpoint]) -> Weighed:
    """Which are drawn at which weights. A learned word has none."""
    if plan.wish.method == "inversion":
        return {}
    return {c.step: WEIGHTS if c is chosen else OTHERS for c in checkpoints if c is chosen or plan.base.small}


def draw_strengths(plan: Plan, kept: Path, steps: Weighed, folder: Path, stop: Stop) -> Weighed:
    """One picture for each prompt, checkpoint in `kept` and weight, from the same seed, into `folder`; returns what was
    drawn. Of a checkpoint before its adapter began nothing is."""
    remove(folder)
    if not steps:
        return {}
    folder.mkdir(parents=True)
    pipeline = _unless_it_cannot(
        "The table of weights", lambda: Pipeline.load(plan.base.path, device=plan.wish.device or "auto")
    )
    drawn: Weighed = {}
    if pipeline is None:
        return drawn
    for step, weights in steps.items():
        for weight in weights if (kept / str(step) / LORA_WEIGHTS).exists() else ():
            draw = partial(_draw, plan, pipeline, kept / str(step), weight, folder, stop)
            if _unless_it_cannot(f"Step {step} at weight {weight:g}", draw):
                drawn[step] = (*drawn.get(step, ()), weight)
    return drawn


def _unless_it_cannot(what: str, make: Callable[[], Made]) -> Made | None:
    """A part of the report that neither a lack of memory nor an adapter that does nothing, or too much, stops the rest
    for."""
    try:
        return make()
    except LdmError as error:
        if error.code not in (Code.MODEL, Code.NUMERIC):
            raise
        why = f"{error.what} {error.why}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release()
        why = "Memory ran out."
    log.warning("%s is not drawn for the report. %s", what, why)
    return None


def _draw(plan: Plan, pipeline: Pipeline, files: Path, weight: float, folder: Path, stop: Stop) -> bool:
    """A word that was learned along is added: without it the adapter is not what it was trained to be."""
    word = files / WORD
    for place, text in enumerate(plan.prompts.subject):
        if stop.wanted:
            log.warning("Stopped before the report was whole. Go on with: %s", resume_command())
        stop.check()
        fields = suited(plan.base.path, text, {}) | {"prompt": text, "seed": plan.wish.seed}
        fields |= {"width": plan.size, "height": plan.size}
        fields |= {"loras": (LoraUse(path=files / LORA_WEIGHTS, weight=weight),)}
        fields |= {"embeddings": (word,) if word.exists() else ()}
        (result,) = pipeline.results(Request(**fields))
        save_image(result.picture, drawn_at(folder, int(files.name), place, weight))
    return True


def drawn_at(folder: Path, step: int, place: int, weight: float) -> Path:
    """Where the picture of a prompt lies."""
    return folder / f"{step}-{place:02d}-{weight:g}.png"
