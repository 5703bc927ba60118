"""How many steps a budget buys a cell on this machine; measured once, kept, and never changed when it goes on."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.models.memory import is_out_of_memory, release
from ldm.store.write import staged
from train.compare.cells import Cell, cells, file_of, task_of
from train.compare.growth import step_seconds
from train.compare.wish import Wish
from train.config import RunFile
from train.opening import data_of, processes_of
from train.report import read_story
from train.run import opened
from train.signals import Stop
from train.tasks.family import FamilyTask

PLAN = "plan.json"
PILOT = 0.02  # of the budget, about, which a pace is taken from,
SHORTEST, LONGEST = 2.0, 10.0  # but so many seconds at least and at most
FEWEST, MOST = 8, 400  # its steps
PERIOD = 16  # what a family does now and then is due within so many
LOOKED = 4  # batches that the reading of a picture is taken from


@dataclass(frozen=True)
class Pace:
    """Seconds: of what is taken from data before the first step, of a step, and of reading a picture for the first
    time; `kept` pictures are read once and then stay in memory (0: each is read again, which is part of a step)."""

    begin: float
    step: float
    reading: float
    batch: int
    kept: int

    def seconds(self, steps: int) -> float:
        """Of so many steps."""
        pictures = steps * self.batch
        return self.begin + steps * self.step + self.reading * (min(pictures, self.kept) if self.kept else pictures)

    def steps(self, seconds: float) -> int:
        """As many as fit, and one at least."""
        left, each = seconds - self.begin, self.step + self.reading * self.batch
        if self.kept and left / each * self.batch > self.kept:  # all have been read by then
            left, each = left - self.reading * self.kept, self.step
        return max(1, int(left / each))


def planned(wish: Wish, cell: Cell, stop: Stop) -> dict[str, Any]:
    """{"steps", and where the budget is of time the "pace" that they were counted by, or "as" of which seed} of a cell.

    All seeds of a family take as many steps: they are to differ by chance, and not by what else a machine does.
    """
    path = cell.folder / PLAN
    if (told := plan_of(cell)) is not None:
        return told
    plan = _of_another_seed(wish, cell) or _plan(wish, cell, stop)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with staged(path) as stage:
        stage.write_text(json.dumps(plan) + "\n", "utf-8")
    return plan


def plan_of(cell: Cell) -> dict[str, Any] | None:
    """What was counted for a cell that has been begun."""
    path = cell.folder / PLAN
    told: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.is_file() else None
    return told or (cell.result or {}).get("plan")


def _of_another_seed(wish: Wish, cell: Cell) -> dict[str, Any] | None:
    """By the first of the family's cells that was counted by the clock."""
    for other in cells(wish):
        if other.family == cell.family and "pace" in (plan := plan_of(other) or {}):
            return {"steps": plan["steps"], "as": other.seed}
    return None


def _plan(wish: Wish, cell: Cell, stop: Stop) -> dict[str, Any]:
    if wish.budget.kind != "seconds":
        return {"steps": steps_of(wish, cell)}
    pace = pace_of(wish, cell, stop)
    told = {"begin": round(pace.begin, 3), "step": round(pace.step, 5), "reading": round(pace.reading, 7)}
    return {"steps": pace.steps(wish.budget.count), "pace": told}


def steps_of(wish: Wish, cell: Cell) -> int:
    """Of a budget of steps or pictures."""
    batch = file_of(wish, cell, 1).run.batch if wish.budget.kind == "images" else 1
    return max(1, round(wish.budget.count / batch))


def pace_of(wish: Wish, cell: Cell, stop: Stop) -> Pace:
    """From a run of a few seconds that is like the whole one: all of its parts take their turns in it, and what is due
    every few steps comes as often."""
    rough = rough_seconds(wish, cell)
    with tempfile.TemporaryDirectory() as folder:
        own = Cell(cell.family, cell.seed, Path(folder) / "cell")
        one = file_of(wish, own, 1)
        first, again = _reading(one)
        file = file_of(wish, own, _pilot_steps(wish.budget.count, rough + first * one.run.batch))
        with opened(file, stop=stop) as run:
            assert isinstance(run.task, FamilyTask)
            begin, known = run.task.begun, run.task.model.first
            kept = len(run.loader.plan.training) if run.loader.fits else 0
            if kept:  # what the steps take is read before, and they are timed without it
                for _ in islice(run.loader.batches(), file.run.steps + 1):
                    stop.check()
            run.fit()
        each = [seconds for _, seconds in read_story(file.run.out).figures["seconds"]]
    counted = each[1:] or each  # the first step of a process makes itself ready
    reading = max(0.0, first - again) * max(0.0, 1 - known / kept) if kept else 0.0
    return Pace(begin, sum(counted) / len(counted), reading, file.run.batch, kept)


def _pilot_steps(budget: float, each: float) -> int:
    """As many as take some seconds; of more than a few, what is due now and then comes as often as it is due."""
    steps = min(MOST, max(FEWEST, round(min(LONGEST, max(SHORTEST, PILOT * budget)) / each)))
    return steps if steps < PERIOD else -(-steps // PERIOD) * PERIOD


def rough_seconds(wish: Wish, cell: Cell) -> float:
    """Of a step, without data."""
    file = file_of(wish, cell, 1)
    pictures, device = file.run.micro or file.run.batch, processes_of(file).device
    while True:
        try:
            return step_seconds(task_of(cell.family), wish.size, 0, device, pictures) * file.run.batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if pictures == 1:
                raise LdmError(
                    Code.RESOURCE,
                    f"A step of {cell.name} cannot be timed.",
                    "Not even one example fits into memory.",
                    "Give a smaller --size, or leave the family out.",
                ) from error
        release()
        pictures = -(-pictures // 2)  # as the training will


def _reading(file: RunFile) -> tuple[float, float]:
    """Seconds that a picture takes when it is looked at for the first time, and the next time."""
    loader = data_of(file, processes_of(file))[1]

    def taken() -> float:
        began, feed = time.perf_counter(), loader.batches()
        try:
            for _ in islice(feed, LOOKED):
                pass
        finally:
            getattr(feed, "close", lambda: None)()
        return (time.perf_counter() - began) / (LOOKED * file.run.batch)

    return taken(), taken()
