"""How many steps a budget buys a cell on this machine; measured once, kept, and never changed when it goes on."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ldm.errors import Code, LdmError
from ldm.store.write import staged
from train.compare.cells import Cell, file_of, task_of
from train.compare.growth import step_seconds
from train.compare.wish import Wish
from train.opening import processes_of
from train.report import read_story
from train.run import Run, opened
from train.signals import Stop
from train.tasks.family import FamilyTask

PLAN = "plan.json"
PILOT = 4.0  # seconds of training that a pace is taken from, about
FEWEST, MOST = 8, 400  # its steps
PERIOD = 16  # what a family does now and then is due within so many
FAR = 1_000_000  # a step whose pictures the pilot does not see


@dataclass(frozen=True)
class Pace:
    """Seconds: of what is taken from data before the first step, of a step, and of reading a picture for the first
    time; `kept` pictures are read once and then stay in memory (0: each is read again)."""

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
    """{"steps", and where the budget is of time "pace"} of a cell."""
    path = cell.folder / PLAN
    if path.is_file():
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return told
    plan = _plan(wish, cell, stop)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with staged(path) as stage:
        stage.write_text(json.dumps(plan) + "\n", "utf-8")
    return plan


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
    try:
        rough = rough_seconds(wish, cell)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LdmError(
            Code.RESOURCE,
            f"A step of {cell.family} cannot be timed.",
            "Not even a few examples fit into memory, so a budget in minutes cannot be made one in steps.",
            "Give the budget in steps, a smaller --size, or leave the family out.",
        ) from error
    steps = min(MOST, max(FEWEST, round(PILOT / rough)))
    steps = steps if steps < PERIOD else -(-steps // PERIOD) * PERIOD
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(wish, Cell(cell.family, cell.seed, Path(folder) / "cell"), steps)
        with opened(file, stop=stop) as run:
            assert isinstance(run.task, FamilyTask)
            begin, reading = run.task.begun, _reading(run)
            kept = len(run.loader.plan.training) if run.loader.fits else 0
            run.fit()
        each = [seconds for _, seconds in read_story(file.run.out).figures["seconds"]]
    counted = each[1:] or each  # the first step of a process makes itself ready
    step = max(sum(counted) / len(counted) - reading * file.run.batch, 1e-5)
    return Pace(begin, step, reading, file.run.batch, kept)


def rough_seconds(wish: Wish, cell: Cell) -> float:
    """Of a step, without data."""
    file = file_of(wish, cell, 1)
    return step_seconds(task_of(cell.family), wish.size, 0, processes_of(file).device) * file.run.batch


def _reading(run: Run) -> float:
    """Seconds by which the first look at a picture is longer than the next."""

    def taken() -> float:
        began, feed = time.perf_counter(), run.loader.batches(FAR)
        try:
            for _ in islice(feed, 4):
                pass
        finally:
            getattr(feed, "close", lambda: None)()
        return time.perf_counter() - began

    first, again = taken(), taken()
    return max(0.0, first - again) / (4 * run.file.run.batch)
