"""What a run is said to have brought, as JSON: the verdict first, then the figures that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.store.find import LORA_WEIGHTS
from ldm.version import __version__
from train.personal.photos import Photos
from train.personal.plan import Plan
from train.personal.settings import Wish
from train.personal.verdict import RULE, Checkpoint, are_deaf, flags, in_words, unknowable
from train.personal.watching import Watching
from train.tasks.subject_files import KOHYA, WORD

# What a checkpoint's files are called in the end, behind the subject's name.
ENDINGS = {LORA_WEIGHTS: ".safetensors", KOHYA: "-kohya.safetensors", WORD: "-word.safetensors"}


def file_of(wish: Wish, kind: str) -> Path:
    """Where it goes in the end, what is called `kind` in a checkpoint."""
    return wish.out / f"{wish.name}{ENDINGS[kind]}"


def report_of(
    plan: Plan,
    photos: Photos,
    watching: Watching,
    chosen: Checkpoint,
    *,
    weights: Mapping[int, Sequence[float]] | None = None,
    done: bool = False,
) -> dict[str, Any]:
    """Names of files are those inside the run's folder; of the photos only their names are kept. `weights` at which
    each checkpoint was drawn."""
    wish, yardstick, measures = plan.wish, watching.yardstick, chosen.measures
    samples, seen = len(plan.prompts.subject) * plan.seeds, watching.judge.clip is not None
    deaf = are_deaf(watching.checkpoints)
    kept = watching.folder / "checkpoints" / str(chosen.step)
    return {
        "verdict": "; ".join(in_words(measures, photos.names, samples, plan.prompts.subject)) + ".",
        "flags": sorted(flags(measures)),
        "token": wish.token,
        "kind": wish.called,
        "method": wish.method,
        "files": [file_of(wish, kind).name for kind in ENDINGS if (kept / kind).exists()],
        "step": chosen.step,
        "rule": RULE,
        "done": done,
        "stopped_early": done and watching.checkpoints[-1].step < plan.steps,
        "weights": {str(step): list(drawn) for step, drawn in (weights or {}).items()},
        "features": watching.judge.name,
        "measures": measures.as_dict(),
        "ceiling": yardstick.ceiling,
        "floor": yardstick.floor,
        "nearest": yardstick.shown.nearest,
        "checkpoints": [
            {"step": c.step, "validation": c.validation, **c.measures.as_dict()} for c in watching.checkpoints
        ],
        "validated_on": photos.aside or "the photos themselves: there were too few to keep one aside",
        "prompts": {
            "subject": plan.prompts.subject,
            "kind": plan.prompts.kind,
            "unrelated": plan.prompts.unrelated,
        },
        "seeds": plan.seeds,
        "photos": list(photos.names),
        "aside": photos.aside,
        "findings": list(photos.findings),
        "notes": list(plan.notes),
        "unknowable": list(unknowable(len(photos.names), samples, measures, seen, photos.masked, deaf)),
        "model": wish.model,
        "steps": plan.steps,
        "prior": plan.prior,
        "size": plan.size,
        "seed": wish.seed,
        "version": __version__,
    }
