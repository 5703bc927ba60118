"""How many steps a budget buys a cell on this machine; measured once, kept, and never changed when it goes on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ldm.baselines.family import Form, make
from ldm.errors import Code, LdmError
from ldm.store.write import staged
from train.compare.cells import Cell, file_of
from train.compare.wish import Wish
from train.forecast import LOADER
from train.run import forecasted
from train.tasks.family import phases_of

PLAN = "plan.json"
LONG = 1000  # steps of the run that is timed: shares of it are those of any run


def planned(wish: Wish, cell: Cell) -> dict[str, Any]:
    """{"steps", "step_seconds", "forecast_seconds"} of a cell."""
    path = cell.folder / PLAN
    if path.is_file():
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return told
    plan = _plan(wish, cell)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with staged(path) as stage:
        stage.write_text(json.dumps(plan) + "\n", "utf-8")
    return plan


def _plan(wish: Wish, cell: Cell) -> dict[str, Any]:
    if wish.budget.kind != "seconds":
        return {"steps": steps_of(wish, cell), "step_seconds": None}
    seconds = measured(wish, cell)
    return {"steps": max(1, int(wish.budget.count / seconds)), "step_seconds": round(seconds, 5)}


def steps_of(wish: Wish, cell: Cell) -> int:
    """Of a budget of steps or pictures."""
    batch = file_of(wish, cell, 1).run.batch if wish.budget.kind == "images" else 1
    return max(1, round(wish.budget.count / batch))


def measured(wish: Wish, cell: Cell) -> float:
    """Seconds of a step, on average over the run: a phase that is not due, or is over, takes none."""
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(wish, Cell(cell.family, cell.seed, Path(folder) / "cell"), LONG)
        told = forecasted(file)
    if told.step_seconds is None:
        raise LdmError(
            Code.RESOURCE,
            f"A step of {cell.family} cannot be timed.",
            "Not even one example fits into memory, so a budget in minutes cannot be made one in steps.",
            "Give the budget in steps, a smaller --size, or leave the family out.",
        )
    settings = file.task
    assert settings.type == "family"
    model = make(settings.family, settings.options, Form(wish.size), 0)
    each = told.turns.get(LOADER, 0.0)
    for phase in phases_of(model, LONG):
        each += told.turns[phase.name] * sum(phase.due(step) for step in range(LONG)) / LONG
    return each
