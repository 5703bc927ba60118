"""The tables of a server's one SQLite file, and how a file of an older version becomes one of this version."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError

FIRST = """
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
# trash: 0 there, 1 in the trash, 2 removed for good; the row stays, so that its place is never made again.
# searched: short rows, for each search reads all of them. cells: those of a grid, of which a few at a time are jobs.
SECOND = """
alter table pictures add column trash integer not null default 0;
alter table pictures add column created real not null default 0;
update pictures set created=(select coalesce(ended, started, created) from jobs where number=pictures.job);
create index pictures_by_trash on pictures (trash, job desc, place desc, partial);
create table searched (
  job integer primary key references jobs (number) on delete cascade, model text not null, words text not null
);
create index searched_by_model on searched (model, job);
create table grids (
  number integer primary key, id text unique not null, client text not null, created real not null, asked text not null
);
create table cells (
  grid integer not null references grids (number) on delete cascade, place integer not null, asked text not null,
  kind text not null, cost real not null, state text not null default 'waiting',
  job integer references jobs (number) on delete set null, primary key (grid, place)
);
create index cells_waiting on cells (grid, place) where state='waiting';
create index cells_by_job on cells (job);
"""


def _first(db: sqlite3.Connection) -> None:
    _run(db, FIRST)


def _second(db: sqlite3.Connection) -> None:
    _run(db, SECOND)
    for number, asked in db.execute("select number, asked from jobs").fetchall():
        searchable(db, number, json.loads(asked))


def _run(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        db.execute(statement)


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _second)  # each to the next version


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Inside a transaction: a new file gets its tables, an older one what it lacks."""
    version = db.execute("pragma user_version").fetchone()[0]
    newest = len(STEPS)
    if version == newest:
        return
    if not 0 <= version < newest:
        raise LdmError(
            Code.FILE,
            f"{path} was written by another version of this program.",
            f"Its tables are of version {version}, and this program knows {newest}.",
            "Move the file away, or give the server another folder.",
        )
    for step in STEPS[version:]:
        step(db)
    db.execute(f"pragma user_version={newest}")


def searchable(db: sqlite3.Connection, number: int, asked: Mapping[str, Any]) -> None:
    """A job is found by its words and its model."""
    told = (number, str(asked.get("model", "")), folded(str(asked.get("prompt", ""))))
    db.execute("insert into searched (job, model, words) values (?, ?, ?)", told)


def folded(text: str) -> str:
    """As it is compared: no capitals, one form of each letter, one space between words."""
    whole = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", whole).casefold()).split())
