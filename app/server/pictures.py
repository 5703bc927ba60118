"""The pictures of all jobs: looked for by their words, thrown away, taken back, removed for good."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from app.server.gallery import Gallery, gone, never_made, removed
from app.server.store import Jobs
from app.server.tables import folded
from ldm.errors import Code, LdmError
from pipelines.recipe import read_recipe

WORD = re.compile(r'"([^"]+)"|(\S+)')
ROW = (
    "select p.*, j.id, j.asked, s.model from pictures p cross join searched s on s.job=p.job"
    " cross join jobs j on j.number=p.job"
)
AT_ONCE = 100  # pictures that are removed between two looks at the list


@dataclass(frozen=True)
class Search:
    """What is looked for; `before` is JOB/PLACE of the last one that was shown."""

    query: str = ""
    model: str | None = None
    trash: bool = False
    partial: bool | None = None
    limit: int = 60
    before: str | None = None


class Pictures:
    """Every method may be called from any thread."""

    def __init__(self, jobs: Jobs, gallery: Gallery) -> None:
        self.jobs, self.gallery = jobs, gallery
        self._moving = Lock()  # what is being removed is not taken back meanwhile
        self._mend()

    def search(self, asked: Search) -> dict[str, Any]:
        """The pictures, how many there are in all, and which models made them, this one or another."""
        before = None if asked.before is None else self._before(asked.before)
        words = list(dict.fromkeys(folded(quoted or bare) for quoted, bare in WORD.findall(asked.query)))
        chosen, told = ["p.trash=?"], [int(asked.trash), *words]
        chosen += ["instr(s.words, ?) > 0"] * len(words)
        if asked.partial is not None:
            chosen.append("p.partial=?")
            told.append(int(asked.partial))
        counts = self._counts(chosen, told)
        total = sum(counts.values()) if asked.model is None else counts.get(asked.model, 0)
        shown = self._page(asked, before, chosen, told) if total else ()
        return {"pictures": [_told(row) for row in shown], "total": total, "models": sorted(counts)}

    def throw(self, job: str, place: int) -> dict[str, Any]:
        """To the trash; its file stays."""
        return self._move(job, place, 1)

    def restore(self, job: str, place: int) -> dict[str, Any]:
        """Out of the trash."""
        return self._move(job, place, 0)

    def empty(self) -> int:
        """Removes what is in the trash, and says how many that were. Files go first: what a kill leaves is a row
        without its file, and `_mend` finds that."""
        count = 0
        with self._moving:
            while rows := self.jobs.read("select job, place, file from pictures where trash=1 limit ?", [AT_ONCE]):
                for row in rows:
                    try:
                        (self.gallery.folder / row["file"]).unlink(missing_ok=True)
                    except OSError as error:
                        what, why = f"{row['file']} cannot be removed.", f"The system says: {error.strerror}."
                        fix = "Whoever runs the server may look at its folder pictures."
                        raise LdmError(Code.RESOURCE, what, why, fix) from error
                self._forget(rows)
                count += len(rows)
        return count

    def recipe(self, job: str, place: int) -> dict[str, Any]:
        """How a picture was made, and the request that makes it alone."""
        found = self.jobs.job(job)
        recipe = json.loads(read_recipe(self.gallery.path(found, place)).to_json())
        asked: dict[str, Any] = {**found.asked, "count": 1}
        moved = "variation_seed" if asked.get("variation", 0) > 0 and "variation_seed" in asked else "seed"
        return {"recipe": recipe, "asked": {**asked, moved: asked[moved] + place}}

    def _counts(self, chosen: Sequence[str], told: Sequence[Any]) -> dict[str, int]:
        """How many pictures of each model; the words of a job are looked at once."""
        counted = "select s.model, count(*) from searched s cross join pictures p on p.job=s.job"
        return dict(self.jobs.read(f"{counted} where {' and '.join(chosen)} group by s.model", told))  # type: ignore[arg-type]

    def _page(
        self, asked: Search, before: tuple[str, int] | None, chosen: Sequence[str], told: Sequence[Any]
    ) -> Sequence[sqlite3.Row]:
        if asked.model is not None:
            chosen, told = [*chosen, "s.model=?"], [*told, asked.model]
        if before is not None:
            chosen, told = [*chosen, "(p.job, p.place) < ((select number from jobs where id=?), ?)"], [*told, *before]
        order = "order by p.job desc, p.place desc limit ?"
        return self.jobs.read(f"{ROW} where {' and '.join(chosen)} {order}", [*told, asked.limit])

    def _before(self, text: str) -> tuple[str, int]:
        job, _, place = text.rpartition("/")
        if not re.fullmatch(r"[0-9]{1,9}", place):
            why = "A picture is named by its job and its place there."
            raise LdmError(Code.USAGE, f"before is {text[:80]!r}.", why, "Write before=JOB/PLACE.")
        return self.jobs.job(job).id, int(place)

    def _move(self, name: str, place: int, trash: int) -> dict[str, Any]:
        """What is there already stays there."""
        with self._moving:
            job = self.jobs.job(name)
            made = next((made for made in (*job.pictures, *job.away) if made.place == place), None)
            if made is None:
                raise never_made(job, place)
            if made.trash == 2:
                raise removed(job, place)
            if not trash and not (self.gallery.folder / made.file).is_file():
                raise gone(job, place)
            here = "job=(select number from jobs where id=?) and place=?"
            with self.jobs.writing() as db:
                db.execute(f"update pictures set trash=? where {here}", (trash, job.id, place))
        row = self.jobs.read(f"{ROW} where j.id=? and p.place=?", (job.id, place))[0]
        return _told(row)

    def _forget(self, rows: Sequence[sqlite3.Row]) -> None:
        with self.jobs.writing() as db:
            db.executemany(
                "update pictures set trash=2 where job=? and place=?", [(row["job"], row["place"]) for row in rows]
            )

    def _mend(self) -> None:
        """What a server was removing when it was killed is removed."""
        rows = self.jobs.read("select job, place, file from pictures where trash=1")
        self._forget([row for row in rows if not (self.gallery.folder / row["file"]).exists()])


def _told(row: sqlite3.Row) -> dict[str, Any]:
    """A picture as JSON."""
    asked, made = json.loads(row["asked"]), json.loads(row["told"])
    return {
        "job": row["id"], "place": row["place"], "url": f"/v1/jobs/{row['id']}/pictures/{row['place']}",
        "prompt": asked.get("prompt", ""), "negative": asked.get("negative"), "model": row["model"],
        "seed": made.get("seed"), "width": made.get("width"), "height": made.get("height"), "steps": made.get("steps"),
        "created": row["created"], "partial": bool(row["partial"]), "trashed": bool(row["trash"]),
    }  # fmt: skip
