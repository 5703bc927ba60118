"""One cell: train a family, draw from it, measure what it drew. In a process of its own, so that the memory it takes is
its own, and what ends it ends nothing else.

python -m train.compare.cell FOLDER FAMILY SEED
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.baselines.stored import load_family
from ldm.errors import Code, LdmError
from ldm.metrics.measured import FEWEST, measure
from ldm.store.write import staged, write_weights
from train.compare.cells import RESULT, RUN, SAMPLES, Cell, cell_in, file_of, task_of, training_of
from train.compare.counting import planned
from train.compare.drawing import asked_classes, asked_for, between, bits, drawn, named_by, notes_of
from train.compare.growth import growth
from train.compare.measured_json import as_json
from train.compare.reference import check_unchanged, extractor_of, pictures_of, reference_of
from train.compare.wish import Wish
from train.lock import Lock
from train.machine import peak_memory
from train.opening import processes_of
from train.report import read_story, rewrite
from train.run import finished, opened
from train.signals import Stop, Stopped
from train.tasks.family import FamilyTask

log = logging.getLogger("train.compare")
LENIENT = 0.1  # of the budget
TRAINING = "training.json"  # what the process that ended the training knows of it


def run_cell(wish: Wish, cell: Cell, stop: Stop) -> dict[str, Any]:
    """What was measured; written when all of it is there. Whoever else works on the cell is not disturbed."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with Lock(cell.folder):
        if (before := cell.result) is not None:
            return before
        told: dict[str, Any] = {"family": cell.family, "seed": cell.seed, "settings": training_of(cell.family)}
        try:
            plan = planned(wish, cell, stop)
            told |= {"plan": plan, **_trained(wish, cell, plan, stop)}
            told |= _judged(wish, cell, processes_of(file_of(wish, cell, 1)).device, stop)
            told["notes"] += _off_budget(wish, plan, told["train_seconds"])
        except LdmError as error:
            if error.code != Code.NUMERIC:  # whatever else ends it may go otherwise at the next start
                raise
            told["failed"] = f"{error.what} {error.why}"
        with staged(cell.folder / RESULT) as stage:
            stage.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        return told


def _trained(wish: Wish, cell: Cell, plan: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
    steps: int = plan["steps"]
    file = file_of(wish, cell, steps)
    if finished(file) is None:
        with opened(file, stop=stop) as run:
            check_unchanged(wish, run.loader)
            run.fit()
            assert isinstance(run.task, FamilyTask)
            known = {"begun": round(run.task.begun, 3), "memory": peak_memory(run.trainer.processes.device) or None}
        rewrite(cell.folder / TRAINING, json.dumps(known) + "\n", "Free some space.")
    story, path = read_story(cell.folder / RUN), cell.folder / TRAINING
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    begun = known.get("begun", plan.get("pace", {}).get("begin", 0.0))
    losses = story.losses
    return {
        "images": steps * file.run.batch,
        "train_seconds": round(begun + story.spent["training"], 1),
        "step_seconds": round(_middle([seconds for _, seconds in story.figures["seconds"]]), 5),
        "parameters": sum(story.starts[-1]["parameters"].values()),
        "loss": {name: [[step, round(value, 6)] for step, value in story.figures[name]] for name in losses},
        "memory": known.get("memory"),
    }


def _off_budget(wish: Wish, plan: Mapping[str, Any], seconds: float) -> list[str]:
    """Steps are counted before the first one, by a few of them: others take longer, or the machine is busier."""
    if "pace" not in plan or abs(seconds / wish.budget.count - 1) <= LENIENT:
        return []
    meant = wish.budget.count
    return [
        f"trained for {seconds:.0f} s in place of {meant:.0f}: the few steps that were timed were not like the rest"
    ]


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _judged(wish: Wish, cell: Cell, device: torch.device, stop: Stop) -> dict[str, Any]:
    stored, kept = load_family(cell.folder / RUN / "model"), pictures_of(wish)
    scaling = growth(task_of(cell.family), wish.size, asked_classes(stored), device)
    labels = asked_for(stored, kept, wish.samples)
    samples, seconds, broken = drawn(stored, wish.samples, wish.cap, cell.seed, stop, device, labels)
    if not (path := cell.folder / SAMPLES).is_file():
        with staged(path) as stage:
            write_weights(stage, {"samples": samples, **between(stored, kept, device)}, {})
    told: dict[str, Any] = {"drawn": len(samples), "draw_seconds": float(f"{seconds / len(samples):.4g}")}
    told["growth"] = round(scaling, 3)
    if len(samples) < wish.samples:
        told["capped"] = f"{len(samples)} of {wish.samples} samples in {wish.cap} s"
    told |= bits(stored, kept, stop, device)
    notes = notes_of(told, broken)
    if len(samples) < FEWEST:
        few = f"{len(samples)} samples are too few for a statistic, which needs {FEWEST}"
        return told | {"notes": [*notes, few]}
    measured = as_json(measure(samples, reference_of(wish, kept, extractor_of(wish, kept, stop)), cell.seed))
    measured["figures"] |= named_by(stored, samples, labels, kept, cell.seed)
    return told | measured | {"notes": [*notes, *measured["notes"]]}


def main() -> None:
    folder, family, seed = sys.argv[1:4]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from train.compare.lab import read_wish

    wish = read_wish(Path(folder))
    try:
        with Stop() as stop:
            run_cell(wish, cell_in(wish.out, family, int(seed)), stop)
    except Stopped as stopped:
        raise SystemExit(stopped.code) from None
    except LdmError as error:
        sys.stderr.write(f"{error.what} {error.why}\n")  # in one line, the last: the page tells it
        raise SystemExit(int(error.code)) from None


if __name__ == "__main__":
    main()
