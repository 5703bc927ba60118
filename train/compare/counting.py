"""How many steps a budget buys a cell on this machine; measured once, kept, and never changed when it goes on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.write import staged
from train.compare.cells import Cell, file_of
from train.compare.wish import Wish
from train.run import forecasted

PLAN = "plan.json"


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
    batch, budget = file_of(wish, cell, 100).run.batch, wish.budget
    if budget.kind == "steps":
        return {"steps": max(1, round(budget.count)), "step_seconds": None}
    if budget.kind == "images":
        return {"steps": max(1, round(budget.count / batch)), "step_seconds": None}
    seconds = measured(wish, cell)
    return {"steps": max(1, int(budget.count / seconds)), "step_seconds": round(seconds, 5)}


def measured(wish: Wish, cell: Cell) -> float:
    """Seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Cell(cell.family, cell.seed, Path(folder) / "cell")
        told = forecasted(file_of(wish, elsewhere, 1000))
    if told.step_seconds is None:
        raise LdmError(
            Code.RESOURCE,
            f"A step of {cell.family} cannot be timed.",
            "Not even one example fits into memory, so a budget in minutes cannot be made one in steps.",
            "Give the budget in steps, a smaller --size, or leave the family out.",
        )
    return told.step_seconds
