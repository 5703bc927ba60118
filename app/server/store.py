"""What was asked of the server and what came of it, in one SQLite file: it outlives whoever writes it.

A job that was running when its server ended is queued again; pictures of it that were finished stay, and are not made
twice. Jobs of one person stand behind each other; jobs of several people take turns (start-time fair queueing: Goyal
1996).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal
from uuid import uuid4

from ldm.errors import Code, LdmError

State = Literal["queued", "running", "done", "failed", "cancelled"]
VERSION = 1
TRIES = 5  # how often a job may take the server along
_TABLES = """
create table jobs (
  number integer primary key, id text unique not null, client text not null, state text not null, kind text not null,
  asked text not null, count integer not null, cost real not null, turn real not null,
  created real not null, started real, ended real, error text, tries integer not null default 0, unwanted integer
);
create index jobs_by_state on jobs (state, turn);
create index jobs_by_client on jobs (client, state);
create table pictures (
  job integer not null references jobs (number) on delete cascade, place integer not null,
  file text not null, told text not null, partial integer not null, primary key (job, place)
);
"""


@dataclass(frozen=True)
class Made:
    """A picture of a job: its place in the request, its file, and what is told of it."""

    place: int
    file: str
    told: Mapping[str, Any]
    partial: bool = False


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

    @property
    def missing(self) -> list[int]:
        """Places of the request that have no finished picture yet."""
        there = {made.place for made in self.pictures if not made.partial}
        return [place for place in range(self.count) if place not in there]

    @property
    def failure(self) -> LdmError | None:
        """Why it failed, as the error that it was."""
        told = self.error
        return None if told is None else LdmError(Code[told["code"].upper()], told["what"], told["why"], told["fix"])


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
        self._prepare(path)

    def _prepare(self, path: Path) -> None:
        with self._whole():
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version == 0:
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"pragma user_version={VERSION}")
            elif version != VERSION:
                raise LdmError(
                    Code.FILE,
                    f"{path} was written by another version of this program.",
                    f"Its tables are of version {version}, and this program knows {VERSION}.",
                    "Move the file away, or give the server another folder.",
                )

    def submit(self, client: str, kind: str, asked: Mapping[str, Any], count: int, cost: float) -> Job:
        """A new job behind those of the same client; refused where too many wait."""
        with self._whole():
            waiting = self._db.execute("select count(*) from jobs where state='queued'").fetchone()[0]
            if waiting >= self.longest:
                raise LdmError(
                    Code.BUSY,
                    "The queue is full.",
                    f"{waiting} jobs are waiting, and no more may.",
                    "Try again when some of them are done.",
                )
            name = uuid4().hex
            self._db.execute(
                "insert into jobs (id, client, state, kind, asked, count, cost, turn, created)"
                " values (?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
                (name, client, kind, json.dumps(asked), count, cost, self._turn(client), time.time()),
            )
        return self.job(name)

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
            row = self._db.execute("select * from jobs where state='queued' order by turn, number limit 1").fetchone()
            if row is None or (kind is not None and row["kind"] != kind):
                return None
            self._db.execute("update jobs set state='running', started=? where number=?", (time.time(), row["number"]))
        return self.job(row["id"])

    def made(self, name: str, picture: Made) -> None:
        """A picture is there; a finished one stands in the place of a partial one, and never the other way round."""
        with self._whole():
            self._db.execute(
                "insert into pictures (job, place, file, told, partial)"
                " select number, ?, ?, ?, ? from jobs where id=?"
                " on conflict (job, place) do update set file=excluded.file, told=excluded.told,"
                " partial=excluded.partial where pictures.partial",
                (picture.place, picture.file, json.dumps(picture.told), int(picture.partial), name),
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

    def unwanted(self, name: str) -> None:
        """A job that runs is to end, whatever becomes of the server until then."""
        with self._whole():
            self._db.execute("update jobs set unwanted=1 where id=? and state='running'", (name,))

    def again(self) -> int:
        """What ran when the server ended is queued again, with the turn that it had; how many jobs that is. Not what
        nobody wants any more, nor what has taken the server along again and again."""
        error = LdmError(
            Code.RESOURCE,
            "The server ended while it made this job.",
            f"That was so {TRIES} times, so it is not tried again; memory may be short.",
            "Ask for a smaller picture, or for fewer at a time.",
        )
        told, now = json.dumps(error.as_dict()), time.time()
        with self._whole():
            self._db.execute(
                "update jobs set state='cancelled', ended=? where state='running' and unwanted is not null", (now,)
            )
            self._db.execute(
                "update jobs set state='failed', ended=?, error=? where state='running' and tries>=?",
                (now, told, TRIES),
            )
            return self._db.execute("update jobs set state='queued', started=null where state='running'").rowcount

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

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _pictures(self, jobs: Sequence[int]) -> dict[int, tuple[Made, ...]]:
        """Those of several jobs at once."""
        marks, made = ",".join("?" * len(jobs)), dict[int, tuple[Made, ...]]()
        for p in self._db.execute(f"select * from pictures where job in ({marks}) order by job, place", tuple(jobs)):
            one = Made(p["place"], p["file"], json.loads(p["told"]), bool(p["partial"]))
            made[p["job"]] = (*made.get(p["job"], ()), one)
        return made

    def _job(self, row: sqlite3.Row, pictures: tuple[Made, ...]) -> Job:
        told = {key: row[key] for key in ("id", "client", "state", "kind", "count", "created", "started", "ended")}
        error = None if row["error"] is None else json.loads(row["error"])
        return Job(**told, asked=json.loads(row["asked"]), error=error, pictures=pictures)

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
