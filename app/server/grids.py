"""Grids: settings compared at the same noise. Each cell is a job; a grid keeps its cells and gives them to the queue as
room appears there, so that it may be larger than the queue, outlives its server, and leaves room for others."""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from app.server.asking import MAX_SEED, Understanding
from app.server.axes import SIDES, AskedAxis, AskedGrid, Place, brief, check_bytes
from app.server.held import held
from app.server.store import Jobs
from ldm.errors import Code, LdmError

GOING = 16  # grids that go on at a time
LATELY = 20  # jobs of a model whose pace is told
OPEN = ("waiting", "queued", "running")  # what is still to come
NEXT = (
    "select c.grid, min(c.place) as place, g.client from cells c join grids g on g.number=c.grid"
    " where c.state='waiting' group by c.grid"
    " order by (select count(*) from jobs j where j.client=g.client and j.state='queued'), c.grid limit 1"
)
STATE = "case c.state when 'given' then coalesce(j.state, 'removed') else c.state end"
OF_CELLS = "from cells c left join jobs j on j.number=c.job"


@dataclass(frozen=True)
class Cell:
    """One that is understood; `place` is that of its values."""

    place: Place
    asked: Mapping[str, Any]
    kind: str
    work: float
    steps: int


@dataclass(frozen=True)
class Grid:
    """As it stands in the file. `order` tells which cell each row is: those that share a model follow each other."""

    number: int
    id: str
    created: float
    axes: Mapping[str, AskedAxis]
    seed: int | None  # None: it is an axis
    order: Sequence[Place]

    def told(self, short: bool = False) -> dict[str, Any]:
        """`short`: the first values of each axis, cut to a length that a list may have."""
        whole = lambda axis: axis.model_dump(mode="json", exclude_none=True)  # noqa: E731
        axes = {side: (brief if short else whole)(axis) for side, axis in self.axes.items()}
        return {"id": self.id, "created": self.created, "seed": self.seed, "axes": dict.fromkeys(SIDES) | axes}


class Grids:
    """Every method may be called from any thread."""

    def __init__(self, jobs: Jobs, understanding: Understanding) -> None:
        self.jobs, self.understanding = jobs, understanding
        jobs.kept_back = self.feed

    def plan(self, asked: AskedGrid) -> list[Cell]:
        """All cells, understood: one that is wrong refuses them all."""
        asked = self.brought(asked)
        check_bytes(asked)
        base, now = self._common(asked), replace(self.understanding, catalog=held(self.understanding.catalog))
        return [self._cell(now, asked, base, place) for place in asked.places()]

    def bill(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """What they take; seconds by the pace of each model lately, None where one has made nothing yet."""
        work = dict[str, float]()
        for cell in cells:
            work[cell.asked["model"]] = work.get(cell.asked["model"], 0.0) + cell.work
        seconds = [self._pace(model) * much for model, much in work.items()]
        return {
            "cells": len(cells), "pictures": len(cells), "steps": sum(cell.steps for cell in cells),
            "work": math.fsum(work.values()), "seconds": None if any(map(math.isnan, seconds)) else sum(seconds),
        }  # fmt: skip

    def submit(self, asked: AskedGrid, cells: Sequence[Cell], client: str) -> Grid:
        """Kept, to be made in its turns."""
        asked = self.brought(asked)
        rows = sorted(cells, key=lambda cell: (cell.asked["model"], cell.kind))
        axes = {side: axis.model_dump() for side, axis in asked.axes.items()}
        seed = None if any(axis.field == "seed" for axis in asked.axes.values()) else cells[0].asked["seed"]
        told = json.dumps({"axes": axes, "seed": seed, "order": [cell.place for cell in rows]})
        name = uuid4().hex
        with self.jobs.writing() as db:
            going = db.execute("select count(distinct grid) from cells where state='waiting'").fetchone()[0]
            if going >= GOING:
                why = f"{going} of them wait for room in the queue, and no more may."
                raise LdmError(Code.BUSY, "There are many grids.", why, "Try again when one of them is done.")
            new = (name, client, time.time(), told)
            number = db.execute("insert into grids (id, client, created, asked) values (?, ?, ?, ?)", new).lastrowid
            db.executemany(
                "insert into cells (grid, place, asked, kind, cost) values (?, ?, ?, ?, ?)",
                [(number, n, json.dumps(cell.asked), cell.kind, cell.work) for n, cell in enumerate(rows)],
            )
        return self.grid(name)

    def feed(self, db: sqlite3.Connection) -> None:
        """Cells into the queue, beside half as many jobs as callers may have there; who has fewest comes first."""
        room = max(1, self.jobs.longest // 2) - self.jobs.waiting(cells=True)
        while room > 0 and (row := db.execute(NEXT).fetchone()) is not None:
            here = (row["grid"], row["place"])
            cell = db.execute("select asked, kind, cost from cells where grid=? and place=?", here).fetchone()
            job = self.jobs.enter(row["client"], cell["kind"], json.loads(cell["asked"]), 1, cell["cost"])
            given = "update cells set state='given', job=(select number from jobs where id=?) where grid=? and place=?"
            db.execute(given, (job, *here))
            room -= 1

    def grid(self, name: str) -> Grid:
        rows = self.jobs.read("select * from grids where id=?", [name])
        if not rows:
            why = "No grid has that id."
            raise LdmError(Code.FILE, f"There is no grid {name[:64]!r}.", why, "List the grids to see which there are.")
        return _grid(rows[0])

    def told(self, name: str) -> dict[str, Any]:
        """A grid with its cells, along x first."""
        grid = self.grid(name)
        rows = self.jobs.read(
            f"select {STATE} as state, j.id as job, p.trash {OF_CELLS}"
            " left join pictures p on p.job=c.job and p.place=0 where c.grid=? order by c.place",
            [grid.number],
        )
        found = sorted(zip(grid.order, rows, strict=True), key=lambda one: one[0][::-1])
        cells = [
            {
                "x": i, "y": j, "z": k, "job": row["job"], "state": row["state"],
                "url": f"/v1/jobs/{row['job']}/pictures/0" if row["trash"] == 0 else None,
            }
            for (i, j, k), row in found
        ]  # fmt: skip
        return grid.told() | _going(Counter(cell["state"] for cell in cells)) | {"cells": cells}

    def list(self, limit: int = 60, before: str | None = None) -> list[dict[str, Any]]:
        """Without their cells, the newest first; `before` is the id of the last one that was shown."""
        last = 2**62 if before is None else self.grid(before).number
        found = self.jobs.read("select * from grids where number<? order by number desc limit ?", [last, limit])
        counts = {row["number"]: Counter[str]() for row in found}
        marks = ",".join("?" * len(counts))
        asked = f"select c.grid, {STATE} as state, count(*) as many {OF_CELLS} where c.grid in ({marks}) group by 1, 2"
        for row in self.jobs.read(asked, list(counts)):
            counts[row["grid"]][row["state"]] = row["many"]
        return [_grid(row).told(short=True) | _going(counts[row["number"]]) for row in found]

    def withdraw(self, name: str) -> Sequence[str]:
        """What has not come into the queue never will; the jobs of the others that are still to end."""
        number = self.grid(name).number
        with self.jobs.writing() as db:
            db.execute("update cells set state='cancelled' where grid=? and state='waiting'", (number,))
        asked = f"select j.id {OF_CELLS} where c.grid=? and j.state in ('queued', 'running')"
        return [row["id"] for row in self.jobs.read(asked, [number])]

    def brought(self, asked: AskedGrid) -> AskedGrid:
        """Pictures that come along are taken in once, not for each cell, and kept by their ids."""
        found = self.understanding.uploads.found
        request = _found(asked.request, found)
        if isinstance(controls := request.get("controls"), list):
            request["controls"] = [_found(use, found) if isinstance(use, dict) else use for use in controls]
        axes = {
            side: axis.model_copy(update={"values": tuple(found(v) if isinstance(v, str) else v for v in axis.values)})
            for side, axis in asked.axes.items()
            if axis.field.rpartition(".")[2] in ("image", "mask")
        }
        return asked.model_copy(update={"request": request, **axes})

    def _common(self, asked: AskedGrid) -> dict[str, Any]:
        """What all cells have: the seed is drawn once."""
        drawn = {"seed": secrets.randbelow(MAX_SEED - 1)} if asked.request.get("seed", -1) in (-1, None) else {}
        return {**asked.request, **drawn}

    def _cell(self, now: Understanding, asked: AskedGrid, base: Mapping[str, Any], place: Place) -> Cell:
        try:
            told = now(asked.request_at(place, base))
            if told.request.count != 1:
                why = f"count is {told.request.count}, and a cell shows one picture."
                raise LdmError(Code.USAGE, "It has several pictures.", why, "Make the seed an axis for more.")
        except LdmError as error:
            what = f"The cell with {asked.name(place)} is wrong: {error.what}"
            raise LdmError(error.code, what, error.why, error.fix) from error
        return Cell(place, told.asked, told.kind, told.work, self.understanding.limits.steps_of(told.request))

    def _pace(self, model: str) -> float:
        """Seconds for a unit of work, of the jobs of a model that ended last; those made together share their time."""
        rows = self.jobs.read(
            "select j.started, j.ended, j.cost from searched s cross join jobs j on j.number=s.job"
            " where s.model=? and j.state='done' and j.started is not null order by s.job desc limit ?",
            [model, LATELY],
        )
        seconds, until = 0.0, -math.inf
        for row in sorted(rows, key=lambda row: float(row["started"])):
            seconds += max(0.0, row["ended"] - max(until, row["started"]))
            until = max(until, row["ended"])
        return seconds / work if (work := math.fsum(row["cost"] for row in rows)) else math.nan


def _found(use: Mapping[str, Any], found: Any) -> dict[str, Any]:
    pictures = {name: found(use[name]) for name in ("image", "mask") if isinstance(use.get(name), str)}
    return {**use, **pictures}


def _grid(row: sqlite3.Row) -> Grid:
    told = json.loads(row["asked"])
    axes = {side: AskedAxis.model_validate(axis) for side, axis in told["axes"].items()}
    order = [(i, j, k) for i, j, k in told["order"]]
    return Grid(row["number"], row["id"], row["created"], axes, told["seed"], order)


def _going(counts: Counter[str]) -> dict[str, Any]:
    return {"state": "running" if any(counts[state] for state in OPEN) else "ended", "counts": dict(counts)}
