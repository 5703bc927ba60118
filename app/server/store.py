"""What was asked of the server and what came of it, in one SQLite file: it outlives whoever writes it.

A job that was running when its server ended is queued again; pictures of it that were finished stay, and are not made
twice. Jobs of one person stand behind each other; jobs of several people take turns (start-time fair queueing: Goyal
1996).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal
from uuid import uuid4

from app.server.tables import prepare, searchable
from ldm.errors import Code, LdmError

State = Literal["queued", "running", "done", "failed", "cancelled"]
TRIES = 5  # how often a job may take the server along


@dataclass(frozen=True)
class Made:
    """A picture of a job: its place in the request, its file, and what is told of it."""

    place: int
    file: str
    told: Mapping[str, Any]
    partial: bool = False
    trash: int = 0  # 1: in the trash, 2: removed for good


@dataclass(frozen=True)
class Job:
    """`asked` is the request as JSON; `kind` says which jobs the worker may do together."""

    id: str
    client: str
    state: State
    kind: str
    asked: Mapping[str, Any]
    count: int
    created: float
    started: float | None
    ended: float | None
    error: Mapping[str, Any] | None
    pictures: tuple[Made, ...]
    away: tuple[Made, ...] = ()  # those in the trash, and those that were removed

    @property
    def missing(self) -> list[int]:
        """Places of the request that have no finished picture yet; what was thrown away is not missed."""
        there = {made.place for made in self.pictures if not made.partial} | {made.place for made in self.away}
        return [place for place in range(self.count) if place not in there]

    @property
    def failure(self) -> LdmError | None:
        """Why it failed, as the error that it was."""
        return None if self.error is None else error_of(self.error)


def error_of(told: Mapping[str, Any]) -> LdmError:
    """An error as it was before it became JSON."""
    return LdmError(Code[told["code"].upper()], told["what"], told["why"], told["fix"])


class Jobs:
    """Every method is whole by itself and may be called from any thread."""

    def __init__(self, path: Path, longest: int) -> None:
        self.longest = longest  # jobs that may wait
        self._lock = RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        for word in ("journal_mode=wal", "synchronous=normal", "foreign_keys=on", "busy_timeout=5000"):
            self._db.execute(f"pragma {word}")
        with self._whole():
            prepare(self._db, path)
        self._look = sqlite3.connect(path, isolation_level=None, check_same_thread=False)  # keeps no writer waiting
        self._look.row_factory = sqlite3.Row
        self._look.execute("pragma query_only=on")
        self._looking = RLock()
        self.kept_back: Callable[[sqlite3.Connection], None] | None = None  # puts into the queue what waits elsewhere

    def submit(self, client: str, kind: str, asked: Mapping[str, Any], count: int, cost: float) -> Job:
        """A new job behind those of the same client; refused where too many wait."""
        with self._whole():
            waiting = self.waiting(cells=False)
            if waiting >= self.longest:
                raise LdmError(
                    Code.BUSY,
                    "The queue is full.",
                    f"{waiting} jobs are waiting, and no more may.",
                    "Try again when some of them are done.",
                )
            name = self.enter(client, kind, asked, count, cost)
        return self.job(name)

    def enter(self, client: str, kind: str, asked: Mapping[str, Any], count: int, cost: float) -> str:
        """The id of a new job, whoever waits; inside a transaction."""
        name = uuid4().hex
        entered = self._db.execute(
            "insert into jobs (id, client, state, kind, asked, count, cost, turn, created)"
            " values (?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
            (name, client, kind, json.dumps(asked), count, cost, self._turn(client), time.time()),
        )
        searchable(self._db, int(entered.lastrowid or 0), asked)
        return name

    def waiting(self, cells: bool) -> int:
        """How many jobs of callers are in the queue, or of cells of grids: neither takes the places of the other."""
        cell = "exists (select 1 from cells where job=jobs.number)"
        with self._lock:
            counted = f"select count(*) from jobs where state='queued' and {cell} = ?"
            return int(self._db.execute(counted, (cells,)).fetchone()[0])

    def _turn(self, client: str) -> float:
        """When the job begins if everybody has their share: not before now, nor before the client's own are done. What
        was given up before it ran took nobody's time."""
        now = self._db.execute("select max(turn) from jobs where started is not null").fetchone()[0] or 0.0
        own = "select max(turn + cost) from jobs where client=? and (state='queued' or started is not null)"
        return max(now, self._db.execute(own, (client,)).fetchone()[0] or 0.0)

    def job(self, name: str) -> Job:
        """One job; an unknown name is an error."""
        with self._lock:
            row = self._db.execute("select * from jobs where id=?", (name,)).fetchone()
            if row is None:
                what, why = f"There is no job {name[:64]!r}.", "No job has that id; deleted ones are forgotten."
                raise LdmError(Code.FILE, what, why, "List the jobs to see which there are.")
            return self._job(row, self._pictures([row["number"]]).get(row["number"], ()))

    def next(self, kind: str | None = None) -> Job | None:
        """The job whose turn it is, now running; with `kind`, only if it is of that kind: nobody is overtaken."""
        with self._whole():
            if self.kept_back is not None:
                self.kept_back(self._db)
            row = self._db.execute("select * from jobs where state='queued' order by turn, number limit 1").fetchone()
            if row is None or (kind is not None and row["kind"] != kind):
                return None
            self._db.execute("update jobs set state='running', started=? where number=?", (time.time(), row["number"]))
        return self.job(row["id"])

    def made(self, name: str, picture: Made) -> None:
        """A picture is there; a finished one stands in the place of a partial one, and never the other way round."""
        with self._whole():
            self._db.execute(
                "insert into pictures (job, place, file, told, partial, created)"
                " select number, ?, ?, ?, ?, ? from jobs where id=?"
                " on conflict (job, place) do update set file=excluded.file, told=excluded.told,"
                " partial=excluded.partial, created=excluded.created where pictures.partial and pictures.trash=0",
                (picture.place, picture.file, json.dumps(picture.told), int(picture.partial), time.time(), name),
            )
            self._db.execute("update jobs set tries=0 where id=?", (name,))

    def end(self, name: str, state: State, error: LdmError | None = None) -> bool:
        """The job is over; whether it was not before: what has ended stays as it ended."""
        told = None if error is None else json.dumps(error.as_dict())
        with self._whole():
            done = self._db.execute(
                "update jobs set state=?, ended=?, error=? where id=? and state in ('queued', 'running')",
                (state, time.time(), told, name),
            )
            return done.rowcount == 1

    def withdraw(self, name: str) -> bool:
        """A job that has not begun never will; whether it had not."""
        with self._whole():
            cancelled = "update jobs set state='cancelled', ended=? where id=? and state='queued'"
            return self._db.execute(cancelled, (time.time(), name)).rowcount == 1

    def begun(self, name: str) -> None:
        """A job is about to be computed; `again` counts how often that was the last that was heard of it."""
        with self._whole():
            self._db.execute("update jobs set tries=tries+1 where id=?", (name,))

    def unwanted(self, name: str) -> bool:
        """A job that runs is to end, whatever becomes of the server until then; whether it runs."""
        with self._whole():
            running = "update jobs set unwanted=1 where id=? and state='running'"
            return self._db.execute(running, (name,)).rowcount == 1

    def again(self, name: str | None = None) -> int:
        """What ran when the server ended is queued again, with the turn that it had; how many jobs that is. Not what
        nobody wants any more, nor what has taken the server along again and again. With a name only that job, of which
        the process ended that made it."""
        which, whose = ("", ()) if name is None else (" and id=?", (name,))
        ended = "The server" if name is None else "The process"
        error = LdmError(
            Code.RESOURCE,
            f"{ended} ended while it made this job.",
            f"That was so {TRIES} times, so it is not tried again; memory may be short.",
            "Ask for a smaller picture, or for fewer at a time.",
        )
        told, now = json.dumps(error.as_dict()), time.time()
        with self._whole():
            self._db.execute(
                f"update jobs set state='cancelled', ended=? where state='running' and unwanted is not null{which}",
                (now, *whose),
            )
            self._db.execute(
                f"update jobs set state='failed', ended=?, error=? where state='running' and tries>=?{which}",
                (now, told, TRIES, *whose),
            )
            return self._db.execute(
                f"update jobs set state='queued', started=null where state='running'{which}", whose
            ).rowcount

    def list(self, states: Sequence[State] = (), limit: int = 100, before: str | None = None) -> list[Job]:
        """Jobs, the newest first; `before` is the id of the last one that was shown."""
        marks = ",".join("?" * len(states))
        chosen = f"state in ({marks})" if states else "1"
        with self._lock:
            if before is not None:
                self.job(before)
                chosen += " and number < (select number from jobs where id=?)"
            told = (*states, *(() if before is None else (before,)), limit)
            rows = self._db.execute(f"select * from jobs where {chosen} order by number desc limit ?", told).fetchall()
            numbers = [row["number"] for row in rows]
            found = self._pictures(numbers)
            return [self._job(row, found.get(row["number"], ())) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            return dict(self._db.execute("select state, count(*) from jobs group by state").fetchall())

    def pictures(self) -> int:
        """Finished pictures of all jobs."""
        with self._lock:
            return int(self._db.execute("select count(*) from pictures where not partial").fetchone()[0])

    def ahead(self, name: str) -> int:
        """Jobs whose turn comes before that of a waiting one."""
        with self._lock:
            row = self._db.execute("select state, turn, number from jobs where id=?", (name,)).fetchone()
            if row is None or row["state"] != "queued":
                return 0
            before = "select count(*) from jobs where state='queued' and (turn, number) < (?, ?)"
            return int(self._db.execute(before, (row["turn"], row["number"])).fetchone()[0])

    def read(self, asked: str, told: Sequence[Any] = ()) -> Sequence[sqlite3.Row]:
        """Rows of any table, read beside whoever writes."""
        with self._looking:
            return self._look.execute(asked, tuple(told)).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """For other tables of the file: all of it or nothing."""
        with self._whole():
            yield self._db

    def close(self) -> None:
        with self._looking:
            self._look.close()
        with self._lock:
            self._db.close()

    def _pictures(self, jobs: Sequence[int]) -> dict[int, tuple[Made, ...]]:
        """Those of several jobs at once."""
        marks, made = ",".join("?" * len(jobs)), dict[int, tuple[Made, ...]]()
        for p in self._db.execute(f"select * from pictures where job in ({marks}) order by job, place", tuple(jobs)):
            one = Made(p["place"], p["file"], json.loads(p["told"]), bool(p["partial"]), p["trash"])
            made[p["job"]] = (*made.get(p["job"], ()), one)
        return made

    def _job(self, row: sqlite3.Row, pictures: tuple[Made, ...]) -> Job:
        told = {key: row[key] for key in ("id", "client", "state", "kind", "count", "created", "started", "ended")}
        error = None if row["error"] is None else json.loads(row["error"])
        there, away = (tuple(made for made in pictures if bool(made.trash) is gone) for gone in (False, True))
        return Job(**told, asked=json.loads(row["asked"]), error=error, pictures=there, away=away)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All of it or nothing."""
        with self._lock:
            try:
                self._db.execute("begin immediate")
                yield
                self._db.execute("commit")
            except BaseException as error:
                if self._db.in_transaction:  # a full disk ends it by itself
                    self._db.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise _unwritten(error) from error
                raise


def _unwritten(error: sqlite3.Error) -> LdmError:
    why = f"The database says: {error}."
    return LdmError(Code.RESOURCE, "The list of jobs cannot be written.", why, "Free some space where it lies.")
